//! `autoglm-bench load --verify --fault`: what goes wrong is found, all of it, and nothing else.

use std::process::Stdio;

use serde_json::{Value, json};
use tests::cluster::{Cluster, Options, binary};
use tests::golden;
use tests::proxy::{Harm, Proxy};
use tokio::io::{AsyncBufReadExt, BufReader};

fn two_nodes() -> Options {
    Options::new(golden::model("glass-en")).nodes(2, 2)
}

/// What a load left.
struct Loaded {
    result: Value,
    table: String,
    /// 0: everything was answered, and answered right.
    code: Option<i32>,
}

impl Loaded {
    fn verified(&self, name: &str) -> u64 {
        self.result["verification"][name].as_u64().unwrap()
    }

    /// Broken streams, differing tokens, differing ends.
    fn found(&self) -> [u64; 3] {
        ["broken_streams", "differing_tokens", "differing_ends"].map(|name| self.verified(name))
    }
}

/// Loads a server with 24 tokens a request, eight at once.
async fn load(url: &str, more: &[&str]) -> Loaded {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("result.json");
    let ran = tokio::process::Command::new(binary("autoglm-bench"))
        .args(["load", "--url", url, "--endpoint", "completions", "--ignore-eos", "--verify"])
        .args(["--concurrency", "8", "--json"])
        .arg(&file)
        .args(more)
        .stderr(Stdio::inherit())
        .output()
        .await
        .unwrap();
    let table = String::from_utf8(ran.stdout).unwrap();
    let result = std::fs::read_to_string(&file).unwrap_or_else(|_| panic!("no result:\n{table}"));
    Loaded { result: serde_json::from_str(&result).unwrap(), table, code: ran.status.code() }
}

/// Streams that take the references: one to learn what the server can be compared by, then each.
const NUM_REFERENCES: u64 = 32;

/// Harm to five of the streams that follow, each of its own kind.
fn five_harms(first: u64) -> [(u64, usize, Harm); 5] {
    [
        (first + 7, 5, Harm::Drop),
        (first + 28, 9, Harm::Double),
        (first + 57, 0, Harm::Alter),
        (first + 87, 7, Harm::Break),
        (first + 117, 3, Harm::End),
    ]
}

/// Nothing is found on a healthy cluster, greedy or sampled; of a proxy's harm each kind is found,
/// in the answer to which it was done.
#[tokio::test(flavor = "multi_thread")]
async fn a_healthy_cluster_is_clean_and_a_proxys_harm_is_found_exactly() {
    let cluster = Cluster::start(two_nodes()).await;
    let requests = ["--requests", "200", "--max-tokens", "24"];
    let healthy = load(&cluster.http, &requests).await;
    assert_eq!(healthy.result["verification"]["compared"], "token ids and logprobs");
    assert_eq!(["checked", "identical"].map(|name| healthy.verified(name)), [200, 200]);
    assert_eq!(healthy.verified("references"), NUM_REFERENCES);
    assert_eq!(healthy.found(), [0; 3]);
    assert!(healthy.table.contains("200 checked by token ids and logprobs"), "{}", healthy.table);
    assert!(healthy.table.contains(": all identical"), "{}", healthy.table);
    assert_eq!(healthy.code, Some(0));

    let proxy = Proxy::start(&cluster.http, &five_harms(1 + NUM_REFERENCES)).await;
    let sampled = [&requests[..], &["--temperature", "1", "--seed", "7"]].concat();
    let harmed = load(&proxy.url, &sampled).await;
    let mut done = proxy.done();
    done.sort_by_key(|harm| format!("{harm:?}"));
    let all = [Harm::Alter, Harm::Break, Harm::Double, Harm::Drop, Harm::End];
    assert_eq!(done, all, "the proxy did what it should");
    let [broken, differing, ends] = harmed.found();
    assert_eq!((broken, ends), (2, 0), "{}", harmed.table);
    assert!(differing >= 3, "{}", harmed.table);
    assert_eq!(["checked", "identical"].map(|name| harmed.verified(name)), [200, 195]);
    assert_eq!(harmed.result["verification"]["examples"].as_array().unwrap().len(), 5);
    assert_eq!(harmed.result["failed"], 2);
    assert_eq!(harmed.code, Some(1));
    cluster.stop();
}

