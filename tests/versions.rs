//! Releases of two wire versions in one cluster, as while it is renewed process by process.

use std::time::Duration;

use serde_json::{Value, json};
use tests::cluster::{Cluster, Options, Process};
use tests::golden;

const PATIENCE: Duration = Duration::from_secs(120);

/// Goal: nodes and coordinators of the release before serve beside those of this one. Method: one
/// pipeline over a node of each version, with a coordinator of either: what each connection agrees
/// on is the older of its two ends' versions, and the answer is the same.
#[tokio::test(flavor = "multi_thread")]
async fn processes_of_two_wire_versions_serve_together() {
    let mut answers = Vec::new();
    for coordinator in ["5", "4"] {
        let options = Options::new(golden::model("glass-en")).nodes(0, 2);
        let options = options.config("[coordinator]\nsettle_ms = 200\n");
        let cluster = Cluster::launch(&options.flags(&["--wire-version", coordinator]));
        let dir = |node: &str| cluster.data.path().join(format!("joined-{node}"));
        let join = |node| cluster.join(&dir(node), &["--wire-version", node]);
        let mut nodes = ["4", "5"].map(|node| (node, join(node)));
        cluster.serving(1, PATIENCE).await;
        for (node, process) in &mut nodes {
            let agreed = coordinator.min(node);
            process.wait_for(&format!("wire_version={agreed}"), PATIENCE);
        }
        let log = cluster.process.log();
        let joined = |version: &str| {
            let said = format!("wire_version={version}");
            log.lines().filter(|it| it.contains("node joined") && it.contains(&said)).count()
        };
        let expected = if coordinator == "5" { (1, 1) } else { (2, 0) };
        assert_eq!((joined("4"), joined("5")), expected, "{log}");
        answers.push(answer(&cluster, &nodes).await);
        cluster.stop();
    }
    assert_eq!(answers[0], answers[1]);
}

/// What all of them together say.
async fn answer(cluster: &Cluster, nodes: &[(&str, Process)]) -> Value {
    let more = json!({"max_tokens": 24, "ignore_eos": true, "logprobs": 2});
    let answer = cluster.complete(&cluster.request(&[5, 9, 7], more).await).await;
    for (_, node) in nodes {
        let log = node.log();
        assert!(!log.contains("malformed") && !log.contains("WARN"), "{log}");
    }
    assert!(!cluster.process.log().contains("malformed"), "{}", cluster.process.log());
    answer["choices"].clone()
}
