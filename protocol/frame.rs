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
//! That is how old and new can meet: speculation (windows, drafts, discard ranges) and grammar
//! masks are sections to come.

use crate::{
    Batch, Carried, Epoch, Hidden, ModelId, PipelineId, SliceOutput, StageId, StageIndex, StepId,
    TraceContext, WIRE_VERSION,
    codec::{self, CodecError},
};
use bincode::{Decode, Encode};
use bytes::Bytes;

const MAGIC: [u8; 4] = *b"AGLM";

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
    /// The step.
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
}

/// A batch on its way through the stages.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Step {
    /// What to compute.
    pub batch: Carried<Batch>,
    /// The previous stage's output, `[num_tokens, hidden_size]`; empty at stage 0.
    pub hidden: Hidden,
    /// Of the stages so far.
    pub timings: Vec<StageTiming>,
    /// Under which spans the stages' own are to stand: one for each sequence whose trace keeps this
    /// step.
    pub traces: Vec<TraceContext>,
}

/// What the last stage sampled in one step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sampled {
    /// One for each slice, in the batch's order.
    pub outputs: Vec<SliceOutput>,
    /// Of all stages.
    pub timings: Vec<StageTiming>,
}

/// A step that a stage could not compute.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Failed {
    /// One sentence for a person.
    pub cause: String,
    /// Whether the stage is of no more use (its device is lost).
    pub fatal: bool,
}

/// Where a stage's part of a step went, in microseconds.
///
/// The parts follow each other without a gap, from the arrival of the frame's last byte until QUIC
/// has taken the last byte of what the stage makes of it: decode, wait, hand-off, upload, compute,
/// readback, hand-off, encode, send. Clocks of two machines are never compared: what is left of
/// the time that a step was away from the coordinator, once the parts of all its stages are taken
/// off, was spent in the network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct StageTiming {
    /// Which stage.
    pub stage: StageIndex,
    /// Making a frame of bytes; 0 when it never left the process.
    pub decode_us: u32,
    /// Behind other steps, in the stage's inbox and before its device.
    pub wait_us: u32,
    /// From one task to the next, to the device's thread and back, with nothing in the way.
    pub handoff_us: u32,
    /// Taking in the batch, and writing it and the hidden state into the device's buffers.
    pub upload_us: u32,
    /// Handing over commands, and the device's time, its copies from and to host memory included.
    pub compute_us: u32,
    /// Making values of the bytes that the device left in host memory.
    pub readback_us: u32,
    /// Making bytes of a frame; of the one that the stage sent before, since a frame can't tell
    /// how long it takes itself. 0 within a process.
    pub encode_us: u32,
    /// Until QUIC had taken those bytes: what flow control held up. Of the frame before, too.
    pub send_us: u32,
    /// Smoothed round trip of the connection on which the stage's frames leave; 0 within a
    /// process.
    pub rtt_us: u32,
    /// Bytes of the frame that arrived; 0 within a process.
    pub received_bytes: u32,
}

