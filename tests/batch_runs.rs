//! Batches against a real cluster, whose coordinator is killed while they run.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::cluster::{Cluster, Options};

const BOUNDARY: &str = "a-line-that-no-file-has";

/// A client of files and batches.
pub struct Batches {
    client: reqwest::Client,
    http: String,
}

impl Batches {
    pub fn of(cluster: &Cluster) -> Self {
        Self { client: reqwest::Client::new(), http: cluster.http.clone() }
    }

    /// A client that has a key.
    pub fn with_key(cluster: &Cluster, key: &str) -> Self {
        let headers = [("authorization", format!("Bearer {key}"))];
        let headers = headers.map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        let client = reqwest::Client::builder().default_headers(headers.into_iter().collect());
        Self { client: client.build().unwrap(), ..Self::of(cluster) }
    }

    /// An answer, and how long it took.
    pub async fn complete(&self, body: &Value) -> (Value, Duration) {
        let start = Instant::now();
        let request = self.client.post(format!("{}/v1/completions", self.http)).json(body);
        let said = request.send().await.unwrap().text().await.unwrap();
        let answer: Value = serde_json::from_str(&said).unwrap();
        assert!(answer["choices"].is_array(), "{answer}");
        (answer, start.elapsed())
    }

    /// The model that is served.
    pub async fn model(&self) -> String {
        let said = self.client.get(format!("{}/v1/models", self.http)).send().await.unwrap();
        let said: Value = said.json().await.unwrap();
        said["data"][0]["id"].as_str().unwrap().to_owned()
    }

    /// Ends a batch early.
    pub async fn cancel(&self, id: &str) {
        let said = self.client.post(format!("{}/v1/batches/{id}/cancel", self.http)).send().await;
        assert!(said.unwrap().status().is_success());
    }

    /// Hands a file of lines in; its id.
    pub async fn upload(&self, lines: &str) -> Result<String, String> {
        self.hand_in("batch", "in.jsonl", lines).await
    }

    /// Hands a file in; its id.
    pub async fn hand_in(&self, purpose: &str, name: &str, text: &str) -> Result<String, String> {
        let part = |name: &str| format!("--{BOUNDARY}\r\ncontent-disposition: form-data; {name}");
        let body = format!(
            "{}\r\n\r\n{purpose}\r\n{}\r\n\r\n{text}\r\n--{BOUNDARY}--\r\n",
            part("name=\"purpose\""),
            part(&format!("name=\"file\"; filename=\"{name}\"")),
        );
        let kind = format!("multipart/form-data; boundary={BOUNDARY}");
        let request = self.client.post(format!("{}/v1/files", self.http));
        let said = request.header("content-type", kind).body(body).send().await;
        let said = said.map_err(|cause| cause.to_string())?;
        let (status, text) = (said.status().as_u16(), said.text().await.unwrap_or_default());
        let said: Value = serde_json::from_str(&text).unwrap_or_default();
        said["id"].as_str().map(str::to_owned).ok_or_else(|| format!("{status}: {text}"))
    }

    /// Makes a batch of completions; its id.
    pub async fn create(&self, file: &str, window: &str) -> Result<String, String> {
        let asked = json!({
            "input_file_id": file, "endpoint": "/v1/completions", "completion_window": window,
        });
        self.ask(&asked).await
    }

    /// Makes the batch that a body asks for; its id.
    pub async fn ask(&self, body: &Value) -> Result<String, String> {
        let request = self.client.post(format!("{}/v1/batches", self.http)).json(body);
        let said = request.send().await.map_err(|cause| cause.to_string())?;
        let text = said.text().await.unwrap_or_default();
        let said: Value = serde_json::from_str(&text).unwrap_or_default();
        said["id"].as_str().map(str::to_owned).ok_or(text)
    }

    /// How far it is; none while nobody answers.
    pub async fn get(&self, id: &str) -> Option<Value> {
        let said = self.client.get(format!("{}/v1/batches/{id}", self.http)).send().await.ok()?;
        said.json().await.ok()
    }

