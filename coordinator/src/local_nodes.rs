//! Node processes that the coordinator runs as its children. One that ends is started again. Where
//! their number goes with the load, others are started, and idle ones asked to end.
//!
//! A child's standard input is a pipe whose other end only this process holds: closing it asks the
//! child to end, and it closes by itself however this process ends. So no child outlives its
//! coordinator, and nobody is signalled by a remembered process id, which may be another's by then.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use protocol::config::Config;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::backoff::Backoff;
use crate::cluster::{Idle, Staffing};
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
pub(crate) struct LocalNodes {
    // Each resolves to its index.
    keepers: JoinSet<u32>,
    kept: Vec<Kept>,
    stop: CancellationToken,
    wanted: watch::Receiver<Staffing>,
    // Whether their number is what is wanted; otherwise it is what is configured.
    is_scaled: bool,
    recipe: Box<dyn Fn(u32) -> Recipe + Send>,
    ended: Hear,
    // Of starts of others, and when the next is tried, if that is for such a reason.
    backoff: Backoff,
    retry_at: Option<Instant>,
}

/// Called for each child that ends unasked.
type Hear = Arc<dyn Fn(Ended) + Send + Sync>;

struct Kept {
    index: u32,
    // Of its process, while there is one.
    pid: Arc<AtomicU32>,
    stop: CancellationToken,
}

/// A child process has ended, or couldn't be started again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    /// Its process id, while it was one.
    pub pid: Option<u32>,
    /// One sentence for a person.
    pub cause: String,
}

impl LocalNodes {
    /// Starts as many as are configured, or as few as may be where `wanted` says how many, and
    /// calls `ended` for each that ends.
    ///
    /// # Errors
    /// When the binary isn't there or can't be started.
    pub(crate) fn start(
        config: &Config,
        coordinator: SocketAddr,
        data_dir: &DataDir,
        wanted: watch::Receiver<Staffing>,
        ended: impl Fn(Ended) + Send + Sync + 'static,
    ) -> Result<Self> {
        let is_scaled = config.autoscaler.enabled && config.autoscaler.max_local_nodes > 0;
        let has_any = is_scaled || config.coordinator.local_nodes > 0;
        let binary = if has_any { beside_this_binary("autoglm-node")? } else { PathBuf::default() };
        let recipe = {
            let (config, path) = (config.clone(), data_dir.path.clone());
            let token = data_dir.token_path();
            move |index| {
                let arguments = arguments(&config, coordinator, (&path, &token), index);
                Recipe { binary: binary.clone(), arguments, index }
            }
        };
        let mut nodes = Self::new(recipe, wanted, ended);
        nodes.is_scaled = is_scaled;
        for _ in 0..config.coordinator.local_nodes {
            nodes.add()?;
        }
        Ok(nodes)
    }

    fn new(
        recipe: impl Fn(u32) -> Recipe + Send + 'static,
        wanted: watch::Receiver<Staffing>,
        ended: impl Fn(Ended) + Send + Sync + 'static,
    ) -> Self {
        Self {
            keepers: JoinSet::new(),
            kept: Vec::new(),
            stop: CancellationToken::new(),
            wanted,
            is_scaled: false,
            recipe: Box::new(recipe),
            ended: Arc::new(ended),
            backoff: Backoff::default(),
            retry_at: None,
        }
    }

    /// Another child, under the lowest index that is free: what a former one left is of use to it.
    fn add(&mut self) -> Result<()> {
        let is_free = |index: &u32| self.kept.iter().all(|kept| kept.index != *index);
        let index = (0..).find(is_free).expect("indices outnumber children");
        let recipe = (self.recipe)(index);
        // The first start shows whether it can be started at all.
        let first = recipe.start()?;
        let (pid, stop) = (Arc::new(AtomicU32::new(first.pid)), self.stop.child_token());
        let keeper = keep(recipe, first, Arc::clone(&pid), Arc::clone(&self.ended), stop.clone());
        self.keepers.spawn(async move {
            keeper.await;
            index
        });
        self.kept.push(Kept { index, pid, stop });
        Ok(())
    }

