//! What a placement was said to bring, and what it brings: clusters of nodes that may be unequal,
//! each of them planned before it is measured.

mod table;

use std::path::PathBuf;
use std::process::Stdio;
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::{Child, Command as Process};

use loadgen::client::Server;
use loadgen::experiments::configuration::Command;
use loadgen::experiments::server::{Started, program};

pub use self::table::{Row, report, table};
use crate::processes;

/// What a cluster gets to load a model and compile its kernels.
const READY_SECONDS: u64 = 300;

/// How long a coordinator may take until it has a token, and a node until its adapter is ready.
const START_TIMEOUT: Duration = Duration::from_secs(120);

/// How long a coordinator may take to say how it is.
const ASK_TIMEOUT: Duration = Duration::from_secs(30);

/// Between two looks at what is waited for.
const POLL: Duration = Duration::from_millis(20);

/// What a node says when its adapter has been probed.
const IS_PROBED: &str = "adapter ready";

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
        match self {
            Self::Stages(stages) => write!(f, "{stages}"),
            Self::Layers(layers) => f.write_str(&joined(layers)),
        }
    }
}

/// Layers of each stage, as they are shown.
fn joined(layers: &[u32]) -> String {
    layers.iter().map(ToString::to_string).collect::<Vec<_>>().join("/")
}

impl Shape {
    /// Its lines of cluster.toml.
    fn lines(&self) -> String {
        match self {
            Self::Stages(stages) => format!("stages = {stages}\n"),
            Self::Layers(layers) => {
                format!("stages = {}\nlayers = {layers:?}\n", layers.len())
            }
        }
    }
}

/// How a node's software driver computes: unlike a share of a core, which only tells over many
/// steps, fewer threads or narrower vectors make each kernel slower, as another machine would.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// Its threads.
    pub threads: u32,
    /// Bits of its vectors, where they aren't those that the driver chooses.
    pub vector_bits: Option<u32>,
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (threads, bits) = text.split_once('x').map_or((text, None), |it| (it.0, Some(it.1)));
        let threads = threads.parse().ok().filter(|it| (1..=1024).contains(it));
        let vector_bits = bits.map(str::parse).transpose().ok();
        let is_known = |it: &Option<u32>| it.is_none_or(|bits| [128, 256, 512].contains(&bits));
        match (threads, vector_bits.filter(is_known)) {
            (Some(threads), Some(vector_bits)) => Ok(Self { threads, vector_bits }),
            _ => {
                Err("give threads, or threads and bits of vectors (128, 256, 512) as in 1x128"
                    .into())
            }
        }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.threads)?;
        self.vector_bits.map_or(Ok(()), |bits| write!(f, "x{bits}"))
    }
}

/// Nodes, and what they are to serve.
#[derive(Debug)]
pub struct Setup {
    /// A Hugging Face directory or a GGUF file.
    pub model: PathBuf,
    /// Each node.
    pub kinds: Vec<Kind>,
    /// Bytes that a node may take.
    pub max_memory: u64,
    /// Lines of cluster.toml beside the shape.
    pub config: String,
}

/// A cluster that serves. Its processes are killed when this is dropped.
#[derive(Debug)]
pub struct Joined {
    started: Started,
    nodes: Vec<Child>,
    kinds: Vec<Kind>,
    // What its processes keep.
    _folder: TempDir,
}

impl Setup {
    /// Starts a coordinator and all nodes, and waits until they serve.
    ///
    /// # Errors
    /// When they don't.
    pub async fn start(&self, shape: &Shape) -> Result<Joined> {
        let folder = tempfile::tempdir()?;
        let data = folder.path().join("data");
        std::fs::create_dir(&data)?;
        let config = self.config(&folder, shape)?;
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
            tokio::try_join!(Started::start(&command), self.join(&cluster, &folder))?;
        Ok(Joined { started, nodes, kinds: self.kinds.clone(), _folder: folder })
    }

    fn config(&self, folder: &TempDir, shape: &Shape) -> Result<PathBuf> {
        let path = folder.path().join("cluster.toml");
        std::fs::write(&path, format!("{}[coordinator]\n{}", self.config, shape.lines()))?;
        Ok(path)
    }

