//! The model's files, for nodes that have none: what they hold is hashed once, in the background,
//! and given out in pieces.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use checkpoint::{Checkpoint, ModelFile, Part};
use protocol::{Ask, Digest, Extent, FileManifest, Manifest, ModelId, codec};
use tokio::sync::watch;
use tracing::{info, warn};
use transport::PieceSource;

/// Threads that hash: a start has other things to do, too.
const MAX_THREADS: usize = 8;

/// What is given out.
#[derive(Debug)]
pub struct WeightSource {
    model: ModelId,
    // None while it is made; then it, or why there is none.
    manifest: watch::Receiver<Option<Result<Arc<Served>, String>>>,
}

#[derive(Debug)]
struct Served {
    manifest: Manifest,
    encoded: Bytes,
    files: Vec<File>,
}

impl WeightSource {
    /// Begins to hash what isn't known from an earlier start, by what `dir` holds.
    pub fn start(model: ModelId, files: &Checkpoint, piece_bytes: u32, dir: &Path) -> Result<Self> {
        let outline = Outline::of(files, piece_bytes)?;
        let known = dir.join("manifest");
        let (tell, manifest) = watch::channel(None);
        std::thread::Builder::new().name("hash".into()).spawn(move || {
            let served = outline.served(&known).map(Arc::new);
            if let Err(cause) = &served {
                warn!(cause = format!("{cause:#}"), "nodes can't fetch the model");
            }
            tell.send_replace(Some(served.map_err(|cause| format!("{cause:#}"))));
        })?;
        Ok(Self { model, manifest })
    }

    async fn served(&self) -> Result<Arc<Served>, String> {
        let mut manifest = self.manifest.clone();
        let made = manifest.wait_for(Option::is_some).await;
        made.ok().and_then(|made| made.clone()).unwrap_or(Err("it could not be hashed".into()))
    }
}

impl PieceSource for WeightSource {
    async fn give(&self, ask: Ask) -> Result<Bytes, String> {
        let (Ask::Manifest(model) | Ask::Piece(model, ..) | Ask::Held(model)) = ask;
        if model != self.model {
            return Err(format!("model {model} is not served here"));
        }
        let served = self.served().await?;
        let (piece, digest) = match ask {
            Ask::Piece(_, piece, digest) => (piece, digest),
            Ask::Manifest(_) => return Ok(served.encoded.clone()),
            Ask::Held(_) => return Err("all of them".into()),
        };
        let range = served.manifest.range(piece);
        let range = range.filter(|_| served.manifest.digest(piece) == Some(digest));
        let range = range.ok_or("there is no such piece")?;
        let read = move || {
            let mut bytes = vec![0; (range.end - range.start) as usize];
            served.files[piece.file as usize].read_exact_at(&mut bytes, range.start)?;
            Ok::<_, io::Error>(bytes.into())
        };
        let read = tokio::task::spawn_blocking(read).await.map_err(|cause| cause.to_string())?;
        read.map_err(|cause| format!("the model's files can't be read: {cause}"))
    }
}

/// A manifest without its digests.
struct Outline {
    files: Vec<ModelFile>,
    manifest: Manifest,
}

impl Outline {
    fn of(checkpoint: &Checkpoint, piece_bytes: u32) -> Result<Self> {
        let name =
            |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let files = checkpoint.files()?;
        let layers = (0..checkpoint.config().num_layers()).map(Part::Layer);
        let parts = [Part::Embedding].into_iter().chain(layers).chain([Part::Head]);
        let extents = |part| {
            let ranges = checkpoint.ranges(part)?.into_iter();
            let extent = |(file, range): (usize, std::ops::Range<u64>)| Extent {
                file: file as u32,
                start: range.start,
                end: range.end,
            };
            Ok::<_, checkpoint::CheckpointError>(ranges.map(extent).collect())
        };
        let manifest = Manifest {
            entry: checkpoint.entry().map_or_else(String::new, name),
            piece_bytes,
            files: files
                .iter()
                .map(|file| FileManifest {
                    name: name(&file.path),
                    num_bytes: file.num_bytes,
                    header_bytes: file.header_bytes,
                    pieces: Vec::new(),
                })
                .collect(),
            parts: parts.map(extents).collect::<Result<_, _>>()?,
        };
        Ok(Self { files, manifest })
    }

