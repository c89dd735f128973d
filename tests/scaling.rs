//! Pipelines that come and go with load, with real processes.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::cluster::{Cluster, Options, is_running};
use tests::golden;

/// A pipeline is meant for two sequences; both delays are short.
const SCALED: &str = "[scheduler]
max_num_seqs = 2
[autoscaler]
enabled = true
max_pipelines = 3
max_local_nodes = 3
smoothing_ms = 0
upscale_delay_ms = 500
downscale_delay_ms = 1000
";

const PATIENCE: Duration = Duration::from_secs(120);

async fn requests(cluster: &Cluster) -> Vec<Value> {
    let mut requests = Vec::new();
    for i in 0..12 {
        let more = json!({
            "max_tokens": 60, "ignore_eos": true, "logprobs": 2, "seed": i,
            "temperature": if i % 2 == 0 { 0.0 } else { 1.0 },
        });
        let prompt: Vec<u32> = (0..4 + i).map(|at| 5 + (at * 7 + i) % 500).collect();
        requests.push(cluster.request(&prompt, more).await);
    }
    requests
}

/// All that may not differ: text, tokens, logprobs, why it ended.
async fn answer(cluster: &Cluster, request: &Value) -> Value {
    let answer = cluster.complete(request).await;
    json!([answer["choices"], answer["usage"]["completion_tokens"]])
}

/// Goal: 1 → 3 → 1 pipelines under load, with nothing lost and every answer as it would have been.
/// Method: clients that ask again and again, all of them and then one; nodes are the coordinator's
/// children.
#[tokio::test(flavor = "multi_thread")]
async fn pipelines_follow_the_load_and_no_answer_is_lost() {
    let options = Options::new(golden::model("glass-en")).nodes(1, 1).config(SCALED);
    let cluster = Cluster::start(options).await;
    cluster.serving(1, PATIENCE).await;
    let requests = requests(&cluster).await;
    let mut undisturbed = Vec::new();
    for request in &requests {
        undisturbed.push(answer(&cluster, request).await);
    }

    let num_clients = std::sync::atomic::AtomicUsize::new(requests.len());
    let clients =
        requests.iter().zip(&undisturbed).enumerate().map(|(number, (request, expected))| {
            let (cluster, num_clients) = (&cluster, &num_clients);
            async move {
                let mut num_answers = 0;
                while number < num_clients.load(std::sync::atomic::Ordering::Relaxed) {
                    assert_eq!(&answer(cluster, request).await, expected, "answer to {request}");
                    num_answers += 1;
                }
                num_answers
            }
        });
    let clients = futures::future::join_all(clients);
    let scaled = async {
        let up = cluster.serving(3, PATIENCE).await;
        num_clients.store(1, std::sync::atomic::Ordering::Relaxed);
        let down = cluster.serving(1, PATIENCE).await;
        num_clients.store(0, std::sync::atomic::Ordering::Relaxed);
        (up, down)
    };
    let (answers, (up, down)) = tokio::join!(clients, scaled);
    let start = Instant::now();
    while cluster.node_pids().into_iter().filter(|pid| is_running(*pid)).count() > 1 {
        assert!(start.elapsed() < PATIENCE, "{}", cluster.process.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (_, stages) = cluster.get("/health/stages").await;
    let decisions = stages["autoscaler"]["decisions"].as_array().unwrap();
    let first = &decisions[0];
    assert_eq!((&first["from"], &first["to"]), (&json!(1), &json!(3)), "{stages}");
    let (_, metrics) = cluster.get("/metrics").await;
    let metrics = metrics.as_str().unwrap();
    for expected in ["autoglm_pipeline_lost_total 0", "autoglm_nodes_wanted 1"] {
        assert!(metrics.contains(expected), "no {expected} in\n{metrics}");
    }
    let num_answers: usize = answers.iter().sum();
    println!("{num_answers} answers as undisturbed, 1 -> 3 in {up:?}, 3 -> 1 in {down:?}");
    cluster.stop();
}
