//! Frames of the data plane: a fixed header, then typed sections.
//!
//! ```text
//!  0  4  magic "AGLM"          24  8  epoch.counter
//!  4  2  wire version          32  8  step
//!  6  1  kind                  40 16  model
//!  7  1  number of sections    56  4  reserved, 0
//!  8  4  pipeline              60  4  bytes of all sections
//! 12  4  stage
//! 16  8  epoch.start           all integers little-endian
//! ```
//! A section is `u16 kind, u16 flags, u32 bytes`, then its bytes. Flag 1 is the critical bit: a
//! reader that doesn't know a critical section refuses the frame by name, and skips any other.
//! That is how old and new can meet: speculation (windows, drafts, discard ranges) is a section to
//! come. Masks are one that nobody may skip: only processes of wire version 5 are sent any.
//!
//! The wire version is the oldest whose processes can read the frame, not the sender's.

use crate::{
    Batch, Carried, Epoch, Hidden, Masks, ModelId, PipelineId, SliceOutput, StageId, StageIndex,
    StageTiming, StepId, TraceContext, WIRE_VERSION,
    codec::{self, CodecError},
};
use bincode::{Decode, Encode};
use bytes::Bytes;

const MAGIC: [u8; 4] = *b"AGLM";

/// The wire version since which frames are as they are: what has been added stands in sections
/// that are not critical. Every frame says it, so that whoever speaks an older version than this
/// process reads it, too.
const FRAMES_SINCE: u16 = 3;

/// Bytes of the fixed header.
pub const HEADER_BYTES: usize = 64;

/// Where the header says how many sections follow it.
const NUM_SECTIONS_AT: usize = 7;

const CRITICAL: u16 = 1;

/// One message of the data plane.
#[derive(Clone, Debug, PartialEq)]
pub struct Frame {
    /// Which model the frame is about.
    pub model: ModelId,
    /// The stage that it goes to, or that it comes from when it goes to the coordinator.
    pub stage: StageId,
    /// The step that it is about.
    pub step: StepId,
    /// What it says.
    pub body: Body,
}

/// What a frame says.
#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    /// To a stage: compute this. To stage 0 without a hidden state, to the others with one.
    Step(Step),
    /// From the last stage: what was sampled.
    Sampled(Sampled),
    /// From a stage: this step can't be computed.
    Failed(Failed),
    /// To the last stage: which tokens it may sample in a step that waits for this.
    Masks(Masks),
}

/// A batch on its way through the stages.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Step {
    /// What to compute.
    pub batch: Carried<Batch>,
    /// The previous stage's output, `[num_tokens, hidden_size]`; empty at stage 0.
    pub hidden: Hidden,
    /// What the next stage needs beside it.
    pub side: Option<Side>,
    /// Which tokens the last stage may sample, where not all.
    pub masks: Masks,
    /// Whether that comes on a way of its own, keyed by the step.
    pub awaits_masks: bool,
    /// Slices, by their places in the batch, of whose last token the last stage is to tell the
    /// hidden state.
    pub tells_hidden: Vec<u32>,
    /// Of the stages so far.
    pub timings: Vec<StageTiming>,
    /// Under which spans the stages' own are to stand: one for each sequence whose trace keeps this
    /// step.
    pub traces: Vec<TraceContext>,
}

/// A tensor that goes from one stage to the next beside the hidden state: words of each token.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Side {
    /// What its words mean to the next stage.
    pub name: String,
    /// Of all tokens, in their order.
    pub words: Vec<u32>,
}

/// What the last stage sampled in one step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sampled {
    /// One for each slice, in the batch's order.
    pub outputs: Vec<SliceOutput>,
    /// One for each slice whose hidden state was to be told.
    pub hidden: Vec<HiddenRow>,
    /// One for each stage, in the order of the pipeline.
    pub timings: Vec<StageTiming>,
}

/// The hidden state of a slice's last token after the last layer and the final norm.
#[derive(Clone, Debug, Default, PartialEq, Encode, Decode)]
pub struct HiddenRow {
    /// The slice, by its place in the batch.
    pub slice: u32,
    /// As many as the model is wide.
    pub values: Vec<f32>,
}

/// A step that a stage could not compute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// One sentence for a person.
    pub cause: String,
    /// Whether the stage is of no more use (its device is lost).
    pub fatal: bool,
    /// Whose fault that is.
    pub blame: Blame,
}

