//! API keys with the real binary: made, used, limited, revoked while the server runs.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::cluster::{Cluster, Options, binary};
use tests::golden;

/// Runs `autoglm key` on the keys of this data directory; what it wrote.
fn key(data: &Path, arguments: &[&str]) -> String {
    let output = Command::new(binary("autoglm"))
        .arg("key")
        .args(arguments)
        .arg("--data-dir")
        .arg(data)
        .output();
    let output = output.unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

async fn status(cluster: &Cluster, path: &str, secret: &str) -> u16 {
    let get = reqwest::Client::new().get(format!("{}{path}", cluster.http));
    get.bearer_auth(secret).send().await.unwrap().status().as_u16()
}

/// Waits until a key is answered so; how long that took.
async fn until(cluster: &Cluster, secret: &str, expected: u16) -> Duration {
    let start = Instant::now();
    while status(cluster, "/v1/models", secret).await != expected {
        assert!(start.elapsed() < Duration::from_secs(60), "{}", cluster.process.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    start.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_made_used_and_revoked_while_the_server_runs() {
    let cluster = Cluster::start(Options::new(golden::model("glass-en")).nodes(1, 1)).await;
    let data = cluster.data.path();
    // Without keys anybody on this machine may ask, also with one that means nothing.
    assert_eq!(status(&cluster, "/v1/models", "none").await, 200);

    let anna = key(data, &["create", "--name", "anna", "--requests-per-minute", "2"]);
    assert!(anna.starts_with("sk-") && anna.len() > 60, "{anna}");
    let took = until(&cluster, "none", 401).await;
    println!("the first key closed the door after {took:?}");
    let ops = key(data, &["create", "--name", "ops", "--scopes", "metrics"]);
    until(&cluster, &ops, 403).await;
    assert_eq!(status(&cluster, "/metrics", &ops).await, 200);
    assert_eq!(status(&cluster, "/metrics", &anna).await, 403);
    assert_eq!(cluster.get("/metrics").await.0, 401);
    assert_eq!(cluster.get("/health/ready").await.0, 200);

    let url = format!("{}/v1/completions", cluster.http);
    let body = json!({"model": "glass-en", "prompt": "Alice was", "max_tokens": 4});
    let ask = || reqwest::Client::new().post(&url).bearer_auth(&anna).json(&body).send();
    for remaining in ["1", "0"] {
        let answer = ask().await.unwrap();
        let left = answer.headers()["x-ratelimit-remaining-requests"].clone();
        let answer: Value = answer.json().await.unwrap();
        assert!(answer["usage"]["completion_tokens"].as_u64() > Some(0), "{answer}");
        // A machine that is slow has got one back meanwhile.
        assert!(left == remaining || left == "1", "{left:?}");
    }
    let wait = async {
        loop {
            let answer = ask().await.unwrap();
            if answer.status() == 429 {
                break answer.headers()["retry-after"].to_str().unwrap().parse::<u64>().unwrap();
            }
        }
    };
    let wait = tokio::time::timeout(Duration::from_secs(60), wait).await.unwrap();
    assert!((1..=30).contains(&wait), "{wait}");

    // The rest of an answer that has begun comes to its end.
    let bert = key(data, &["create", "--name", "bert"]);
    until(&cluster, &bert, 200).await;
    let body = json!({
        "model": "glass-en", "prompt": "Alice was", "max_tokens": 100, "ignore_eos": true,
        "stream": true,
    });
    let begun = reqwest::Client::new().post(&url).bearer_auth(&bert).json(&body).send();
    let begun = begun.await.unwrap();
    assert_eq!(begun.status(), 200);
    key(data, &["revoke", "bert"]);
    let took = until(&cluster, &bert, 401).await;
    println!("a revoked key was refused after {took:?}");
    let said = begun.text().await.unwrap();
    assert!(said.trim_end().ends_with("data: [DONE]"), "{said}");
    assert!(
        key(data, &["list"]).lines().any(|line| line.contains("bert") && line.contains("revok"))
    );

    // What is broken changes nothing, and is said.
    std::fs::write(data.join("keys.toml"), "[[key]]\nname = 5\n").unwrap();
    let mut cluster = cluster;
    cluster.process.wait_for("those of before stay in force", Duration::from_secs(60));
    assert_eq!(status(&cluster, "/metrics", &ops).await, 200);
    assert_eq!(status(&cluster, "/v1/models", &bert).await, 401);
    let log = cluster.process.log();
    assert!([&anna, &ops, &bert].iter().all(|secret| !log.contains(secret.as_str())), "{log}");
    assert!(log.contains("key=\"anna\"") || log.contains("key=anna"), "{log}");
    cluster.stop();
}
