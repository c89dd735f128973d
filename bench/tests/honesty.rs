//! Whether the generator tells the truth, by its binary against a mock server whose law is known:
//! two processes, so that each has its own memory, files and time.

use std::process::Stdio;
use std::time::Duration;

use loadgen::distribution::{Delays, Purpose, random};
use loadgen::report::result::{Metric, RunResult, Series, read};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// A mock server, ended when it is dropped.
struct Mock {
    url: String,
    process: Child,
}

fn binary() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_autoglm-bench"));
    command.kill_on_drop(true);
    command
}

async fn mock(arguments: &[&str]) -> Mock {
    let mut command = binary();
    command.args(["mock", "--port", "0"]).args(arguments).stdout(Stdio::piped());
    let mut process = command.spawn().unwrap();
    let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
    let url = lines.next_line().await.unwrap().unwrap();
    Mock { url, process }
}

/// Runs `autoglm-bench load` and reads what it wrote; the text is what it printed.
async fn load(url: &str, arguments: &str) -> (Series, String) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("result.json");
    let mut command = binary();
    command.args(["load", "--url", url, "--json"]).arg(&file).args(arguments.split(' '));
    let ended = command.output().await.unwrap();
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&ended.stdout),
        String::from_utf8_lossy(&ended.stderr)
    );
    let series = read(&file).unwrap_or_else(|error| panic!("{error:#}\n{said}"));
    (series, said)
}

async fn one(url: &str, arguments: &str) -> RunResult {
    load(url, arguments).await.0.runs.remove(0)
}

/// How far the percentiles are from those of the draws that the mock server made, at most.
fn furthest(run: &RunResult, law: &Delays, seed: u64) -> f64 {
    let mut draws: Vec<f64> = (0..run.completed)
        .map(|index| law.sample(&mut random(Purpose::MockTimes, seed, index)).as_secs_f64() * 1e3)
        .collect();
    draws.sort_by(f64::total_cmp);
    let off = |(name, percentile): (&str, f64)| {
        let rank = (percentile * draws.len() as f64).ceil() as usize;
        (run.statistic(name, Metric::Ttft).unwrap() / draws[rank - 1] - 1.0).abs()
    };
    [("p50", 0.5), ("p90", 0.9), ("p95", 0.95), ("p99", 0.99)]
        .map(off)
        .into_iter()
        .fold(0.0, f64::max)
}

/// On a machine that does something else at the time a run can fail; a generator that is wrong
/// fails every time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn percentiles_are_within_three_percent_of_a_law_of_fifty_milliseconds_and_more() {
    let written = "50ms+lognormal:60ms:0.5";
    let law: Delays = written.parse().unwrap();
    let mut tried = Vec::new();
    for seed in 1..=5 {
        let server = mock(&["--ttft", written, "--seed", &seed.to_string()]).await;
        let run = one(&server.url, "--rate 150 --requests 900 --max-tokens 1").await;
        assert_eq!((run.completed, run.failed), (900, 0));
        tried.push(furthest(&run, &law, seed));
        if tried.last() < Some(&0.03) {
            return;
        }
    }
    panic!("off by {tried:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stall_of_a_second_shows_in_an_open_loop_and_hides_in_a_closed_one() {
    let arguments = ["--ttft", "10ms", "--stall", "1s@2s"];
    let (for_open, for_closed) = tokio::join!(mock(&arguments), mock(&arguments));
    let shape = "--duration 5s --max-tokens 1";
    let (open, closed) = (format!("--rate 60 {shape}"), format!("--concurrency 1 {shape}"));
    let (open, closed) = tokio::join!(one(&for_open.url, &open), one(&for_closed.url, &closed));
    // A fifth of the requests came while nothing was sent.
    let p99 = |run: &RunResult| run.statistic("p99", Metric::Ttft).unwrap();
    assert!((800.0..1100.0).contains(&p99(&open)), "{}", p99(&open));
    assert!(closed.completed > 150, "{}", closed.completed);
    let max = closed.statistic("max", Metric::Ttft).unwrap();
    assert!(max > 800.0 && p99(&closed) < 500.0, "one saw it: {max}, {}", p99(&closed));
}

