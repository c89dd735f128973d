//! `autoglm doctor`: looks for what would keep this machine from coordinating a cluster, at the
//! cluster itself where one runs here, and, through the node's binary beside this one, at the
//! machine's adapters and its way to a coordinator.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use hyper::Method;
use protocol::config::Config;
use protocol::{Address, Finding, Findings};
use serde_json::Value;
use transport::doctor::machine::{self, PortProtocol};
use transport::doctor::reach::{Link, judge_link};

use crate::asking::Server;
use crate::data_dir;
use crate::local_nodes::beside_this_binary;

/// How long the node's doctor may take, which has limits of its own for all that it does.
const NODE_TIMEOUT: Duration = Duration::from_secs(360);

/// What certificates, state and logs take.
const FREE_BYTES: u64 = 1 << 30;

/// Files that are open whatever is asked of the server.
const OWN_FILES: u64 = 256;

/// Looks for whatever would keep this machine from serving, and says what to do about it.
#[derive(Args)]
pub struct Arguments {
    /// A coordinator to go to as a node of this machine would, as in coordinator:7000 [default:
    /// the one that runs here, if one does].
    #[arg(long, value_name = "HOST:PORT,..", value_delimiter = ',')]
    join: Vec<Address>,
    /// What proves that a node may join there; none of its uses is taken.
    #[arg(long, value_name = "TOKEN", env = "AUTOGLM_JOIN_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// A file that holds it.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The model that is to be served.
    #[arg(long, value_name = "PATH")]
    model: Option<PathBuf>,
    /// Where nodes are to join [default: 127.0.0.1:7000].
    #[arg(long, value_name = "HOST:PORT")]
    cluster: Option<Address>,
    /// Where the API is to listen [default: 127.0.0.1:8000].
    #[arg(long, value_name = "HOST:PORT")]
    http: Option<Address>,
    /// The coordinator's data directory [default: under your home directory].
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// The server's file of the form of cluster.toml; flags win over it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    server: Server,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

impl Arguments {
    /// Looks, and prints what was found. Whether nothing is there that can't work.
    ///
    /// # Errors
    /// When nobody reads.
    pub fn run(self, out: &mut impl Write) -> Result<bool> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let findings = runtime.block_on(self.look());
        match self.json {
            true => writeln!(out, "{}", serde_json::to_string_pretty(&findings)?)?,
            false => write!(out, "{findings}")?,
        }
        Ok(findings.is_well())
    }

    async fn look(&self) -> Findings {
        let mut findings = Vec::new();
        let seen = self.settings();
        findings.push(judge_settings(self.config.as_deref(), &seen));
        let mut here = None;
        if let Ok((config, data_dir)) = seen {
            let is_running = is_running(&data_dir);
            findings.extend(of_model(&config.model.path));
            findings.push(machine::judge_folder(&machine::look_at_folder(&data_dir), FREE_BYTES));
            let files = config.http.max_connections as u64
                + u64::from(config.transport.max_connections)
                + OWN_FILES;
            findings.push(machine::judge_open_files(machine::look_at_open_files(), files));
            findings.push(machine::judge_buffers(&machine::look_at_buffers()));
            if is_running {
                findings.extend(judge_cluster(&self.ask_server().await));
                here = Some((config.coordinator.cluster_addr, data_dir));
            } else {
                let coordinator = &config.coordinator;
                findings
                    .push(port(&coordinator.cluster_addr, PortProtocol::Udp, "--cluster").await);
                findings.push(port(&config.http.addr, PortProtocol::Tcp, "--http").await);
            }
        }
        for found in judge_node(self.ask_node(here).await) {
            // Some of it both look at.
            if !findings.contains(&found) {
                findings.push(found);
            }
        }
        Findings { findings }
    }

    /// What would be served, and from where.
    fn settings(&self) -> Result<(Config, PathBuf)> {
        let mut config = data_dir::config(self.config.as_deref())?;
        fn set<T: Clone>(value: &mut T, flag: &Option<T>) {
            if let Some(flag) = flag {
                value.clone_from(flag);
            }
        }
        set(&mut config.model.path, &self.model);
        set(&mut config.coordinator.cluster_addr, &self.cluster);
        set(&mut config.coordinator.data_dir, &self.data_dir);
        set(&mut config.http.addr, &self.http);
        config.check()?;
        let data_dir = data_dir::path(&config)?;
        Ok((config, data_dir))
    }

    /// What the server that runs here says of its nodes.
    async fn ask_server(&self) -> Result<Value> {
        self.server.ask(Method::GET, "/health/stages").await
    }

