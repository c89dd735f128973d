//! A node is killed under open streams: every answer goes on, and is the one that it would have
//! been.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::chaos::{self, Fault};
use tests::cluster::{Cluster, Options, is_running, signal};
use tests::golden;
use tests::said::Said;

/// Kills in one run, 2 where nothing is said. A node that is killed again and again is started
/// after pauses of up to a minute: 20 kills take a quarter of an hour.
const KILLS: &str = "AUTOGLM_KILLS";

/// Requests wait for longer than any such pause.
const PATIENT: &str = "[scheduler]\nmax_pipeline_wait_ms = 600_000\n";

async fn requests(cluster: &Cluster, num: u32) -> Vec<Value> {
    let mut requests = Vec::new();
    for i in 0..num {
        let more = json!({
            "max_tokens": 80 + i, "ignore_eos": true, "stream": true, "logprobs": 3,
            "return_token_ids": true, "stream_options": {"include_usage": true},
            "temperature": if i % 2 == 0 { 0.0 } else { 1.0 }, "seed": 100 + i,
            "frequency_penalty": if i % 3 == 0 { 0.5 } else { 0.0 },
        });
        let prompt: Vec<u32> = (0..3 + i * 2).map(|at| 5 + (at * 7 + i) % 500).collect();
        requests.push(cluster.request(&prompt, more).await);
    }
    requests
}

async fn ask(cluster: &Cluster, requests: &[Value], during: impl AsyncFnOnce()) -> Vec<Said> {
    let streams: Vec<_> =
        requests.iter().map(|request| cluster.stream("/v1/completions", request)).collect();
    let streams = futures::future::join_all(streams).await;
    let texts = futures::future::join_all(streams.into_iter().map(|stream| stream.text()));
    let whole = async {
        let ((), texts) = tokio::join!(during(), texts);
        texts.into_iter().map(|text| Said::of(&text.unwrap())).collect()
    };
    tokio::time::timeout(Duration::from_secs(600), whole).await.expect("every stream ends")
}

async fn kill_under_streams(options: Options, num_pipelines: usize) {
    let start = Instant::now();
    let cluster = Cluster::start(options).await;
    let requests = requests(&cluster, 16).await;
    let undisturbed = ask(&cluster, &requests, async || {}).await;
    let num_kills = std::env::var(KILLS).map_or(2, |kills| kills.parse().unwrap());
    for kill in 0..num_kills {
        cluster.serving(num_pipelines, Duration::from_secs(300)).await;
        // Those killed before have been started again under other ids.
        let running: Vec<_> =
            cluster.node_pids().into_iter().filter(|pid| is_running(*pid)).collect();
        let victim = running[kill % running.len()];
        let said = ask(&cluster, &requests, async || {
            // At another place of the answers each time.
            tokio::time::sleep(Duration::from_millis(100 + 137 * kill as u64 % 700)).await;
            signal(victim, "KILL");
        })
        .await;
        for (number, (said, expected)) in said.iter().zip(&undisturbed).enumerate() {
            assert_eq!(said, expected, "answer {number}, kill {kill}");
        }
    }
    let (_, metrics) = cluster.get("/metrics").await;
    let metrics = metrics.as_str().unwrap();
    let moved = metrics.lines().find(|line| line.starts_with("autoglm_moved_sequences_total"));
    let moved: u64 = moved.unwrap().rsplit(' ').next().unwrap().parse().unwrap();
    assert!(moved > 0, "the kills came while answers were computed");
    let num_answers = num_kills * requests.len();
    println!(
        "{num_kills} kills, {num_answers} answers as undisturbed, {moved} moves, {:?}",
        start.elapsed()
    );
    cluster.stop();
}

/// Either of two stages is killed: its process is started again, the model placed anew, and all 16
/// answers go on in their streams.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_node_loses_no_answer() {
    let options = Options::new(golden::model("glass-en")).nodes(2, 2);
    // Steps that name tokens which others are to sample are lost with the others, too.
    let ahead = format!("{PATIENT}run_ahead = \"on\"\n");
    kill_under_streams(options.config(&ahead), 1).await;
}

/// Of two pipelines one is killed: the other takes its answers over at once.
#[tokio::test(flavor = "multi_thread")]
async fn another_pipeline_takes_over_the_answers_of_a_killed_one() {
    let options = Options::new(golden::model("glass-en")).nodes(2, 1);
    let config = format!("{PATIENT}[coordinator]\npipelines = 2\n");
    kill_under_streams(options.config(&config), 2).await;
}

/// Red within 3 s of the kill, whoever is killed, and the coordinator lives.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_node_turns_ready_red() {
    let mut cluster = Cluster::start(Options::new(golden::model("glass-en")).nodes(2, 2)).await;
    let killed = Instant::now();
    signal(cluster.node_pids()[1], "KILL");
    while cluster.get("/health/ready").await.0 == 200 {
        assert!(killed.elapsed() < Duration::from_secs(3), "still green");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(cluster.get("/health/live").await.0, 200);
    assert!(cluster.process.child.try_wait().unwrap().is_none(), "the coordinator lives");
    cluster.stop();
}

/// Five random kills with a spare there, under streams that never end: `chaos` in small.
#[tokio::test(flavor = "multi_thread")]
async fn random_kills_lose_no_answer_while_a_spare_is_there() {
    let report = chaos::run(&chaos::Options {
        seed: 5,
        num_faults: 5,
        num_streams: 16,
        faults: vec![Fault::Kill],
        model: golden::model("glass-en"),
        stages: 2,
        spares: 1,
        is_hasty: true,
        max_tokens: 64,
        duration: Duration::from_secs(300),
    })
    .await;
    println!("{report}");
    assert!(report.is_good() && report.num_lost() >= 5, "{report}");
}
