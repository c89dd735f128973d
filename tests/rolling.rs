//! Nodes that are asked to end: what they hold goes elsewhere first, and nobody notices.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::cluster::{Cluster, Options, Process, binary};
use tests::golden;
use tests::said::Said;

const PATIENCE: Duration = Duration::from_secs(120);

/// Two pipelines of one stage each, on nodes that join.
async fn cluster() -> (Cluster, Vec<(PathBuf, Process)>) {
    let options = Options::new(golden::model("glass-en")).nodes(0, 1);
    let options = options.config("[coordinator]\npipelines = 2\nsettle_ms = 200\n");
    let cluster = Cluster::launch(&options);
    let mut nodes = Vec::new();
    for number in 0..2 {
        let dir = cluster.data.path().join(format!("joined-{number}"));
        let node = cluster.join(&dir, &[]);
        nodes.push((dir, node));
    }
    cluster.serving(2, PATIENCE).await;
    (cluster, nodes)
}

async fn requests(cluster: &Cluster) -> Vec<Value> {
    let mut requests = Vec::new();
    for i in 0..8 {
        let more = json!({
            "max_tokens": 120, "ignore_eos": true, "stream": true, "logprobs": 2,
            "return_token_ids": true, "temperature": 1.0, "seed": i,
            "stream_options": {"include_usage": true},
        });
        requests.push(cluster.request(&[5 + i, 9, 7 + i], more).await);
    }
    requests
}

async fn said(cluster: &Cluster, requests: &[Value]) -> Vec<Said> {
    let ask = |request| async move {
        let answer = cluster.stream("/v1/completions", request).await;
        assert_eq!(answer.status(), 200, "{}", cluster.process.log());
        Said::of(&answer.text().await.unwrap())
    };
    futures::future::join_all(requests.iter().map(ask)).await
}

/// Goal: software of nodes can be renewed while people use the cluster. Method: SIGTERM to one
/// node after the other under streams; each ends cleanly, and is started again.
#[tokio::test(flavor = "multi_thread")]
async fn all_nodes_are_restarted_one_by_one_and_no_answer_differs() {
    let (cluster, mut nodes) = cluster().await;
    let requests = requests(&cluster).await;
    let undisturbed = said(&cluster, &requests).await;
    for (number, (dir, node)) in nodes.iter_mut().enumerate() {
        let restart = async {
            tokio::time::sleep(Duration::from_millis(150)).await;
            node.signal("TERM");
            let start = Instant::now();
            let status = loop {
                if let Some(status) = node.child.try_wait().unwrap() {
                    break status;
                }
                assert!(start.elapsed() < PATIENCE, "still there:\n{}", node.log());
                tokio::time::sleep(Duration::from_millis(20)).await;
            };
            assert_eq!(status.code(), Some(0), "{}", node.log());
            assert!(node.log().contains("asked to end"), "{}", node.log());
        };
        let (answers, ()) = tokio::join!(said(&cluster, &requests), restart);
        assert_eq!(answers, undisturbed, "while node {number} went");
        *node = cluster.join(dir, &[]);
        cluster.serving(2, PATIENCE).await;
    }
    let (_, metrics) = cluster.get("/metrics").await;
    let lost = "autoglm_pipeline_lost_total 0";
    assert!(metrics.as_str().unwrap().contains(lost), "none was lost, each was drained");
    cluster.stop();
}

/// Goal: an operator sees and says all that with commands. Method: the commands themselves.
#[tokio::test(flavor = "multi_thread")]
async fn an_operator_drains_a_node_and_takes_it_back() {
    let (cluster, mut nodes) = cluster().await;
    let run = |arguments: &[&str]| {
        let mut command = Command::new(binary("autoglm"));
        command.args(arguments).args(["--url", &cluster.http]);
        let output = command.output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let (code, table, error) = run(&["nodes"]);
    assert_eq!(code, Some(0), "{error}");
    assert_eq!(table.matches("serving").count(), 2, "{table}");
    let (_, json, _) = run(&["nodes", "--json"]);
    let listed: Value = serde_json::from_str(&json).unwrap();
    let node = listed[0]["node"].as_str().unwrap().to_owned();
    let (code, said, error) = run(&["node", "drain", &node, "--wait", "120"]);
    assert_eq!((code, said.contains("holds nothing any more")), (Some(0), true), "{said}{error}");
    assert!(run(&["nodes"]).1.contains(&format!("uncordon {node}")));
    let pipelines = run(&["pipelines"]).1;
    assert_eq!(pipelines.matches("pipeline ").count(), 1, "{pipelines}");
    assert!(pipelines.contains("a token: ") && pipelines.contains(" ms predicted"), "{pipelines}");
    let request = cluster.request(&[5, 6], json!({"max_tokens": 4})).await;
    cluster.complete(&request).await;
    assert!(run(&["status"]).1.starts_with("ready\n2 nodes, 1 of 1 pipelines serve\n"));
    assert_eq!(run(&["node", "uncordon", &node[..12]]).0, Some(0));
    cluster.serving(2, PATIENCE).await;
    let (code, _, error) = run(&["node", "cordon", "nobody"]);
    assert_eq!(code, Some(1));
    assert!(error.contains("autoglm nodes lists them"), "{error}");
    // Drained by itself, and not waited for: the second signal ends it.
    drop(nodes.pop());
    cluster.stop();
}
