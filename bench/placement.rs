//! What a placement was said to bring, and what it brings: clusters of nodes that may be unequal,
//! one after another, each of them planned before it is measured.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::{Child, Command as Process};

use loadgen::experiments::configuration::Command;
use loadgen::experiments::server::{Started, program};
use loadgen::numbers::decimal;
use loadgen::report::compare::aligned;

/// What a cluster gets to load a model and compile its kernels.
const READY_SECONDS: u64 = 300;

/// How long a coordinator may take until it has a token.
const TOKEN_TIMEOUT: Duration = Duration::from_secs(30);

/// How a model is cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Into so many stages, as placement decides.
    Stages(u32),
    /// Into stages of so many layers each.
    Layers(Vec<u32>),
}

impl FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers: Result<Vec<u32>, _> = text.split('/').map(str::parse).collect();
        match numbers.ok().filter(|it| !it.contains(&0)).as_deref() {
            Some(&[stages]) => Ok(Self::Stages(stages)),
            Some(layers) => Ok(Self::Layers(layers.to_vec())),
            None => Err("give a number of stages, or layers of each as in 8/10/12".into()),
        }
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let joined =
            |layers: &[u32]| layers.iter().map(ToString::to_string).collect::<Vec<_>>().join("/");
        match self {
            Self::Stages(stages) => write!(f, "{stages}"),
            Self::Layers(layers) => f.write_str(&joined(layers)),
        }
    }
}

impl Shape {
    /// Its lines of cluster.toml.
    fn lines(&self) -> String {
        match self {
            Self::Stages(stages) => format!("stages = {stages}\n"),
            Self::Layers(layers) => format!("layers = {layers:?}\n"),
        }
    }
}

/// Nodes, and what they are to serve.
#[derive(Debug)]
pub struct Setup {
    /// A Hugging Face directory or a GGUF file.
    pub model: PathBuf,
    /// Threads of the software driver, of each node.
    pub threads: Vec<u32>,
    /// Bytes that a node may take.
    pub max_memory: u64,
    /// Lines of cluster.toml beside the shape.
    pub config: String,
    folder: TempDir,
}

/// A cluster that serves. Its processes are killed when this is dropped.
#[derive(Debug)]
pub struct Joined {
    started: Started,
    nodes: Vec<Child>,
}

impl Setup {
    /// Nodes with so many threads each, all of the model's memory and defaults.
    ///
    /// # Errors
    /// Where there is no place for what they keep.
    pub fn new(model: PathBuf, threads: Vec<u32>) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        std::fs::create_dir(folder.path().join("data"))?;
        Ok(Self { model, threads, max_memory: 1 << 40, config: String::new(), folder })
    }

    fn config(&self, shape: &Shape) -> Result<PathBuf> {
        let path = self.folder.path().join("cluster.toml");
        std::fs::write(&path, format!("{}[coordinator]\n{}", self.config, shape.lines()))?;
        Ok(path)
    }

    /// Starts a coordinator and all nodes, and waits until they serve.
    ///
    /// # Errors
    /// When they don't.
    pub async fn start(&self, shape: &Shape) -> Result<Joined> {
        let config = self.config(shape)?;
        let data = self.folder.path().join("data");
        let port = std::net::UdpSocket::bind("127.0.0.1:0")?.local_addr()?.port();
        let cluster = format!("127.0.0.1:{port}");
        let (model, config) = (self.model.to_string_lossy(), config.to_string_lossy());
        let words = [
            ["autoglm", "serve"],
            ["--model", &model],
            ["--http", "127.0.0.1:{port}"],
            ["--cluster", &cluster],
            ["--data-dir", &data.to_string_lossy()],
            ["--config", &config],
        ];
        let words = words.concat().into_iter().map(str::to_owned).collect();
        let command = Command { words, ready_seconds: READY_SECONDS };
        let (started, nodes) =
            tokio::try_join!(Started::start(&command), self.join(&cluster, &data))?;
        Ok(Joined { started, nodes })
    }

    async fn join(&self, cluster: &str, data: &Path) -> Result<Vec<Child>> {
        let (token, began) = (data.join("join.token"), Instant::now());
        while !token.exists() {
            if began.elapsed() > TOKEN_TIMEOUT {
                bail!("the coordinator has no token yet");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let start = |(number, threads): (usize, &u32)| {
            let log = self.folder.path().join(format!("node-{number}.log"));
            let log = std::fs::File::create(log)?;
            let mut node = Process::new(program("autoglm-node"));
            node.args(["--join", cluster, "--max-memory", &self.max_memory.to_string()])
                .arg("--token-file")
                .arg(&token)
                .arg("--data-dir")
                .arg(self.folder.path().join(format!("node-{number}")))
                .env("LP_NUM_THREADS", threads.to_string())
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log)
                .kill_on_drop(true);
            node.spawn().context("can't start autoglm-node")
        };
        self.threads.iter().enumerate().map(start).collect()
    }

    /// What `autoglm plan` says of this shape on the nodes of a cluster.
    ///
    /// # Errors
    /// When it says nothing.
    pub async fn plan(&self, cluster: &Joined, shape: &Shape) -> Result<Planned> {
        let mut plan = Process::new(program("autoglm"));
        plan.args(["plan", "--json", "--url", cluster.url(), "--model"])
            .arg(&self.model)
            .arg("--config")
            .arg(self.config(shape)?);
        let said = plan.output().await.context("can't run autoglm plan")?;
        if !said.status.success() {
            bail!("autoglm plan: {}", String::from_utf8_lossy(&said.stderr).trim());
        }
        let said: Value = serde_json::from_slice(&said.stdout)?;
        Planned::read(&said["pipelines"][0]).context("autoglm plan tells no pipeline")
    }
}

