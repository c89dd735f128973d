//! Does what [`fault`](super::fault) describes, at its time, and keeps the watch over its effects.

use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::fault::{Deed, Fault, FaultWatch, Signal};
use super::observe::{Observe, ObserveAnswer};
use crate::client::Answer;
use crate::client::failure::Failure;
use crate::report::result::FaultOutcome;

/// How long a command may go on after the run.
const COMMAND_END: Duration = Duration::from_secs(10);

/// The faults of a run that has begun.
#[derive(Debug)]
pub struct Injection {
    watcher: Watcher,
    tasks: JoinSet<()>,
    has_ended: watch::Sender<bool>,
}

/// Tells the watch what becomes of requests; any number of them may tell.
#[derive(Clone, Debug)]
pub struct Watcher {
    start: Instant,
    watch: Arc<Mutex<FaultWatch>>,
}

impl Injection {
    /// Starts the clock of `faults`. What is done, and what goes wrong with it, is told to `say`
    /// in one sentence each.
    pub fn start(faults: &[Fault], say: fn(&str)) -> Self {
        let watch = Arc::new(Mutex::new(FaultWatch::new(faults)));
        let watcher = Watcher { start: Instant::now(), watch };
        let (has_ended, end) = watch::channel(false);
        let mut tasks = JoinSet::new();
        for (index, fault) in faults.iter().cloned().enumerate() {
            let (watcher, mut end) = (watcher.clone(), end.clone());
            tasks.spawn(async move {
                tokio::select! {
                    () = tokio::time::sleep_until(watcher.start + fault.at) => {}
                    _ = end.wait_for(|&has_ended| has_ended) => return,
                }
                inject(index, &fault, &watcher, say).await;
            });
        }
        Self { watcher, tasks, has_ended }
    }

    /// Who is to be told what becomes of requests.
    pub fn watcher(&self) -> &Watcher {
        &self.watcher
    }

    /// What became of the faults. Those whose time hasn't come aren't injected any more; commands
    /// that are under way have ten seconds to end.
    pub async fn end(mut self) -> Vec<FaultOutcome> {
        self.watcher.tell(|watch, now| watch.ended(now));
        self.has_ended.send_replace(true);
        let all = async { while self.tasks.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(COMMAND_END, all).await;
        self.tasks.shutdown().await;
        self.watcher.lock().outcomes()
    }
}

impl Watcher {
    /// Times are taken under the lock, so that events come in their order.
    fn tell(&self, event: impl FnOnce(&mut FaultWatch, Duration)) -> Duration {
        let mut watch = self.lock();
        let now = self.start.elapsed();
        event(&mut watch, now);
        now
    }

    fn lock(&self) -> MutexGuard<'_, FaultWatch> {
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observe for Watcher {
    fn sent(&self, _body: &mut Value, _at: Duration) -> Option<Box<dyn ObserveAnswer>> {
        let sent = self.tell(|watch, now| watch.sent(now));
        Some(Box::new(Watched { sent, watcher: self.clone() }))
    }
}

/// One request that is being watched.
struct Watched {
    sent: Duration,
    watcher: Watcher,
}

impl ObserveAnswer for Watched {
    fn text(&mut self, _text: &str, _at: Duration) {
        self.watcher.tell(|watch, now| watch.token(self.sent, now));
    }

