//! A model's files in pieces that are known by their digests, so that a node needs no files of its
//! own: it asks for those pieces that its layers lie in, and can check each.

use std::collections::BTreeSet;
use std::ops::Range;

use bincode::{Decode, Encode};

use crate::{Digest, ModelId, StagePlan};

/// Longest manifest: one of 32 TiB in pieces of 4 MiB.
pub const MAX_MANIFEST_BYTES: usize = 256 << 20;

/// Sizes that a piece may have.
pub(crate) const PIECE_BYTES: Range<u32> = 4 << 10..(64 << 20) + 1;

const MAX_FILES: usize = 4096;

/// The pieces that hold headers, and those of each part of a stage.
pub(crate) type NeededByPart = (BTreeSet<PieceId>, Vec<BTreeSet<PieceId>>);

/// What a model's files hold, without the bytes.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Manifest {
    /// The file that stands for the model; empty: the directory does.
    pub entry: String,
    /// Bytes of every piece, but for the last of a file.
    pub piece_bytes: u32,
    /// The files of the model, in the order in which pieces number them.
    pub files: Vec<FileManifest>,
    /// Where the embedding, each layer and the head lie.
    pub parts: Vec<Vec<Extent>>,
}

/// One file of a model.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct FileManifest {
    /// Its name in the model's directory.
    pub name: String,
    /// Its length.
    pub num_bytes: u64,
    /// What of its beginning everybody needs.
    pub header_bytes: u64,
    /// Hashes of its pieces.
    pub pieces: Vec<Digest>,
}

/// Bytes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Extent {
    /// Number of the file.
    pub file: u32,
    /// The first.
    pub start: u64,
    /// Behind the last.
    pub end: u64,
}

/// A piece of a model's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub struct PieceId {
    /// Number of the file.
    pub file: u32,
    /// Number of the piece in it.
    pub index: u32,
}

/// What one member of a cluster asks another for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Ask {
    /// How its files are cut into pieces, and what each hashes to.
    Manifest(ModelId),
    /// A piece of a model that hashes to this.
    Piece(ModelId, PieceId, Digest),
    /// The pieces of a model that are there: a [`PieceSet`]. Since wire version 5.
    Held(ModelId),
}

impl Ask {
    /// The wire version since which it is asked: whoever speaks an older one is not.
    pub fn since(&self) -> u16 {
        match self {
            Self::Manifest(_) | Self::Piece(..) => 4,
            Self::Held(_) => 5,
        }
    }
}

/// Some of a model's pieces: a bit for each, by file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct PieceSet(Vec<Vec<u8>>);

impl PieceSet {
    /// What it takes to say which pieces of the largest model are there.
    pub const MAX_BYTES: usize = 4 << 20;

    /// Whether a piece is among them.
    pub fn contains(&self, piece: PieceId) -> bool {
        let byte = self.0.get(piece.file as usize).and_then(|it| it.get(piece.index as usize / 8));
        byte.is_some_and(|byte| byte >> (piece.index % 8) & 1 == 1)
    }
}

impl FromIterator<PieceId> for PieceSet {
    fn from_iter<I: IntoIterator<Item = PieceId>>(pieces: I) -> Self {
        let mut files = Vec::<Vec<u8>>::new();
        for PieceId { file, index } in pieces {
            let (file, byte) = (file as usize, index as usize / 8);
            files.resize(files.len().max(file + 1), Vec::new());
            let len = files[file].len().max(byte + 1);
            files[file].resize(len, 0);
            files[file][byte] |= 1 << (index % 8);
        }
        Self(files)
    }
}

/// Why a manifest can't be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the model's manifest is malformed: {0}")]
pub struct BadManifest(String);

