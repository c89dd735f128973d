//! The bytes of files, by their hash: one copy of what was handed in twice.
//!
//! A blob is written under a name of its own, flushed, and then given the name of its hash: by that
//! name it is whole, whenever the power goes. What was never given one is swept away at the start.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Mutex;

/// The folder of blobs in the data directory.
const FOLDER: &str = "blobs";

/// How a blob is called that isn't whole yet.
const UNFINISHED: &str = "unfinished-";

/// The open folder; clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Blobs {
    folder: Arc<PathBuf>,
    next: Arc<AtomicU64>,
    /// Held by whoever makes a name known or takes a blob away whose name nobody knows, so that
    /// neither happens in the middle of the other.
    pub names: Arc<Mutex<()>>,
}

impl Blobs {
    /// Opens the folder in a data directory; makes it where there is none.
    ///
    /// # Errors
    /// When it can't be.
    pub(crate) fn open(data_dir: &Path) -> io::Result<Self> {
        let folder = data_dir.join(FOLDER);
        fs::create_dir_all(&folder)?;
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(Self { folder: folder.into(), next: Arc::default(), names: Arc::default() })
    }

    /// A new one, empty.
    ///
    /// # Errors
    /// When it can't be made.
    pub(crate) fn begin(&self) -> io::Result<Unfinished> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let path = self.folder.join(format!("{UNFINISHED}{number}"));
        let file = OpenOptions::new().write(true).create_new(true).open(&path)?;
        private(&file)?;
        let blobs = self.clone();
        Ok(Unfinished { blobs, path, file, hasher: blake3::Hasher::new(), num_bytes: 0 })
    }

    /// Where the bytes of this hash are.
    pub(crate) fn path(&self, hash: &str) -> PathBuf {
        self.folder.join(hash)
    }

    /// Opens the bytes of this hash.
    ///
    /// # Errors
    /// When they can't be read.
    pub(crate) fn read(&self, hash: &str) -> io::Result<File> {
        File::open(self.path(hash))
    }

    /// Takes away the bytes of this hash, whose name nobody knows any more.
    ///
    /// # Errors
    /// When they are there and can't be.
    pub(crate) fn remove(&self, hash: &str) -> io::Result<()> {
        match fs::remove_file(self.path(hash)) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(cause),
            _ => Ok(()),
        }
    }

    /// Every hash of which there are bytes.
    ///
    /// # Errors
    /// When the folder can't be read.
    pub(crate) fn all(&self) -> io::Result<Vec<String>> {
        let names = fs::read_dir(&*self.folder)?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        let names: io::Result<Vec<_>> = names.collect();
        Ok(names?.into_iter().filter(|name| !name.starts_with(UNFINISHED)).collect())
    }
}

/// A blob that is written. Dropped before it is finished, it leaves nothing.
#[derive(Debug)]
pub(crate) struct Unfinished {
    blobs: Blobs,
    path: PathBuf,
    file: File,
    hasher: blake3::Hasher,
    num_bytes: u64,
}

impl Unfinished {
    pub(crate) fn num_bytes(&self) -> u64 {
        self.num_bytes
    }

    /// Its bytes are on the disk from now on, by the name of their hash, which comes back.
    ///
    /// # Errors
    /// When they can't be kept.
    pub(crate) fn finish(self) -> io::Result<String> {
        self.file.sync_all()?;
        let hash = self.hasher.finalize().to_hex().to_string();
        fs::rename(&self.path, self.blobs.path(&hash))?;
        File::open(&*self.blobs.folder)?.sync_all()?;
        Ok(hash)
    }
}

impl Write for Unfinished {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let num = self.file.write(bytes)?;
        self.hasher.update(&bytes[..num]);
        self.num_bytes += num as u64;
        Ok(num)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // Of one that was finished there is no such name any more.
        let _ = fs::remove_file(&self.path);
    }
}

/// For nobody else's eyes.
fn private(file: &File) -> io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(blobs: &Blobs) -> Vec<String> {
        let all = fs::read_dir(&*blobs.folder).unwrap();
        all.map(|it| it.unwrap().file_name().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn a_blob_is_found_by_its_hash_once_it_is_whole_and_leaves_nothing_before() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path()).unwrap();
        let mut blob = blobs.begin().unwrap();
        blob.write_all(b"ab").unwrap();
        assert_eq!(blobs.all().unwrap(), [""; 0]);
        drop(blob);
        assert_eq!(names(&blobs), [""; 0]);
        let write = |bytes: &[u8]| {
            let mut blob = blobs.begin().unwrap();
            blob.write_all(bytes).unwrap();
            blob.finish().unwrap()
        };
        let hash = write(b"abc");
        assert_eq!(hash, blake3::hash(b"abc").to_hex().to_string());
        assert_eq!(write(b"abc"), hash);
        assert_eq!(names(&blobs), [&*hash]);
        assert_eq!(fs::read(blobs.path(&hash)).unwrap(), b"abc");
        // As a process that was killed leaves it.
        std::mem::forget(blobs.begin().unwrap());
        assert_eq!(names(&blobs).len(), 2);
        let blobs = Blobs::open(dir.path()).unwrap();
        assert_eq!(names(&blobs), [&*hash]);
        blobs.remove(&hash).unwrap();
        blobs.remove(&hash).unwrap();
        assert_eq!(blobs.all().unwrap(), [""; 0]);
    }
}