    fn ended(self: Box<Self>, outcome: &Result<Answer, Failure>, _at: Duration) {
        self.watcher.tell(|watch, now| match outcome {
            Ok(_) => watch.completed(now),
            Err(_) => watch.failed(now),
        });
    }
}

async fn inject(index: usize, fault: &Fault, watcher: &Watcher, say: fn(&str)) {
    let done = match &fault.deed {
        Deed::Signal(signal, pid) => {
            // Under the lock: what breaks by it comes after it.
            let mut watch = watcher.lock();
            let now = watcher.start.elapsed();
            let done = send(*signal, *pid);
            if done.is_ok() {
                watch.injected(index, now);
            }
            done
        }
        Deed::Command(command) => {
            let started = {
                let mut watch = watcher.lock();
                let started = shell(command);
                if started.is_ok() {
                    watch.injected(index, watcher.start.elapsed());
                }
                started
            };
            match started {
                Ok(mut child) => match child.wait().await {
                    Ok(status) if status.success() => Ok(()),
                    Ok(status) => Err(format!("the command ended with {status}")),
                    Err(cause) => Err(format!("the command was lost: {cause}")),
                },
                Err(cause) => Err(format!("the command can't be started: {cause}")),
            }
        }
    };
    match done {
        Ok(()) => say(&format!("fault {fault}: done")),
        Err(error) => {
            say(&format!("fault {fault} FAILED: {error}"));
            watcher.lock().went_wrong(index, error);
        }
    }
}

/// What it says goes where our own messages go: the result is printed to stdout.
fn shell(command: &str) -> std::io::Result<Child> {
    Command::new("sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .stdout(std::io::stderr())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .spawn()
}

#[cfg(unix)]
fn send(signal: Signal, pid: i32) -> Result<(), String> {
    use nix::errno::Errno;
    use nix::sys::signal::{Signal as Unix, kill};
    let signal = match signal {
        Signal::Kill => Unix::SIGKILL,
        Signal::Stop => Unix::SIGSTOP,
        Signal::Cont => Unix::SIGCONT,
    };
    kill(nix::unistd::Pid::from_raw(pid), signal).map_err(|errno| match errno {
        Errno::ESRCH => format!("there is no process {pid}"),
        Errno::EPERM => format!("process {pid} is not ours to signal"),
        other => format!("process {pid} can't be signalled: {other}"),
    })
}

#[cfg(not(unix))]
fn send(_: Signal, _: i32) -> Result<(), String> {
    Err("this system has no signals: use command:'…'".to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(written: &[String]) -> Vec<Fault> {
        written.iter().map(|fault| fault.parse().unwrap()).collect()
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn signals_and_commands_come_at_their_times() {
        let mut victim = Command::new("sleep").arg("60").kill_on_drop(true).spawn().unwrap();
        let pid = victim.id().unwrap();
        let state = || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            stat.rsplit_once(") ").unwrap().1.chars().next().unwrap()
        };
        let faults = faults(&[
            format!("stop:pid={pid}@0s"),
            format!("cont:pid={pid}@300ms"),
            format!("kill:pid={pid}@600ms"),
            "command:'exit 3'@100ms".to_string(),
            "command:'true'@1h".to_string(),
        ]);
        let injection = Injection::start(&faults, |_| ());
        let watcher = injection.watcher().clone();
        tokio::time::sleep(Duration::from_millis(150)).await;
        assert_eq!(state(), 'T', "stopped");
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(state(), 'S', "sleeping again");
        let sent = watcher.tell(|watch, now| watch.sent(now));
        let status = victim.wait().await.unwrap();
        watcher.tell(|watch, now| watch.token(sent, now));
        watcher.tell(|watch, now| watch.failed(now));
        assert!(!status.success(), "{status}");
        let outcomes = injection.end().await;
        for (outcome, at) in outcomes.iter().zip([0.0, 0.3, 0.6, 0.1]) {
            let late = outcome.at.unwrap() - at;
            assert!((0.0..0.15).contains(&late), "{outcome:?}");
        }
        assert_eq!(outcomes[3].error.as_deref(), Some("the command ended with exit status: 3"));
        assert_eq!((outcomes[4].at, &outcomes[4].error), (None, &None), "its time never came");
        let failed: Vec<u64> = outcomes.iter().map(|outcome| outcome.failed).collect();
        assert_eq!(failed, [0, 0, 1, 0, 0]);
        assert!(outcomes[1].recovered.is_some() && outcomes[2].recovered.is_none());
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn a_process_that_is_gone_is_said() {
        let mut gone = Command::new("true").spawn().unwrap();
        let pid = gone.id().unwrap();
        gone.wait().await.unwrap();
        let injection = Injection::start(&faults(&[format!("kill:pid={pid}@0s")]), |_| ());
        tokio::time::sleep(Duration::from_millis(50)).await;
        let outcome = &injection.end().await[0];
        assert_eq!(outcome.error, Some(format!("there is no process {pid}")));
        assert_eq!(outcome.at, None);
    }
}