/// The same by text alone, as a server gives it that knows no logprobs.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_logprobs_is_verified_by_its_text() {
    let mut mock = tokio::process::Command::new(binary("autoglm-bench"))
        .args(["mock", "--port", "0", "--ttft", "5ms", "--itl", "2ms"])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(mock.stdout.take().unwrap()).lines();
    let url = lines.next_line().await.unwrap().unwrap();
    // Three streams to learn that neither token ids nor logprobs come.
    let proxy = Proxy::start(&url, &five_harms(3 + NUM_REFERENCES)).await;
    let loaded = load(&proxy.url, &["--requests", "400", "--max-tokens", "24"]).await;
    assert_eq!(proxy.done().len(), 5);
    assert_eq!(loaded.result["verification"]["compared"], "text");
    let [broken, differing, ends] = loaded.found();
    assert_eq!((broken, ends), (2, 0), "{}", loaded.table);
    assert!(differing >= 3, "{}", loaded.table);
    assert_eq!(["checked", "identical"].map(|name| loaded.verified(name)), [400, 395]);
}

/// A node is killed: no stream breaks, each answer is the one that it would have been, and the
/// report says that the fault cost nothing but time.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_node_breaks_no_stream() {
    let cluster = Cluster::start(two_nodes()).await;
    let proxy = Proxy::start(&cluster.http, &[]).await;
    let kill = format!("kill:pid={}@1s", cluster.node_pids()[1]);
    let arguments = ["--requests", "400", "--max-tokens", "64", "--references", "8"];
    let loaded = load(&proxy.url, &[&arguments[..], &["--fault", &kill]].concat()).await;
    assert_eq!((proxy.num_streams(), proxy.num_refused()), (proxy.num_whole(), 0));
    assert_eq!(loaded.found(), [0; 3], "{}", loaded.table);
    assert_eq!(loaded.verified("identical"), loaded.verified("checked"));
    assert_eq!(loaded.result["failed"], 0);
    assert_eq!(requests_with_another_code_than_200(&cluster).await, 0);
    assert_eq!(loaded.code, Some(0));

    let fault = &loaded.result["faults"][0];
    assert_eq!((&fault["fault"], &fault["error"]), (&json!(kill), &Value::Null));
    assert_eq!(fault["failed"].as_u64(), Some(0));
    assert!(fault["longest_silence"].as_f64().is_some_and(|silence| silence > 0.0), "{fault}");
    cluster.stop();
}

async fn requests_with_another_code_than_200(cluster: &Cluster) -> u64 {
    let (_, metrics) = cluster.get("/metrics").await;
    let metrics = metrics.as_str().unwrap();
    let counts = metrics.lines().filter(|line| line.starts_with("autoglm_requests_total{"));
    let others = counts.filter(|line| !line.contains("code=\"200\""));
    others.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
}

/// A node that stands still for less than its time breaks nothing; how long nothing came is said.
#[tokio::test(flavor = "multi_thread")]
async fn a_pause_breaks_nothing_and_its_length_is_told() {
    let patient = "[transport]\nidle_timeout_ms = 10000\n";
    let cluster = Cluster::start(two_nodes().config(patient)).await;
    let pid = cluster.node_pids()[0];
    let (stop, cont) = (format!("stop:pid={pid}@500ms"), format!("cont:pid={pid}@1500ms"));
    let arguments = ["--requests", "100", "--max-tokens", "64", "--references", "8"];
    let hook = "command:'exit 3'@600ms";
    let faults = ["--fault", &stop, "--fault", &cont, "--fault", hook];
    let loaded = load(&cluster.http, &[&arguments[..], &faults].concat()).await;
    assert_eq!(loaded.found(), [0; 3], "{}", loaded.table);
    assert_eq!(loaded.verified("identical"), 100);
    let [stop, cont, hook] = [0, 1, 2].map(|index| &loaded.result["faults"][index]);
    assert_eq!([stop, cont, hook].map(|fault| fault["failed"].as_u64()), [Some(0); 3]);
    let silences = [stop, hook].map(|fault| fault["longest_silence"].as_f64().unwrap_or(0.0));
    assert!(silences[0].max(silences[1]) >= 0.8, "{stop} {hook}");
    assert!(cont["recovered"].as_f64().is_some(), "{cont}");
    assert_eq!(hook["error"], "the command ended with exit status: 3");
    assert_eq!(loaded.code, Some(1), "the hook went wrong");
    cluster.stop();
}
