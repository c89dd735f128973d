//! Who this node is: drawn at its first start, kept in its data directory, held by one process.

use std::fs::{self, File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use protocol::NodeId;

use crate::joining::Papers;

/// The node's id, and the lock on the directory that holds it.
#[derive(Debug)]
pub(crate) struct NodeHome {
    pub node: NodeId,
    pub papers: Papers,
    pub data_dir: PathBuf,
    _lock: File,
}

impl NodeHome {
    /// The identity kept in `data_dir`; a new one when it holds none.
    ///
    /// # Errors
    /// When another process holds the directory, when it can't be written, or when its file
    /// doesn't hold an id.
    pub(crate) fn open(data_dir: &Path) -> Result<Self> {
        Self::try_open(data_dir)?.with_context(|| {
            format!("another node uses {}: give each its own --data-dir", data_dir.display())
        })
    }

    /// The identity kept in `data_dir`, as soon as no other process holds it.
    ///
    /// # Errors
    /// As [`open`](Self::open), when it is held all the time.
    pub(crate) async fn open_within(data_dir: &Path, timeout: Duration) -> Result<Self> {
        let start = Instant::now();
        while start.elapsed() < timeout {
            if let Some(identity) = Self::try_open(data_dir)? {
                return Ok(identity);
            }
            tokio::time::sleep(POLL).await;
        }
        Self::open(data_dir)
    }

    /// The first identity under `parent` that no other process holds: several nodes of one user
    /// need no flag to tell them apart.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(crate) fn open_any(parent: &Path) -> Result<Self> {
        for number in 0..MAX_NODES_PER_USER {
            let dir: PathBuf = parent.join(format!("node-{number}"));
            if let Some(identity) = Self::try_open(&dir)? {
                return Ok(identity);
            }
        }
        bail!("{MAX_NODES_PER_USER} nodes run already under {}", parent.display())
    }

    fn try_open(data_dir: &Path) -> Result<Option<Self>> {
        fs::create_dir_all(data_dir)
            .with_context(|| format!("can't create the data directory {}", data_dir.display()))?;
        let path = data_dir.join("lock");
        let lock =
            File::create(&path).with_context(|| format!("can't write {}", path.display()))?;
        match lock.try_lock() {
            Ok(()) => {
                let (node, papers) = (load_or_create(data_dir)?, Papers::open(data_dir)?);
                Ok(Some(Self { node, papers, data_dir: data_dir.to_owned(), _lock: lock }))
            }
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(cause)) => {
                Err(cause).with_context(|| format!("can't lock {}", path.display()))
            }
        }
    }
}

const MAX_NODES_PER_USER: u32 = 64;

/// Between two looks at a lock.
const POLL: Duration = Duration::from_millis(50);

fn load_or_create(data_dir: &Path) -> Result<NodeId> {
    let path = data_dir.join("node-id");
    match fs::read_to_string(&path) {
        // A disk that was full when it was drawn: it has never been anybody's.
        Ok(text) if text.trim().is_empty() => create(&path),
        Ok(text) => {
            let id = u64::from_str_radix(text.trim(), 16).with_context(|| {
                format!("{} should hold 16 hexadecimal digits; remove it", path.display())
            })?;
            Ok(NodeId(id))
        }
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => create(&path),
        Err(cause) => Err(cause).with_context(|| format!("can't read {}", path.display())),
    }
}

/// Whole or not at all.
fn create(path: &Path) -> Result<NodeId> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).context("the system has no random numbers")?;
    let id = NodeId(u64::from_le_bytes(bytes));
    let write = || {
        let new = path.with_extension("new");
        let mut file = File::create(&new)?;
        writeln!(file, "{id}")?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    write().with_context(|| format!("can't write {}", path.display()))?;
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_keeps_its_id_and_shares_it_with_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let first = NodeHome::open_any(dir.path()).unwrap();
        let second = NodeHome::open_any(dir.path()).unwrap();
        assert_ne!(first.node, second.node);
        let error = NodeHome::open(&dir.path().join("node-0")).unwrap_err();
        assert!(error.to_string().contains("its own --data-dir"), "{error}");
        let (node, held) = (first.node, second.node);
        drop(first);
        assert_eq!(NodeHome::open_any(dir.path()).unwrap().node, node);
        assert_ne!(node, held);
    }

    #[test]
    fn an_id_that_a_full_disk_cut_off_is_drawn_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node-id");
        fs::write(&path, "").unwrap();
        let node = NodeHome::open(dir.path()).unwrap().node;
        assert_eq!(NodeHome::open(dir.path()).unwrap().node, node, "it is kept");
        fs::write(&path, "rubbish").unwrap();
        let error = NodeHome::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("16 hexadecimal digits"), "{error}");

        // What can't be written whole is not written at all.
        fs::remove_file(&path).unwrap();
        fs::create_dir(dir.path().join("node-id.new")).unwrap();
        NodeHome::open(dir.path()).unwrap_err();
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_place_that_is_given_up_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let first = NodeHome::open(dir.path()).unwrap();
        let short = Duration::from_millis(100);
        let error = NodeHome::open_within(dir.path(), short).await.unwrap_err().to_string();
        assert!(error.contains("another node uses"), "{error}");
        let second = tokio::spawn({
            let dir = dir.path().to_owned();
            async move { NodeHome::open_within(&dir, Duration::from_secs(60)).await }
        });
        tokio::time::sleep(short).await;
        let node = first.node;
        drop(first);
        assert_eq!(second.await.unwrap().unwrap().node, node);
    }
}
