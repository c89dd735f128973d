//! Pieces of models on disk: the model's own files, with holes where nothing was needed yet, and
//! beside them a record of what is there.

use std::collections::{BTreeSet, HashSet};
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::UNIX_EPOCH;

use protocol::{Digest, Manifest, PieceId, PieceSet, codec};

/// The record: eight bytes for each piece, in the order in which they came.
const RECORD: &str = ".pieces";

/// What is to become the record.
const NEW_RECORD: &str = ".pieces-new";

/// Pieces between two times that they are made to last.
const SYNC_EVERY: usize = 32;

/// A directory with a folder for each model.
#[derive(Debug)]
pub struct Cache {
    dir: PathBuf,
    max_bytes: u64,
    // Models that may be in use: their files stay.
    opened: Mutex<Vec<Weak<CachedModel>>>,
    // Two nodes would take each other's files away.
    _lock: File,
}

/// A model's files in the cache.
#[derive(Debug)]
pub struct CachedModel {
    dir: PathBuf,
    manifest: Manifest,
    files: Vec<File>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    record: File,
    // Verified, by whoever got them or at the start.
    held: HashSet<PieceId>,
    // Recorded by an earlier process, and not looked at yet.
    unverified: HashSet<PieceId>,
    unsynced: Vec<PieceId>,
}

impl Cache {
    /// Opens it, or makes it. `max_bytes` is what all models may take together.
    ///
    /// # Errors
    /// When the directory can't be used, or another node uses it.
    pub fn open(dir: &Path, max_bytes: u64) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let lock = File::create(dir.join(".lock"))?;
        if lock.try_lock().is_err() {
            let said = "another node uses it: give each its own --cache-dir";
            return Err(io::Error::new(io::ErrorKind::AddrInUse, said));
        }
        let opened = Mutex::default();
        Ok(Self { dir: dir.to_owned(), max_bytes, opened, _lock: lock })
    }

    /// A model's files, after room was made for what is missing of `needed`: other models give way
    /// first, then what isn't needed of this one. They stay until the last handle is gone; `last`
    /// is the caller's own of what it asked for before, and is in nobody's way.
    ///
    /// # Errors
    /// One sentence, when they don't fit or can't be made.
    pub fn model(
        &self,
        manifest: &Manifest,
        needed: &BTreeSet<PieceId>,
        last: Option<Arc<CachedModel>>,
    ) -> Result<Arc<CachedModel>, String> {
        self.open_model(manifest, needed, last).map_err(|cause| trouble(&self.dir, &cause))
    }

    fn open_model(
        &self,
        manifest: &Manifest,
        needed: &BTreeSet<PieceId>,
        last: Option<Arc<CachedModel>>,
    ) -> io::Result<Arc<CachedModel>> {
        // What was verified of it is not verified again; of another model nothing is needed now.
        let last = last.filter(|it| it.manifest == *manifest && it.dir.exists());
        let name = Digest(*blake3::hash(&codec::encode(manifest)).as_bytes()).to_string();
        let mut models = self.models()?;
        let own = models.iter().position(|model| name_of(model).starts_with(&name));
        // A folder that was removed and is made again is another one: whoever still maps the files
        // of the first must not take them for those of the second.
        let dir = match own.map(|own| models.remove(own)) {
            Some(dir) => dir,
            None => {
                let now = UNIX_EPOCH.elapsed().map_or(0, |now| now.as_nanos());
                self.dir.join(format!("{name}-{now:x}"))
            }
        };
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        opened.retain(|it| it.strong_count() > 0);
        let all: Vec<_> = opened.iter().filter_map(Weak::upgrade).collect();
        let in_use: BTreeSet<_> =
            all.iter().map(|it| it.dir.clone()).filter(|it| *it != dir).collect();
        let known = last.or_else(|| all.iter().find(|it| it.dir == dir).cloned());
        drop(all);
        let model = match known {
            Some(model) => model,
            None => {
                DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
                let model = Arc::new(CachedModel::open(dir, manifest.clone())?);
                opened.push(Arc::downgrade(&model));
                model
            }
        };
        model.touch()?;
        let bytes = || manifest.num_bytes(&model.missing(needed)).saturating_add(used(&model.dir));
        let kept: u64 = in_use.iter().map(|dir| used(dir)).sum();
        // Nobody else reads it: what a stage that is loading needs isn't taken away.
        let is_own = Arc::strong_count(&model) == 1;
        if is_own && bytes().saturating_add(kept) > self.max_bytes {
            model.keep_only(needed)?;
        }
        self.make_room(bytes(), models, &in_use)?;
        Ok(model)
    }

    /// Removes models, those unused for longest first, until so many bytes fit beside the rest.
    fn make_room(
        &self,
        bytes: u64,
        mut others: Vec<PathBuf>,
        in_use: &BTreeSet<PathBuf>,
    ) -> io::Result<()> {
        let kept: u64 = in_use.iter().map(|dir| used(dir)).sum();
        if bytes.saturating_add(kept) > self.max_bytes {
            let max = self.max_bytes;
            let beside = match kept {
                0 => String::new(),
                kept => format!(" beside {kept} of models in use"),
            };
            return Err(io::Error::other(format!(
                "a stage's layers take {bytes} bytes{beside} and --cache-size allows {max}: raise \
                 it, or use more nodes"
            )));
        }
        others.sort_by_key(|dir| fs::metadata(dir.join(RECORD)).and_then(|it| it.modified()).ok());
        let mut total: u64 = bytes + others.iter().map(|dir| used(dir)).sum::<u64>();
        for dir in others.into_iter().filter(|dir| !in_use.contains(dir)) {
            if total <= self.max_bytes {
                break;
            }
            total -= used(&dir);
            fs::remove_dir_all(dir)?;
        }
        Ok(())
    }

    fn models(&self) -> io::Result<Vec<PathBuf>> {
        let mut models = Vec::new();
        for entry in self.dir.read_dir()? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                models.push(entry.path());
            }
        }
        Ok(models)
    }
}