    /// Waits until it is at its end.
    pub async fn ended(&self, id: &str, timeout: Duration) -> Value {
        let start = Instant::now();
        loop {
            let said = self.get(id).await;
            let status = said.as_ref().and_then(|said| said["status"].as_str());
            if status.is_some_and(|it| !["validating", "in_progress", "finalizing"].contains(&it)) {
                return said.unwrap();
            }
            assert!(start.elapsed() < timeout, "{said:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Waits until so many of its lines are durable, whoever is away meanwhile.
    pub async fn durable(&self, id: &str, num: i64) {
        let start = Instant::now();
        while num_durable(&self.get(id).await.unwrap_or_default()) < num {
            assert!(start.elapsed() < PATIENCE, "{id} doesn't get to {num} lines");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// What stands in a file.
    pub async fn text(&self, file: &Value) -> String {
        let Some(file) = file.as_str() else { return String::new() };
        let url = format!("{}/v1/files/{file}/content", self.http);
        self.client.get(url).send().await.unwrap().text().await.unwrap()
    }

    pub async fn lines(&self, file: &Value) -> Vec<Value> {
        let text = self.text(file).await;
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// Lines of a batch for this model, with answers of 16 to 64 tokens; every other line leaves its
/// seed to the server.
pub fn lines(model: &str, num: usize, max_tokens: std::ops::Range<usize>) -> String {
    const WORDS: [&str; 7] = ["Alice", "the Queen", "a cat", "was", "said", "down", "her sister"];
    let line = |number: usize| {
        let words: Vec<_> = (0..3 + number % 5).map(|i| WORDS[(number * 3 + i * i) % 7]).collect();
        let span = max_tokens.len().max(1);
        let mut body = json!({
            "model": model, "prompt": words.join(" "), "temperature": 0.9,
            "max_tokens": max_tokens.start + number * 7 % span, "ignore_eos": true,
            "return_token_ids": true, "logprobs": 1,
        });
        if number.is_multiple_of(2) {
            body["seed"] = number.into();
        }
        let (method, url) = ("POST", "/v1/completions");
        json!({"custom_id": format!("id-{number}"), "method": method, "url": url, "body": body})
    };
    (0..num).map(|number| line(number).to_string() + "\n").collect()
}

/// What two runs of a batch are compared by.
pub fn compared(lines: &[Value]) -> Vec<Value> {
    let compared = |line: &Value| {
        let body = &line["response"]["body"];
        let usage = &body["usage"];
        json!([
            line["custom_id"],
            line["response"]["status_code"],
            line["error"],
            body["choices"],
            usage["prompt_tokens"],
            usage["completion_tokens"],
        ])
    };
    lines.iter().map(compared).collect()
}

/// What two runs of a batch are compared by, of an output's text: fields that are alike are written
/// alike, so they are never parsed.
fn essences(output: &str) -> Vec<String> {
    type Fields<'a> = BTreeMap<&'a str, &'a RawValue>;
    let fields = |text| serde_json::from_str::<Fields<'_>>(text).unwrap();
    let essence = |line| {
        let line = fields(line);
        let response = fields(line["response"].get());
        let body = fields(response["body"].get());
        let usage: Value = serde_json::from_str(body["usage"].get()).unwrap();
        let num_tokens = json!([usage["prompt_tokens"], usage["completion_tokens"]]).to_string();
        let [id, error] = [line["custom_id"], line["error"]].map(RawValue::get);
        let [status, choices] = [response["status_code"], body["choices"]].map(RawValue::get);
        [id, status, error, choices, &num_tokens].join(" ")
    };
    output.lines().map(essence).collect()
}

/// What is run with kills.
#[derive(Clone, Copy, Debug)]
pub struct Runs {
    /// How often the batch is run.
    pub num: usize,
    /// How often its coordinator is killed in each run.
    pub kills_each: usize,
    /// Lines of the batch.
    pub num_lines: usize,
    /// Decides when.
    pub seed: u64,
}

/// What runs with kills have shown.
#[derive(Debug, Default)]
pub struct Report {
    pub num_kills: usize,
    pub num_killed_nodes: usize,
    /// Lines that were durable when the coordinator was killed, of each kill.
    pub at_kill: Vec<i64>,
    /// From the kill to the first durable line after it.
    pub recoveries: Vec<Duration>,
}

/// How long one of these runs may take: it may be the least of what its machine does.
const PATIENCE: Duration = Duration::from_secs(7200);

/// Runs a batch again and again, each time with kills of the coordinator at random moments, and at
/// a quarter of them of a node, too; every output must be that of an undisturbed run.
pub async fn run_with_kills(options: Options, runs: Runs) -> Report {
    let num_lines = runs.num_lines;
    let mut cluster = Cluster::start(options.clone()).await;
    let input = lines(&cluster.model().await, num_lines, 16..65);
    let batches = Batches::of(&cluster);
    let start = Instant::now();
    let file = batches.upload(&input).await.unwrap();
    let undisturbed = batches.create(&file, "24h").await.unwrap();
    let undisturbed = batches.ended(&undisturbed, PATIENCE).await;
    assert_eq!(undisturbed["status"], "completed", "{undisturbed}");
    println!("undisturbed: {num_lines} lines in {:.1} s", start.elapsed().as_secs_f64());
    let expected = essences(&batches.text(&undisturbed["output_file_id"]).await);
    let is_named = |(at, it): (usize, &String)| it.starts_with(&format!("\"id-{at}\" 200 null "));
    assert_eq!(expected.len(), num_lines);
    assert!(expected.iter().enumerate().all(is_named), "each line once, answered, in order");
    let mut report = Report::default();
    let mut random = StdRng::seed_from_u64(runs.seed);
    for run in 0..runs.num {
        let start = Instant::now();
        let id = Batches::of(&cluster).create(&file, "24h").await.unwrap();
        // By lines, not by time: a machine is faster at one moment than at another. A few kills
        // come before the first line, or after the last.
        let margin = num_lines as i64 / 50;
        let moment = |_| random.random_range(-margin..=num_lines as i64 + margin);
        let mut moments: Vec<_> = (0..runs.kills_each).map(moment).collect();
        moments.sort_unstable();
        for kill_at in moments {
            let batches = Batches::of(&cluster);
            batches.durable(&id, kill_at.min(num_lines as i64)).await;
            tokio::time::sleep(Duration::from_millis(random.random_range(0..100))).await;
            let mut killed_too = "";
            if report.num_kills % 4 == 3
                && let Some(pid) = cluster.node_pids().last().copied()
                && crate::cluster::is_running(pid)
            {
                crate::cluster::signal(pid, "KILL");
                report.num_killed_nodes += 1;
                killed_too = " and a node";
            }
            let before = batches.get(&id).await.unwrap_or_default();
            let at_kill = num_durable(&before);
            report.at_kill.push(at_kill);
            let killed = Instant::now();
            cluster = cluster.replace(&options).await;
            report.num_kills += 1;
            let mut went_on = String::from("it had ended");
            if before["status"] != "completed" && at_kill < num_lines as i64 {
                Batches::of(&cluster).durable(&id, at_kill + 1).await;
                let recovery = killed.elapsed();
                went_on = format!("the next durable line after {:.1} s", recovery.as_secs_f64());
                report.recoveries.push(recovery);
            }
            println!("the coordinator{killed_too} killed at {at_kill}, {went_on}");
        }
        let batches = Batches::of(&cluster);
        let ended = batches.ended(&id, PATIENCE).await;
        assert_eq!(ended["status"], "completed", "{ended}\n{}", cluster.process.log());
        let counts = &ended["request_counts"];
        assert_eq!((&counts["completed"], &counts["failed"]), (&json!(num_lines), &json!(0)));
        // Each line once, in the order of the input, and every one of them as it was.
        let found = essences(&batches.text(&ended["output_file_id"]).await);
        assert!(found == expected, "run {run} differs: {:?}", first_difference(&found, &expected));
        println!(
            "run {}: {num_lines} lines, each custom_id once, identical; {:.0} s",
            run + 1,
            start.elapsed().as_secs_f64()
        );
    }
    cluster.stop();
    report
}

fn num_durable(job: &Value) -> i64 {
    job["request_counts"]["completed"].as_i64().unwrap_or(0)
}

fn first_difference<'a>(
    found: &'a [String],
    expected: &'a [String],
) -> Option<(usize, &'a str, &'a str)> {
    let at = (0..found.len().max(expected.len())).find(|at| found.get(*at) != expected.get(*at))?;
    let of = |lines: &'a [String]| lines.get(at).map_or("", String::as_str);
    Some((at, of(found), of(expected)))
}