    /// Sees to it that there are as many children as are wanted, and resolves when one is kept no
    /// more, which is nobody's intention.
    pub(crate) async fn abandoned(&mut self) {
        loop {
            tokio::select! {
                Some(ended) = self.keepers.join_next() => {
                    let index = ended.ok();
                    let at = self.kept.iter().position(|kept| Some(kept.index) == index);
                    match at {
                        Some(at) if self.kept[at].stop.is_cancelled() => {
                            self.kept.remove(at);
                            // Another may be wanted by now.
                            self.adjust();
                        }
                        _ => return,
                    }
                }
                Ok(()) = self.wanted.changed() => self.adjust(),
                () = due(self.retry_at) => self.adjust(),
            }
        }
    }

    fn adjust(&mut self) {
        if !self.is_scaled {
            return;
        }
        let Staffing { num_nodes, idle, .. } = self.wanted.borrow_and_update().clone();
        let staying = self.kept.iter().filter(|kept| !kept.stop.is_cancelled());
        let num_staying = staying.clone().count();
        let pid = |kept: &Kept| kept.pid.load(Ordering::Relaxed);
        // First of all those that have ended and are to be started again.
        let (ended, running): (Vec<_>, Vec<_>) = staying.partition(|kept| pid(kept) == 0);
        let is_idle = |kept: &&Kept| idle.iter().any(|it: &Idle| it.pid == pid(kept));
        let useless = ended.into_iter().chain(running.into_iter().filter(is_idle));
        for kept in useless.take(num_staying.saturating_sub(num_nodes)) {
            info!(index = kept.index, num_nodes, "a local node is of no more use: it ends");
            kept.stop.cancel();
        }
        self.retry_at = None;
        for _ in num_staying..num_nodes {
            if let Err(cause) = self.add() {
                self.backoff.failed();
                let pause = self.backoff.pause();
                self.retry_at = Some(Instant::now() + pause);
                let cause = format!(
                    "another local node can't be started, it is tried again in {pause:?}: {cause:#}"
                );
                warn!(cause);
                (self.ended)(Ended { pid: None, cause });
                return;
            }
        }
        self.backoff.reset();
    }

    /// Asks the children to end, and makes sure that they do.
    pub(crate) async fn stop(mut self) {
        self.stop.cancel();
        while self.keepers.join_next().await.is_some() {}
    }
}

/// Resolves then, or never.
async fn due(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
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
    its_pid: Arc<AtomicU32>,
    ended: Hear,
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
                    its_pid.store(running.pid, Ordering::Relaxed);
                    child = Some(running);
                    continue;
                }
                Err(cause) => (None, format!("isn't there: {cause:#}")),
            },
        };
        child = None;
        // Another's may be the same from now on.
        its_pid.store(0, Ordering::Relaxed);
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
    (data_dir, token): (&Path, &Path),
    index: u32,
) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = vec![
        "--join".into(),
        coordinator.to_string().into(),
        "--data-dir".into(),
        data_dir.join(format!("node-{index}")).into(),
        "--token-file".into(),
        token.into(),
        "--log-format".into(),
        config.log.format.to_string().into(),
        "--exit-with-coordinator".into(),
    ];
    if !config.traces.endpoint.is_empty() {
        arguments.extend(["--otlp-endpoint".into(), config.traces.endpoint.clone().into()]);
    }
    arguments
}