impl CachedModel {
    fn open(dir: PathBuf, manifest: Manifest) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let mut files = Vec::with_capacity(manifest.files.len());
        for file in &manifest.files {
            let opened = options.open(dir.join(&file.name))?;
            if opened.metadata()?.len() != file.num_bytes {
                opened.set_len(file.num_bytes)?;
            }
            files.push(opened);
        }
        let path = dir.join(RECORD);
        let recorded = fs::read(&path).unwrap_or_default();
        let unverified = recorded.as_chunks::<8>().0.iter().map(|entry| {
            let [a, b, c, d, e, f, g, h] = *entry;
            let (file, index) = ([a, b, c, d], [e, f, g, h]);
            PieceId { file: u32::from_le_bytes(file), index: u32::from_le_bytes(index) }
        });
        let unverified = unverified.filter(|piece| manifest.range(*piece).is_some()).collect();
        let record = OpenOptions::new().append(true).create(true).open(&path)?;
        // Half an entry may be left of a process that was killed.
        record.set_len(recorded.len() as u64 / 8 * 8)?;
        let (held, unsynced) = Default::default();
        let state = Mutex::new(State { record, held, unverified, unsynced });
        Ok(Self { dir, manifest, files, state })
    }

    /// It is used now: the record's time says so.
    fn touch(&self) -> io::Result<()> {
        self.state().record.set_modified(std::time::SystemTime::now())
    }

    /// Those of which nothing is here.
    fn missing(&self, needed: &BTreeSet<PieceId>) -> BTreeSet<PieceId> {
        let state = self.state();
        let is_here = |it: &&PieceId| !state.held.contains(it) && !state.unverified.contains(it);
        needed.iter().filter(is_here).copied().collect()
    }

    /// Gives the disk back all pieces but these. The record forgets them first: what it names is
    /// there, whenever this is cut short.
    fn keep_only(&self, needed: &BTreeSet<PieceId>) -> io::Result<()> {
        let mut state = self.state();
        self.sync(&mut state)?;
        let State { held, unverified, .. } = &mut *state;
        for pieces in [held, unverified] {
            pieces.retain(|piece| needed.contains(piece));
        }
        let left = entries(state.held.union(&state.unverified));
        let (path, new) = (self.dir.join(RECORD), self.dir.join(NEW_RECORD));
        let mut record = OpenOptions::new().append(true).create(true).open(&new)?;
        record.set_len(0)?;
        record.write_all(&left)?;
        record.sync_data()?;
        fs::rename(&new, &path)?;
        File::open(&self.dir)?.sync_all()?;
        state.record = record;
        let size = u64::from(self.manifest.piece_bytes);
        for (number, (file, of)) in self.files.iter().zip(&self.manifest.files).enumerate() {
            let is_needed =
                |index: u64| needed.contains(&PieceId { file: number as u32, index: index as u32 });
            let (mut at, end) = (0, of.num_bytes.div_ceil(size));
            while at < end {
                let until = (at..end).find(|index| is_needed(*index)).unwrap_or(end);
                if until > at {
                    punch(file, at * size..(until * size).min(of.num_bytes))?;
                }
                at = until + 1;
            }
        }
        Ok(())
    }

    /// What its files hold.
    pub(crate) fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// What stands for the model here.
    pub fn path(&self) -> PathBuf {
        self.dir.join(&self.manifest.entry)
    }

    /// Whether a piece is here, by what is recorded and what its bytes hash to. Only the first time
    /// they are read.
    pub(crate) fn holds(&self, piece: PieceId) -> bool {
        let mut state = self.state();
        if state.held.contains(&piece) {
            return true;
        }
        if !state.unverified.remove(&piece) {
            return false;
        }
        drop(state);
        let is_whole = self.read(piece).is_ok_and(|bytes| self.is(piece, &bytes));
        if is_whole {
            self.state().held.insert(piece);
        }
        is_whole
    }

    /// The bytes of a piece, whatever they are.
    ///
    /// # Errors
    /// When they can't be read.
    pub(crate) fn read(&self, piece: PieceId) -> io::Result<Vec<u8>> {
        let range = self.manifest.range(piece).ok_or(io::ErrorKind::NotFound)?;
        let mut bytes = vec![0; (range.end - range.start) as usize];
        self.files[piece.file as usize].read_exact_at(&mut bytes, range.start)?;
        Ok(bytes)
    }

    /// Keeps a piece; false when its bytes are others than they should be.
    ///
    /// # Errors
    /// One sentence, when the disk is full, or can't be written.
    pub fn keep(&self, piece: PieceId, bytes: &[u8]) -> Result<bool, String> {
        let Some(range) = self.manifest.range(piece).filter(|_| self.is(piece, bytes)) else {
            return Ok(false);
        };
        let write = || {
            self.files[piece.file as usize].write_all_at(bytes, range.start)?;
            let mut state = self.state();
            if state.held.insert(piece) {
                state.unsynced.push(piece);
            }
            if state.unsynced.len() >= SYNC_EVERY { self.sync(&mut state) } else { Ok(()) }
        };
        write().map(|()| true).map_err(|cause| trouble(self.cache(), &cause))
    }

    /// Makes all that came last, and the record of it.
    ///
    /// # Errors
    /// One sentence, when the disk is full, or fails.
    pub(crate) fn flush(&self) -> Result<(), String> {
        self.sync(&mut self.state()).map_err(|cause| trouble(self.cache(), &cause))
    }

    /// The directory that --cache-dir names.
    fn cache(&self) -> &Path {
        self.dir.parent().unwrap_or(&self.dir)
    }

    /// The pieces that are here for certain.
    pub(crate) fn held(&self) -> PieceSet {
        self.state().held.iter().copied().collect()
    }

    /// Whether all pieces in which these bytes of a file lie are here for certain.
    pub(crate) fn covers(&self, file: &OsStr, bytes: Range<u64>) -> bool {
        let is_it = |it: &protocol::FileManifest| OsStr::new(&it.name) == file;
        let Some(file) = self.manifest.files.iter().position(is_it) else { return false };
        let size = u64::from(self.manifest.piece_bytes);
        let state = self.state();
        let mut indices = bytes.start / size..bytes.end.div_ceil(size);
        indices
            .all(|index| state.held.contains(&PieceId { file: file as u32, index: index as u32 }))
    }

    /// The bytes first: what is recorded is there.
    fn sync(&self, state: &mut State) -> io::Result<()> {
        let files: BTreeSet<_> = state.unsynced.iter().map(|piece| piece.file).collect();
        for file in files {
            self.files[file as usize].sync_data()?;
        }
        let entries = entries(&state.unsynced);
        state.record.write_all(&entries)?;
        state.record.sync_data()?;
        state.unsynced.clear();
        Ok(())
    }

    fn is(&self, piece: PieceId, bytes: &[u8]) -> bool {
        self.manifest.digest(piece) == Some(Digest(*blake3::hash(bytes).as_bytes()))
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is recorded of pieces.
fn entries<'a>(pieces: impl IntoIterator<Item = &'a PieceId>) -> Vec<u8> {
    let entry = |piece: &PieceId| [piece.file.to_le_bytes(), piece.index.to_le_bytes()];
    pieces.into_iter().flat_map(entry).flatten().collect()
}