    /// What the node's binary beside this one finds; none where there is none.
    async fn ask_node(&self, here: Option<(Address, PathBuf)>) -> Result<Option<Findings>> {
        let Ok(binary) = beside_this_binary("autoglm-node") else { return Ok(None) };
        let mut command = tokio::process::Command::new(&binary);
        command.args(["doctor", "--json"]).stdin(Stdio::null()).kill_on_drop(true);
        if !self.join.is_empty() {
            let all: Vec<_> = self.join.iter().map(ToString::to_string).collect();
            command.arg("--join").arg(all.join(","));
            if let Some(token) = &self.token {
                // Others can see a process' arguments.
                command.env("AUTOGLM_JOIN_TOKEN", token);
            }
            if let Some(file) = &self.token_file {
                command.arg("--token-file").arg(file);
            }
        } else if let Some((addr, data_dir)) = here {
            command.arg("--join").arg(addr.to_string()).env_remove("AUTOGLM_JOIN_TOKEN");
            command.arg("--token-file").arg(data_dir::token_path(&data_dir));
        }
        let asked = tokio::time::timeout(NODE_TIMEOUT, command.output()).await;
        let output = asked.with_context(|| {
            format!("it has found nothing within {} s", NODE_TIMEOUT.as_secs())
        })??;
        let said = String::from_utf8_lossy(&output.stderr);
        let findings = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("it says nothing that can be read: {}", said.trim()))?;
        Ok(Some(findings))
    }
}

/// Whether a coordinator holds this directory.
fn is_running(data_dir: &Path) -> bool {
    let lock = File::open(data_dir::lock_path(data_dir));
    lock.is_ok_and(|lock| matches!(lock.try_lock(), Err(std::fs::TryLockError::WouldBlock)))
}

fn judge_settings(file: Option<&Path>, seen: &Result<(Config, PathBuf)>) -> Finding {
    let check = "configuration";
    let source = match file {
        Some(file) => format!("{} and the flags", file.display()),
        None => "the defaults and the flags".to_owned(),
    };
    match seen {
        Ok(_) => Finding::ok(check, format!("{source} can work")),
        Err(cause) => Finding::fail(check, format!("{cause:#}"), "change that value"),
    }
}

/// Whether the model's files can be read, where any are named.
fn of_model(path: &Path) -> Option<Finding> {
    let check = "model";
    if path.as_os_str().is_empty() {
        return None;
    }
    Some(match checkpoint::Checkpoint::open(path) {
        Ok(files) => Finding::ok(check, format!("{} is {}", path.display(), files.name())),
        Err(cause) => Finding::fail(
            check,
            format!("{cause}"),
            "give --model a Hugging Face directory or a GGUF file that is whole",
        ),
    })
}

/// Whether something can listen at the address of this flag.
async fn port(addr: &Address, protocol: PortProtocol, flag: &str) -> Finding {
    match transport::resolve(addr).await {
        Ok(found) => {
            let seen = machine::look_at_port(found[0], protocol);
            machine::judge_port(found[0], protocol, &seen, flag)
        }
        Err(cause) => Finding::fail("port", cause.to_string(), format!("mend {flag}")),
    }
}

/// What the coordinator that runs here says of its nodes and its ways to them.
fn judge_cluster(told: &Result<Value>) -> Vec<Finding> {
    let check = "cluster";
    let told = match told {
        Ok(told) => told,
        Err(cause) => {
            return vec![Finding::warn(
                check,
                format!("a coordinator runs here, and its API can't be asked: {cause:#}"),
                "give its address with --url, and a key with --api-key where it needs one",
            )];
        }
    };
    let nodes = told["nodes"].as_array().map_or(&[][..], |nodes| nodes);
    if nodes.is_empty() {
        return vec![Finding::warn(
            check,
            "a coordinator runs here, and no node has joined it",
            "run autoglm token create here, and what it prints on the nodes",
        )];
    }
    let pipelines = told["pipelines"].as_array().map_or(0, Vec::len);
    let (num_nodes, waiting_for) = (nodes.len(), told["waiting_for"].as_str().unwrap_or("more"));
    let mut findings = vec![match told["ready"].as_bool() {
        Some(true) => Finding::ok(
            check,
            format!("a coordinator serves here: nodes {num_nodes}, pipelines {pipelines}"),
        ),
        _ => Finding::warn(
            check,
            format!("a coordinator runs here with {num_nodes} nodes, and serves nothing yet"),
            format!("wait for what it waits for: {waiting_for}"),
        ),
    }];
    for node in nodes {
        let text = |name: &str| node[name].as_str().unwrap_or("?");
        let whom = format!("node {} on {}", text("node"), text("hostname"));
        if let Some(why) = node["left_out"].as_str() {
            findings.push(Finding::warn(
                check,
                format!("{whom} is left out: {why}"),
                "give it what is asked for (a token of that pool, --label, --max-memory), or ask \
                 for less in model.pools and model.labels",
            ));
        }
        // What isn't measured yet is nothing to complain of.
        if let Some(link) = link(&node["link"]) {
            findings.push(judge_link(&whom, link));
        }
        for way in node["links"].as_array().into_iter().flatten() {
            let to = way["to"].as_str().unwrap_or("?");
            if let Some(link) = link(way) {
                findings.push(judge_link(&format!("node {to} from {whom}"), link));
            } else if way["reached"].as_bool() == Some(false) {
                findings.push(Finding::fail(
                    check,
                    format!("node {to} can't be reached from {whom}, or not the other way round"),
                    "let UDP through between them, or give them other addresses by --advertise",
                ));
            }
        }
    }
    findings
}

