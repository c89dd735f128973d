//! Traces and logs of real clusters, as a collector and an operator see them.

use std::collections::{HashMap, HashSet};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::cluster::{Cluster, Options, Process, binary, signal};
use tests::collector::{Collector, Seen};
use tests::golden;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";
const PROMPT: &str = "Alice was not a bit hurt";

fn traced(endpoint: &str, more: &str) -> Options {
    let config = format!(
        "[traces]\nendpoint = \"{endpoint}\"\nsteps_every = 4\nexport_interval_ms = 100\n{more}"
    );
    Options::new(golden::model("glass-en")).nodes(2, 2).config(&config)
}

async fn ask(cluster: &Cluster, headers: &[(&str, &str)], more: Value) -> reqwest::Response {
    let mut body = json!({
        "model": cluster.model().await, "prompt": PROMPT, "max_tokens": 12, "ignore_eos": true,
    });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let mut request = reqwest::Client::new().post(format!("{}/v1/completions", cluster.http));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.json(&body).send().await.unwrap()
}

/// The log's lines of so many requests, which take a moment to arrive.
async fn requests_ended(cluster: &Cluster, num_requests: usize) -> Vec<String> {
    let start = Instant::now();
    loop {
        let log = cluster.process.log();
        let lines = log.lines().filter(|line| line.contains("request ended"));
        let lines: Vec<_> = lines.map(str::to_owned).collect();
        if lines.len() == num_requests {
            return lines;
        }
        assert!(start.elapsed() < Duration::from_secs(10), "{log}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

/// A request with a parent: 1 prefill step and 11 decode steps, of which the 1st, 5th and 9th are
/// kept. Spans come from the coordinator and from both nodes, and hang together.
#[tokio::test(flavor = "multi_thread")]
async fn one_trace_runs_through_three_processes() {
    let collector = Collector::start().await;
    let cluster = Cluster::start(traced(&collector.endpoint, "")).await;
    let mut pids = cluster.node_pids();
    pids.push(cluster.process.child.id());
    let parent = format!("00-{TRACE}-{CALLER}-01");
    let headers = [
        ("traceparent", parent.as_str()),
        ("tracestate", "congo=t61rcWkgMzE"),
        ("x-request-id", "proxy-7"),
    ];
    let answer = ask(&cluster, &headers, json!({"seed": 5, "temperature": 0.5})).await;
    let told = answer.headers()["traceparent"].to_str().unwrap().to_owned();
    assert_eq!(answer.headers()["tracestate"], "congo=t61rcWkgMzE");
    let id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
    let answer: Value = answer.json().await.unwrap();
    let text = answer["choices"][0]["text"].as_str().unwrap();
    // Whoever says that a request isn't to be traced is heard, and so is the log.
    ask(&cluster, &[("traceparent", &parent.replace("-01", "-00"))], json!({})).await;
    let lines = requests_ended(&cluster, 2).await;
    for part in [
        format!("request=\"{id}\""),
        format!("trace_id={TRACE}"),
        "client_request=\"proxy-7\"".into(),
        "status=200".into(),
        "num_tokens=12".into(),
    ] {
        assert!(lines[0].contains(&part), "{part} is not in {}", lines[0]);
    }
    assert!(!lines[1].contains("trace_id"), "{}", lines[1]);
    // Ending sends what is left.
    cluster.stop();

    let spans = collector.spans();
    assert!(spans.iter().all(|seen| hex(&seen.span.trace_id) == TRACE));
    let mut names = HashMap::<_, usize>::new();
    spans.iter().for_each(|seen| *names.entry(seen.names(&spans)).or_default() += 1);
    let operation = "text_completion glass-en";
    let expected = HashMap::from([
        (("POST /v1/completions", None), 1),
        ((operation, Some("POST /v1/completions")), 1),
        (("queue", Some(operation)), 1),
        (("prefill", Some(operation)), 1),
        (("decode", Some(operation)), 1),
        (("stage 0", Some("prefill")), 1),
        (("stage 1", Some("prefill")), 1),
        (("stage 0", Some("decode")), 3),
        (("stage 1", Some("decode")), 3),
    ]);
    assert_eq!(names, expected);
    let find = |name: &str| spans.iter().find(|seen| seen.span.name == name).unwrap();

    let server = find("POST /v1/completions");
    assert_eq!(hex(&server.span.parent_span_id), CALLER);
    assert_eq!(told, format!("00-{TRACE}-{}-01", hex(&server.span.span_id)));
    assert_eq!((server.span.kind, server.span.trace_state.as_str()), (2, "congo=t61rcWkgMzE"));
    assert_eq!(server.attribute("http.request.method"), "POST");
    assert_eq!(server.attribute("http.route"), "/v1/completions");
    assert_eq!(server.attribute("http.response.status_code"), "200");
    assert_eq!(server.attribute("http.request.header.x-request-id"), "proxy-7");
    let operation = find(operation);
    for (name, value) in [
        ("gen_ai.operation.name", "text_completion"),
        ("gen_ai.provider.name", "autoglm"),
        ("gen_ai.request.model", "glass-en"),
        ("gen_ai.request.max_tokens", "12"),
        ("gen_ai.request.seed", "5"),
        ("gen_ai.request.temperature", "0.5"),
        ("gen_ai.response.model", "glass-en"),
        ("gen_ai.response.id", &id),
        ("gen_ai.response.finish_reasons", "length"),
        ("gen_ai.usage.output_tokens", "12"),
        ("gen_ai.usage.input_tokens", &answer["usage"]["prompt_tokens"].to_string()),
    ] {
        assert_eq!(operation.attribute(name), value, "{name}");
    }
    assert_eq!(find("decode").attribute("autoglm.steps"), "11");
    assert_eq!(find("decode").attribute("autoglm.answer.tokens"), "12");

    // Who speaks: three processes, each by its own name.
    let process = |name: &str| -> HashSet<_> {
        spans.iter().map(|seen| seen.process[name].clone()).collect()
    };
    assert_eq!(process("service.instance.id").len(), 3);
    assert_eq!(process("process.pid"), pids.iter().map(u32::to_string).collect());
    let pid = |name: &str| &find(name).process["process.pid"];
    assert_eq!(find("stage 0").process["service.name"], "autoglm-node");
    assert_eq!(server.process["service.name"], "autoglm");
    assert_ne!(pid("stage 0"), pid("stage 1"));
    for name in ["queue", "prefill", "decode"] {
        assert_eq!(find(name).process["process.pid"], server.process["process.pid"]);
    }
    for seen in spans.iter().filter(|seen| seen.span.name.starts_with("stage ")) {
        let index = seen.span.name.strip_prefix("stage ").unwrap();
        assert_eq!(seen.attribute("autoglm.stage.index"), index);
        assert_eq!(seen.process["process.pid"], *pid(&seen.span.name));
        assert!(seen.attribute("autoglm.compute_us").parse::<u64>().unwrap() > 0);
        assert_eq!(seen.attribute("autoglm.batch.sequences"), "1");
    }
    lie_within_their_parents(&spans);

    // No word of the prompt or of the answer.
    let bytes = collector.bytes();
    assert!(holds(&bytes, "gen_ai.usage.output_tokens"));
    for content in [PROMPT, text.trim(), "hurt"] {
        assert!(content.len() > 3 && !holds(&bytes, content), "{content:?} is in the spans");
    }
}

/// Clocks are those of one machine, read at different moments: 5 ms apart at most.
fn lie_within_their_parents(spans: &[Seen]) {
    let slack = 5_000_000;
    for seen in spans {
        let (child, id) = (&seen.span, &seen.span.parent_span_id);
        let Some(parent) = spans.iter().find(|other| other.span.span_id == *id) else { continue };
        let parent = &parent.span;
        let (name, above) = (&child.name, &parent.name);
        assert!(child.start_time_unix_nano <= child.end_time_unix_nano, "{name}");
        assert!(
            parent.start_time_unix_nano <= child.start_time_unix_nano + slack,
            "{name} {above}"
        );
        assert!(child.end_time_unix_nano <= parent.end_time_unix_nano + slack, "{name} {above}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn content_is_told_where_it_is_wanted() {
    let collector = Collector::start().await;
    let cluster = Cluster::start(traced(&collector.endpoint, "content = true")).await;
    let answer: Value = ask(&cluster, &[], json!({})).await.json().await.unwrap();
    cluster.stop();
    let spans = collector.spans();
    let operation = spans.iter().find(|seen| seen.span.name == "text_completion glass-en").unwrap();
    let content = |name: &str| {
        let messages: Value = serde_json::from_str(operation.attribute(name)).unwrap();
        messages[0]["parts"][0]["content"].as_str().unwrap().to_owned()
    };
    assert_eq!(content("gen_ai.input.messages"), PROMPT);
    assert_eq!(content("gen_ai.output.messages"), answer["choices"][0]["text"]);
}

/// Nothing is traced but what a caller asks for; a header that is malformed asks for nothing. A
/// client that leaves ends its spans with the reason.
#[tokio::test(flavor = "multi_thread")]
async fn with_sampling_off_only_callers_decide() {
    let collector = Collector::start().await;
    let cluster = Cluster::start(traced(&collector.endpoint, "sample_ratio = 0.0")).await;
    let wrong = format!("00-{}-{CALLER}-01", TRACE.to_uppercase());
    for headers in [&[][..], &[("traceparent", wrong.as_str())]] {
        let answer = ask(&cluster, headers, json!({})).await;
        assert_eq!(answer.status(), 200);
        assert!(!answer.headers().contains_key("traceparent"));
    }
    let parent = format!("00-{TRACE}-{CALLER}-01");
    let more = json!({"stream": true, "max_tokens": 100});
    let mut stream = ask(&cluster, &[("traceparent", &parent)], more).await;
    stream.chunk().await.unwrap();
    drop(stream);
    let start = Instant::now();
    let named = |name: &str| collector.spans().into_iter().find(|seen| seen.span.name == name);
    while named("decode").is_none() || named("POST /v1/completions").is_none() {
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", collector.spans());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    cluster.stop();
    let spans = collector.spans();
    assert!(spans.iter().all(|seen| hex(&seen.span.trace_id) == TRACE));
    for name in ["POST /v1/completions", "text_completion glass-en", "decode"] {
        assert_eq!(named(name).unwrap().attribute("error.type"), "cancelled", "{name}");
    }
    assert_eq!(named("decode").unwrap().span.status.unwrap().code, 2);
}

/// A request that waits in vain for another pipeline fails, and its trace says why.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_request_says_so_in_its_trace() {
    let collector = Collector::start().await;
    let config = "[scheduler]\nmax_pipeline_wait_ms = 1";
    let cluster = Cluster::start(traced(&collector.endpoint, config)).await;
    let more = json!({"stream": true, "max_tokens": 100});
    let mut stream = ask(&cluster, &[], more).await;
    stream.chunk().await.unwrap();
    signal(cluster.node_pids()[1], "KILL");
    let rest = stream.text().await.unwrap();
    assert!(rest.contains("no_pipeline"), "{rest}");
    cluster.stop();
    let spans = collector.spans();
    for name in ["POST /v1/completions", "text_completion glass-en", "decode"] {
        let seen = spans.iter().find(|seen| seen.span.name == name).unwrap();
        assert_eq!(seen.attribute("error.type"), "no_pipeline", "{name}");
        assert_eq!(seen.span.status.as_ref().unwrap().code, 2, "{name}");
    }
}

/// Nobody listens where spans should go: answers come, each of the three processes says so once at
/// most, and the end is not held up.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_collector_harms_nothing() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let cluster = Cluster::start(traced(&endpoint, "")).await;
    for _ in 0..5 {
        assert_eq!(ask(&cluster, &[], json!({})).await.status(), 200);
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    let warned = cluster.process.log().matches("the collector takes no spans").count();
    assert!((1..=3).contains(&warned), "{}", cluster.process.log());
    let start = Instant::now();
    cluster.stop();
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}

/// Every line of every process is an object; a request's has its fields.
#[tokio::test(flavor = "multi_thread")]
async fn json_logs_are_objects_in_every_process() {
    let data = tempfile::tempdir().unwrap();
    let mut process = Process::start(
        Command::new(binary("autoglm"))
            .args(["serve", "--log-format", "json", "--local-nodes", "1"])
            .args(["--http", "127.0.0.1:0", "--cluster", "127.0.0.1:0", "--model"])
            .arg(golden::model("glass-en"))
            .arg("--data-dir")
            .arg(data.path()),
    );
    let line = process.wait_for("\"serving\"", Duration::from_secs(60));
    let serving: Value = serde_json::from_str(&line).unwrap();
    let url = format!("http://{}", serving["http"].as_str().unwrap());
    process.wait_for("the pipeline serves", Duration::from_secs(60));
    let body = json!({"model": "glass-en", "prompt": PROMPT, "max_tokens": 3});
    let client = reqwest::Client::new();
    let answer = client.post(format!("{url}/v1/completions")).json(&body).send().await.unwrap();
    let id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
    answer.bytes().await.unwrap();
    process.wait_for("request ended", Duration::from_secs(5));
    process.signal("TERM");
    assert_eq!(process.wait(Duration::from_secs(20)).code(), Some(0), "{}", process.log());
    let log = process.log();
    // A driver may have something to say in its own words.
    let (objects, others): (Vec<_>, Vec<_>) = log.lines().partition(|line| line.starts_with('{'));
    assert!(!others.iter().any(|line| line.contains(" INFO ")), "{others:?}");
    let lines: Vec<Value> = objects
        .iter()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}")))
        .collect();
    let named = |message: &str| lines.iter().find(|line| line["message"] == message).unwrap();
    let ended = named("request ended");
    assert_eq!(ended["request"], id);
    assert_eq!(
        (&ended["status"], &ended["num_tokens"], &ended["model"], &ended["level"]),
        (&json!(200), &json!(3), &json!("glass-en"), &json!("INFO"))
    );
    assert!(ended["duration_ms"].as_f64().unwrap() > 0.0);
    // The node's.
    assert_eq!(named("stage loaded")["target"], "node::actor");
}