/// Whose fault it is that a stage is of no more use, as far as it can tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub enum Blame {
    /// Its own: its device, its files.
    #[default]
    Own,
    /// The stage before it is gone; before the first it is the last that tells it what was sampled.
    Before,
    /// The stage after it is gone, or can't be reached; after the last it is the first.
    Next,
    /// The plan's: the stage takes so many bytes more than it may. Said of stages that don't load,
    /// since wire version 5.
    Memory(u64),
}

impl Blame {
    /// The wire version since which it is said.
    pub fn since(self) -> u16 {
        if matches!(self, Self::Memory(_)) { 5 } else { 4 }
    }
}

/// Why bytes are not a frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Fewer bytes than the header or its lengths promise.
    #[error("frame is truncated: {held} bytes, {promised} promised")]
    Truncated {
        /// Bytes that are there.
        held: usize,
        /// Bytes that were promised.
        promised: usize,
    },
    /// More bytes than the limit.
    #[error("frame of {bytes} bytes exceeds transport.max_frame_bytes = {max}")]
    TooLong {
        /// Bytes that were promised.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// Not ours.
    #[error("frame doesn't begin with AGLM")]
    BadMagic,
    /// Of another version.
    #[error("frame speaks wire version {theirs}, this process {FRAMES_SINCE} to {WIRE_VERSION}")]
    UnknownVersion {
        /// The sender's.
        theirs: u16,
    },
    /// A kind that this version doesn't have.
    #[error("frame kind {0} is unknown")]
    UnknownKind(u8),
    /// A section that must be understood and isn't.
    #[error("critical section {0} is unknown: the sender is newer than this process")]
    UnknownSection(u16),
    /// A section that the kind needs is not there, or stands twice.
    #[error("frame has {count} {name} sections, needs 1")]
    WrongSections {
        /// As the format's description calls it.
        name: &'static str,
        /// How many there are.
        count: usize,
    },
    /// The lengths contradict each other.
    #[error("frame's lengths contradict each other")]
    WrongLengths,
    /// A section's content is malformed.
    #[error(transparent)]
    Content(#[from] CodecError),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Section {
    Batch = 1,
    Hidden = 2,
    Outputs = 4,
    Failed = 5,
    Traces = 6,
    // 3 held timings of fewer parts: a section whose content changes gets another number.
    Timings = 7,
    // Left out where it is nobody else's fault.
    Blame = 8,
    // Left out where a layer needs nothing of the one before it but the hidden state.
    Side = 9,
    // Left out where there are none.
    Masks = 10,
    // Left out where masks are with the step, or nowhere: it has no content.
    AwaitsMasks = 11,
    // Left out where no hidden state is to be told.
    TellsHidden = 12,
    HiddenRows = 13,
}

impl Section {
    fn is_known(kind: u16) -> bool {
        // 3 is none any more.
        (Self::Batch as u16..=Self::HiddenRows as u16).contains(&kind) && kind != 3
    }
}

impl Frame {
    /// The frame's bytes, in two pieces: the hidden state, which comes last, is shared and not
    /// copied. A batch that came over the wire isn't encoded again.
    pub fn encode(&self) -> [Bytes; 2] {
        let mut head = Vec::with_capacity(HEADER_BYTES + self.size_hint());
        head.resize(HEADER_BYTES, 0);
        let mut hidden = Bytes::new();
        let kind = match &self.body {
            Body::Step(step) => {
                let encoded = || codec::encode(&*step.batch).into();
                let batch = step.batch.bytes().cloned().unwrap_or_else(encoded);
                add_section(&mut head, Section::Batch, CRITICAL, &batch);
                add_section(&mut head, Section::Timings, 0, &codec::encode(&step.timings));
                if !step.traces.is_empty() {
                    add_section(&mut head, Section::Traces, 0, &codec::encode(&step.traces));
                }
                if let Some(side) = &step.side {
                    add_section(&mut head, Section::Side, CRITICAL, &codec::encode(side));
                }
                if !step.masks.is_empty() {
                    add_section(&mut head, Section::Masks, CRITICAL, step.masks.bytes());
                }
                if step.awaits_masks {
                    add_section(&mut head, Section::AwaitsMasks, CRITICAL, &[]);
                }
                if !step.tells_hidden.is_empty() {
                    let slices = codec::encode(&step.tells_hidden);
                    add_section(&mut head, Section::TellsHidden, CRITICAL, &slices);
                }
                hidden = step.hidden.bytes().clone();
                begin_section(&mut head, Section::Hidden, CRITICAL, hidden.len());
                1
            }
            Body::Sampled(Sampled { outputs, hidden: rows, timings }) => {
                add_section(&mut head, Section::Outputs, CRITICAL, &codec::encode(outputs));
                if !rows.is_empty() {
                    add_section(&mut head, Section::HiddenRows, CRITICAL, &codec::encode(rows));
                }
                add_section(&mut head, Section::Timings, 0, &codec::encode(timings));
                2
            }
            Body::Failed(Failed { cause, fatal, blame }) => {
                add_section(&mut head, Section::Failed, CRITICAL, &codec::encode(&(cause, fatal)));
                if *blame != Blame::default() {
                    add_section(&mut head, Section::Blame, 0, &codec::encode(blame));
                }
                3
            }
            Body::Masks(masks) => {
                add_section(&mut head, Section::Masks, CRITICAL, masks.bytes());
                4
            }
        };
        let length = u32_of(head.len() - HEADER_BYTES + hidden.len());
        head[0..4].copy_from_slice(&MAGIC);
        head[4..6].copy_from_slice(&FRAMES_SINCE.to_le_bytes());
        head[6] = kind;
        head[8..12].copy_from_slice(&self.stage.pipeline.0.to_le_bytes());
        head[12..16].copy_from_slice(&self.stage.stage.0.to_le_bytes());
        head[16..24].copy_from_slice(&self.stage.epoch.start.to_le_bytes());
        head[24..32].copy_from_slice(&self.stage.epoch.counter.to_le_bytes());
        head[32..40].copy_from_slice(&self.step.0.to_le_bytes());
        head[40..56].copy_from_slice(&self.model.0);
        head[60..64].copy_from_slice(&length.to_le_bytes());
        [head.into(), hidden]
    }

    /// The bytes that follow a header, checked against `max` before anyone takes memory for them.
    ///
    /// # Errors
    /// When the header isn't one that this version reads, or promises more than `max` bytes.
    pub fn payload_bytes(header: &[u8; HEADER_BYTES], max: usize) -> Result<usize, FrameError> {
        if header[0..4] != MAGIC {
            return Err(FrameError::BadMagic);
        }
        let theirs = u16::from_le_bytes([header[4], header[5]]);
        if !(FRAMES_SINCE..=WIRE_VERSION).contains(&theirs) {
            return Err(FrameError::UnknownVersion { theirs });
        }
        let bytes = u32::from_le_bytes([header[60], header[61], header[62], header[63]]) as usize;
        if bytes > max {
            return Err(FrameError::TooLong { bytes, max });
        }
        Ok(bytes)
    }

    /// The frame that is all of `bytes`. It shares them: what is large in it isn't copied.
    ///
    /// # Errors
    /// When the bytes are anything else.
    pub fn decode(bytes: &Bytes) -> Result<Self, FrameError> {
        let truncated = |promised| FrameError::Truncated { held: bytes.len(), promised };
        let header = bytes.first_chunk::<HEADER_BYTES>().ok_or(truncated(HEADER_BYTES))?;
        let payload = Self::payload_bytes(header, usize::MAX)?;
        if bytes.len() - HEADER_BYTES < payload {
            return Err(truncated(HEADER_BYTES + payload));
        }
        let sections = Sections::parse(&bytes[HEADER_BYTES..], header[NUM_SECTIONS_AT])?;
        let body = match header[6] {
            1 => {
                let batch = sections.one(Section::Batch, "batch")?;
                let hidden = sections.one(Section::Hidden, "hidden")?;
                Body::Step(Step {
                    batch: Carried::new(codec::decode(batch)?, bytes.slice_ref(batch)),
                    hidden: Hidden::new(bytes.slice_ref(hidden)).ok_or(FrameError::WrongLengths)?,
                    side: sections.all(Section::Side).next().map(codec::decode).transpose()?,
                    masks: sections.masks(bytes)?,
                    awaits_masks: sections.all(Section::AwaitsMasks).next().is_some(),
                    tells_hidden: sections.optional(Section::TellsHidden)?,
                    timings: sections.optional(Section::Timings)?,
                    traces: sections.optional(Section::Traces)?,
                })
            }
            2 => Body::Sampled(Sampled {
                outputs: codec::decode(sections.one(Section::Outputs, "outputs")?)?,
                hidden: sections.optional(Section::HiddenRows)?,
                timings: sections.optional(Section::Timings)?,
            }),
            3 => {
                let (cause, fatal) = codec::decode(sections.one(Section::Failed, "failed")?)?;
                Body::Failed(Failed { cause, fatal, blame: sections.optional(Section::Blame)? })
            }
            4 => Body::Masks(sections.masks(bytes)?),
            kind => return Err(FrameError::UnknownKind(kind)),
        };
        let u32_at =
            |at: usize| u32::from_le_bytes(*header[at..].first_chunk().expect("inside the header"));
        let u64_at =
            |at: usize| u64::from_le_bytes(*header[at..].first_chunk().expect("inside the header"));
        Ok(Self {
            model: ModelId(*header[40..].first_chunk().expect("inside the header")),
            stage: StageId {
                pipeline: PipelineId(u32_at(8)),
                epoch: Epoch { start: u64_at(16), counter: u64_at(24) },
                stage: StageIndex(u32_at(12)),
            },
            step: StepId(u64_at(32)),
            body,
        })
    }

    fn size_hint(&self) -> usize {
        match &self.body {
            Body::Step(step) => {
                let batch = step.batch.bytes().map_or(step.batch.slices.len() * 64, Bytes::len);
                batch + step.masks.bytes().len() + step.timings.len() * 32 + 256
            }
            Body::Sampled(sampled) => {
                let rows = sampled.hidden.iter().map(|row| row.values.len() * 4 + 16);
                sampled.outputs.len() * 64 + rows.sum::<usize>() + 256
            }
            Body::Masks(masks) => masks.bytes().len() + 256,
            Body::Failed(_) => 256,
        }
    }
}

/// Adds a section to a frame whose header is there.
fn add_section(frame: &mut Vec<u8>, kind: Section, flags: u16, content: &[u8]) {
    begin_section(frame, kind, flags, content.len());
    frame.extend_from_slice(content);
}

/// Adds a section but for its content.
fn begin_section(frame: &mut Vec<u8>, kind: Section, flags: u16, num_bytes: usize) {
    frame.extend((kind as u16).to_le_bytes());
    frame.extend(flags.to_le_bytes());
    frame.extend(u32_of(num_bytes).to_le_bytes());
    frame[NUM_SECTIONS_AT] += 1;
}

fn u32_of(num_bytes: usize) -> u32 {
    u32::try_from(num_bytes).expect("frames are below 4 GiB")
}

/// The sections of a frame that this version knows.
struct Sections<'a>(Vec<(u16, &'a [u8])>);