impl Manifest {
    /// # Errors
    /// When it names a file elsewhere, or contradicts itself.
    pub fn check(&self) -> Result<(), BadManifest> {
        let bad = |problem: String| Err(BadManifest(problem));
        if !PIECE_BYTES.contains(&self.piece_bytes) {
            return bad(format!("pieces of {} bytes", self.piece_bytes));
        }
        if self.files.is_empty() || self.files.len() > MAX_FILES {
            return bad(format!("{} files", self.files.len()));
        }
        let mut names = BTreeSet::new();
        for FileManifest { name, num_bytes, header_bytes, pieces } in &self.files {
            if !is_plain(name) || !names.insert(name) {
                return bad(format!("a file is called {name:?}"));
            }
            let due = num_bytes.div_ceil(self.piece_bytes.into());
            if pieces.len() as u64 != due || due > u32::MAX.into() || header_bytes > num_bytes {
                return bad(format!("{name} has {num_bytes} bytes and {} pieces", pieces.len()));
            }
        }
        if !self.entry.is_empty() && !names.contains(&self.entry) {
            return bad(format!("there is no {:?}", self.entry));
        }
        for extent in self.parts.iter().flatten() {
            let file = self.files.get(extent.file as usize);
            let num_bytes = file.map_or(0, |file| file.num_bytes);
            if extent.start >= extent.end || extent.end > num_bytes {
                return bad(format!("a tensor lies in {extent:?}"));
            }
        }
        Ok(())
    }

    /// The pieces that a stage needs.
    ///
    /// # Errors
    /// When the model has no such layers.
    pub fn needed(&self, plan: &StagePlan) -> Result<BTreeSet<PieceId>, BadManifest> {
        let (headers, parts) = self.needed_by_part(plan)?;
        Ok(parts.into_iter().flatten().chain(headers).collect())
    }

    /// The pieces that hold what says where tensors lie, and those of each part of a stage, in the
    /// order of the plan's digests.
    ///
    /// # Errors
    /// When the model has no such layers.
    pub fn needed_by_part(&self, plan: &StagePlan) -> Result<NeededByPart, BadManifest> {
        let (first, end) = (plan.layers.first as usize + 1, plan.layers.end as usize + 1);
        let layers = self.parts.get(first..end).filter(|_| end < self.parts.len());
        let layers = layers.ok_or_else(|| BadManifest(format!("layers {}", plan.layers)))?;
        let embedding = plan.embeds().then(|| &self.parts[0]);
        let head = self.parts.last().filter(|_| plan.samples());
        let headers = (0..).zip(&self.files).map(|(file, it)| Extent {
            file,
            start: 0,
            end: it.header_bytes,
        });
        let parts = embedding.into_iter().chain(layers).chain(head);
        let parts = parts.map(|part| self.pieces(part.iter().copied()));
        Ok((self.pieces(headers), parts.collect()))
    }

    /// The pieces that these bytes touch.
    fn pieces(&self, extents: impl Iterator<Item = Extent>) -> BTreeSet<PieceId> {
        let size = u64::from(self.piece_bytes);
        let touched = extents.filter(|it| it.start < it.end).flat_map(|it| {
            let indices = it.start / size..it.end.div_ceil(size);
            indices.map(move |index| PieceId { file: it.file, index: index as u32 })
        });
        touched.collect()
    }

    /// Where a piece lies in its file, if there is one.
    pub fn range(&self, piece: PieceId) -> Option<Range<u64>> {
        let file = self.files.get(piece.file as usize)?;
        let start = u64::from(piece.index) * u64::from(self.piece_bytes);
        let end = file.num_bytes.min(start + u64::from(self.piece_bytes));
        (start < end).then_some(start..end)
    }

    /// What a piece hashes to.
    pub fn digest(&self, piece: PieceId) -> Option<Digest> {
        self.files.get(piece.file as usize)?.pieces.get(piece.index as usize).copied()
    }

    /// What these take together; pieces that the manifest doesn't know take nothing.
    pub fn num_bytes<'a>(&self, pieces: impl IntoIterator<Item = &'a PieceId>) -> u64 {
        pieces.into_iter().filter_map(|it| self.range(*it)).map(|it| it.end - it.start).sum()
    }
}

