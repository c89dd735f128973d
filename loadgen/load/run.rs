//! Sends the requests of a load when its pace says so, and adds up what becomes of them.

use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::client_use::Meter;
use super::observe::ObserveAnswer;
use super::outcome::Outcome;
use super::pace::{Pacer, Start};
use super::sums::Sums;
use super::workload::{Conversation, History};
use super::{Load, Measured, Progress};
use crate::alarm::Alarm;
use crate::client::failure::{Failure, FailureKind};
use crate::client::{Listen, Server};

/// How long a user waits after finding nobody: a closed loop would otherwise knock as fast as it
/// can.
const AFTER_UNREACHABLE: Duration = Duration::from_millis(100);

/// What the tasks of a run share.
struct Running {
    load: Load,
    server: Server,
    start: Instant,
    alarm: Alarm,
    sums: Mutex<Sums>,
    progress: Arc<Progress>,
}

/// Sends everything, or as much as it can before `stop` resolves.
pub(super) async fn drive(
    load: &Load,
    server: &Server,
    progress: &Arc<Progress>,
    stop: impl Future<Output = ()>,
) -> Result<Measured> {
    load.check()?;
    let (warmup, end) = (load.extent.warmup, load.extent.end());
    let meter = Meter::start();
    let running = Arc::new(Running {
        load: load.clone(),
        server: server.clone(),
        start: Instant::now(),
        alarm: Alarm::new(),
        sums: Mutex::new(Sums::new(load.slo.clone(), warmup, end)),
        progress: progress.clone(),
    });
    let mut pacer = Pacer::new(&load.pace, load.workload.seed.unwrap_or(0), end);
    let mut left = load.extent.requests.unwrap_or(u64::MAX);
    let mut tasks = JoinSet::new();
    let (mut stop, mut index, mut interrupted) = (pin!(stop), 0, false);
    loop {
        let now = running.start.elapsed();
        while left > 0 {
            let Some(start) = pacer.start(now, tasks.len() as u64) else { break };
            let mut conversation = load.workload.conversation(index);
            conversation.turns.truncate(usize::try_from(left).unwrap_or(usize::MAX));
            index += 1;
            left -= conversation.turns.len() as u64;
            tasks.spawn(converse(running.clone(), conversation, start));
        }
        let wake = pacer.wake(now, tasks.len() as u64).filter(|_| left > 0);
        if tasks.is_empty() && wake.is_none() {
            break;
        }
        let wait = async {
            match wake {
                Some(time) => running.alarm.at(running.start + time).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(ended) = tasks.join_next() => match ended {
                Ok(at) => pacer.freed(at, tasks.len() as u64),
                Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
            },
            () = wait => {}
            () = &mut stop => {
                interrupted = true;
                break;
            }
        }
    }
    tasks.shutdown().await;
    let elapsed = running.start.elapsed();
    let sums = running.sums.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let client = meter.stop(elapsed, &sums);
    Ok(Measured { sums, elapsed, interrupted, client })
}

/// Has one user's conversation; returns when its place is free again.
async fn converse(running: Arc<Running>, conversation: Conversation, start: Start) -> Duration {
    let endpoint = running.load.parameters.endpoint;
    let mut start = start;
    let mut history = History::default();
    let num_turns = conversation.turns.len();
    for turn in 0..num_turns {
        let mut text = (turn + 1 < num_turns).then(String::new);
        let Some(outcome) = running.turn(&conversation, turn, &history, start, text.as_mut()).await
        else {
            break;
        };
        let ended = running.start.elapsed();
        if let Err(failure) = &outcome {
            if failure.kind == FailureKind::Unreachable {
                tokio::time::sleep(AFTER_UNREACHABLE).await;
            }
            break;
        }
        let (Some(next), Some(text)) = (conversation.turns.get(turn + 1), text) else { break };
        history.add(&conversation.turns[turn].prompt, &text, endpoint);
        let intended = ended + next.think;
        if running.load.extent.end().is_some_and(|end| intended >= end) {
            break;
        }
        running.alarm.at(running.start + intended).await;
        start = Start { intended, due: intended };
    }
    running.start.elapsed()
}

impl Running {
    /// Asks one turn and records what became of it; none when it can't be asked.
    async fn turn(
        &self,
        conversation: &Conversation,
        turn: usize,
        history: &History,
        start: Start,
        text: Option<&mut String>,
    ) -> Option<Result<(), Failure>> {
        let Load { parameters, workload, observer, .. } = &self.load;
        let mut body = conversation.body(turn, history, parameters, workload.seed).ok()?;
        let sent = self.start.elapsed();
        let mut watch = observer.as_ref().and_then(|observer| observer.sent(&mut body, sent));
        self.progress.started();
        self.sums().started(sent);
        let listener =
            Listener { progress: &self.progress, watch: &mut watch, text, start: self.start };
        let headers = conversation.headers();
        let answer = self.server.ask_with(&headers, parameters.endpoint, &body, listener).await;
        drop(body);
        let ended = self.start.elapsed();
        self.progress.ended(answer.is_err());
        if let Some(watch) = watch {
            watch.ended(&answer, ended);
        }
        let outcome = Outcome {
            tier: conversation.tier.clone(),
            tenant: conversation.tenant.clone(),
            intended: start.intended,
            due: start.due,
            sent,
            ended,
            answer,
        };
        self.sums().record(&outcome);
        Some(outcome.answer.map(drop))
    }

    fn sums(&self) -> std::sync::MutexGuard<'_, Sums> {
        self.sums.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Hears of one answer on behalf of everybody who wants to.
struct Listener<'a> {
    progress: &'a Progress,
    watch: &'a mut Option<Box<dyn ObserveAnswer>>,
    /// Gathered where the next turn needs it.
    text: Option<&'a mut String>,
    start: Instant,
}

impl Listen for Listener<'_> {
    fn begin(&mut self) {
        if let Some(watch) = self.watch {
            watch.begin();
        }
    }

    fn event(&mut self, event: &Value) {
        if let Some(watch) = self.watch {
            watch.event(event);
        }
    }

    fn text(&mut self, text: &str) {
        self.progress.piece();
        if let Some(watch) = self.watch {
            watch.text(text, self.start.elapsed());
        }
        if let Some(gathered) = &mut self.text {
            gathered.push_str(text);
        }
    }
}
