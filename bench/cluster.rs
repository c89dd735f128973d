//! Clusters of ours, real processes on this machine, as measurements start them.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;
use tokio::process::Command as Process;

use crate::processes;
use loadgen::experiments::configuration::Command;
use loadgen::experiments::server::{Started, program};

/// What a cluster gets to load a model and compile its kernels.
const READY_SECONDS: u64 = 300;

/// A cluster of ours on this machine: one pipeline, a node process for each stage.
#[derive(Clone, Debug)]
pub struct Setup {
    /// A Hugging Face directory or a GGUF file.
    pub model: PathBuf,
    /// What the coordinator is run by: these words come before its own.
    pub runner: Vec<String>,
    /// Node processes, a stage on each.
    pub num_nodes: u32,
    /// Lines of cluster.toml.
    pub config: String,
}

/// A cluster that serves. Its processes are killed when this is dropped.
#[derive(Debug)]
pub struct Cluster {
    started: Started,
    // Holds its configuration.
    _folder: TempDir,
}

impl Setup {
    /// One pipeline of so many stages, with the programs that lie beside this one and defaults.
    pub fn new(model: impl Into<PathBuf>, num_nodes: u32) -> Self {
        Self { model: model.into(), runner: Vec::new(), num_nodes, config: String::new() }
    }

    /// Starts it and waits until it serves.
    ///
    /// # Errors
    /// When it doesn't.
    pub async fn start(&self) -> Result<Cluster> {
        let folder = tempfile::tempdir()?;
        let config = folder.path().join("cluster.toml");
        std::fs::write(&config, &self.config)?;
        // Whatever runs it knows no folder of ours.
        let coordinator = program("autoglm").display().to_string();
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
        let own = words.concat().into_iter().map(str::to_owned);
        let words = self.runner.iter().cloned().chain(own).collect();
        let started = Started::start(&Command { words, ready_seconds: READY_SECONDS }).await?;
        Ok(Cluster { started, _folder: folder })
    }
}

impl Cluster {
    /// `http://127.0.0.1:PORT`, the port of the system's choice.
    pub fn url(&self) -> &str {
        self.started.url()
    }

    /// The coordinator's process.
    ///
    /// # Errors
    /// When it has ended.
    pub fn pid(&self) -> Result<u32> {
        self.started.pid().context("the coordinator has ended")
    }

    /// Gives each node a core of its own, beginning with this one.
    ///
    /// # Errors
    /// Where there is no `taskset`, or fewer cores.
    pub async fn pin_nodes(&self, first_core: usize) -> Result<()> {
        let nodes = processes::children(self.pid()?)?;
        for (core, pid) in (first_core..).zip(nodes) {
            let (core, pid) = (core.to_string(), pid.to_string());
            let pinned = Process::new("taskset").args(["-a", "-c", "-p", &core, &pid]).output();
            let pinned = pinned.await.context("nodes are pinned by taskset: install util-linux")?;
            if !pinned.status.success() {
                bail!("can't pin a node: {}", String::from_utf8_lossy(&pinned.stderr).trim());
            }
        }
        Ok(())
    }

    /// Ends its processes: SIGTERM first, SIGKILL for what is left after 15 s.
    pub async fn end(self) {
        self.started.end().await;
    }
}

/// The value of a series in the text of `/metrics`, which may be named with its labels; without
/// them it is the sum over all. None where there is no such series.
pub(crate) fn series(text: &str, name: &str) -> Option<f64> {
    let values = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let value = rest.strip_prefix(' ').or_else(|| rest.split_once("} ").map(|it| it.1));
        value?.split(' ').next()?.parse::<f64>().ok()
    });
    values.reduce(|sum, value| sum + value)
}
