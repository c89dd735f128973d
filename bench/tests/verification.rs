//! `load --verify` and `load --fault` where a server or a user makes it hard.

use std::process::Output;

use serde_json::Value;

use crate::fake_server;

/// A load of the fake server: what it printed, and its result if it wrote one.
async fn load(url: &str, prompts: &[&str], more: &[&str]) -> (Output, Option<Value>) {
    let folder = tempfile::tempdir().unwrap();
    let (file, json) = (folder.path().join("prompts"), folder.path().join("result.json"));
    std::fs::write(&file, prompts.join("\n")).unwrap();
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_autoglm-bench"));
    command.args(["load", "--url", url, "--requests", "6", "--concurrency", "2", "--prompts"]);
    let ran = command.arg(&file).arg("--json").arg(&json).args(more).output().await.unwrap();
    let result = std::fs::read_to_string(&json).ok();
    (ran, result.map(|text| serde_json::from_str(&text).unwrap()))
}

fn said(ran: &Output) -> String {
    String::from_utf8(ran.stderr.clone()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_reference_nothing_starts_and_the_request_is_named() {
    for (prompts, cause) in [
        (["hello", "truncated"], "\"truncated\": not started: stream ended without [DONE]"),
        (["busy", "hello"], "\"busy\": not started: 503 Service Unavailable: the queue is full"),
    ] {
        let (url, seen) = fake_server::start().await;
        let (ran, result) = load(&url, &prompts, &["--verify"]).await;
        assert_eq!((ran.status.code(), result), (Some(1), None));
        let message = format!("autoglm-bench: no reference answer to {cause}\n");
        assert!(said(&ran).ends_with(&message), "{}", said(&ran));
        assert!(seen.bodies.lock().unwrap().len() <= 5, "three to learn, one each");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_changes_is_found() {
    let (url, seen) = fake_server::start().await;
    let (ran, result) = load(&url, &["fickle"], &["--verify"]).await;
    let found = &result.unwrap()["verification"];
    assert_eq!((&found["compared"], &found["references"]), (&"text".into(), &1.into()));
    assert_eq!((&found["checked"], &found["identical"]), (&6.into(), &0.into()));
    assert_eq!(found["differing_tokens"], 12, "two pieces each, from the first that differs");
    assert_eq!(found["broken_streams"], 0);
    assert_eq!(found["examples"][0], "\"fickle\": 0 equal tokens, then 2 that differ");
    assert_eq!(ran.status.code(), Some(1));
    let table = String::from_utf8(ran.stdout).unwrap();
    assert!(
        table.contains("6 checked by text, against 1 references: 0 identical, 12 tokens differ")
    );
    let bodies = seen.bodies.lock().unwrap();
    assert!(bodies.iter().all(|body| body["temperature"] == 0.0), "greedy unless told otherwise");
    let fields = |body: &Value| (body["logprobs"].clone(), body["return_token_ids"].clone());
    assert_eq!(fields(&bodies[0]), (true.into(), true.into()));
    assert_eq!(fields(&bodies[5]), (Value::Null, Value::Null), "it doesn't know them");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seeds_repeat_with_their_prompts() {
    let (url, seen) = fake_server::start().await;
    let more = ["--verify", "--temperature", "1", "--seed", "40"];
    let (ran, result) = load(&url, &["no usage", "hello"], &more).await;
    assert_eq!(ran.status.code(), Some(0), "{}", said(&ran));
    assert_eq!(result.unwrap()["verification"]["identical"], 6);
    let seeds: std::collections::BTreeSet<u64> =
        seen.bodies.lock().unwrap().iter().map(|body| body["seed"].as_u64().unwrap()).collect();
    assert_eq!(seeds, [40, 41].into());
    let (url, seen) = fake_server::start().await;
    let (ran, result) = load(&url, &["hello"], &["--verify", "--temperature", "1"]).await;
    assert_eq!((ran.status.code(), result), (Some(1), None));
    assert!(said(&ran).contains("left to chance and can't be verified"), "{}", said(&ran));
    assert!(seen.bodies.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fault_that_cannot_be_is_said_and_the_rest_is_measured() {
    let (url, _) = fake_server::start().await;
    // Above the highest process id that Linux gives.
    let more = ["--fault", "kill:pid=2000000000@0s", "--fault", "command:'true'@1h"];
    let (ran, result) = load(&url, &["hello"], &more).await;
    let message = "fault kill:pid=2000000000@0s FAILED: there is no process 2000000000";
    assert!(said(&ran).contains(message), "{}", said(&ran));
    let result = result.unwrap();
    assert_eq!(result["completed"], 6);
    assert_eq!(result["faults"][0]["error"], "there is no process 2000000000");
    assert_eq!(result["faults"][1]["at"], Value::Null);
    let table = String::from_utf8(ran.stdout).unwrap();
    assert!(table.contains("not injected: there is no process 2000000000"), "{table}");
    assert!(table.contains("not injected: the run ended before"), "{table}");
    assert_eq!(ran.status.code(), Some(1));

    for fault in ["kill:pid=x@1s", "kill:pid=1", "hang:pid=1@1s"] {
        let (ran, result) = load(&url, &["hello"], &["--fault", fault]).await;
        assert_eq!((ran.status.code(), result), (Some(2), None));
        assert!(said(&ran).contains("is no fault: "), "{}", said(&ran));
        assert!(said(&ran).contains("use kill:pid=71@10s"), "{}", said(&ran));
    }
}
