//! The coordinator's data directory: held by one process, read by its user only.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use protocol::config::{self, Config};

/// The directory, and the lock on it.
#[derive(Debug)]
pub(crate) struct DataDir {
    pub path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Takes the directory that is configured; creates it where there is none.
    ///
    /// # Errors
    /// When it can't be written, or another coordinator holds it: two would admit nodes of one
    /// name, and count the same starts.
    pub(crate) fn open(config: &Config) -> Result<Self> {
        let path = path(config)?;
        create(&path)?;
        let lock_path = lock_path(&path);
        let lock = File::create(&lock_path)
            .with_context(|| format!("can't write {}", lock_path.display()))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path, _lock: lock }),
            Err(TryLockError::WouldBlock) => {
                bail!("another coordinator uses {}: give each its own --data-dir", path.display())
            }
            Err(TryLockError::Error(cause)) => {
                Err(cause).with_context(|| format!("can't lock {}", lock_path.display()))
            }
        }
    }
}

impl DataDir {
    /// Where the token lies by which processes of this user join.
    pub(crate) fn token_path(&self) -> PathBuf {
        token_path(&self.path)
    }
}

/// Where it lies in a data directory.
pub(crate) fn token_path(data_dir: &Path) -> PathBuf {
    data_dir.join(TOKEN)
}

/// What the coordinator holds that uses a data directory.
pub(crate) fn lock_path(data_dir: &Path) -> PathBuf {
    data_dir.join("coordinator.lock")
}

const TOKEN: &str = "join.token";

const KEYS: &str = "keys.toml";

/// The file of API keys: the one that is configured, or that of the data directory.
///
/// # Errors
/// When there is no saying where that is.
pub(crate) fn keys_path(config: &Config) -> Result<PathBuf> {
    match config.http.api_keys.as_path() {
        none if none.as_os_str().is_empty() => Ok(path(config)?.join(KEYS)),
        file => Ok(file.to_owned()),
    }
}

/// How a node is started that is to join; it finds the token in the default directory by itself.
pub(crate) fn join_command(config: &config::Coordinator) -> String {
    let host = config.cluster_addr.host();
    let is_loopback = host.parse::<IpAddr>().map_or(host == "localhost", |ip| ip.is_loopback());
    if !is_loopback {
        return match config.data_dir.as_path() {
            dir if dir.as_os_str().is_empty() => "autoglm token create".into(),
            dir => format!("autoglm token create --data-dir {}", dir.display()),
        } + ", and on the node's machine what that prints";
    }
    let command = format!("autoglm-node --join {}", config.cluster_addr);
    match config.data_dir.as_path() {
        dir if dir.as_os_str().is_empty() => command,
        dir => format!("{command} --token-file {}", dir.join(TOKEN).display()),
    }
}

/// What is configured in `path`, or the defaults.
///
/// # Errors
/// When it can't be read, or says what can't work.
pub fn config(path: Option<&Path>) -> Result<Config> {
    let Some(path) = path else { return Ok(Config::default()) };
    let text = fs::read_to_string(path)
        .with_context(|| format!("can't read --config {}", path.display()))?;
    Config::parse(&text).with_context(|| path.display().to_string())
}

/// Creates it where there is none, for its user only: the authority's key and the secret of local
/// nodes lie here.
///
/// # Errors
/// When it can't be.
pub(crate) fn create(path: &Path) -> Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder
        .create(path)
        .with_context(|| format!("can't create the data directory {}", path.display()))
}

/// Writes a file that its user only may read, in place of what was there: it is as it was or as it
/// is, whenever the power goes.
///
/// # Errors
/// When it can't be written.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let new = PathBuf::from(format!("{}.new", path.display()));
    // Left over from a write that was cut short.
    let _ = fs::remove_file(&new);
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    // A directory keeps names as a file keeps bytes.
    match path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        Some(parent) => File::open(parent)?.sync_all(),
        None => File::open(".")?.sync_all(),
    }
}

/// Where it is, or would be.
///
/// # Errors
/// When neither a configuration nor the environment says so.
pub(crate) fn path(config: &Config) -> Result<PathBuf> {
    let configured = &config.coordinator.data_dir;
    if !configured.as_os_str().is_empty() {
        return Ok(configured.clone());
    }
    let home = std::env::var_os("XDG_DATA_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/share")))
        .context("neither HOME nor XDG_DATA_HOME is set: give --data-dir")?;
    let port = config.coordinator.cluster_addr.port();
    Ok(home.join("autoglm").join(format!("coordinator-{port}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_directory_is_held_by_one_coordinator() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.coordinator.data_dir = dir.path().join("new");
        let first = DataDir::open(&config).unwrap();
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = first.path.metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o700);
        }
        let error = DataDir::open(&config).unwrap_err().to_string();
        assert!(error.contains("its own --data-dir"), "{error}");
        drop(first);
        DataDir::open(&config).unwrap();
    }
}