    /// One after another: on machines of their own they wouldn't disturb each other's probes.
    async fn join(&self, cluster: &str, folder: &TempDir) -> Result<Vec<Child>> {
        let token = folder.path().join("data/join.token");
        until(|| token.exists(), "the coordinator has no token yet").await?;
        let mut nodes = Vec::new();
        for (number, kind) in self.kinds.iter().enumerate() {
            let log = folder.path().join(format!("node-{number}.log"));
            let output = std::fs::File::create(&log)?;
            let mut node = Process::new(program("autoglm-node"));
            node.args(["--join", cluster, "--max-memory", &self.max_memory.to_string()])
                .arg("--token-file")
                .arg(&token)
                .arg("--data-dir")
                .arg(folder.path().join(format!("node-{number}")))
                .env("LP_NUM_THREADS", kind.threads.to_string())
                .stdin(Stdio::null())
                .stdout(output.try_clone()?)
                .stderr(output)
                .kill_on_drop(true);
            if let Some(bits) = kind.vector_bits {
                // The driver keeps compiled kernels by their source alone, whatever their vectors.
                let kept = std::env::temp_dir().join(format!("autoglm-bench-vectors-{bits}"));
                node.env("LP_NATIVE_VECTOR_WIDTH", bits.to_string())
                    .env("MESA_SHADER_CACHE_DIR", kept);
            }
            nodes.push(node.spawn().context("can't start autoglm-node")?);
            let said = || std::fs::read_to_string(&log).is_ok_and(|it| it.contains(IS_PROBED));
            until(said, "a node's adapter isn't ready yet").await?;
        }
        Ok(nodes)
    }

    /// What `autoglm plan` says of this shape on the nodes of a cluster.
    ///
    /// # Errors
    /// When it says nothing.
    pub async fn plan(&self, cluster: &Joined, shape: &Shape) -> Result<Planned> {
        let folder = tempfile::tempdir()?;
        let mut plan = Process::new(program("autoglm"));
        plan.args(["plan", "--json", "--url", cluster.url(), "--model"])
            .arg(&self.model)
            .arg("--config")
            .arg(self.config(&folder, shape)?);
        let said = plan.output().await.context("can't run autoglm plan")?;
        if !said.status.success() {
            bail!("autoglm plan: {}", String::from_utf8_lossy(&said.stderr).trim());
        }
        let said: Value = serde_json::from_slice(&said.stdout)?;
        Planned::read(&said["pipelines"][0]).context("autoglm plan tells no pipeline")
    }
}

