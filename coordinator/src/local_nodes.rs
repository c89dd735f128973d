//! Node processes that the coordinator runs as its children.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use protocol::config::Config;
use tokio::process::{Child, Command};
use tracing::{info, warn};

/// Starts as many as are configured and calls `exited(pid, cause)` for each that ends.
///
/// # Errors
/// When the binary isn't there or can't be started.
pub fn start(
    config: &Config,
    coordinator: SocketAddr,
    data_dir: &Path,
    exited: impl Fn(u32, String) + Clone + Send + 'static,
) -> Result<Vec<u32>> {
    let binary = beside_this_binary("autoglm-node")?;
    (0..config.coordinator.local_nodes)
        .map(|index| {
            let mut child = Command::new(&binary)
                .arg("--join")
                .arg(coordinator.to_string())
                .arg("--data-dir")
                .arg(data_dir.join(format!("node-{index}")))
                .args(["--log-format", &config.log.format.to_string()])
                .args(otlp_endpoint(config))
                // Ends with its coordinator, also with one that was killed.
                .arg("--exit-with-coordinator")
                .stdin(Stdio::null())
                // A ctrl-c in the terminal is the coordinator's to handle: it asks its children.
                .process_group(0)
                .kill_on_drop(true)
                .spawn()
                .with_context(|| format!("can't start {}", binary.display()))?;
            let pid = child.id().context("the child has no process id")?;
            info!(pid, index, "local node started");
            let exited = exited.clone();
            tokio::spawn(async move {
                let cause = end_of(&mut child).await;
                exited(pid, cause);
            });
            Ok(pid)
        })
        .collect()
}

fn otlp_endpoint(config: &Config) -> impl Iterator<Item = &str> {
    let endpoint = config.traces.endpoint.as_str();
    let is_on = !endpoint.is_empty();
    ["--otlp-endpoint", endpoint].into_iter().filter(move |_| is_on)
}

/// Asks a child to end, and makes sure that it does.
pub async fn terminate(pid: u32) {
    // Without unsafe code there is no kill(2); the command is on every system that has signals.
    let ask = |signal| Command::new("kill").args(["-s", signal, &pid.to_string()]).status();
    let is_alive = || Path::new("/proc").join(pid.to_string()).exists();
    if ask("TERM").await.is_err() {
        return;
    }
    for _ in 0..TERMINATE_POLLS {
        if !is_alive() {
            return;
        }
        tokio::time::sleep(POLL).await;
    }
    let _ = ask("KILL").await;
}

const POLL: Duration = Duration::from_millis(20);

/// How long a child may take to end: 5 s.
const TERMINATE_POLLS: u32 = 250;

async fn end_of(child: &mut Child) -> String {
    match child.wait().await {
        Ok(status) => format!("its process ended ({status})"),
        Err(cause) => {
            warn!(%cause, "can't wait for a local node");
            "its process can't be waited for".into()
        }
    }
}

fn beside_this_binary(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("can't tell where this program is")?;
    // A test binary lives one folder deeper than the binaries.
    let folders = own.ancestors().skip(1).take(2);
    folders
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
        .with_context(|| format!("{name} is not beside {}: build or install both", own.display()))
}