/// The program of this name in the folder of this one.
pub(crate) fn beside_this_binary(name: &str) -> Result<PathBuf> {
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

    fn shell(script: &str) -> impl Fn(u32) -> Recipe + Send + 'static {
        let arguments: Vec<OsString> = vec!["-c".into(), script.into()];
        move |index| Recipe { binary: "/bin/sh".into(), arguments: arguments.clone(), index }
    }

    fn keep(script: &str) -> (LocalNodes, mpsc::UnboundedReceiver<Ended>) {
        let (ended, heard) = mpsc::unbounded_channel();
        let wanted = watch::channel(Staffing::default()).1;
        let mut nodes = LocalNodes::new(shell(script), wanted, move |it| drop(ended.send(it)));
        nodes.add().unwrap();
        (nodes, heard)
    }

    async fn pass(nodes: &mut LocalNodes, milliseconds: u64) {
        let passed = tokio::time::sleep(Duration::from_millis(milliseconds));
        tokio::select! {
            () = nodes.abandoned() => panic!("nobody is abandoned"),
            () = passed => {}
        }
    }

    /// Goal: as many children as are wanted, of which only idle ones end, and in time. Method: as
    /// nodes they end when their input does, one of them late; more are wanted meanwhile.
    #[tokio::test]
    async fn children_are_added_and_idle_ones_end() {
        let (want, wanted) = watch::channel(Staffing::default());
        let script = "cat > /dev/null; sleep 0.3";
        let mut nodes = LocalNodes::new(shell(script), wanted, |it| panic!("{it:?}"));
        nodes.is_scaled = true;
        nodes.add().unwrap();
        let wants = |num_nodes, idle: &[u32]| {
            let idle = idle.iter().map(|&pid| Idle { pid, hostname: "here".into() }).collect();
            let (num_pipelines, num_joined) = (num_nodes, num_nodes);
            want.send_replace(Staffing { num_pipelines, num_nodes, num_joined, idle });
        };
        let pids = |nodes: &LocalNodes| {
            let pids = nodes.kept.iter().map(|kept| kept.pid.load(Ordering::Relaxed));
            pids.collect::<Vec<_>>()
        };
        wants(3, &[]);
        pass(&mut nodes, 50).await;
        let three = pids(&nodes);
        assert_eq!(three.len(), 3);
        wants(1, &[]);
        pass(&mut nodes, 1000).await;
        assert_eq!(pids(&nodes), three, "none of them is idle yet");
        wants(1, &[three[1]]);
        pass(&mut nodes, 50).await;
        assert_eq!(nodes.kept.iter().filter(|it| it.stop.is_cancelled()).count(), 1);
        // It is wanted again before it has ended: another takes its place, not its folder.
        wants(3, &[three[1]]);
        pass(&mut nodes, 50).await;
        assert_eq!(nodes.kept.last().unwrap().index, 3);
        while nodes.kept.len() > 3 {
            pass(&mut nodes, 50).await;
        }
        let [first, last, new] = pids(&nodes)[..] else { panic!("{:?}", pids(&nodes)) };
        assert_eq!((first, last), (three[0], three[2]));
        wants(2, &[new, first]);
        while nodes.kept.len() > 2 {
            pass(&mut nodes, 50).await;
        }
        assert_eq!(pids(&nodes), [last, new], "of those that are idle as many as are too many");
        nodes.stop().await;
    }

    /// Goal: no child is started again and again that nobody wants. Method: one that ends at once,
    /// beside one that is idle.
    #[tokio::test]
    async fn a_child_that_keeps_ending_goes_before_one_that_runs() {
        let dir = tempfile::tempdir().unwrap();
        let (ended, mut heard) = mpsc::unbounded_channel();
        let (want, wanted) = watch::channel(Staffing::default());
        // Whoever comes first ends.
        let script =
            format!("mkdir {}/first 2>/dev/null && exit 1; cat > /dev/null", dir.path().display());
        let mut nodes = LocalNodes::new(shell(&script), wanted, move |it| drop(ended.send(it)));
        nodes.is_scaled = true;
        nodes.add().unwrap();
        heard.recv().await.unwrap();
        nodes.add().unwrap();
        let pid = nodes.kept[1].pid.load(Ordering::Relaxed);
        let idle = vec![Idle { pid, hostname: "here".into() }];
        want.send_replace(Staffing { num_nodes: 1, idle, ..Staffing::default() });
        pass(&mut nodes, 500).await;
        assert_eq!(nodes.kept.iter().map(|it| it.index).collect::<Vec<_>>(), [1]);
        nodes.stop().await;
    }

    /// Goal: what hinders a start for a while isn't for ever. Method: a program that comes late.
    #[tokio::test]
    async fn another_child_that_cannot_be_started_is_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let binary = dir.path().join("sh");
        let (ended, mut heard) = mpsc::unbounded_channel();
        let (want, wanted) = watch::channel(Staffing::default());
        let (shell, late) = (shell("cat > /dev/null"), binary.clone());
        let recipe = move |index| Recipe { binary: late.clone(), ..shell(index) };
        let mut nodes = LocalNodes::new(recipe, wanted, move |it| drop(ended.send(it)));
        nodes.is_scaled = true;
        want.send_replace(Staffing { num_nodes: 1, ..Staffing::default() });
        pass(&mut nodes, 50).await;
        let said = heard.recv().await.unwrap().cause;
        assert!(said.contains("it is tried again in 1s: can't start"), "{said}");
        std::os::unix::fs::symlink("/bin/sh", binary).unwrap();
        pass(&mut nodes, 2000).await;
        assert_eq!(nodes.kept.len(), 1);
        nodes.stop().await;
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
