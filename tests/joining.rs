//! Machines of their own: a token is made on one, the command that this prints is run on another,
//! and the node that joins serves.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::cluster::{Process, binary};
use tests::golden;
use tests::namespaces::{Machine, Network};

/// Everything here is waited for as long: other things run beside it.
const PATIENCE: Duration = Duration::from_secs(120);

/// A coordinator on a machine, listening everywhere, and its data.
struct Coordinator {
    process: Process,
    http: String,
    data: tempfile::TempDir,
}

impl Coordinator {
    fn command(machine: &Machine, data: &tempfile::TempDir, cluster: &str) -> Command {
        let mut command = machine.command(binary("autoglm"));
        command
            .args(["serve", "--cluster", cluster, "--http", "0.0.0.0:8000", "--allow-anonymous"])
            .arg("--model")
            .arg(golden::model("glass-en"))
            .arg("--data-dir")
            .arg(data.path());
        command
    }

    fn start(machine: &Machine, more: &[&str]) -> Self {
        let data = tempfile::tempdir().unwrap();
        let mut command = Self::command(machine, &data, "[::]:7000");
        let mut process = Process::start(command.args(more));
        process.wait_for(" http=", PATIENCE);
        Self { process, http: format!("http://{}:8000", machine.ipv4), data }
    }

    /// What `autoglm token create` prints on its machine.
    fn join_command(&self, machine: &Machine, more: &[&str]) -> String {
        let data = self.data.path().display().to_string();
        let create = ["token", "create", "--data-dir", &data];
        let autoglm = binary("autoglm").display().to_string();
        machine.run(&autoglm, &[&create[..], more].concat()).trim().to_owned()
    }

    async fn nodes(&self) -> Vec<Value> {
        let answer = reqwest::get(format!("{}/health/stages", self.http)).await.unwrap();
        let health: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
        health["nodes"].as_array().cloned().unwrap_or_default()
    }

    async fn complete(&self) -> Value {
        let start = Instant::now();
        loop {
            let request = json!({
                "model": "glass-en", "prompt": "The glass", "max_tokens": 8, "temperature": 0,
            });
            let url = format!("{}/v1/completions", self.http);
            let answer = reqwest::Client::new().post(url).json(&request).send().await.unwrap();
            let (status, body) = (answer.status(), answer.text().await.unwrap());
            if status == 200 {
                return serde_json::from_str(&body).unwrap();
            }
            assert!(start.elapsed() < PATIENCE, "{body}\n{}", self.process.log());
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

/// Runs what was printed, word for word, by a shell that finds our programs. There are no files of
/// the model on this machine.
fn verbatim(machine: &Machine, command: &str) -> Process {
    let folder = binary("autoglm-node").parent().unwrap().display().to_string();
    let path = std::env::var("PATH").unwrap();
    let mut shell = machine.command("sh");
    // What runs on a machine has its own view of what is mounted.
    let hide = format!("mount -t tmpfs none '{}'", golden::model("glass-en").display());
    let script = format!("{hide} && exec {command}");
    shell.args(["-c", &script]).env("PATH", format!("{folder}:{path}"));
    Process::start(shell.stdout(Stdio::null()))
}

/// Goal: `token create`, the printed command on two other machines without files of the model, its
/// weights arrive, an answer of a pipeline over both; each is known by its own address, one of them
/// that of IPv6 by which alone it joined; after a restart it is back without a token.
#[tokio::test(flavor = "multi_thread")]
async fn the_printed_command_joins_a_node_of_another_machine() {
    let Some(network) = Network::new(3) else { return };
    let [home, one, two] = &network.machines[..] else { panic!() };
    let mut coordinator = Coordinator::start(home, &["--stages", "2"]);
    let command = coordinator.join_command(home, &["--pool", "gpu-a", "--uses", "2"]);
    assert!(command.contains(&format!("{}:7000,[{}]:7000", home.ipv4, home.ipv6)), "{command}");
    let mut first = verbatim(one, &command);
    first.wait_for(" joined", PATIENCE);
    let mut second = verbatim(two, &command.replace(&format!("{}:7000,", home.ipv4), ""));
    second.wait_for(" joined", PATIENCE);
    for node in [&mut first, &mut second] {
        node.wait_for("weights are fetched", PATIENCE);
    }
    let text = coordinator.complete().await["choices"][0]["text"].clone();
    let nodes = coordinator.nodes().await;
    let addrs: Vec<_> = nodes.iter().map(|node| node["data_addr"].as_str().unwrap()).collect();
    for own in [format!("{}:", one.ipv4), format!("[{}]:", two.ipv6)] {
        assert!(addrs.iter().any(|addr| addr.starts_with(&own)), "{addrs:?} {own}");
    }
    // Its uses are used up; the node is known by its certificate.
    first.signal("KILL");
    first.wait(PATIENCE);
    let mut again = verbatim(one, command.split(" --token").next().unwrap());
    again.wait_for(" joined", PATIENCE);
    assert_eq!(coordinator.complete().await["choices"][0]["text"], text);
    let mut third = verbatim(home, &command);
    let line = third.wait(PATIENCE);
    assert!(!line.success() && third.log().contains("is used up"), "{}", third.log());
    coordinator.process.wait_for("is used up", PATIENCE);
}

/// Goal: a node that is started first says what it waits for, and joins when that comes.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_started_before_its_coordinator_waits_and_says_for_what() {
    let Some(network) = Network::new(2) else { return };
    let [home, one] = &network.machines[..] else { panic!() };
    one.set_hosts(&format!("{} coordinator\n{} coordinator", home.ipv6, home.ipv4));
    let data = tempfile::tempdir().unwrap();
    let create = ["token", "create", "--cluster", "0.0.0.0:7000", "--data-dir"];
    let arguments = [&create[..], &[data.path().to_str().unwrap()]].concat();
    let command = home.run(binary("autoglm").to_str().unwrap(), &arguments);
    let token = command.split_whitespace().last().unwrap();
    let mut node = verbatim(one, &format!("autoglm-node --join coordinator:7000 --token {token}"));
    let line = node.wait_for("waiting for coordinator:7000", PATIENCE);
    assert!(line.contains("connection refused"), "{line}");
    let mut coordinator = Process::start(&mut Coordinator::command(home, &data, "0.0.0.0:7000"));
    node.wait_for(" joined", PATIENCE);
    coordinator.wait_for("node joined", PATIENCE);
}
