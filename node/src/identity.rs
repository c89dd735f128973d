//! Who this node is: drawn at its first start, kept in its data directory, held by one process.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use protocol::NodeId;

/// The node's id, and the lock on the directory that holds it.
#[derive(Debug)]
pub struct Identity {
    /// Who.
    pub node: NodeId,
    _lock: File,
}

impl Identity {
    /// The identity kept in `data_dir`; a new one when it holds none.
    ///
    /// # Errors
    /// When another process holds the directory, when it can't be written, or when its file
    /// doesn't hold an id.
    pub fn open(data_dir: &Path) -> Result<Self> {
        Self::try_open(data_dir)?.with_context(|| {
            format!("another node uses {}: give each its own --data-dir", data_dir.display())
        })
    }

    /// The first identity under `parent` that no other process holds: several nodes of one user
    /// need no flag to tell them apart.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_any(parent: &Path) -> Result<Self> {
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
            Ok(()) => Ok(Some(Self { node: load_or_create(data_dir)?, _lock: lock })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(cause)) => {
                Err(cause).with_context(|| format!("can't lock {}", path.display()))
            }
        }
    }
}

const MAX_NODES_PER_USER: u32 = 64;

fn load_or_create(data_dir: &Path) -> Result<NodeId> {
    let path = data_dir.join("node-id");
    match fs::read_to_string(&path) {
        Ok(text) => {
            let id = u64::from_str_radix(text.trim(), 16).with_context(|| {
                format!("{} should hold 16 hexadecimal digits; remove it", path.display())
            })?;
            Ok(NodeId(id))
        }
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => {
            let mut bytes = [0; 8];
            getrandom::fill(&mut bytes).context("the system has no random numbers")?;
            let id = NodeId(u64::from_le_bytes(bytes));
            fs::write(&path, format!("{id}\n"))
                .with_context(|| format!("can't write {}", path.display()))?;
            Ok(id)
        }
        Err(cause) => Err(cause).with_context(|| format!("can't read {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::Identity;

    #[test]
    fn a_node_keeps_its_id_and_shares_it_with_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let first = Identity::open_any(dir.path()).unwrap();
        let second = Identity::open_any(dir.path()).unwrap();
        assert_ne!(first.node, second.node);
        let error = Identity::open(&dir.path().join("node-0")).unwrap_err();
        assert!(error.to_string().contains("its own --data-dir"), "{error}");
        let (node, held) = (first.node, second.node);
        drop(first);
        assert_eq!(Identity::open_any(dir.path()).unwrap().node, node);
        assert_ne!(node, held);
    }
}
