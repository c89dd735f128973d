//! What tests of jobs share: a disk of their own, and a scheduler that answers by rule.

use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use protocol::TokenId;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

use super::files::{Purpose, StoredFile};
use super::records::Outcome;
use super::*;
use crate::actor::Msg;
use crate::completion::Parsing;
use crate::engine::{Engine, Submission};
use crate::openai::testing::Served;
use crate::request::{Event, FinishReason, Priority, Request};
use crate::status::{PipelineStatus, Status};
use crate::testing::inbox;

/// Jobs and files on a disk of their own. Nothing runs.
pub(crate) async fn opened(
    completions: &Arc<Completions>,
    keys: &Arc<Keys>,
    batch: config::Jobs,
) -> (BatchJobs, tempfile::TempDir) {
    let data = tempfile::tempdir().unwrap();
    let store = Store::open(data.path()).await.unwrap();
    let config = Config { batch, ..Config::default() };
    let (completions, keys) = (Arc::clone(completions), Arc::clone(keys));
    let jobs = BatchJobs::open(data.path(), store, completions, keys, &config).await.unwrap();
    (jobs, data)
}

/// What a scheduler makes of a request: the same whenever it is asked.
pub(super) fn says(request: &Request) -> Vec<Event> {
    let text = format!("{}:{:x}", request.prompt.len(), request.sampling.seed);
    vec![
        Event::Admitted { choice: 0, num_cached_tokens: 1, class: 0 },
        Event::Token { choice: 0, token: TokenId(7), logprobs: None, text },
        Event::Finished { choice: 0, reason: FinishReason::Length, text: String::new() },
    ]
}

pub(super) struct Bench {
    pub(super) jobs: BatchJobs,
    pub(super) store: Store,
    pub(super) num_computed: Arc<AtomicU32>,
    _status: watch::Sender<Arc<Status>>,
}

pub(super) const LONG: &str = "a prompt of quite a few words, so that it is told from others";

pub(super) fn is_long(request: &Request) -> bool {
    request.prompt.len() > LONG.len() / 4
}

pub(super) type Rule = fn(&Request, u32) -> Option<Vec<Event>>;

impl Bench {
    pub(super) async fn open(dir: &Path, rule: Rule, change: impl FnOnce(&mut Config)) -> Self {
        let (coordinator, inbox) = inbox().await;
        let num_computed = Arc::new(AtomicU32::new(0));
        tokio::spawn(compute(inbox, rule, Arc::clone(&num_computed)));
        let pipelines = vec![PipelineStatus::default()];
        let status = Status { pipelines, ..Status::default() };
        let (status, seen) = watch::channel(Arc::new(status));
        let served = Served::chat();
        let completions = Completions {
            engine: Engine::new(coordinator, 1024, seen),
            tokenizer: served.tokenizer,
            chat_template: served.chat_template,
            model: served.model,
            parsing: Parsing::new(&served.config),
            config: served.config,
            metrics: Arc::new(crate::metrics::Metrics::new("m", &config::Metrics::default())),
            tracer: telemetry::Tracer::default(),
            traces: config::Traces::default(),
            log_requests: true,
            durables: Default::default(),
        };
        let mut config = Config::default();
        config.batch.retry_ms = 10;
        change(&mut config);
        let store = Store::open(dir).await.unwrap();
        let (completions, keys) = (Arc::new(completions), Arc::new(Keys::none()));
        let jobs = BatchJobs::open(dir, store.clone(), completions, keys, &config).await.unwrap();
        jobs.inner.fit_places();
        Self { jobs, store, num_computed, _status: status }
    }

    /// A job of these bytes that has so many seconds.
    pub(super) async fn hand_in(&self, bytes: &[u8], seconds: i64) -> String {
        self.hand_in_rows(bytes, seconds, None).await
    }

