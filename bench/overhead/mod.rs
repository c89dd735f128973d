//! What a configuration or a build costs: two clusters of ours on one machine, the same work for
//! one and then for the other, again and again, in processor time or instructions for each token.

mod collector;
mod instructions;
pub mod processes;

use std::time::Duration;

use anyhow::Result;
use futures::{StreamExt, TryStreamExt};
use serde_json::json;

use crate::client::Server;
use crate::client::request::Endpoint;
use crate::cluster::{Cluster, Setup};

pub use collector::Collector;
use instructions::Callgrind;

/// How long one answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(600);

/// What a round's cost is counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// Microseconds of processors, of all processes.
    Time,
    /// Instructions of the coordinator: valgrind runs it, nodes run as they are.
    Instructions,
}

/// A cluster that serves, and who counts.
#[derive(Debug)]
pub struct Counting {
    cluster: Cluster,
    callgrind: Option<Callgrind>,
}

/// The work of one round.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    /// Requests.
    pub num_requests: usize,
    /// Requests in flight.
    pub concurrency: usize,
    /// Tokens of each answer.
    pub num_tokens: u32,
}

/// What a round took for each token, in microseconds or instructions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost {
    /// Of all processes that are counted.
    pub all: f64,
    /// Of them, the coordinator's.
    pub coordinator: f64,
}

impl Work {
    /// A tenth of it, to warm up.
    pub fn tenth(self) -> Self {
        Self { num_requests: self.num_requests.div_ceil(10), ..self }
    }
}

impl Counting {
    /// Starts a cluster and waits until it serves.
    ///
    /// # Errors
    /// When it doesn't, or there is nobody to count.
    pub async fn start(setup: &Setup, counted: Counted) -> Result<Self> {
        let mut setup = setup.clone();
        let callgrind = match counted {
            Counted::Time => None,
            Counted::Instructions => Some(Callgrind::new().await?),
        };
        setup.runner.splice(0..0, callgrind.iter().flat_map(Callgrind::words));
        Ok(Self { cluster: setup.start().await?, callgrind })
    }

    /// Does the work once.
    ///
    /// # Errors
    /// When the cluster doesn't answer, or answers other than asked.
    pub async fn round(&self, work: Work) -> Result<Cost> {
        let (pid, url) = (self.cluster.pid()?, self.cluster.url());
        if let Some(callgrind) = &self.callgrind {
            callgrind.begin(pid).await?;
            let num_tokens = ask(url, work).await?;
            let each = callgrind.end(pid).await? / num_tokens;
            return Ok(Cost { all: each, coordinator: each });
        }
        let before = processes::seconds(pid)?;
        let num_tokens = ask(url, work).await?;
        let after = processes::seconds(pid)?;
        Ok(Cost {
            all: (after.all - before.all) * 1e6 / num_tokens,
            coordinator: (after.own - before.own) * 1e6 / num_tokens,
        })
    }

    /// Ends its processes.
    pub async fn end(self) {
        self.cluster.end().await;
    }
}

/// Asks for everything; how many tokens came.
async fn ask(url: &str, work: Work) -> Result<f64> {
    let server = Server::new(url, ANSWER_TIMEOUT)?;
    let (server, model) = (&server, &server.first_model().await?);
    let ask = move |number: usize| async move {
        let body = json!({
            "model": model, "prompt": "Once", "max_tokens": work.num_tokens, "ignore_eos": true,
            "seed": number, "stream": true, "stream_options": {"include_usage": true},
        });
        let answer = server.ask(Endpoint::Completions, &body, |_: &str| {}).await?;
        let num_tokens = answer.num_tokens();
        anyhow::ensure!(
            num_tokens == u64::from(work.num_tokens),
            "an answer has {num_tokens} tokens where {} were asked for",
            work.num_tokens
        );
        Ok(num_tokens)
    };
    let answers = futures::stream::iter((0..work.num_requests).map(ask));
    let tokens: Vec<u64> = answers.buffer_unordered(work.concurrency).try_collect().await?;
    Ok(tokens.iter().sum::<u64>() as f64)
}