/// What was measured of a way, if it was.
fn link(way: &Value) -> Option<Link> {
    let rate = way["bytes_per_s"].as_f64()?;
    let rtt = Duration::try_from_secs_f64(way["rtt_us"].as_f64()? / 1e6).ok()?;
    Some(Link { rtt, rates: [rate, rate] })
}

fn judge_node(told: Result<Option<Findings>>) -> Vec<Finding> {
    let check = "node";
    match told {
        Ok(Some(told)) => told.findings,
        Ok(None) => vec![Finding::ok(
            check,
            "no autoglm-node is beside this program: adapters are looked at where nodes run, by \
             autoglm-node doctor",
        )],
        Err(cause) => vec![Finding::fail(
            check,
            format!("autoglm-node doctor: {cause:#}"),
            "run it by itself, and install the same release of both",
        )],
    }
}

#[cfg(test)]
mod tests {
    use protocol::Severity;
    use serde_json::json;

    use super::*;

    fn worst(findings: &[Finding]) -> &Finding {
        findings.iter().max_by_key(|it| it.severity).unwrap()
    }

    #[test]
    fn a_cluster_says_how_far_it_is_and_which_link_is_slow() {
        let fast = json!({"rtt_us": 200.0, "bytes_per_s": 1e9});
        let node = |name: &str, link: Value| json!({"node": name, "hostname": "h", "link": link});
        let told = |ready: bool, nodes: Value| {
            Ok(json!({"ready": ready, "waiting_for": "node 7", "nodes": nodes, "pipelines": [1]}))
        };
        let judged = judge_cluster(&told(true, json!([node("a", fast.clone())])));
        assert_eq!(worst(&judged).severity, Severity::Ok, "{judged:?}");
        assert!(judged[1].found.contains("node a on h: 0.2 ms"), "{judged:?}");

        let slow = json!({"rtt_us": 90_000.0, "bytes_per_s": 1e9});
        let judged = judge_cluster(&told(true, json!([node("a", fast), node("b", slow.clone())])));
        let found = worst(&judged);
        assert!(found.severity == Severity::Warn && found.found.contains("node b"), "{judged:?}");
        // Between two nodes.
        let mut pair = node("a", Value::Null);
        pair["links"] = json!([{"to": "b", "rtt_us": 90_000.0, "bytes_per_s": 1e9}]);
        let judged = judge_cluster(&told(true, json!([pair.clone()])));
        assert!(worst(&judged).found.contains("node b from node a on h"), "{judged:?}");
        pair["links"] = json!([{"to": "b", "reached": false, "rtt_us": null}]);
        let judged = judge_cluster(&told(true, json!([pair])));
        assert!(worst(&judged).severity == Severity::Fail, "{judged:?}");
        assert!(worst(&judged).remedy.contains("--advertise"), "{judged:?}");

        let mut other = node("a", Value::Null);
        other["left_out"] = json!("it is of pool \"b\"");
        let judged = judge_cluster(&told(true, json!([other])));
        let found = worst(&judged);
        assert!(found.severity == Severity::Warn && found.found.contains("pool \"b\""), "{found}");
        assert!(found.remedy.contains("model.pools"), "{found}");

        let judged = judge_cluster(&told(false, json!([node("a", Value::Null)])));
        assert!(worst(&judged).remedy.contains("node 7"), "{judged:?}");
        let judged = judge_cluster(&told(false, json!([])));
        assert!(worst(&judged).remedy.contains("token create"), "{judged:?}");
        let judged = judge_cluster(&Err(anyhow::anyhow!("401: no key")));
        assert!(worst(&judged).remedy.contains("--api-key"), "{judged:?}");
    }

    #[test]
    fn what_can_not_work_is_found_before_anything_starts() {
        let missing = of_model(Path::new("/no/such/model")).unwrap();
        assert!(missing.severity == Severity::Fail && missing.found.contains("/no/such/model"));
        assert!(of_model(Path::new("")).is_none());
        let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/models/glass-en");
        assert_eq!(of_model(Path::new(model)).unwrap().severity, Severity::Ok);

        let wrong = judge_settings(None, &Err(anyhow::anyhow!("x.y = 0: must be from 1 to 2")));
        assert!(wrong.severity == Severity::Fail && wrong.found.contains("x.y = 0"), "{wrong}");
        let none = judge_node(Ok(None));
        assert!(none[0].severity == Severity::Ok && none[0].found.contains("autoglm-node doctor"));
        let mute = judge_node(Err(anyhow::anyhow!("it crashed")));
        assert!(mute[0].severity == Severity::Fail && mute[0].found.contains("it crashed"));
    }

    #[test]
    fn a_coordinator_that_runs_is_known_by_its_lock() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.coordinator.data_dir = dir.path().to_owned();
        assert!(!is_running(dir.path()));
        let held = data_dir::DataDir::open(&config).unwrap();
        assert!(is_running(dir.path()));
        drop(held);
        assert!(!is_running(dir.path()));
    }
}