    pub(super) async fn hand_in_rows(
        &self,
        bytes: &[u8],
        seconds: i64,
        rows: Option<Value>,
    ) -> String {
        let mut blob = self.jobs.files().blobs.begin().unwrap();
        blob.write_all(bytes).unwrap();
        let created_s = now_s();
        let what = move |num_bytes, hash| StoredFile {
            id: new_id("file-").unwrap(),
            tenant: String::new(),
            purpose: Purpose::Batch,
            filename: "in.jsonl".into(),
            num_bytes,
            hash,
            created_s,
            expires_s: None,
        };
        let input = self.jobs.files().keep(blob, what).await.unwrap();
        let id = new_id("batch_").unwrap();
        let job = BatchJob {
            number: 0,
            id: id.clone(),
            tenant: String::new(),
            key_name: None,
            endpoint: "/v1/completions".into(),
            input_file: input.id,
            input_hash: input.hash,
            rows,
            completion_window: "24h".into(),
            metadata: None,
            output_expires_s: Some(3600),
            state: JobState::Validating,
            errors: None,
            output_file: None,
            error_file: None,
            num_lines: 0,
            num_completed: 0,
            num_failed: 0,
            num_tokens: [0; 3],
            created_s,
            expires_s: created_s + seconds,
            since_s: Vec::new(),
        };
        self.jobs.records().insert(job).await.unwrap();
        id
    }

    /// As it is once so many lines of it have been counted.
    pub(super) async fn counted(&self, id: &str, num_lines: u32) -> BatchJob {
        let (number, records) = (self.get(id).await.number, self.jobs.records());
        let (from, to) = (&[JobState::Validating], JobState::InProgress);
        assert!(records.advance(number, from, to, Some(num_lines)).await.unwrap());
        self.get(id).await
    }

    /// A line of a job is durable.
    pub(super) async fn record(&self, batch: i64, line: u32, is_failed: bool, text: String) {
        let outcome = Outcome { batch, line, is_failed, text, num_tokens: [3, 2, 1] };
        self.jobs.records().record(vec![outcome]).await.unwrap();
    }

    pub(super) async fn get(&self, id: &str) -> BatchJob {
        self.jobs.records().get(id).await.unwrap().unwrap()
    }

    pub(super) async fn runner(&self, id: &str) -> Runner {
        let record = Arc::new(self.get(id).await);
        Runner { inner: Arc::clone(&self.jobs.inner), record, cancel: Arc::default() }
    }

    /// Runs whatever there is until this job is at its end.
    pub(super) async fn finish(&self, id: &str) -> BatchJob {
        let running = tokio::spawn(self.jobs.clone().run());
        let ended = async {
            loop {
                let job = self.get(id).await;
                if !job.state.is_open() {
                    break job;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let ended = tokio::time::timeout(Duration::from_secs(60), ended).await;
        running.abort();
        ended.expect("the job ends")
    }

    pub(super) async fn text(&self, file: Option<&String>) -> String {
        let Some(file) = file else { return String::new() };
        let file = self.jobs.files().get(file).await.unwrap().unwrap();
        assert_eq!((file.purpose, file.expires_s.is_some()), (Purpose::BatchOutput, true));
        std::fs::read_to_string(self.jobs.files().blobs.path(&file.hash)).unwrap()
    }

    /// The lines of a file, without what differs from run to run.
    pub(super) async fn lines(&self, file: Option<&String>) -> Vec<Value> {
        let text = self.text(file).await;
        let line = |line: &str| {
            let mut line: Value = serde_json::from_str(line).unwrap();
            if let Some(body) = line["response"]["body"].as_object_mut() {
                for name in ["id", "created", "system_fingerprint"] {
                    body.remove(name);
                }
            }
            line
        };
        text.lines().map(line).collect()
    }
}

async fn compute(mut inbox: mpsc::UnboundedReceiver<Msg>, rule: Rule, num: Arc<AtomicU32>) {
    let mut open = Vec::new();
    while let Some(message) = inbox.recv().await {
        let Msg::Submit(Submission { requests, .. }) = message else { continue };
        for (request, teller) in requests {
            assert_eq!(request.priority, Priority::Offline);
            teller.accept(Ok(()));
            match rule(&request, num.fetch_add(1, Ordering::SeqCst)) {
                Some(said) => said.into_iter().for_each(|event| teller.tell(event)),
                // It is never answered.
                None => open.push(teller),
            }
        }
    }
}

pub(super) fn line(id: &str, prompt: &str) -> String {
    let body = json!({"model": "m", "prompt": prompt, "max_tokens": 1});
    json!({"custom_id": id, "method": "POST", "url": "/v1/completions", "body": body}).to_string()
}

pub(super) fn ids(lines: &[Value]) -> Vec<&str> {
    lines.iter().map(|line| line["custom_id"].as_str().unwrap_or("none")).collect()
}