/// Makes a hole of these bytes: the disk has them back.
#[cfg(target_os = "linux")]
fn punch(file: &File, bytes: Range<u64>) -> io::Result<()> {
    use nix::fcntl::{FallocateFlags, fallocate};
    let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let [start, len] = [bytes.start, bytes.end - bytes.start].map(i64::try_from);
    let [start, len] = [start, len].map(|it| it.map_err(io::Error::other));
    Ok(fallocate(file, mode, start?, len?)?)
}

/// There is no call for it: a cache that is full of one model stays so.
#[cfg(not(target_os = "linux"))]
fn punch(_: &File, _: Range<u64>) -> io::Result<()> {
    Ok(())
}

/// What is wrong with the disk, and what would be right.
fn trouble(dir: &Path, cause: &io::Error) -> String {
    use io::ErrorKind::{Other, QuotaExceeded, StorageFull};
    let dir = dir.display();
    match cause.kind() {
        StorageFull | QuotaExceeded => format!(
            "the disk that holds {dir} is full: free room there, or give --cache-dir another place"
        ),
        Other => cause.to_string(),
        _ => format!("{dir} can't be written: {cause}"),
    }
}

fn name_of(dir: &Path) -> std::borrow::Cow<'_, str> {
    dir.file_name().unwrap_or_default().to_string_lossy()
}

/// Bytes of the disk that a folder's files take: holes take none.
fn used(dir: &Path) -> u64 {
    let files = dir.read_dir().into_iter().flatten().flatten();
    files.filter_map(|file| file.metadata().ok()).map(|meta| meta.blocks() * 512).sum()
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
