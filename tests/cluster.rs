//! A cluster of real processes: a coordinator, its nodes, HTTP.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Where the binaries are: beside this one, or the test binary's folder.
pub fn binary(name: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let mut paths = own.ancestors().skip(1).take(2).map(|folder| folder.join(name));
    let path = paths.find(|path| path.is_file()).unwrap_or_default();
    assert!(path.is_file(), "{name} is not built: run `make test`, or cargo build first",);
    path
}

/// How a cluster is started.
#[derive(Clone, Debug)]
pub struct Options {
    pub model: PathBuf,
    pub local_nodes: u32,
    pub stages: u32,
    /// Lines of cluster.toml.
    pub config: String,
    /// Further flags.
    pub flags: Vec<&'static str>,
}

impl Options {
    pub fn new(model: impl Into<PathBuf>) -> Self {
        Self {
            model: model.into(),
            local_nodes: 1,
            stages: 0,
            config: String::new(),
            flags: vec![],
        }
    }

    pub fn nodes(mut self, local_nodes: u32, stages: u32) -> Self {
        (self.local_nodes, self.stages) = (local_nodes, stages);
        self
    }

    pub fn config(mut self, lines: &str) -> Self {
        self.config = lines.into();
        self
    }

    pub fn flags(mut self, flags: &[&'static str]) -> Self {
        self.flags = flags.into();
        self
    }
}

/// A process and what it wrote to stderr so far.
pub struct Process {
    pub child: Child,
    pub log: Arc<Mutex<String>>,
}

impl Process {
    pub fn start(command: &mut Command) -> Self {
        let mut child = command
            .env("RUST_LOG", "info")
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let lines = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let mut log = lines.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
            }
        });
        Self { child, log }
    }

    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Waits until the log has a line with `text`; the first such line.
    pub fn wait_for(&mut self, text: &str, timeout: Duration) -> String {
        let start = Instant::now();
        loop {
            if let Some(line) = self.log().lines().find(|line| line.contains(text)) {
                return line.to_owned();
            }
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("the process ended with {status} before {text:?}:\n{}", self.log());
            }
            assert!(start.elapsed() < timeout, "no {text:?} in:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn signal(&self, name: &str) {
        signal(self.child.id(), name);
    }

    pub fn wait(&mut self, timeout: Duration) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < timeout, "still running after {timeout:?}:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a signal by name: `TERM`, `KILL`, `STOP`.
pub fn signal(pid: u32, name: &str) {
    // The command of that name is no part of the smallest systems.
    let signal: nix::sys::signal::Signal = format!("SIG{name}").parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), signal).unwrap();
}

/// Whether a process runs, and isn't only a name that nobody has asked after yet.
pub fn is_running(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        let rest = stat.rsplit_once(')').unwrap().1;
        !matches!(rest.split_whitespace().next(), Some("Z" | "X"))
    })
}

/// A running cluster.
pub struct Cluster {
    pub process: Process,
    pub http: String,
    pub cluster: String,
    pub data: tempfile::TempDir,
    client: reqwest::Client,
}

impl Cluster {
    /// Starts it and waits until it serves.
    pub async fn start(options: Options) -> Self {
        let cluster = Self::launch(&options);
        cluster.ready(Duration::from_secs(300)).await;
        cluster
    }

    /// Starts it and doesn't wait.
    pub fn launch(options: &Options) -> Self {
        Self::launch_at("127.0.0.1:0", options)
    }

    /// As [`launch`](Self::launch), for nodes that join at this address.
    pub fn launch_at(cluster: &str, options: &Options) -> Self {
        Self::launch_in(tempfile::tempdir().unwrap(), options, "127.0.0.1:0", cluster)
    }

    /// As [`launch`](Self::launch), with this data directory.
    pub fn launch_on(data: tempfile::TempDir, options: &Options) -> Self {
        Self::launch_in(data, options, "127.0.0.1:0", "127.0.0.1:0")
    }

    /// Kills the coordinator, and starts another in its place before its nodes can be gone.
    pub async fn replace(self, options: &Options) -> Self {
        self.process.signal("KILL");
        tokio::time::sleep(Duration::from_millis(100)).await;
        let http = self.http.trim_start_matches("http://");
        Self::launch_in(self.data, options, http, &self.cluster)
    }

    fn launch_in(data: tempfile::TempDir, options: &Options, http: &str, cluster: &str) -> Self {
        let config = data.path().join("cluster.toml");
        std::fs::write(&config, &options.config).unwrap();
        let mut process = Process::start(
            Command::new(binary("autoglm"))
                .arg("serve")
                .arg("--model")
                .arg(&options.model)
                .args(["--local-nodes", &options.local_nodes.to_string()])
                .args(["--stages", &options.stages.to_string()])
                .args(["--http", http, "--cluster", cluster])
                .arg("--data-dir")
                .arg(data.path())
                .arg("--config")
                .arg(config)
                .args(&options.flags),
        );
        let line = process.wait_for(" http=", Duration::from_secs(300));
        let field = |name: &str| {
            let rest = line.split_once(&format!(" {name}=")).unwrap().1;
            rest.split_whitespace().next().unwrap().to_owned()
        };
        let http = format!("http://{}", field("http"));
        let cluster = field("cluster");
        Self { process, http, cluster, data, client: reqwest::Client::new() }
    }

