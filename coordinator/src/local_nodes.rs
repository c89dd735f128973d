//! Node processes that the coordinator runs as its children. One that ends is started again.
//!
//! A child's standard input is a pipe whose other end only this process holds: closing it asks the
//! child to end, and it closes by itself however this process ends. So no child outlives its
//! coordinator, and nobody is signalled by a remembered process id, which may be another's by then.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use protocol::config::Config;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::backoff::Backoff;
use crate::data_dir::DataDir;

/// How long a child may take to end.
const END_TIMEOUT: Duration = Duration::from_secs(6);

/// A child that lived this long failed for another reason than the one before it.
const STEADY: Duration = Duration::from_secs(60);

/// What a child may say about why it ended: a sentence.
const MAX_LAST_WORDS_BYTES: usize = 1024;

/// How long the last of it may take to arrive after a child's end.
const LISTEN_TIMEOUT: Duration = Duration::from_millis(100);

/// The children, each with a task that keeps it.
#[derive(Debug)]
pub struct LocalNodes {
    keepers: JoinSet<()>,
    stop: CancellationToken,
}

/// A child process has ended, or couldn't be started again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its process id, while it was one.
    pub pid: Option<u32>,
    /// One sentence for a person.
    pub cause: String,
}

impl LocalNodes {
    /// Starts as many as are configured and calls `ended` for each that ends.
    ///
    /// # Errors
    /// When the binary isn't there or can't be started.
    pub fn start(
        config: &Config,
        coordinator: SocketAddr,
        data_dir: &DataDir,
        ended: impl Fn(Ended) + Clone + Send + 'static,
    ) -> Result<Self> {
        let mut nodes = Self { keepers: JoinSet::new(), stop: CancellationToken::new() };
        if config.coordinator.local_nodes == 0 {
            return Ok(nodes);
        }
        let binary = beside_this_binary("autoglm-node")?;
        for index in 0..config.coordinator.local_nodes {
            let arguments = arguments(config, coordinator, data_dir, index);
            nodes.keep(Recipe { binary: binary.clone(), arguments, index }, ended.clone())?;
        }
        Ok(nodes)
    }

    fn keep(
        &mut self,
        recipe: Recipe,
        ended: impl Fn(Ended) + Clone + Send + 'static,
    ) -> Result<()> {
        // The first start shows whether it can be started at all.
        let first = recipe.start()?;
        self.keepers.spawn(keep(recipe, first, ended, self.stop.clone()));
        Ok(())
    }

    /// Resolves when a child is kept no more, which is nobody's intention.
    pub async fn abandoned(&mut self) {
        if self.keepers.join_next().await.is_none() {
            std::future::pending().await
        }
    }

    /// Asks the children to end, and makes sure that they do.
    pub async fn stop(mut self) {
        self.stop.cancel();
        while self.keepers.join_next().await.is_some() {}
    }
}

/// How one child is started, as often as it takes.
struct Recipe {
    binary: PathBuf,
    arguments: Vec<OsString>,
    index: u32,
}

impl Recipe {
    fn start(&self) -> Result<Running> {
        let mut child = Command::new(&self.binary)
            .args(&self.arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // A ctrl-c in the terminal is the coordinator's to handle: it asks its children.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("can't start {}", self.binary.display()))?;
        let pid = child.id().context("the child has no process id")?;
        info!(pid, index = self.index, "local node started");
        let life = child.stdin.take().context("the child has no standard input")?;
        let words = child.stdout.take().context("the child has no standard output")?;
        Ok(Running { child, life, words, pid, since: Instant::now() })
    }
}

/// A child that runs.
struct Running {
    child: Child,
    // Kept apart, since waiting for the child would close it.
    life: ChildStdin,
    words: ChildStdout,
    pid: u32,
    since: Instant,
}

impl Running {
    /// Why it ended, once it has: its last line, or else what the system says.
    async fn ended(&mut self) -> String {
        let mut words = Vec::new();
        let status = {
            let listening = listen(&mut self.words, &mut words);
            tokio::pin!(listening);
            let mut is_listening = true;
            let status = loop {
                tokio::select! {
                    status = self.child.wait() => break status,
                    // All along, since a pipe that is full would hold the child up.
                    () = &mut listening, if is_listening => is_listening = false,
                }
            };
            if is_listening {
                // What it started itself may hold the pipe open.
                let _ = tokio::time::timeout(LISTEN_TIMEOUT, listening).await;
            }
            status
        };
        let words = String::from_utf8_lossy(&words);
        let last = words.trim().lines().last().unwrap_or_default().replace(char::is_control, " ");
        match status {
            Ok(status) if last.is_empty() => status.to_string(),
            Ok(status) => format!("{status}: {last}"),
            Err(cause) => format!("it can't be waited for: {cause}"),
        }
    }

