//! `autoglm doctor` and `autoglm-node doctor`: what each finds where nothing is, where the token is
//! wrong, and in a cluster that is well.

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tests::cluster::{Cluster, Options, binary};

const GLASS_EN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/glass-en");

/// Findings by what was looked at, and how the process ended.
struct Told {
    findings: Vec<(String, String, String)>,
    code: Option<i32>,
    text: String,
}

impl Told {
    fn by(command: &mut Command) -> Self {
        let output = command.arg("--json").env_remove("AUTOGLM_JOIN_TOKEN").output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let said = String::from_utf8_lossy(&output.stderr);
        let json: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}{said}"));
        let word = |finding: &Value, name: &str| finding[name].as_str().unwrap_or("").to_owned();
        let findings = json["findings"].as_array().unwrap().iter().map(|it| {
            (
                word(it, "check"),
                word(it, "severity"),
                word(it, "found") + "; " + &word(it, "remedy"),
            )
        });
        Self { findings: findings.collect(), code: output.status.code(), text }
    }

    fn has(&self, check: &str, severity: &str, words: &str) {
        let is = |it: &&(String, String, String)| {
            it.0 == check && it.1 == severity && it.2.contains(words)
        };
        assert!(self.findings.iter().any(|it| is(&it)), "no {severity} {check}: {}", self.text);
    }

    fn fails(&self, check: &str, words: &str) {
        self.has(check, "FAIL", words);
        assert_eq!(self.code, Some(1), "{}", self.text);
    }
}

fn node_doctor(data: &Path, join: &str) -> Command {
    let mut command = Command::new(binary("autoglm-node"));
    command.args(["doctor", "--max-memory", "1GiB", "--data-dir"]).arg(data);
    command.args(["--join", join]);
    command
}

fn doctor(data: &Path) -> Command {
    let mut command = Command::new(binary("autoglm"));
    command.args(["doctor", "--data-dir"]).arg(data);
    command
}

/// A node proves its adapters and its machine also where there is no coordinator, and says that it
/// isn't there.
#[test]
fn where_no_coordinator_is_the_doctors_say_so() {
    let dir = tempfile::tempdir().unwrap();
    let free = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let told = Told::by(&mut node_doctor(&dir.path().join("node"), &free.to_string()));
    told.fails("reach", "nothing listens");
    told.has("kernels", "OK", "self-test passed");
    told.has("memory", "OK", "1024 MiB");
    told.has("data directory", "OK", "can be written");
    assert!(told.findings.iter().any(|it| it.0 == "udp buffers"), "{}", told.text);

    let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let mut here = doctor(&dir.path().join("coordinator"));
    here.args(["--model", GLASS_EN, "--http", "127.0.0.1:0", "--cluster", &addr]);
    let told = Told::by(&mut here);
    told.fails("port", "is taken by another process");
    told.has("model", "OK", "glass-en");
    told.has("kernels", "OK", "self-test passed");
}

/// In a cluster that serves all is well, as seen from either side; a token of another cluster is
/// told from one that isn't good here.
#[tokio::test]
async fn a_cluster_is_well_and_a_wrong_token_is_named() {
    let cluster = Cluster::start(Options::new(GLASS_EN)).await;
    let dir = tempfile::tempdir().unwrap();
    let data = cluster.data.path();
    let right = data.join("join.token");
    let node = || node_doctor(&dir.path().join("node"), &cluster.cluster);
    let told = Told::by(node().arg("--token-file").arg(&right));
    assert_eq!(told.code, Some(0), "{}", told.text);
    for check in ["reach", "token", "clock"] {
        told.has(check, "OK", "");
    }
    assert!(told.findings.iter().any(|it| it.0 == "link"), "{}", told.text);

    let told = Told::by(doctor(data).args(["--url", &cluster.http, "--cluster", &cluster.cluster]));
    assert_eq!(told.code, Some(0), "{}", told.text);
    told.has("cluster", "OK", "a coordinator serves here: nodes 1, pipelines 1");
    told.has("token", "OK", "would let this node in");

    // The same authority and another secret, then another authority.
    let text = std::fs::read_to_string(&right).unwrap();
    let backwards = |part: usize| {
        let mut parts: Vec<_> = text.trim().split('.').map(str::to_owned).collect();
        parts[part] = parts[part].chars().rev().collect();
        parts.join(".")
    };
    let told = Told::by(node().args(["--token", &backwards(3)]));
    told.fails("token", "autoglm token create");
    let told = Told::by(node().args(["--token", &backwards(1)]));
    told.fails("token", "of another coordinator");
    cluster.stop();
}
