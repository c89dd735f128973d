//! Why a request waits, asked of a real server by the real command; requests that are cancelled.

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::cluster::{Cluster, Options, binary};
use tests::golden;

fn explain(cluster: &Cluster, arguments: &[&str]) -> Output {
    let mut command = Command::new(binary("autoglm"));
    command.args(["explain", "--url", &cluster.http]).args(arguments).output().unwrap()
}

fn id(response: &reqwest::Response) -> String {
    response.headers()["x-request-id"].to_str().unwrap().to_owned()
}

async fn delete(cluster: &Cluster, id: &str) -> (u16, Value) {
    let url = format!("{}/v1/requests/{id}", cluster.http);
    let answer = reqwest::Client::new().delete(url).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

fn texts(stream: &str) -> String {
    let data = stream.lines().filter_map(|line| line.strip_prefix("data: "));
    let chunks = data.filter_map(|data| serde_json::from_str::<Value>(data).ok());
    chunks.filter_map(|it| it["choices"][0]["text"].as_str().map(str::to_owned)).collect()
}

/// Goal: whoever waits hears why, and a cancelled request is gone while others don't feel it.
/// Method: one place, 16 long answers that take it before others, two requests that wait for them.
#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_request_is_explained_and_a_cancelled_one_ends_alone() {
    let options = Options::new(golden::model("glass-en")).nodes(1, 1);
    let cluster = Cluster::start(options.config("[scheduler]\nmax_num_seqs = 1")).await;
    let more =
        |max_tokens: u32| json!({"max_tokens": max_tokens, "ignore_eos": true, "stream": true});
    let short = cluster.request(&[5, 6, 7], more(12)).await;
    let undisturbed = cluster.stream("/v1/completions", &short).await.text().await.unwrap();
    assert!(undisturbed.contains("[DONE]"), "{undisturbed}");

    let mut long = cluster.request(&[8, 9, 10], more(100)).await;
    (long["service_tier"], long["n"]) = (json!("realtime"), json!(16));
    let running = cluster.stream("/v1/completions", &long).await;
    let waiting = cluster.stream("/v1/completions", &short).await;
    let last = cluster.stream("/v1/completions", &short).await;
    let output = explain(&cluster, &[&id(&waiting)]);
    let said = String::from_utf8(output.stdout).unwrap();
    println!("{said}");
    assert!(output.status.success() && said.contains("waiting, priority standard"), "{said}");
    assert!(said.contains("1 sequences run, as many as may"), "{said}");
    let output = explain(&cluster, &[&id(&last), "--json"]);
    let story: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(story["waiting"][0]["num_before"].as_u64() >= Some(1), "{story}");

    // One that waits, then the one that runs: their streams end, and the third goes on.
    let cancelled = Instant::now();
    for (id, stream) in [(id(&waiting), waiting), (id(&running), running)] {
        let (status, story) = delete(&cluster, &id).await;
        assert_eq!((status, &story["state"]), (200, &json!("cancelled")), "{story}");
        let end = tokio::time::timeout(Duration::from_secs(60), stream.text());
        let end = end.await.expect("the stream ends").unwrap();
        assert!(end.contains("\"code\":\"cancelled\"") && !end.contains("[DONE]"), "{end}");
    }
    println!("both streams ended after {:?}", cancelled.elapsed());
    let third = id(&last);
    assert_eq!(texts(&last.text().await.unwrap()), texts(&undisturbed));
    let said = String::from_utf8(explain(&cluster, &[&third]).stdout).unwrap();
    for what in ["queued", "admitted", "begun", "finished"] {
        assert!(said.contains(what), "{said}");
    }
    let unknown = explain(&cluster, &["cmpl-0000000000000001"]);
    let error = String::from_utf8_lossy(&unknown.stderr).into_owned();
    assert!(unknown.status.code() == Some(1) && error.contains("there is no request"), "{error}");
    assert_eq!(delete(&cluster, "cmpl-0000000000000001").await.0, 404);
    let (_, list) = cluster.get("/v1/requests").await;
    assert_eq!(list["data"], json!([]));
    cluster.stop();
}
