//! Many requests, through the library and through the binary.

use std::future::pending;
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use loadgen::client::Server;
use loadgen::client::failure::FailureKind;
use loadgen::client::request::{Parameters, Prompt};
use loadgen::load::pace::{Pace, Ramp};
use loadgen::load::result::result;
use loadgen::load::slo::Slo;
use loadgen::load::workload::Workload;
use loadgen::load::{Extent, Load, Progress, report};
use loadgen::report::compare::{Against, ResultFile};
use loadgen::report::html::page;
use loadgen::report::result::{FORMAT, Metric, Series};

use crate::fake_server;

pub(crate) fn load(prompts: &[&str], num_requests: u64, concurrency: u32) -> Load {
    let model = "fake".to_string();
    Load {
        parameters: Parameters { model, max_tokens: 8, ..Parameters::default() },
        workload: Workload::of(prompts.iter().map(|text| Prompt::Text((*text).to_string()))),
        pace: Pace::Closed { concurrency: Ramp::constant(f64::from(concurrency)) },
        extent: Extent::requests(num_requests),
        slo: Slo::default(),
        observer: None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_loop_keeps_its_concurrency_and_never_passes_it() {
    let (url, seen) = fake_server::start().await;
    let server = Server::new(&url, Duration::from_secs(10)).unwrap();
    let progress = Arc::new(Progress::default());
    let load = load(&["hello"], 24, 6);
    let measured = load.run(&server, &progress, pending()).await.unwrap();
    assert_eq!(seen.max_running.load(Ordering::SeqCst), 6);
    assert_eq!((progress.num_ended(), progress.num_running()), (24, 0));
    let result = result(&load, &measured);
    assert_eq!((result.completed, result.total_output_tokens), (24, Some(24 * 4)));
    // Four rounds of at least FIRST + BETWEEN.
    assert!(measured.elapsed >= (fake_server::FIRST + fake_server::BETWEEN) * 4);
    let first_ms = result.statistic("p50", Metric::Ttft).unwrap();
    assert!(first_ms >= 60.0, "{first_ms}");
    assert!((result.request_throughput * result.duration - 24.0).abs() < 1e-6);
    assert!((result.output_throughput * result.duration - 96.0).abs() < 1e-6);
    assert_eq!(result.timeline.iter().map(|second| second.tokens).sum::<u64>(), 96);

    let json = serde_json::to_value(&result).unwrap();
    for key in ["completed", "failed", "duration", "request_throughput", "output_throughput"] {
        assert!(json[key].is_number(), "{key}");
    }
    for statistic in ["mean", "median", "std", "p50", "p90", "p95", "p99", "p99.9", "max"] {
        for metric in ["ttft", "tpot", "itl", "e2el"] {
            assert!(json[format!("{statistic}_{metric}_ms")].is_number(), "{statistic} {metric}");
        }
    }
}

#[tokio::test]
async fn counts_that_a_server_doesnt_tell_are_unknown_rather_than_nothing() {
    let (url, _) = fake_server::start().await;
    let server = Server::new(&url, Duration::from_secs(10)).unwrap();
    // Part of the answers are counted: the sum is known as little as where none is.
    for prompts in [&["no usage"] as &[_], &["hello", "no usage"]] {
        let load = load(prompts, 4, 1);
        let measured = load.run(&server, &Arc::new(Progress::default()), pending()).await.unwrap();
        let run = result(&load, &measured);
        assert_eq!(
            (run.completed, run.total_input_tokens, run.total_output_tokens),
            (4, None, None)
        );
        let json = serde_json::to_value(&run).unwrap();
        for key in ["total_input_tokens", "total_output_tokens", "total_token_throughput"] {
            assert!(json[key].is_null(), "{key}: {}", json[key]);
        }
        assert!(json["output_throughput"].as_f64().unwrap() > 0.0);
        let text = report::table(&run);
        for line in ["  prompt tokens     unknown\n", "  answer tokens     unknown\n"] {
            assert!(text.contains(line), "{text}");
        }
        let series =
            Series { format: FORMAT, kind: "run".to_owned(), runs: vec![run], ..Series::default() };
        let html = page(&[ResultFile { name: "load".to_owned(), series }], Against::First);
        assert!(html.contains("unknown tokens of prompts, unknown of answers"), "{html}");
    }
}

#[tokio::test]
async fn failures_are_counted_by_kind_beside_the_answers() {
    let (url, _) = fake_server::start().await;
    let server = Server::new(&url, Duration::from_secs(10)).unwrap();
    let load = load(&["busy", "hello", "truncated", "busy"], 8, 3);
    let measured = load.run(&server, &Arc::default(), pending()).await.unwrap();
    let all = &measured.sums.all;
    assert_eq!((all.num_completed, all.num_failed()), (2, 6));
    assert_eq!(all.failures[&FailureKind::Status(503)].count, 4);
    assert_eq!(all.failures[&FailureKind::Truncated].count, 2);
    let result = result(&load, &measured);
    let table = report::table(&result);
    assert!(table.contains("2 ok, 6 failed"), "{table}");
    assert!(table.contains("4 × status 503: 503 Service Unavailable: the queue"), "{table}");
    assert_eq!(result.failures["truncated"].count, 2);
}

#[tokio::test]
async fn a_seed_is_sent_with_each_request_plus_its_number() {
    let (url, seen) = fake_server::start().await;
    let server = Server::new(&url, Duration::from_secs(10)).unwrap();
    let mut load = load(&["no usage"], 3, 1);
    load.workload.seed = Some(40);
    load.run(&server, &Arc::default(), pending()).await.unwrap();
    let bodies = seen.bodies.lock().unwrap();
    assert_eq!(
        bodies.iter().map(|body| body["seed"].as_u64()).collect::<Vec<_>>(),
        [Some(40), Some(41), Some(42)]
    );
    assert_eq!(bodies[0]["stream_options"]["include_usage"], true);
}

#[tokio::test]
async fn a_stopped_load_reports_what_it_measured() {
    let (url, _) = fake_server::start().await;
    let server = Server::new(&url, Duration::from_secs(10)).unwrap();
    let stop = tokio::time::sleep(Duration::from_millis(500));
    let load = load(&["no usage", "silent"], 4, 2);
    let measured = load.run(&server, &Arc::default(), stop).await.unwrap();
    assert!(measured.interrupted);
    assert_eq!(measured.sums.all.num_completed, 2);
    assert!(report::table(&result(&load, &measured)).contains("interrupted"));
}

async fn bench(arguments: &[&str]) -> Output {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_autoglm-bench"));
    command.args(arguments).output().await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_binary_prints_a_table_and_writes_json() {
    let (url, _) = fake_server::start().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("result.json");
    let file = file.to_str().unwrap();
    let arguments = ["load", "--requests", "4", "--concurrency", "2", "--json", file];
    let ended = bench(&[&arguments[..], &["--url", &url]].concat()).await;
    let table = String::from_utf8(ended.stdout).unwrap();
    assert!(ended.status.success(), "{table}");
    assert!(table.contains("4 ok, 0 failed"), "{table}");
    assert!(table.contains("between tokens"), "{table}");
    let json: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    assert_eq!(json["model_id"], "fake", "the first model listed");
    assert_eq!(json["completed"], 4);

    let prompts = folder.path().join("prompts");
    std::fs::write(&prompts, "hello\nbusy\n").unwrap();
    let prompts = ["--prompts", prompts.to_str().unwrap(), "--url", &url];
    let ended = bench(&[&arguments[..5], &prompts].concat()).await;
    assert_eq!(ended.status.code(), Some(1), "some requests failed");
    assert!(String::from_utf8(ended.stdout).unwrap().contains("2 ok, 2 failed"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_binary_streams_an_answer() {
    let (url, _) = fake_server::start().await;
    let ended = bench(&["ask", "--url", &url, "hello"]).await;
    let text = String::from_utf8(ended.stdout).unwrap();
    assert!(text.starts_with("Paris é\n4 tokens · first token after "), "{text}");
    let ended = bench(&["ask", "--url", &url, "--endpoint", "completions", "hello"]).await;
    assert!(String::from_utf8(ended.stdout).unwrap().starts_with("helloParis é\n"));
    let ended = bench(&["ask", "--url", &url, "error event"]).await;
    assert_eq!(ended.status.code(), Some(1));
    assert_eq!(String::from_utf8(ended.stderr).unwrap(), "autoglm-bench: a stage was lost\n");
}

#[tokio::test]
async fn without_a_server_the_binary_says_one_sentence() {
    let ended = bench(&["ask", "--url", "http://127.0.0.1:1", "hello"]).await;
    assert_eq!(ended.status.code(), Some(1));
    let said = String::from_utf8(ended.stderr).unwrap();
    let expected = "autoglm-bench: nothing answers at http://127.0.0.1:1: connection refused\n";
    assert_eq!(said, expected);
}