impl<'a> Sections<'a> {
    fn parse(mut bytes: &'a [u8], count: u8) -> Result<Self, FrameError> {
        let mut known = Vec::with_capacity(usize::from(count));
        for _ in 0..count {
            let (head, rest) = bytes.split_first_chunk::<8>().ok_or(FrameError::WrongLengths)?;
            let kind = u16::from_le_bytes([head[0], head[1]]);
            let flags = u16::from_le_bytes([head[2], head[3]]);
            let length = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
            if length > rest.len() {
                return Err(FrameError::WrongLengths);
            }
            let (content, rest) = rest.split_at(length);
            bytes = rest;
            if Section::is_known(kind) {
                known.push((kind, content));
            } else if flags & CRITICAL != 0 {
                return Err(FrameError::UnknownSection(kind));
            }
        }
        if !bytes.is_empty() {
            return Err(FrameError::WrongLengths);
        }
        Ok(Self(known))
    }

    fn all(&self, section: Section) -> impl Iterator<Item = &'a [u8]> {
        self.0.iter().filter(move |(kind, _)| *kind == section as u16).map(|(_, bytes)| *bytes)
    }

    fn one(&self, section: Section, name: &'static str) -> Result<&'a [u8], FrameError> {
        let count = self.all(section).count();
        self.all(section)
            .next()
            .filter(|_| count == 1)
            .ok_or(FrameError::WrongSections { name, count })
    }

    /// They share the frame's bytes.
    fn masks(&self, frame: &Bytes) -> Result<Masks, FrameError> {
        let Some(bytes) = self.all(Section::Masks).next() else { return Ok(Masks::default()) };
        Masks::new(frame.slice_ref(bytes)).ok_or(FrameError::WrongLengths)
    }

    fn optional<T: Default + Decode<()>>(&self, section: Section) -> Result<T, FrameError> {
        self.all(section).next().map_or_else(|| Ok(T::default()), |b| Ok(codec::decode(b)?))
    }
}

#[cfg(test)]
#[path = "frame_tests.rs"]
mod tests;