    pub async fn ready(&self, timeout: Duration) {
        let start = Instant::now();
        while self.get("/health/ready").await.0 != 200 {
            assert!(start.elapsed() < timeout, "not ready:\n{}", self.process.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until so many pipelines serve and no other is there; how long that took.
    pub async fn serving(&self, num: usize, timeout: Duration) -> Duration {
        let start = Instant::now();
        loop {
            let (_, stages) = self.get("/health/stages").await;
            let pipelines = stages["pipelines"].as_array().unwrap();
            if pipelines.len() == num && pipelines.iter().all(|it| it["ready"] == true) {
                return start.elapsed();
            }
            assert!(start.elapsed() < timeout, "{stages}\n{}", self.process.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Status and body.
    pub async fn get(&self, path: &str) -> (u16, Value) {
        let answer = self.client.get(format!("{}{path}", self.http)).send().await.unwrap();
        body(answer).await
    }

    /// Status and body.
    pub async fn post(&self, path: &str, request: &Value) -> (u16, Value) {
        let url = format!("{}{path}", self.http);
        body(self.client.post(url).json(request).send().await.unwrap()).await
    }

    pub async fn stream(&self, path: &str, request: &Value) -> reqwest::Response {
        let url = format!("{}{path}", self.http);
        self.client.post(url).json(request).send().await.unwrap()
    }

    /// A completion that must succeed.
    pub async fn complete(&self, request: &Value) -> Value {
        let (status, body) = self.post("/v1/completions", request).await;
        assert_eq!(status, 200, "{body}\n{}", self.process.log());
        body
    }

    pub async fn model(&self) -> String {
        self.get("/v1/models").await.1["data"][0]["id"].as_str().unwrap().to_owned()
    }

    /// A completion request for token ids.
    pub async fn request(&self, prompt: &[u32], more: Value) -> Value {
        let mut request = json!({
            "model": self.model().await, "prompt": prompt, "temperature": 0,
            "return_token_ids": true, "return_tokens_as_token_ids": true,
        });
        let fields = request.as_object_mut().unwrap();
        fields.extend(more.as_object().unwrap().clone());
        request
    }

    /// Process ids of the nodes, those of former ones included.
    pub fn node_pids(&self) -> Vec<u32> {
        let log = self.process.log();
        let started = log.lines().filter(|line| line.contains("local node started"));
        started
            .map(|line| {
                let pid = line.split_once("pid=").unwrap().1;
                pid.split_whitespace().next().unwrap().parse().unwrap()
            })
            .collect()
    }

    /// Starts another node that joins it.
    pub fn join(&self, data_dir: &Path, arguments: &[&str]) -> Process {
        self.join_from(Command::new(binary("autoglm-node")), data_dir, arguments)
    }

    /// As [`join`](Self::join), by a command that is the node's program somewhere.
    pub fn join_from(&self, mut node: Command, data_dir: &Path, arguments: &[&str]) -> Process {
        Process::start(
            node.args(["--join", &self.cluster, "--data-dir"])
                .arg(data_dir)
                .arg("--token-file")
                .arg(self.data.path().join("join.token"))
                .args(arguments),
        )
    }

    /// SIGTERM; it must end cleanly.
    pub fn stop(mut self) {
        self.process.signal("TERM");
        let status = self.process.wait(Duration::from_secs(20));
        assert_eq!(status.code(), Some(0), "{}", self.process.log());
    }
}

async fn body(answer: reqwest::Response) -> (u16, Value) {
    let status = answer.status().as_u16();
    let text = answer.text().await.unwrap();
    (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

pub fn token_ids(choice: &Value) -> Vec<u32> {
    crate::golden::numbers(&choice["token_ids"])
}

/// Logprobs of every position of a completion's choice, by token id, bit for bit.
pub fn logprob_rows(choice: &Value) -> Vec<Vec<(u32, f32)>> {
    let rows = choice["logprobs"]["top_logprobs"].as_array().unwrap();
    rows.iter()
        .map(|row| {
            let Some(row) = row.as_object() else { return Vec::new() };
            let mut row: Vec<_> = row
                .iter()
                .map(|(token, logprob)| {
                    let id = token.strip_prefix("token_id:").unwrap().parse().unwrap();
                    // Through f32 again: the digits that are printed restore it.
                    (id, logprob.to_string().parse::<f32>().unwrap())
                })
                .collect();
            row.sort_by_key(|(id, _)| *id);
            row
        })
        .collect()
}
