//! Decides when requests start, and gathers what becomes of them.

pub mod align;
pub mod fault;
pub mod metrics;
pub mod prompts;
pub mod report;
pub mod transcript;
pub mod verify;

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::client::failure::Failure;
use crate::client::request::{Endpoint, Parameters, Prompt};
use crate::client::{Answer, Server};
use metrics::Metrics;
use prompts::shuffle;

/// What is sent, and how much of it at once.
#[derive(Clone, Debug)]
pub struct Load {
    /// What the requests have in common.
    pub parameters: Parameters,
    /// Taken in turn, and again from the first.
    pub prompts: Vec<Prompt>,
    /// How many requests are sent.
    pub num_requests: usize,
    /// Requests in flight: when one ends, the next one starts (a closed loop).
    pub concurrency: usize,
    /// Decides the order of the prompts and the seed of each request. Without one, prompts come
    /// in the order of the list and the server draws its seeds.
    pub seed: Option<u64>,
}

/// How far a running load is; shared with whoever shows it.
#[derive(Debug, Default)]
pub struct Progress {
    started: AtomicU64,
    ended: AtomicU64,
    failed: AtomicU64,
    pieces: AtomicU64,
}

/// What a load measured.
#[derive(Clone, Debug)]
pub struct Measured {
    /// The sums.
    pub metrics: Metrics,
    /// From the first request's start to the last one's end.
    pub duration: Duration,
    /// Stopped before all requests had ended; those that hadn't count nowhere.
    pub interrupted: bool,
}

impl Load {
    /// Sends everything, or as much as it can before `stop` resolves, and returns what it
    /// measured until then.
    ///
    /// # Errors
    /// When a prompt can't be asked at the endpoint; nothing has been sent then.
    pub async fn run(
        &self,
        server: &Server,
        progress: &Arc<Progress>,
        stop: impl Future<Output = ()>,
    ) -> Result<Measured> {
        let mut bodies = self.bodies()?;
        let mut stop = pin!(stop);
        let mut running = JoinSet::new();
        let mut metrics = Metrics::default();
        let mut interrupted = false;
        let start = Instant::now();
        loop {
            while running.len() < self.concurrency {
                let Some(body) = bodies.next() else { break };
                let endpoint = self.parameters.endpoint;
                running.spawn(ask(server.clone(), endpoint, body, progress.clone()));
            }
            tokio::select! {
                ended = running.join_next() => match ended {
                    Some(Ok(outcome)) => metrics.record(&outcome),
                    Some(Err(panicked)) => std::panic::resume_unwind(panicked.into_panic()),
                    None => break,
                },
                () = &mut stop => {
                    interrupted = true;
                    break;
                }
            }
        }
        Ok(Measured { metrics, duration: start.elapsed(), interrupted })
    }

    /// The body of each request, in the order in which they are sent.
    fn bodies(&self) -> Result<impl Iterator<Item = Value>> {
        let mut prompts = self.prompts.clone();
        if let Some(seed) = self.seed {
            shuffle(&mut prompts, seed);
        }
        let bodies = prompts.iter().map(|prompt| self.parameters.body(prompt));
        let bodies: Vec<Value> = bodies.collect::<Result<_>>()?;
        let seed = self.seed;
        Ok((0..self.num_requests).map(move |index| {
            let mut body = bodies[index % bodies.len()].clone();
            if let Some(seed) = seed {
                body["seed"] = seed.wrapping_add(index as u64).into();
            }
            body
        }))
    }
}

impl Progress {
    /// Requests that have ended, well or not.
    pub fn num_ended(&self) -> u64 {
        self.ended.load(Ordering::Relaxed)
    }

    /// Requests that have failed.
    pub fn num_failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// Requests in flight.
    pub fn num_running(&self) -> u64 {
        self.started.load(Ordering::Relaxed).saturating_sub(self.num_ended())
    }

    /// Pieces of text that have arrived.
    pub fn num_pieces(&self) -> u64 {
        self.pieces.load(Ordering::Relaxed)
    }
}

async fn ask(
    server: Server,
    endpoint: Endpoint,
    body: Value,
    progress: Arc<Progress>,
) -> Result<Answer, Failure> {
    progress.started.fetch_add(1, Ordering::Relaxed);
    let on_text = |_: &str| {
        progress.pieces.fetch_add(1, Ordering::Relaxed);
    };
    let outcome = server.ask(endpoint, &body, on_text).await;
    progress.failed.fetch_add(u64::from(outcome.is_err()), Ordering::Relaxed);
    progress.ended.fetch_add(1, Ordering::Relaxed);
    outcome
}