/// Waits until something `is_so`, for as long as a start may take.
async fn until(is_so: impl Fn() -> bool, otherwise: &str) -> Result<()> {
    let began = Instant::now();
    while !is_so() {
        ensure!(began.elapsed() < START_TIMEOUT, "{otherwise}");
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

impl Joined {
    /// Where its API is.
    pub fn url(&self) -> &str {
        self.started.url()
    }

    /// Ends its processes.
    pub async fn end(mut self) {
        for node in &mut self.nodes {
            // Fails where it has ended already.
            let _ = node.kill().await;
        }
        self.started.end().await;
    }

    /// Processor seconds that its processes have taken so far.
    ///
    /// # Errors
    /// When one of them has ended.
    pub fn processor_seconds(&self) -> Result<f64> {
        let pids = self.nodes.iter().map(Child::id).chain([self.started.pid()]);
        pids.map(|pid| processes::seconds(pid.context("a process has ended")?)).sum()
    }

    /// Its stages as they are: who computes them, and milliseconds of a step of one sequence, where
    /// these were measured.
    ///
    /// # Errors
    /// When it doesn't say.
    pub async fn stages(&self) -> Result<Vec<Stage>> {
        let said = Server::new(self.url(), ASK_TIMEOUT)?.text("/health/stages").await?;
        let said: Value = serde_json::from_str(&said)?;
        let stages = said["pipelines"][0]["stages"].as_array().context("it has no pipeline")?;
        let stage = |it: &Value| {
            let pid = it["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
            let number = self.nodes.iter().position(|node| node.id().is_some() && node.id() == pid);
            Some(Stage {
                node: it["node"].as_str()?.to_owned(),
                kind: self.kinds[number?],
                measured_ms: it["measured_ms"].as_f64(),
            })
        };
        stages.iter().map(stage).collect::<Option<_>>().context("a stage of somebody else's")
    }
}

/// A stage of a cluster that serves.
#[derive(Clone, Debug, PartialEq)]
pub struct Stage {
    /// The node's id.
    pub node: String,
    /// What the node is like.
    pub kind: Kind,
    /// Milliseconds of a step of one sequence.
    pub measured_ms: Option<f64>,
}

/// What is expected of a shape.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    /// Each stage.
    pub stages: Vec<PlannedStage>,
    /// Milliseconds of a token of one sequence.
    pub token_ms: f64,
    /// Sequences at once.
    pub concurrency: usize,
    /// Tokens a second of so many.
    pub tokens_per_s: f64,
}

/// What is expected of a stage.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedStage {
    /// The node's id.
    pub node: String,
    /// Its layers.
    pub num_layers: u32,
    /// Milliseconds of a step of one sequence.
    pub compute_ms: f64,
}

impl Planned {
    fn read(pipeline: &Value) -> Option<Self> {
        let stage = |it: &Value| {
            let [first, end] = [0, 1].map(|at| it["layers"][at].as_u64());
            Some(PlannedStage {
                // Its host's name comes before its own.
                node: it["node"].as_str()?.rsplit(' ').next()?.to_owned(),
                num_layers: u32::try_from(end?.checked_sub(first?)?).ok()?,
                compute_ms: it["compute_ms"].as_f64()?,
            })
        };
        Some(Self {
            stages: pipeline["stages"].as_array()?.iter().map(stage).collect::<Option<_>>()?,
            token_ms: pipeline["token_ms"].as_f64()?,
            concurrency: pipeline["concurrency"].as_u64()? as usize,
            tokens_per_s: pipeline["tokens_per_s"].as_f64()?,
        })
    }

    /// The shape that was planned.
    pub fn shape(&self) -> Shape {
        Shape::Layers(self.stages.iter().map(|it| it.num_layers).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_shape_is_a_number_of_stages_or_the_layers_of_each() {
        assert_eq!("3".parse(), Ok(Shape::Stages(3)));
        assert_eq!("8/10".parse(), Ok(Shape::Layers(vec![8, 10])));
        assert_eq!(Shape::Layers(vec![8, 10]).to_string(), "8/10");
        assert_eq!(Shape::Layers(vec![8, 10]).lines(), "stages = 2\nlayers = [8, 10]\n");
        for wrong in ["", "0", "8/", "8/0", "a"] {
            assert!(wrong.parse::<Shape>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_node_is_threads_and_perhaps_bits_of_vectors() {
        assert_eq!("2".parse(), Ok(Kind { threads: 2, vector_bits: None }));
        let narrow = Kind { threads: 1, vector_bits: Some(128) };
        assert_eq!("1x128".parse(), Ok(narrow));
        assert_eq!(narrow.to_string(), "1x128");
        for wrong in ["", "0", "1x", "1x100", "x128", "axb"] {
            assert!(wrong.parse::<Kind>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_plan_is_read_as_it_is_printed() {
        let said = json!({"token_ms": 12.0, "concurrency": 8, "tokens_per_s": 90.0, "stages": [
            {"node": "host 0a", "layers": [0, 2], "compute_ms": 3.0},
            {"node": "host 0b", "layers": [2, 6], "compute_ms": 5.0},
        ]});
        let planned = Planned::read(&said).unwrap();
        assert_eq!(planned.shape().to_string(), "2/4");
        assert_eq!((planned.stages[1].node.as_str(), planned.stages[1].compute_ms), ("0b", 5.0));
        assert_eq!(Planned::read(&json!({"token_ms": 12.0})), None);
    }
}