/// A tenth of what is promised, which two commands measure:
///
/// ```text
/// autoglm-bench mock --port 8001 --ttft 2s --itl 1s
/// autoglm-bench load --url http://127.0.0.1:8001 --concurrency 5000 --requests 10000 \
///                    --max-tokens 16
/// ```
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_hundred_streams_at_once_take_little_memory() {
    let server = mock(&["--ttft", "1s", "--itl", "500ms"]).await;
    let run = one(&server.url, "--concurrency 500 --requests 500 --max-tokens 8").await;
    assert_eq!((run.completed, run.failed), (500, 0));
    let running = run.timeline.iter().map(|second| second.running).max();
    assert_eq!(running, Some(500));
    // Under 200 MB for 5000 is 40 KB for each, beside what the program takes without any.
    let limit = 20_000_000 + 500 * 36_000;
    let taken = run.client.max_rss_bytes;
    assert!(taken > 1_000_000 && taken < limit, "{taken} bytes");
    assert!(run.client.cpu_seconds > 0.0 && run.client.max_lag_ms >= run.client.p99_lag_ms);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sweep_ends_where_the_objective_breaks() {
    // Four at a time of 100 ms each: 40 a second.
    let server = mock(&["--ttft", "100ms", "--slots", "4"]).await;
    let arguments = "--sweep-rate 10..160x2 --arrivals constant --duration 2s --max-tokens 1 \
                     --slo ttft=250ms --tier a:1,b:1";
    let (series, said) = load(&server.url, arguments).await;
    assert_eq!((series.kind.as_str(), series.varied.as_str()), ("sweep", "rate"));
    let labels: Vec<&str> = series.runs.iter().map(|run| run.label.as_str()).collect();
    let last = labels.last().copied().unwrap();
    assert!(labels.starts_with(&["rate 10", "rate 20"]) && labels.len() < 5, "{labels:?}");
    assert!(said.contains(&format!("the objective breaks at {last}: ")), "{said}");
    let (first, last) = (&series.runs[0], series.runs.last().unwrap());
    assert_eq!(first.request_goodput, Some(first.request_throughput));
    assert!(last.request_goodput < Some(40.0) && last.request_throughput < 45.0, "{said}");
    let groups: Vec<&str> = first.groups.iter().map(|group| group.name.as_str()).collect();
    assert_eq!(groups, ["tier a", "tier b"]);
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_measured_until_ctrl_c_is_written() {
    let server = mock(&["--ttft", "20ms"]).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("result.json");
    let mut command = binary();
    command.args(["load", "--url", &server.url, "--json"]).arg(&file);
    command.args("--concurrency 2 --duration 600s --max-tokens 1".split(' '));
    let mut process = command.stdout(Stdio::null()).spawn().unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let pid = nix::unistd::Pid::from_raw(process.id().unwrap() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::SIGINT).unwrap();
    assert_eq!(process.wait().await.unwrap().code(), Some(1));
    let run = read(&file).unwrap().runs.remove(0);
    assert!(run.interrupted && run.completed > 5 && run.duration < 60.0, "{}", run.completed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_dies_or_was_never_there_is_a_result_too() {
    let mut server = mock(&["--ttft", "10ms", "--itl", "10ms"]).await;
    let url = server.url.clone();
    let dying = async {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        server.process.kill().await.unwrap();
    };
    let ((series, said), ()) =
        tokio::join!(load(&url, "--rate 50 --duration 3s --max-tokens 20 --model m"), dying);
    let run = &series.runs[0];
    assert!(run.completed > 10, "{said}");
    assert!(run.failures.contains_key("truncated"), "{said}");
    assert!(run.failures["unreachable"].example.contains("nothing answers at"), "{said}");
    assert_eq!(run.failed, run.failures.values().map(|kind| kind.count).sum::<u64>());
    // Nobody there from the beginning on: a closed loop doesn't knock as fast as it can.
    let run = one(&url, "--concurrency 2 --duration 1s --model m").await;
    assert!(run.completed == 0 && (2..50).contains(&run.failed), "{}", run.failed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_in_one_piece_have_an_end_only() {
    let server = mock(&["--ttft", "30ms", "--itl", "5ms", "--tokens", "9"]).await;
    let run = one(&server.url, "--concurrency 2 --requests 6 --no-stream --turns 3").await;
    assert_eq!((run.completed, run.total_output_tokens), (6, Some(54)));
    assert!(run.statistic("p50", Metric::E2el).unwrap() >= 65.0);
    assert_eq!(run.statistic("p50", Metric::Ttft), None);
    assert_eq!(run.timeline.iter().map(|second| second.tokens).sum::<u64>(), 54);
}

#[tokio::test]
async fn what_cant_be_meant_is_refused_in_a_sentence() {
    for (arguments, said) in [
        ("--rate 1", "needs a number of requests or a duration"),
        ("--rate 1 --concurrency 1", "cannot be used with"),
        ("--rate 0 --requests 1", "is no rate: use requests a second, above 0"),
        ("--concurrency 1 --requests 1 --slo ttft=200", "\"200\" is no time"),
        ("--concurrency 1 --requests 1 --slo ttft=1s --no-stream", "has an end only"),
        ("--sweep-rate 1..8 --requests 1", "is no step"),
        ("--concurrency 1 --requests 1 --tier a:x", "is no NAME:SHARE"),
        ("--concurrency 1 --requests 1 --extra-body [1]", "is no JSON object"),
        ("--rate 8 --requests 1 --ramp linear:1", "--duration"),
        ("--trace /nowhere", "can't read /nowhere"),
        ("--concurrency 100000000 --requests 1", "raise the hard limit"),
    ] {
        let mut command = binary();
        command.args(["load", "--url", "http://127.0.0.1:1", "--model", "m"]);
        let ended = command.args(arguments.split(' ')).output().await.unwrap();
        let error = String::from_utf8_lossy(&ended.stderr);
        assert!(!ended.status.success() && error.contains(said), "{arguments}: {error}");
    }
}