/// Whether it names a file of this directory and nothing else.
fn is_plain(name: &str) -> bool {
    let is_odd = |c: char| c == '/' || c == '\\' || c.is_control();
    !name.is_empty() && name.len() <= 255 && !name.starts_with('.') && !name.contains(is_odd)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LayerRange, StageId, StageIndex};

    fn manifest() -> Manifest {
        let file = |name: &str, num_bytes: u64, header_bytes| FileManifest {
            name: name.into(),
            num_bytes,
            header_bytes,
            pieces: vec![Digest::default(); num_bytes.div_ceil(4096) as usize],
        };
        let part = |start, end| vec![Extent { file: 1, start, end }];
        Manifest {
            entry: String::new(),
            piece_bytes: 4096,
            files: vec![file("config.json", 100, 100), file("a.safetensors", 50_000, 90)],
            parts: vec![
                part(90, 4097),
                part(8192, 12_288),
                part(20_000, 30_000),
                part(49_000, 50_000),
            ],
        }
    }

    fn needed(stage: u32, num_stages: u32, layers: Range<u32>) -> Vec<(u32, u32)> {
        let plan = StagePlan {
            id: StageId { stage: StageIndex(stage), ..StageId::default() },
            num_stages,
            layers: LayerRange { first: layers.start, end: layers.end },
            ..StagePlan::default()
        };
        let needed = manifest().needed(&plan).unwrap();
        needed.iter().map(|it| (it.file, it.index)).collect()
    }

    #[test]
    fn a_stage_needs_headers_and_the_pieces_that_its_parts_touch() {
        assert_eq!(needed(0, 2, 0..1), [(0, 0), (1, 0), (1, 1), (1, 2)]);
        let last = [(0, 0), (1, 0), (1, 4), (1, 5), (1, 6), (1, 7), (1, 11), (1, 12)];
        assert_eq!(needed(1, 2, 1..2), last);
        let manifest = manifest();
        let piece = |index| PieceId { file: 1, index };
        assert_eq!(manifest.range(piece(12)), Some(49_152..50_000));
        assert_eq!(manifest.range(piece(13)), None);
        assert_eq!(manifest.num_bytes(&[piece(0), piece(12)]), 4096 + 848);
        let layers = LayerRange { first: 1, end: 3 };
        let plan = StagePlan { layers, num_stages: 1, ..StagePlan::default() };
        assert!(manifest.needed(&plan).is_err(), "it has two layers");
    }

    #[test]
    fn a_set_holds_what_was_put_into_it() {
        let pieces = [(0, 0), (0, 7), (0, 8), (3, 70)].map(|(file, index)| PieceId { file, index });
        let set: PieceSet = pieces.into_iter().collect();
        let set: PieceSet = crate::codec::decode(&crate::codec::encode(&set)).unwrap();
        for file in 0..6 {
            for index in 0..100 {
                let piece = PieceId { file, index };
                assert_eq!(set.contains(piece), pieces.contains(&piece), "{piece:?}");
            }
        }
        assert!(!PieceSet::default().contains(pieces[0]));
    }

    #[test]
    fn a_manifest_that_contradicts_itself_is_refused() {
        manifest().check().unwrap();
        let bad: [fn(&mut Manifest); 9] = [
            |it| it.piece_bytes = 0,
            |it| it.files.clear(),
            |it| it.files[0].name = "../config.json".into(),
            |it| it.files[0].name = "..".into(),
            |it| it.files[0].name = "a.safetensors".into(),
            |it| it.files[1].num_bytes = 1 << 40,
            |it| it.files[1].header_bytes = 50_001,
            |it| it.parts[1][0].end = 50_001,
            |it| it.entry = "b.gguf".into(),
        ];
        for (number, change) in bad.into_iter().enumerate() {
            let mut manifest = manifest();
            change(&mut manifest);
            assert!(manifest.check().is_err(), "{number}");
        }
    }
}
