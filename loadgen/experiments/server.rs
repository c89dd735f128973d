//! A server that an experiment starts, waits for, and ends with everything that it started.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;
use tokio::process::{Child, Command as Process};

use super::configuration::Command;
use crate::client::Server;

/// Between two questions whether it is ready.
const POLL: Duration = Duration::from_millis(100);
/// How long it may take to end when it is asked to.
const END: Duration = Duration::from_secs(15);
/// Bytes of its output that are shown when it fails.
const MAX_SHOWN: usize = 2000;

/// A server that runs, and is killed when this is dropped.
#[derive(Debug)]
pub struct Started {
    child: Child,
    /// Its process group, as long as it may be there.
    group: Option<i32>,
    url: String,
    /// Its output, and what `{dir}` stands for.
    folder: TempDir,
}

impl Started {
    /// Starts it, and waits until it is ready: `/health/ready` answers 200 or, where there is no
    /// such path, `/v1/models` does.
    ///
    /// # Errors
    /// When it can't be started, ends, or isn't ready in time. The end of its output is in the
    /// error.
    pub async fn start(command: &Command) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("autoglm-experiment-").tempdir()?;
        let data = folder.path().join("data");
        std::fs::create_dir(&data)?;
        let port = free_port()?.to_string();
        let words: Vec<String> = command
            .words
            .iter()
            .map(|word| word.replace("{port}", &port).replace("{dir}", &data.to_string_lossy()))
            .collect();
        let log = File::create(log_path(&folder))?;
        let mut process = Process::new(program(&words[0]));
        process
            .args(&words[1..])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true);
        // What it starts itself ends with it.
        #[cfg(unix)]
        process.process_group(0);
        let child = process.spawn().with_context(|| format!("can't start {}", words[0]))?;
        let group = child.id().and_then(|id| i32::try_from(id).ok());
        let mut started = Self { child, group, url: format!("http://127.0.0.1:{port}"), folder };
        match started.wait_until_ready(Duration::from_secs(command.ready_seconds)).await {
            Ok(()) => Ok(started),
            Err(cause) => {
                let said = started.last_words();
                started.end().await;
                Err(cause.context(format!("{} said:\n{said}\nand failed", words.join(" "))))
            }
        }
    }

    /// Its address.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Its process, while there is one.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Asks it to end, and kills what is left.
    pub async fn end(mut self) {
        self.signal(Signal::End);
        let _ = tokio::time::timeout(END, self.child.wait()).await;
        self.signal(Signal::Kill);
        let _ = self.child.wait().await;
        self.group = None;
    }

    async fn wait_until_ready(&mut self, limit: Duration) -> Result<()> {
        let server = Server::new(&self.url, Duration::from_secs(5))?;
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("it ended before it was ready ({status})");
            }
            if is_ready(&server).await {
                return Ok(());
            }
            if start.elapsed() > limit {
                bail!("it was not ready within {} s", limit.as_secs());
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// The end of its output.
    fn last_words(&self) -> String {
        let output = std::fs::read(log_path(&self.folder)).unwrap_or_default();
        let end = &output[output.len().saturating_sub(MAX_SHOWN)..];
        String::from_utf8_lossy(end).trim().to_string()
    }

    #[cfg(unix)]
    fn signal(&mut self, signal: Signal) {
        use nix::sys::signal::{Signal as Number, killpg};
        let Some(group) = self.group else { return };
        let number = match signal {
            Signal::End => Number::SIGTERM,
            Signal::Kill => Number::SIGKILL,
        };
        // It may be gone.
        let _ = killpg(nix::unistd::Pid::from_raw(group), number);
    }

    #[cfg(not(unix))]
    fn signal(&mut self, _: Signal) {
        if self.group.is_some() {
            let _ = self.child.start_kill();
        }
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        self.signal(Signal::Kill);
    }
}

#[derive(Clone, Copy)]
enum Signal {
    End,
    Kill,
}

async fn is_ready(server: &Server) -> bool {
    match server.status("/health/ready").await {
        Some(404 | 405) => server.status("/v1/models").await == Some(200),
        answered => answered == Some(200),
    }
}

/// A program without a folder is looked for beside ours first.
pub fn program(word: &str) -> PathBuf {
    let ours = std::env::current_exe().ok();
    let beside = ours.as_deref().and_then(Path::parent).map(|folder| folder.join(word));
    let is_name = Path::new(word).components().count() == 1;
    beside.filter(|path| is_name && path.is_file()).unwrap_or_else(|| word.into())
}

/// A port that nobody listens on. Somebody may take it until the server does, which then says so.
fn free_port() -> Result<u16> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").context("no free port")?;
    Ok(listener.local_addr()?.port())
}

fn log_path(folder: &TempDir) -> PathBuf {
    folder.path().join("server.log")
}
