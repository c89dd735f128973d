//! Files mapped into memory: a model of any size opens without being read.

#![allow(unsafe_code, reason = "mapping a file is unsafe in Rust, and this is the only place")]

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::error::CheckpointError;

/// A regular file, mapped for reading.
#[derive(Debug)]
pub(crate) struct Mapped {
    pub(crate) path: PathBuf,
    map: Mmap,
}

impl Mapped {
    /// Maps a file. Refuses everything but regular files: opening a pipe would wait for ever.
    pub(crate) fn open(path: &Path) -> Result<Self, CheckpointError> {
        let io = |source| CheckpointError::Io { path: path.to_owned(), source };
        check_link(path)?;
        if !fs::metadata(path).map_err(io)?.is_file() {
            return Err(CheckpointError::NotAModel {
                path: path.to_owned(),
                reason: "it is no regular file".to_owned(),
            });
        }
        let file = File::open(path).map_err(io)?;
        // SAFETY: the bytes are only ever seen as `&[u8]` and every length in them is checked
        // before use, so any content is sound. What no process can exclude is that another one
        // changes the file while it is mapped: rewriting it in place can change bytes between
        // two reads (wrong weights, and formally undefined behaviour), truncating it ends this
        // process with SIGBUS at the next read past the new end. Replacing a file by renaming a
        // new one over it, as downloads do, is safe: the map keeps the old one.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        Ok(Self { path: path.to_owned(), map })
    }

    /// The whole file.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map
    }
}

/// Whether there is something of this name, be it a link that leads nowhere.
pub(crate) fn is_named(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

/// Refuses a link that leads nowhere: whoever lists its directory sees a file. Hugging Face's cache
/// is made of links, and often only a part of it is copied, or mounted into a container.
pub(crate) fn check_link(path: &Path) -> Result<(), CheckpointError> {
    match fs::read_link(path) {
        Ok(target) if !path.exists() => Err(CheckpointError::NotAModel {
            path: path.to_owned(),
            reason: format!(
                "it is a link to {}, which isn't there: mount or copy all of the cache that it is \
                 in, or what its links lead to (cp -rL)",
                target.display()
            ),
        }),
        _ => Ok(()),
    }
}

/// Reads a small file whole, or says that it is too large to be what it should be.
pub(crate) fn read_small(path: &Path, max_bytes: u64) -> Result<Vec<u8>, CheckpointError> {
    let io = |source| CheckpointError::Io { path: path.to_owned(), source };
    check_link(path)?;
    if !fs::metadata(path).map_err(io)?.is_file() {
        return Err(io(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file")));
    }
    let mut bytes = Vec::new();
    // The file may grow between two looks at it, so the limit is on what is read.
    File::open(path).map_err(io)?.take(max_bytes + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > max_bytes {
        return Err(CheckpointError::Malformed {
            path: path.to_owned(),
            problem: format!("the file is larger than the {max_bytes} bytes that it may have"),
        });
    }
    Ok(bytes)
}
