//! What a configuration costs: two clusters of ours on one machine, the same work for one and then
//! for the other, again and again, in processor seconds for each token.

mod collector;
pub mod processes;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt};
use serde_json::json;

use crate::client::Server;
use crate::client::request::Endpoint;
use crate::experiments::configuration::Command;
use crate::experiments::server::Started;

pub use collector::Collector;

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

/// What a round took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost {
    /// Processor seconds of all processes.
    pub seconds: f64,
    /// Of them, the coordinator's.
    pub coordinator: f64,
    /// Tokens of answers.
    pub num_tokens: u64,
}

impl Cost {
    /// Microseconds of processors for each token.
    pub fn per_token_us(&self) -> f64 {
        self.seconds * 1e6 / self.num_tokens as f64
    }

    /// Of them, the coordinator's.
    pub fn coordinator_us(&self) -> f64 {
        self.coordinator * 1e6 / self.num_tokens as f64
    }
}

impl Work {
    /// A tenth of it, to warm up.
    pub fn tenth(self) -> Self {
        Self { num_requests: self.num_requests.div_ceil(10), ..self }
    }
}

impl Launch {
    /// Starts a cluster with a file of the form of cluster.toml, and waits until it serves.
    ///
    /// # Errors
    /// When it doesn't.
    pub async fn start(&self, config: &Path) -> Result<Started> {
        let nodes = self.num_nodes.to_string();
        let (model, config) = (self.model.to_string_lossy(), config.to_string_lossy());
        let words = [
            ["autoglm", "serve"],
            ["--model", &model],
            ["--local-nodes", &nodes],
            ["--stages", &nodes],
            ["--http", "127.0.0.1:{port}"],
            ["--cluster", "127.0.0.1:0"],
            ["--data-dir", "{dir}"],
            ["--config", &config],
        ];
        let words = words.concat().into_iter().map(str::to_owned).collect();
        Started::start(&Command { words, ready_seconds: READY_SECONDS }).await
    }
}

/// Does the work once.
///
/// # Errors
/// When the cluster doesn't answer, or answers other than asked.
pub async fn round(cluster: &Started, work: Work) -> Result<Cost> {
    let pid = cluster.pid().context("the cluster has ended")?;
    let server = Server::new(cluster.url(), ANSWER_TIMEOUT)?;
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
    let before = processes::seconds(pid)?;
    let answers = futures::stream::iter((0..work.num_requests).map(ask));
    let tokens: Vec<u64> = answers.buffer_unordered(work.concurrency).try_collect().await?;
    let after = processes::seconds(pid)?;
    Ok(Cost {
        seconds: after.all - before.all,
        coordinator: after.own - before.own,
        num_tokens: tokens.iter().sum(),
    })
}
