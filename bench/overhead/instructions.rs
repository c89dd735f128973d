//! Instructions of a process, as valgrind's callgrind counts them: the same work gives nearly the
//! same number, however busy the machine is.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;
use tokio::process::Command;

/// Counts the instructions of one process, and of none that it starts.
#[derive(Debug)]
pub(super) struct Callgrind {
    folder: TempDir,
}

impl Callgrind {
    /// One for a process that is yet to be started.
    ///
    /// # Errors
    /// When valgrind isn't there.
    pub(super) async fn new() -> Result<Self> {
        let found = Command::new("valgrind").arg("--version").stdout(Stdio::null()).status().await;
        found.context("instructions are counted by valgrind: install the package valgrind")?;
        Ok(Self { folder: tempfile::tempdir()? })
    }

    /// What the process is started by: these words, then the program and its own. Nothing is
    /// counted before [`begin`](Self::begin).
    pub(super) fn words(&self) -> Vec<String> {
        let file = format!("--callgrind-out-file={}", self.file().display());
        ["valgrind", "--tool=callgrind", "--instr-atstart=no", &file].map(str::to_owned).into()
    }

    /// Counts from here.
    ///
    /// # Errors
    /// When the process isn't under valgrind, or has ended.
    pub(super) async fn begin(&self, pid: u32) -> Result<()> {
        control(pid, &["-i", "on"]).await?;
        control(pid, &["-z"]).await
    }

    /// The instructions since [`begin`](Self::begin), user mode only.
    ///
    /// # Errors
    /// When the process isn't under valgrind, or has ended.
    pub(super) async fn end(&self, pid: u32) -> Result<f64> {
        control(pid, &["-d"]).await?;
        let dumps = std::fs::read_dir(self.folder.path())?.flatten().map(|entry| entry.path());
        let number = |path: &PathBuf| path.extension()?.to_str()?.parse::<u32>().ok();
        let last = dumps.filter(|path| number(path).is_some()).max_by_key(number);
        let last = last.context("callgrind wrote no counts")?;
        totals(&last).with_context(|| format!("{} has no totals", last.display()))
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("counts")
    }
}

async fn control(pid: u32, words: &[&str]) -> Result<()> {
    let mut command = Command::new("callgrind_control");
    let said = command.args(words).arg(pid.to_string()).output().await;
    let said = said.context("callgrind_control, of the package valgrind, can't be started")?;
    if !said.status.success() {
        bail!("callgrind_control {}: {}", words.join(" "), String::from_utf8_lossy(&said.stderr));
    }
    Ok(())
}

/// The line `totals: N` of a file of callgrind's.
fn totals(path: &Path) -> Option<f64> {
    let text = std::fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| line.strip_prefix("totals: ")?.trim().parse().ok())
}