    async fn end(mut self) {
        drop(self.life);
        if tokio::time::timeout(END_TIMEOUT, self.child.wait()).await.is_err() {
            warn!(pid = self.pid, "a local node did not end when it was asked to: killed");
            // Fails only if it has just ended.
            let _ = self.child.kill().await;
        }
    }
}

/// Keeps the end of what a child says in `words`.
async fn listen(said: &mut ChildStdout, words: &mut Vec<u8>) {
    let mut chunk = [0; MAX_LAST_WORDS_BYTES];
    while let Ok(num @ 1..) = said.read(&mut chunk).await {
        words.extend(&chunk[..num]);
        words.drain(..words.len().saturating_sub(MAX_LAST_WORDS_BYTES));
    }
}

/// Starts a child again whenever it has ended, until `stop`.
async fn keep(
    recipe: Recipe,
    first: Running,
    ended: impl Fn(Ended) + Send,
    stop: CancellationToken,
) {
    let mut backoff = Backoff::default();
    let mut child = Some(first);
    loop {
        let (pid, cause) = match &mut child {
            Some(running) => {
                let cause = tokio::select! {
                    cause = running.ended() => cause,
                    () = stop.cancelled() => break,
                };
                if running.since.elapsed() >= STEADY {
                    backoff.reset();
                }
                (Some(running.pid), format!("ended ({cause})"))
            }
            None => match recipe.start() {
                Ok(running) => {
                    child = Some(running);
                    continue;
                }
                Err(cause) => (None, format!("isn't there: {cause:#}")),
            },
        };
        child = None;
        backoff.failed();
        let (index, pause) = (recipe.index, backoff.pause());
        let cause = format!("local node {index} {cause}, it is started again in {pause:?}");
        warn!(pid, index, cause, "local node ended");
        ended(Ended { pid, cause });
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => break,
        }
    }
    if let Some(running) = child {
        running.end().await;
    }
}

fn arguments(
    config: &Config,
    coordinator: SocketAddr,
    data_dir: &DataDir,
    index: u32,
) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = vec![
        "--join".into(),
        coordinator.to_string().into(),
        "--data-dir".into(),
        data_dir.path.join(format!("node-{index}")).into(),
        "--token-file".into(),
        data_dir.token_path().into(),
        "--log-format".into(),
        config.log.format.to_string().into(),
        "--exit-with-coordinator".into(),
    ];
    if !config.traces.endpoint.is_empty() {
        arguments.extend(["--otlp-endpoint".into(), config.traces.endpoint.clone().into()]);
    }
    arguments
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

#[cfg(test)]
mod tests {
    use super::*;

    use tokio::sync::mpsc;

    fn shell(script: &str) -> Recipe {
        let arguments = vec!["-c".into(), script.into()];
        Recipe { binary: "/bin/sh".into(), arguments, index: 0 }
    }

    fn keep(script: &str) -> (LocalNodes, mpsc::UnboundedReceiver<Ended>) {
        let mut nodes = LocalNodes { keepers: JoinSet::new(), stop: CancellationToken::new() };
        let (ended, heard) = mpsc::unbounded_channel();
        nodes.keep(shell(script), move |it| drop(ended.send(it))).unwrap();
        (nodes, heard)
    }

    #[tokio::test]
    async fn a_child_that_ends_is_started_again_and_says_why_it_ended() {
        let (nodes, mut heard) = keep("echo there is no adapter; exit 3");
        let (first, second) = (heard.recv().await.unwrap(), heard.recv().await.unwrap());
        assert_ne!(first.pid, second.pid);
        assert_eq!(
            first.cause,
            "local node 0 ended (exit status: 3: there is no adapter), it is started again in 1s"
        );
        assert!(second.cause.ends_with("again in 2s"), "{}", second.cause);
        nodes.stop().await;
        assert!(heard.recv().await.is_none(), "none is started after the stop");
    }

    #[tokio::test]
    async fn a_child_that_talks_is_not_held_up() {
        let (nodes, mut heard) = keep("head -c 300000 /dev/zero; echo; echo that is all; exit 1");
        let ended = tokio::time::timeout(Duration::from_secs(60), heard.recv()).await.unwrap();
        assert!(ended.unwrap().cause.contains("(exit status: 1: that is all)"));
        nodes.stop().await;
    }

    /// As a node does: it ends when its standard input does.
    #[tokio::test]
    async fn a_child_is_asked_to_end_by_the_end_of_its_input() {
        let dir = tempfile::tempdir().unwrap();
        let left = dir.path().join("left");
        let (nodes, mut heard) =
            keep(&format!("cat > /dev/null; echo cleanly > {}", left.display()));
        tokio::time::sleep(Duration::from_millis(100)).await;
        nodes.stop().await;
        assert_eq!(std::fs::read_to_string(left).unwrap(), "cleanly\n");
        assert!(heard.recv().await.is_none(), "an end that was asked for is no news");
    }

    #[tokio::test]
    async fn a_child_that_is_killed_is_told_of_by_its_signal() {
        let (nodes, mut heard) = keep("kill -s KILL $$");
        let ended = heard.recv().await.unwrap();
        assert!(ended.cause.contains("signal: 9"), "{}", ended.cause);
        nodes.stop().await;
    }
}