impl StageTiming {
    /// Everything between a frame's arrival and the departure of the next.
    pub fn total_us(&self) -> u64 {
        [
            self.decode_us,
            self.wait_us,
            self.handoff_us,
            self.upload_us,
            self.compute_us,
            self.readback_us,
            self.encode_us,
            self.send_us,
        ]
        .into_iter()
        .map(u64::from)
        .sum()
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
    #[error("frame speaks wire version {theirs}, this process speaks {WIRE_VERSION}")]
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
        /// Which.
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
}

impl Section {
    fn is_known(kind: u16) -> bool {
        let known =
            [Self::Batch, Self::Hidden, Self::Outputs, Self::Failed, Self::Traces, Self::Timings];
        known.into_iter().any(|section| section as u16 == kind)
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
                hidden = step.hidden.bytes().clone();
                begin_section(&mut head, Section::Hidden, CRITICAL, hidden.len());
                1
            }
            Body::Sampled(Sampled { outputs, timings }) => {
                add_section(&mut head, Section::Outputs, CRITICAL, &codec::encode(outputs));
                add_section(&mut head, Section::Timings, 0, &codec::encode(timings));
                2
            }
            Body::Failed(failed) => {
                add_section(&mut head, Section::Failed, CRITICAL, &codec::encode(failed));
                3
            }
        };
        let length = u32_of(head.len() - HEADER_BYTES + hidden.len());
        head[0..4].copy_from_slice(&MAGIC);
        head[4..6].copy_from_slice(&WIRE_VERSION.to_le_bytes());
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
    /// When the header isn't one of this version, or promises more than `max` bytes.
    pub fn payload_bytes(header: &[u8; HEADER_BYTES], max: usize) -> Result<usize, FrameError> {
        if header[0..4] != MAGIC {
            return Err(FrameError::BadMagic);
        }
        let theirs = u16::from_le_bytes([header[4], header[5]]);
        if theirs != WIRE_VERSION {
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
                    timings: sections.optional(Section::Timings)?,
                    traces: sections.optional(Section::Traces)?,
                })
            }
            2 => Body::Sampled(Sampled {
                outputs: codec::decode(sections.one(Section::Outputs, "outputs")?)?,
                timings: sections.optional(Section::Timings)?,
            }),
            3 => Body::Failed(codec::decode(sections.one(Section::Failed, "failed")?)?),
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
                batch + step.timings.len() * 32 + 256
            }
            Body::Sampled(sampled) => sampled.outputs.len() * 64 + 256,
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

    fn optional<T: Default + Decode<()>>(&self, section: Section) -> Result<T, FrameError> {
        self.all(section).next().map_or_else(|| Ok(T::default()), |b| Ok(codec::decode(b)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Begin, BlockId, Input, Logprobs, SamplingParams, Slice, TokenId, TokenLogprob};
    use proptest::prelude::*;

    fn frame(body: Body) -> Frame {
        Frame {
            model: ModelId([7; 16]),
            stage: StageId {
                pipeline: PipelineId(3),
                epoch: Epoch { start: 9, counter: 4 },
                stage: StageIndex(1),
            },
            step: StepId(1 << 40),
            body,
        }
    }

    fn bytes(frame: &Frame) -> Vec<u8> {
        frame.encode().concat()
    }

    fn decode(bytes: &[u8]) -> Result<Frame, FrameError> {
        Frame::decode(&Bytes::copy_from_slice(bytes))
    }

    fn step() -> Step {
        let slice = Slice {
            sequence: crate::SequenceId(5),
            start: 2,
            input: Input::Tokens(vec![TokenId(1), TokenId(2)]),
            first_block: 0,
            blocks: vec![BlockId(8)],
            begin: Some(Box::new(Begin {
                sampling: SamplingParams::default(),
                num_prompt_tokens: 4,
                skipped: vec![TokenId(0), TokenId(9)],
                copy_from: Some(BlockId(3)),
            })),
            sample: true,
            next: None,
        };
        Step {
            batch: Batch { finished: vec![crate::SequenceId(4)], slices: vec![slice] }.into(),
            hidden: [1.5, -0.0, f32::MIN_POSITIVE / 2.0, f32::MAX].into_iter().collect(),
            timings: vec![StageTiming { compute_us: 5, ..StageTiming::default() }],
            traces: vec![TraceContext {
                trace: crate::TraceId([3; 16]),
                span: crate::SpanId(8),
                sampled: true,
            }],
        }
    }

    fn sampled() -> Sampled {
        let top = TokenLogprob { token: TokenId(3), logprob: -0.25 };
        let logprobs = Logprobs { chosen: top, top: vec![top] };
        let output = SliceOutput {
            sequence: crate::SequenceId(5),
            position: 4,
            token: Some(TokenId(3)),
            logprobs: Some(logprobs.clone()),
            prompt_logprobs: vec![logprobs],
        };
        Sampled { outputs: vec![output], timings: vec![] }
    }

    #[test]
    fn every_kind_comes_back_bit_for_bit() {
        let failed = Failed { cause: "device lost".into(), fatal: true };
        for body in [Body::Step(step()), Body::Sampled(sampled()), Body::Failed(failed)] {
            let sent = frame(body);
            assert_eq!(decode(&bytes(&sent)).unwrap(), sent);
        }
    }

    /// Where the contents of a frame's sections are, by their kinds.
    fn sections(bytes: &[u8]) -> Vec<(u16, std::ops::Range<usize>)> {
        let mut at = HEADER_BYTES;
        let mut found = Vec::new();
        while at < bytes.len() {
            let length = u32::from_le_bytes(*bytes[at + 4..].first_chunk().unwrap()) as usize;
            found.push((u16::from_le_bytes([bytes[at], bytes[at + 1]]), at + 8..at + 8 + length));
            at += 8 + length;
        }
        found
    }

    /// Method: a batch whose first number is written longer than need be. Decoded and encoded
    /// again it would be shorter.
    #[test]
    fn a_batch_is_sent_on_in_the_bytes_that_it_came_in_unless_it_was_changed() {
        let sent = frame(Body::Step(step()));
        let shortest = bytes(&sent);
        let (kind, batch) = sections(&shortest)[0].clone();
        assert_eq!((kind, shortest[batch.start]), (Section::Batch as u16, 1), "one has finished");
        let mut came = shortest.clone();
        came.splice(batch.start..=batch.start, [251, 1, 0]);
        for (at, added) in [(batch.start - 4, 2), (60, 2)] {
            let length = u32::from_le_bytes(*came[at..].first_chunk().unwrap()) + added;
            came[at..at + 4].copy_from_slice(&length.to_le_bytes());
        }
        let received = Bytes::from(came);
        let mut got = Frame::decode(&received).unwrap();
        assert_eq!(got, sent);
        let pieces = got.encode();
        assert_eq!(pieces.concat(), received);
        let within = received.as_ptr_range();
        assert!(within.contains(&pieces[1].as_ptr()), "the hidden state is the one that came");

        let Body::Step(step) = &mut got.body else { panic!() };
        step.batch.slices[0].input = Input::Tokens(vec![TokenId(3)]);
        let changed = decode(&bytes(&got)).unwrap();
        assert_eq!(changed, got);
        assert_ne!(changed, sent);
    }

    #[test]
    fn a_hidden_state_that_ends_within_a_value_is_refused() {
        for left_off in 1..4 {
            let mut bytes = bytes(&frame(Body::Step(step())));
            let (kind, hidden) = sections(&bytes).pop().unwrap();
            assert_eq!(kind, Section::Hidden as u16, "it comes last");
            bytes.truncate(bytes.len() - left_off);
            for (at, length) in
                [(hidden.start - 4, hidden.len() - left_off), (60, bytes.len() - HEADER_BYTES)]
            {
                bytes[at..at + 4].copy_from_slice(&(length as u32).to_le_bytes());
            }
            assert_eq!(decode(&bytes), Err(FrameError::WrongLengths));
        }
    }

    #[test]
    fn an_unknown_section_is_skipped_unless_it_is_critical() {
        let sent = frame(Body::Sampled(sampled()));
        // 3 is what a sender of the first timings would say.
        let unknown = |kind| Err(FrameError::UnknownSection(kind));
        for (kind, flags, expected) in
            [(99u16, 0u16, Ok(())), (99, 1, unknown(99)), (3, 0, Ok(())), (3, 1, unknown(3))]
        {
            let mut bytes = bytes(&sent);
            bytes.extend(kind.to_le_bytes());
            bytes.extend(flags.to_le_bytes());
            bytes.extend(2u32.to_le_bytes());
            bytes.extend([1, 2]);
            bytes[NUM_SECTIONS_AT] += 1;
            let length = (bytes.len() - HEADER_BYTES) as u32;
            bytes[60..64].copy_from_slice(&length.to_le_bytes());
            assert_eq!(decode(&bytes).map(|got| assert_eq!(got, sent)), expected);
        }
    }

    #[test]
    fn a_frame_of_another_version_is_refused_by_name() {
        let mut bytes = bytes(&frame(Body::Step(step())));
        bytes[4] = 9;
        let error = decode(&bytes).unwrap_err();
        let expected = format!("frame speaks wire version 9, this process speaks {WIRE_VERSION}");
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_before_it_is_read() {
        let mut header = [0; HEADER_BYTES];
        header.copy_from_slice(&bytes(&frame(Body::Step(step())))[..HEADER_BYTES]);
        header[60..64].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(
            Frame::payload_bytes(&header, 1000),
            Err(FrameError::TooLong { bytes: u32::MAX as usize, max: 1000 })
        );
    }

    proptest! {
        /// What a frame holds hangs on no alignment of its bytes.
        #[test]
        fn frames_come_back_from_wherever_they_lie(
            offset in 0usize..16,
            values in proptest::collection::vec(any::<u32>(), 0..40),
        ) {
            let values: Vec<_> = values.into_iter().map(f32::from_bits).collect();
            let hidden: Hidden = values.iter().copied().collect();
            let sent = frame(Body::Step(Step { hidden, ..step() }));
            let mut there = vec![0; offset];
            there.extend(bytes(&sent));
            let got = Frame::decode(&Bytes::from(there).slice(offset..)).unwrap();
            let Body::Step(step) = &got.body else { panic!() };
            let bits = |value: f32| value.to_bits();
            prop_assert!(step.hidden.values().map(bits).eq(values.into_iter().map(bits)));
            prop_assert_eq!(step.hidden.len() * 4, step.hidden.bytes().len());
            prop_assert_eq!(got, sent);
        }

        /// A section that says it is longer or shorter than it is takes no more memory than its
        /// frame, and is refused, or leaves a frame that says the same when it is sent on.
        #[test]
        fn lengths_that_lie_never_panic(
            section in 0usize..4, lie in any::<u32>(), near in -9i64..9,
        ) {
            let bytes = bytes(&frame(Body::Step(step())));
            let (_, content) = sections(&bytes)[section].clone();
            for length in [lie, (content.len() as i64 + near).max(0) as u32] {
                let mut bytes = bytes.clone();
                bytes[content.start - 4..content.start].copy_from_slice(&length.to_le_bytes());
                if let Ok(got) = decode(&bytes) {
                    prop_assert_eq!(decode(&self::bytes(&got)), Ok(got));
                }
            }
        }

        #[test]
        fn damaged_frames_never_panic(at in 0usize..400, value in any::<u8>(), cut in 0usize..400) {
            let mut bytes = bytes(&frame(Body::Step(step())));
            let at = at % bytes.len();
            bytes[at] = value;
            let _ = decode(&bytes);
            bytes.truncate(cut);
            let _ = decode(&bytes);
        }
    }
}
