//! Nodes that end, are killed, or don't belong: the cluster says so at once and hangs nobody.

use std::time::{Duration, Instant};

use futures::StreamExt;
use serde_json::json;
use tests::cluster::{Cluster, Options, Process, is_running, signal};
use tests::golden;

fn two_nodes() -> Options {
    Options::new(golden::model("glass-en")).nodes(2, 2)
}

/// Goal: whatever is killed is replaced, and no node outlives its coordinator. Method: the
/// coordinator is killed before its node has joined, and another takes its place while that one
/// still holds its own; then the node is killed, then the coordinator once more while it serves.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_coordinator_is_replaced_and_a_killed_node_started_again() {
    let options = Options::new(golden::model("glass-en")).nodes(1, 1);
    let serves = async |cluster: &Cluster| {
        cluster.ready(Duration::from_secs(180)).await;
        cluster.complete(&cluster.request(&[5, 6, 7], json!({"max_tokens": 4})).await).await;
    };
    let cluster = Cluster::launch(&options);
    let mut former = cluster.node_pids();
    assert_eq!(former.len(), 1);
    let cluster = cluster.replace(&options).await;
    serves(&cluster).await;

    let victim = cluster.node_pids()[0];
    signal(victim, "KILL");
    let killed = Instant::now();
    loop {
        let said = cluster.get("/health/ready").await.1["waiting_for"].to_string();
        if said.contains("local node 0 ended (signal: 9") && said.contains("started again") {
            break;
        }
        assert!(killed.elapsed() < Duration::from_secs(60), "{said}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    serves(&cluster).await;
    former.extend(cluster.node_pids());

    let cluster = cluster.replace(&options).await;
    serves(&cluster).await;
    for pid in former {
        assert!(!is_running(pid), "node {pid} outlives its coordinator");
    }
    cluster.stop();
}

/// A frozen node says nothing: only silence tells. Red within 3 s all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_node_turns_ready_red() {
    let cluster = Cluster::start(two_nodes()).await;
    let frozen = Instant::now();
    let pid = cluster.node_pids()[0];
    signal(pid, "STOP");
    while cluster.get("/health/ready").await.0 == 200 {
        assert!(frozen.elapsed() < Duration::from_secs(3), "still green");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    signal(pid, "CONT");
    cluster.stop();
}

/// Nodes that join by themselves; SIGTERM ends each cleanly, and a new one takes its place.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_leaves_is_replaced_by_one_that_joins() {
    // Two stages could share the one that stays, and be green again before anybody looks.
    let config = "[coordinator]\nsettle_ms = 60000\n";
    let options = Options::new(golden::model("glass-en")).nodes(0, 2).config(config);
    let cluster = Cluster::launch(&options);
    let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let mut nodes: Vec<Process> =
        dirs[..2].iter().map(|dir| cluster.join(dir.path(), &[])).collect();
    cluster.ready(Duration::from_secs(60)).await;

    nodes[0].signal("TERM");
    let status = nodes[0].wait(Duration::from_secs(10));
    assert_eq!(status.code(), Some(0), "{}", nodes[0].log());
    let left = Instant::now();
    while cluster.get("/health/ready").await.0 == 200 {
        assert!(left.elapsed() < Duration::from_secs(3), "still green");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let _third = cluster.join(dirs[2].path(), &[]);
    cluster.ready(Duration::from_secs(60)).await;
    let log = cluster.process.log();
    assert!(!log.contains("a stage failed"), "it left on purpose: {log}");
    let more = json!({"max_tokens": 4});
    cluster.complete(&cluster.request(&[5, 6, 7], more).await).await;
    cluster.stop();
    // Without a coordinator a node waits for the next.
    assert!(nodes[1].child.try_wait().unwrap().is_none());
    nodes[1].signal("TERM");
    assert_eq!(nodes[1].wait(Duration::from_secs(10)).code(), Some(0));
}

/// Goal: clients that go away leave nothing behind: no sequence, no block, no place. Method: 300 of
/// them, more at once than may run, leave while their requests arrive, wait, or are answered.
#[tokio::test(flavor = "multi_thread")]
async fn clients_that_go_away_free_their_blocks_and_places() {
    let cluster = Cluster::start(two_nodes()).await;
    let more = json!({"max_tokens": 120, "ignore_eos": true, "n": 4});
    let whole = cluster.request(&[5, 6, 7], more).await;
    let mut streamed = whole.clone();
    streamed["stream"] = true.into();
    let leave = async |number: u64| {
        // Of a whole answer nothing is to be read before it is complete.
        let request = if number.is_multiple_of(3) { &whole } else { &streamed };
        let mut patience = Duration::from_millis(number % 50);
        let asking = async {
            let mut stream = cluster.stream("/v1/completions", request).await;
            if number % 3 == 1 {
                stream.chunk().await.unwrap();
            } else {
                std::future::pending().await
            }
        };
        if number % 3 == 1 {
            patience = Duration::from_secs(120);
        }
        let _ = tokio::time::timeout(patience, asking).await;
    };
    futures::stream::iter((0..300).map(leave)).buffer_unordered(30).collect::<Vec<_>>().await;
    let start = Instant::now();
    loop {
        let (_, metrics) = cluster.get("/metrics").await;
        let metrics = metrics.as_str().unwrap();
        let sum = |name: &str| {
            let lines = metrics.lines().filter(|line| line.starts_with(name));
            let numbers = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
            numbers.sum::<f64>()
        };
        let is_left = sum("autoglm_requests_running")
            + sum("autoglm_queue_depth")
            + sum("autoglm_kv_usage_ratio");
        if is_left == 0.0 && sum("autoglm_requests_total") >= 100.0 {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "still held:\n{metrics}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    cluster.complete(&whole).await;
    cluster.stop();
}

/// An idle cluster costs next to nothing: on a quiet machine under 1 % of a core, all processes
/// together. Here other tests run beside it, which makes every wakeup dearer; a loop that is busy
/// or polls shows all the same.
#[tokio::test(flavor = "multi_thread")]
async fn an_idle_cluster_uses_no_processor() {
    let cluster = Cluster::start(two_nodes()).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut pids = cluster.node_pids();
    pids.push(cluster.process.child.id());
    let before: u64 = pids.iter().map(|pid| cpu_ticks(*pid)).sum();
    let seconds = 10;
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let ticks = pids.iter().map(|pid| cpu_ticks(*pid)).sum::<u64>() - before;
    // Linux counts in hundredths of a second; one tick is what a reading may be off by.
    assert!(ticks <= 3 * seconds, "{ticks} ticks in {seconds} s");
    cluster.stop();
}

fn cpu_ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}
