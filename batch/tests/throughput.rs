//! How fast rows go through, and how much memory that takes, with a stub that answers at once.
//!
//! A million of them: `AUTOGLM_BATCH_ROWS=1000000 cargo test --release -p batch --test throughput
//! -- --nocapture`.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use batch::address::{Address, Direction};
use batch::answerer::{Answerer, Failed};
use batch::asking::Plan;
use batch::clean::Declared;
use batch::http::Http;
use batch::journal::{Begin, Purpose};
use batch::object::Objects;
use batch::progress::Progress;
use batch::run::{Job, MAX_AHEAD, run};
use batch::sink::Writing;
use batch::source::Reading;
use batch::template::{Request, Template};
use futures::future::BoxFuture;
use rows::answers::Answers;
use serde_json::{Map, Value, json};

struct Stub;

impl Answerer for Stub {
    fn answer<'a>(&'a self, request: &'a Request) -> BoxFuture<'a, Result<Value, Failed>> {
        let said = &request.body["messages"][0]["content"];
        let answer = json!({
            "choices": [{"message": {"content": said}, "finish_reason": "stop"}],
            "usage": {"completion_tokens": 16},
        });
        Box::pin(std::future::ready(Ok(answer)))
    }
}

/// Bytes of memory that this process has, or had at most.
fn memory(name: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with(name))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? << 10)
}

fn job(folder: &Path) -> Job {
    let runtime = tokio::runtime::Handle::current();
    let http = Http::new().unwrap();
    let objects = Objects::new(http.clone(), runtime.clone());
    let address = |name: &str, direction| {
        Address::parse(folder.join(name).to_str().unwrap(), None, direction).unwrap()
    };
    let clean = Declared::default();
    Job {
        input: address("in.csv", Direction::Input),
        output: address("out.csv", Direction::Output),
        plan: Plan {
            template: Some(Template::parse("Translate: {{ text }}", false).unwrap()),
            answers: Answers::Text("answer".into()),
            labels: clean.labels().unwrap(),
            defaults: Map::new(),
            columns: None,
        },
        clean,
        tokens: None,
        id: None,
        concurrency: 64,
        ahead: MAX_AHEAD,
        journal: folder.join("journal"),
        rejects: folder.join("rejects"),
        purpose: Purpose::new(),
        begin: Begin::Anew,
        ended: Vec::new(),
        reading: Reading {
            max_row_bytes: 16 << 20,
            runtime: runtime.clone(),
            objects: objects.clone(),
        },
        writing: Writing {
            runtime,
            objects,
            http,
            job: String::new(),
            id: None,
            rows_together: 1,
            method: hyper::Method::POST,
            key: None,
            stop: tokio_util::sync::CancellationToken::new(),
        },
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_stream_through_in_memory_that_has_a_bound() {
    let num = std::env::var("AUTOGLM_BATCH_ROWS").map_or(30_000, |num| num.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let mut file = BufWriter::new(std::fs::File::create(dir.path().join("in.csv")).unwrap());
    writeln!(file, "id,text,country").unwrap();
    for row in 0..num {
        writeln!(file, "{row},\"It was a dark and stormy night, number {row}\",Nowhere").unwrap();
    }
    file.into_inner().unwrap().sync_all().unwrap();
    let job = job(dir.path());
    let idle = memory("VmRSS");
    let start = Instant::now();
    let progress = Arc::new(Progress::default());
    let counts = run(job, Arc::new(Stub), progress, std::future::pending()).await.unwrap();
    let (seconds, most) = (start.elapsed().as_secs_f64(), memory("VmHWM"));
    assert_eq!((counts.answered, counts.total()), (num, num));
    let speed = num as f64 / seconds;
    let written = std::fs::read_to_string(dir.path().join("out.csv")).unwrap();
    assert_eq!(written.lines().count() as u64, num + 1);
    let last = num - 1;
    let text = format!("It was a dark and stormy night, number {last}");
    let expected = format!("{last},\"{text}\",Nowhere,\"Translate: {text}\"");
    assert_eq!(written.lines().last().unwrap(), expected);
    let (Some(idle), Some(most)) = (idle, most) else { return };
    let above = (most - idle) >> 20;
    println!("{num} rows in {seconds:.1} s: {speed:.0} rows/s, {above} MiB above idle");
    assert!(above < 200, "{above} MiB");
}
