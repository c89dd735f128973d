//! Clusters of real processes on this machine.

use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::process::{Child, Command};

/// How long a cluster may take to load a model and say that it serves.
const READY: Duration = Duration::from_secs(180);

/// How long one may take to end when it is asked to.
const END: Duration = Duration::from_secs(20);

/// A coordinator and its nodes, one for each stage.
pub struct Cluster {
    /// Where it answers.
    pub url: String,
    child: Child,
    // Its certificates and its log, which go with it.
    folder: tempfile::TempDir,
}

impl Cluster {
    /// Starts `autoglm serve` with as many nodes as stages, and waits until it serves.
    ///
    /// # Errors
    /// When the binary isn't beside this one, or the cluster doesn't come to serve.
    pub async fn start(model: &Path, num_stages: u32) -> Result<Self> {
        let binary = beside_this_binary("autoglm")?;
        let folder = tempfile::tempdir().context("no temporary folder")?;
        let log = std::fs::File::create(folder.path().join("log"))?;
        let stages = num_stages.to_string();
        // Free at this moment; the server says so if they were taken since.
        let http = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let cluster = UdpSocket::bind("127.0.0.1:0")?.local_addr()?;
        let child = Command::new(&binary)
            .arg("serve")
            .arg("--model")
            .arg(model)
            .args(["--local-nodes", &stages, "--stages", &stages])
            .args(["--http", &http.to_string(), "--cluster", &cluster.to_string()])
            .arg("--data-dir")
            .arg(folder.path().join("data"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("can't start {}", binary.display()))?;
        let mut cluster = Self { url: format!("http://{http}"), child, folder };
        cluster.wait_until_ready(num_stages).await?;
        Ok(cluster)
    }

    async fn wait_until_ready(&mut self, num_stages: u32) -> Result<()> {
        let start = Instant::now();
        let ready = format!("{}/health/ready", self.url);
        loop {
            if reqwest::get(&ready).await.is_ok_and(|answer| answer.status().is_success()) {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("a cluster of {num_stages} stages ended ({status}):\n{}", self.log());
            }
            if start.elapsed() > READY {
                bail!(
                    "a cluster of {num_stages} stages doesn't serve after {} s:\n{}",
                    READY.as_secs(),
                    self.log()
                );
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// What it counts.
    ///
    /// # Errors
    /// When it doesn't say.
    pub async fn metrics(&self) -> Result<String> {
        let answer = reqwest::get(format!("{}/metrics", self.url)).await?.error_for_status()?;
        Ok(answer.text().await?)
    }

    /// Asks it to end, and waits until it has.
    pub async fn stop(mut self) {
        let Some(pid) = self.child.id() else { return };
        let pid = pid.to_string();
        let _ = Command::new("kill").args(["-s", "TERM", &pid]).status().await;
        // Killed with its handle, if it takes too long.
        let _ = tokio::time::timeout(END, self.child.wait()).await;
    }

    /// The end of its log.
    fn log(&self) -> String {
        let text = std::fs::read(self.folder.path().join("log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    }
}

fn beside_this_binary(name: &str) -> Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name(name);
    if !path.is_file() {
        bail!("{} is not there: build it first (cargo build)", path.display());
    }
    Ok(path)
}