impl Joined {
    /// Where its API is.
    pub fn url(&self) -> &str {
        self.started.url()
    }

    /// Ends its processes: others use their folders next.
    pub async fn end(mut self) {
        for node in &mut self.nodes {
            // Fails where it has ended already.
            let _ = node.kill().await;
        }
        self.started.end().await;
    }
}

/// What is expected of a shape.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    /// Layers of each stage.
    pub layers: Vec<u64>,
    /// Milliseconds of a token of one sequence.
    pub token_ms: f64,
    /// Sequences at once.
    pub concurrency: usize,
    /// Tokens a second of so many.
    pub tokens_per_s: f64,
}

impl Planned {
    fn read(pipeline: &Value) -> Option<Self> {
        let stages = pipeline["stages"].as_array()?.iter();
        let length = |it: &Value| it["layers"][1].as_u64()?.checked_sub(it["layers"][0].as_u64()?);
        Some(Self {
            layers: stages.map(length).collect::<Option<_>>()?,
            token_ms: pipeline["token_ms"].as_f64()?,
            concurrency: pipeline["concurrency"].as_u64()? as usize,
            tokens_per_s: pipeline["tokens_per_s"].as_f64()?,
        })
    }
}

/// A shape, planned and measured.
#[derive(Clone, Debug)]
pub struct Row {
    /// Which.
    pub shape: Shape,
    /// What was expected before it was measured.
    pub planned: Planned,
    /// Milliseconds of a token of one sequence, as its client saw it.
    pub token_ms: f64,
    /// Tokens a second of as many at once as were planned.
    pub tokens_per_s: f64,
}

/// The table, and what the last shape gains over the first.
pub fn table(rows: &[Row]) -> String {
    let off = |planned: f64, measured: f64| format!("{:+.0} %", (planned / measured - 1.0) * 100.0);
    let head = ["shape", "layers", "ms planned", "measured", "off", "at once", "tokens/s planned"];
    let head = head.iter().chain(&["measured", "off"]).map(|it| (*it).to_owned()).collect();
    let line = |Row { shape, planned, token_ms, tokens_per_s }: &Row| {
        let layers: Vec<_> = planned.layers.iter().map(ToString::to_string).collect();
        vec![
            shape.to_string(),
            layers.join("/"),
            decimal(planned.token_ms),
            decimal(*token_ms),
            off(planned.token_ms, *token_ms),
            planned.concurrency.to_string(),
            decimal(planned.tokens_per_s),
            decimal(*tokens_per_s),
            off(planned.tokens_per_s, *tokens_per_s),
        ]
    };
    let lines: Vec<_> = std::iter::once(head).chain(rows.iter().map(line)).collect();
    let mut text = aligned(&lines, 2);
    if let [first, .., last] = rows {
        text += &format!(
            "  {} against {}: a token takes {:.2}x as long by plan, {:.2}x measured\n",
            first.shape,
            last.shape,
            first.planned.token_ms / last.planned.token_ms,
            first.token_ms / last.token_ms
        );
    }
    text
}

/// The same as JSON.
pub fn report(rows: &[Row]) -> Value {
    let row = |it: &Row| {
        json!({
            "shape": it.shape.to_string(), "layers": it.planned.layers,
            "planned_token_ms": it.planned.token_ms, "token_ms": it.token_ms,
            "concurrency": it.planned.concurrency,
            "planned_tokens_per_s": it.planned.tokens_per_s, "tokens_per_s": it.tokens_per_s,
        })
    };
    rows.iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_is_a_number_of_stages_or_the_layers_of_each() {
        assert_eq!("3".parse(), Ok(Shape::Stages(3)));
        assert_eq!("8/10".parse(), Ok(Shape::Layers(vec![8, 10])));
        assert_eq!(Shape::Layers(vec![8, 10]).to_string(), "8/10");
        assert_eq!(Shape::Layers(vec![8, 10]).lines(), "layers = [8, 10]\n");
        for wrong in ["", "0", "8/", "8/0", "a"] {
            assert!(wrong.parse::<Shape>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_table_says_how_far_off_a_plan_was_and_what_the_last_shape_gains() {
        let said = json!({"token_ms": 12.0, "concurrency": 8, "tokens_per_s": 90.0,
            "stages": [{"layers": [0, 2]}, {"layers": [2, 6]}]});
        let planned = Planned::read(&said).unwrap();
        assert_eq!(planned.layers, [2, 4]);
        let even = Row {
            shape: "3/3".parse().unwrap(),
            planned: planned.clone(),
            token_ms: 10.0,
            tokens_per_s: 100.0,
        };
        let own = Row { shape: Shape::Stages(2), token_ms: 8.0, ..even.clone() };
        let text = table(&[even, own]);
        assert!(text.contains("2/4") && text.contains("+20 %") && text.contains("-10 %"), "{text}");
        assert!(text.contains("3/3 against 2: a token takes 1.00x") && text.contains("1.25x mea"));
    }
}
