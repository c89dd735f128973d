//! What a configuration or a build costs: two clusters of ours on one machine, the same work for
//! one and then for the other, again and again, in processor time or instructions for each token.

mod collector;
mod instructions;
pub mod processes;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt};
use serde_json::json;

use crate::client::Server;
use crate::client::request::Endpoint;
use crate::experiments::configuration::Command;
use crate::experiments::server::{Started, program};

pub use collector::Collector;
use instructions::Callgrind;

/// The coordinator that lies beside this program.
pub fn own_coordinator() -> PathBuf {
    program("autoglm")
}

/// How long one answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(600);

/// How long a cluster may take to serve.
const READY_SECONDS: u64 = 300;

/// What a cluster is started with.
#[derive(Clone, Debug)]
pub struct Launch {
    /// A Hugging Face directory or a GGUF file.
    pub model: PathBuf,
    /// Node processes, one stage on each.
    pub num_nodes: u32,
    /// What is counted.
    pub counted: Counted,
}

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
pub struct Cluster {
    started: Started,
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

impl Launch {
    /// Starts a cluster of this coordinator, with the nodes' program that lies beside it and a file
    /// of the form of cluster.toml, and waits until it serves.
    ///
    /// # Errors
    /// When it doesn't.
    pub async fn start(&self, coordinator: &Path, config: &Path) -> Result<Cluster> {
        let callgrind = match self.counted {
            Counted::Time => None,
            Counted::Instructions => Some(Callgrind::new().await?),
        };
        let coordinator = coordinator.display().to_string();
        let nodes = self.num_nodes.to_string();
        let (model, config) = (self.model.to_string_lossy(), config.to_string_lossy());
        let words = [
            [coordinator.as_str(), "serve"],
            ["--model", &model],
            ["--local-nodes", &nodes],
            ["--stages", &nodes],
            ["--http", "127.0.0.1:{port}"],
            ["--cluster", "127.0.0.1:0"],
            ["--data-dir", "{dir}"],
            ["--config", &config],
        ];
        let mut words: Vec<_> = words.concat().into_iter().map(str::to_owned).collect();
        if let Some(callgrind) = &callgrind {
            words.splice(0..0, callgrind.words());
        }
        let started = Started::start(&Command { words, ready_seconds: READY_SECONDS }).await?;
        Ok(Cluster { started, callgrind })
    }
}

impl Cluster {
    /// Does the work once.
    ///
    /// # Errors
    /// When the cluster doesn't answer, or answers other than asked.
    pub async fn round(&self, work: Work) -> Result<Cost> {
        let pid = self.started.pid().context("the cluster has ended")?;
        if let Some(callgrind) = &self.callgrind {
            callgrind.begin(pid).await?;
            let num_tokens = ask(self.started.url(), work).await?;
            let each = callgrind.end(pid).await? / num_tokens;
            return Ok(Cost { all: each, coordinator: each });
        }
        let before = processes::seconds(pid)?;
        let num_tokens = ask(self.started.url(), work).await?;
        let after = processes::seconds(pid)?;
        Ok(Cost {
            all: (after.all - before.all) * 1e6 / num_tokens,
            coordinator: (after.own - before.own) * 1e6 / num_tokens,
        })
    }

    /// Ends its processes.
    pub async fn end(self) {
        self.started.end().await;
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
