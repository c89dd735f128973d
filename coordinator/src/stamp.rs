//! By what a file is known to have changed, without reading it.

use std::fs;
use std::path::Path;
use std::time::SystemTime;

/// A file as it was at some time. One that takes another's place differs in its number, however
/// soon after it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    modified: Option<SystemTime>,
    num_bytes: u64,
    number: u64,
}

impl Stamp {
    /// None where there is no such file.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        #[cfg(unix)]
        let number = std::os::unix::fs::MetadataExt::ino(&metadata);
        #[cfg(not(unix))]
        let number = 0;
        let (modified, num_bytes) = (metadata.modified().ok(), metadata.len());
        Some(Self { modified, num_bytes, number })
    }
}