    /// With its digests: those of an earlier start, where the files are the same.
    fn served(mut self, known: &Path) -> Result<Served> {
        let opened: Result<Vec<_>> = self.files.iter().map(|file| open(&file.path)).collect();
        let opened = opened?;
        let stamp = self.stamp(&opened)?;
        let manifest = match read_known(known, stamp) {
            Some(manifest) => manifest,
            None => {
                let started = std::time::Instant::now();
                self.hash(&opened)?;
                let took_ms = started.elapsed().as_millis();
                info!(num_files = opened.len(), took_ms, "the model's files are hashed");
                let kept = [&stamp[..], &codec::encode(&self.manifest)].concat();
                if let Err(cause) = write_whole(known, &kept) {
                    warn!(%cause, path = %known.display(), "hashes can't be kept");
                }
                self.manifest
            }
        };
        manifest.check()?;
        let encoded = codec::encode(&manifest).into();
        Ok(Served { manifest, encoded, files: opened })
    }

    /// Of the outline, and of what changes when a file does.
    fn stamp(&self, files: &[File]) -> Result<[u8; 32]> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&codec::encode(&self.manifest));
        for (file, found) in self.files.iter().zip(files) {
            let meta = found.metadata()?;
            ensure!(meta.len() == file.num_bytes, "{} changes", file.path.display());
            for number in [meta.mtime(), meta.mtime_nsec(), meta.ino() as i64] {
                hasher.update(&number.to_le_bytes());
            }
        }
        Ok(*hasher.finalize().as_bytes())
    }

    fn hash(&mut self, files: &[File]) -> Result<()> {
        let size = u64::from(self.manifest.piece_bytes);
        let mut pieces = Vec::new();
        for (number, file) in self.manifest.files.iter().enumerate() {
            let starts = (0..file.num_bytes.div_ceil(size)).map(|index| index * size);
            pieces.extend(starts.map(|at| (number, at, size.min(file.num_bytes - at) as usize)));
        }
        let num_threads = std::thread::available_parallelism().map_or(1, usize::from);
        let next = AtomicUsize::new(0);
        let work = || {
            let (mut hashed, mut bytes) = (Vec::new(), Vec::new());
            while let Some(&(file, at, len)) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
                bytes.resize(len, 0);
                files[file].read_exact_at(&mut bytes, at)?;
                hashed.push((file, at, Digest(*blake3::hash(&bytes).as_bytes())));
            }
            Ok::<_, io::Error>(hashed)
        };
        let hashed: Vec<_> = std::thread::scope(|scope| {
            let threads = (0..num_threads.min(MAX_THREADS)).map(|_| scope.spawn(work));
            let threads: Vec<_> = threads.collect();
            threads.into_iter().map(|it| it.join().expect("hashing doesn't panic")).collect()
        });
        let mut all = Vec::with_capacity(pieces.len());
        for hashed in hashed {
            all.extend(hashed.context("the model's files can't be read")?);
        }
        all.sort_unstable_by_key(|(file, at, _)| (*file, *at));
        for (file, _, digest) in all {
            self.manifest.files[file].pieces.push(digest);
        }
        Ok(())
    }
}

fn open(path: &PathBuf) -> Result<File> {
    File::open(path).with_context(|| format!("can't open {}", path.display()))
}

fn read_known(path: &Path, stamp: [u8; 32]) -> Option<Manifest> {
    let bytes = fs::read(path).ok()?;
    let manifest: Manifest = codec::decode(bytes.strip_prefix(&stamp)?).ok()?;
    manifest.check().ok().map(|()| manifest)
}

/// Whoever reads it finds all of it or what was there before.
fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, bytes)?;
    fs::rename(new, path)
}
