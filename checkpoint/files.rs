//! Which files a model is made of, and where in them its parts lie: what a process needs that has
//! none of them.

use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::error::CheckpointError;
use crate::huggingface::small_files;
use crate::mapped::Mapped;
use crate::{Checkpoint, Part, Source};

/// What a node needs to know of a file before it has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its length.
    pub num_bytes: u64,
    /// What of its beginning has to be there for [`Checkpoint::open`].
    pub header_bytes: u64,
}

impl Checkpoint {
    /// The files that [`open`](Self::open) reads: those of weights first, in the order of
    /// [`ranges`](Self::ranges).
    ///
    /// # Errors
    ///
    /// If one is gone meanwhile.
    pub fn files(&self) -> Result<Vec<ModelFile>, CheckpointError> {
        let mut files: Vec<_> = (0..).zip(&self.weights.files).map(|it| self.file(it)).collect();
        if let Source::Directory(dir) = &self.source {
            for path in small_files(dir) {
                let io = |source| CheckpointError::Io { path: path.clone(), source };
                let num_bytes = std::fs::metadata(&path).map_err(io)?.len();
                files.push(ModelFile { path, num_bytes, header_bytes: num_bytes });
            }
        }
        Ok(files)
    }

    /// The file that stands for the model; none where its directory does.
    pub fn entry(&self) -> Option<&Path> {
        match &self.source {
            Source::Directory(_) => None,
            Source::Gguf(_) => Some(&self.weights.files[0].path),
        }
    }

    /// The bytes of a part's tensors: numbers of [`files`](Self::files), and where in them.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::NoSuchLayer`].
    pub fn ranges(&self, part: Part) -> Result<Vec<(usize, Range<u64>)>, CheckpointError> {
        let mut ranges = Vec::new();
        for (role, layer) in self.roles(part)? {
            ranges.extend(self.weights.ranges(role, layer));
        }
        ranges.sort_unstable_by_key(|(file, range)| (*file, range.start));
        let mut merged = Vec::<(usize, Range<u64>)>::new();
        for (file, range) in ranges.into_iter().filter(|(_, range)| !range.is_empty()) {
            match merged.last_mut() {
                Some((last, before)) if *last == file && before.end >= range.start => {
                    before.end = before.end.max(range.end);
                }
                _ => merged.push((file, range)),
            }
        }
        Ok(merged)
    }

    /// Headers end where the first tensor begins, in files of either kind.
    fn file(&self, (number, mapped): (usize, &Mapped)) -> ModelFile {
        let num_bytes = mapped.bytes().len() as u64;
        let starts = self.weights.starts(number);
        let header_bytes = starts.min().map_or(num_bytes, |start| start as u64);
        ModelFile { path: mapped.path.clone(), num_bytes, header_bytes }
    }
}
