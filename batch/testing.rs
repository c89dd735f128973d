//! What tests of several files need.

use std::convert::Infallible;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use anyhow::{Result, anyhow};
use bytes::Bytes;
use futures::future::BoxFuture;
use http_body_util::{BodyExt as _, Full};
use hyper::Method;
use hyper::body::Incoming;
use hyper::http::request::Parts;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rows::answers::Answers;
use serde_json::{Map, Value, json};
use sqlx::Connection as _;
use tokio::net::TcpListener;
use tokio::runtime::{Handle, Runtime};
use tokio_util::sync::CancellationToken;

use crate::address::{Address, Direction};
use crate::answerer::{Answerer, Failed};
use crate::asking::Plan;
use crate::clean::{Declared, Labels};
use crate::http::Http;
use crate::journal::{Begin, Counts, Purpose};
use crate::object::Objects;
use crate::progress::Progress;
use crate::run::{Job, MAX_AHEAD, run};
use crate::sink::{Writing, beside};
use crate::source::Reading;
use crate::template::{Request, Template};

/// What sources are opened with, and what it runs on.
pub(crate) fn reading() -> (Runtime, Reading) {
    let runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = { runtime }.worker_threads(2).enable_all().build().unwrap();
    let handle = runtime.handle().clone();
    let objects = Objects::new(Http::new().unwrap(), handle.clone());
    (runtime, Reading { max_row_bytes: 1 << 20, runtime: handle, objects })
}

/// Does something to a file of SQLite.
pub(crate) fn sqlite(runtime: &Runtime, path: &str, statements: &'static str) {
    runtime.block_on(async {
        let url = format!("sqlite:{path}?mode=rwc");
        let mut database = sqlx::SqliteConnection::connect(&url).await.unwrap();
        sqlx::raw_sql(statements).execute(&mut database).await.unwrap();
    });
}

/// Answers with the user's message in capitals, as often as it may; then it is gone.
pub(crate) struct Stub {
    left: AtomicU64,
    pub(crate) asked: AtomicU64,
}

impl Stub {
    pub(crate) fn new(left: u64) -> Arc<Self> {
        Arc::new(Self { left: AtomicU64::new(left), asked: AtomicU64::new(0) })
    }
}

impl Answerer for Stub {
    fn answer<'a>(&'a self, request: &'a Request) -> BoxFuture<'a, Result<Value, Failed>> {
        Box::pin(async move {
            // Answers come in another order than questions.
            let asked = self.asked.fetch_add(1, SeqCst);
            for _ in 0..(asked * 7 % 5) {
                tokio::task::yield_now().await;
            }
            let less = |left: u64| left.checked_sub(1);
            if self.left.fetch_update(SeqCst, SeqCst, less).is_err() {
                return Err(Failed::Server("the server is gone".into()));
            }
            let text = request.body["messages"][0]["content"].as_str().unwrap_or_default();
            if text.contains("refuse") {
                return Err(Failed::Request("the server answers 400: no".into()));
            }
            let text = text.to_uppercase();
            Ok(json!({
                "id": "chatcmpl-1",
                "choices": [{"message": {"content": text}, "finish_reason": "stop"}],
                "usage": {"completion_tokens": 3},
            }))
        })
    }
}

/// A run of a test, which begins as often as it must.
pub(crate) struct Trial {
    pub(crate) input: String,
    pub(crate) output: String,
    /// What the user says; none: rows go on as they are.
    pub(crate) template: Option<&'static str>,
    /// What `--map` says, in the template's place.
    pub(crate) map: Vec<String>,
    pub(crate) answers: Answers,
    pub(crate) clean: &'static str,
    pub(crate) id: Option<&'static str>,
    pub(crate) rows_together: usize,
    pub(crate) endpoint: Option<String>,
    pub(crate) columns: Option<Vec<String>>,
    pub(crate) ahead: usize,
    pub(crate) folder: std::path::PathBuf,
}

impl Trial {
    pub(crate) fn new(folder: &Path, input: &str, output: &str) -> Self {
        Self {
            input: input.into(),
            output: output.into(),
            template: None,
            map: Vec::new(),
            answers: Answers::Text("answer".into()),
            clean: "",
            id: None,
            rows_together: 1,
            endpoint: None,
            columns: None,
            ahead: MAX_AHEAD,
            folder: folder.to_owned(),
        }
    }

    /// What its sink is opened with, waiting on this runtime.
    pub(crate) fn writing(&self, runtime: &Runtime) -> Writing {
        let _entered = runtime.enter();
        self.job(Begin::Anew).writing
    }

    pub(crate) fn job(&self, begin: Begin) -> Job {
        let runtime = Handle::current();
        let http = Http::new().unwrap();
        let mut objects = Objects::new(http.clone(), runtime.clone());
        objects.endpoint.clone_from(&self.endpoint);
        let input = Address::parse(&self.input, None, Direction::Input).unwrap();
        let output = Address::parse(&self.output, None, Direction::Output).unwrap();
        let clean: Declared = toml::from_str(self.clean).unwrap();
        let labels: Labels = clean.labels().unwrap();
        let template = match &self.map[..] {
            [] => self.template.map(|text| Template::parse(text, false).unwrap()),
            map => Some(Template::columns(map).unwrap()),
        };
        let id = self.id.map(str::to_owned);
        let journal = self.folder.join("journal");
        Job {
            input,
            output,
            plan: Plan {
                template,
                answers: self.answers.clone(),
                labels,
                defaults: Map::new(),
                columns: self.columns.clone(),
            },
            clean,
            tokens: None,
            id: id.clone(),
            concurrency: 16,
            ahead: self.ahead,
            rejects: beside(&journal, ".rejects.jsonl"),
            journal,
            purpose: Purpose::new(),
            begin,
            ended: Vec::new(),
            reading: Reading {
                max_row_bytes: 1 << 20,
                runtime: runtime.clone(),
                objects: objects.clone(),
            },
            writing: Writing {
                runtime,
                objects,
                http,
                job: String::new(),
                id,
                rows_together: self.rows_together,
                method: Method::POST,
                key: None,
                stop: CancellationToken::new(),
            },
        }
    }

    /// Runs it, or goes on with it.
    pub(crate) async fn run(&self, answerer: Arc<dyn Answerer>) -> Result<Counts> {
        let job = self.job(Begin::Resume);
        run(job, answerer, Arc::new(Progress::default()), std::future::pending()).await
    }

    /// Runs it with as many interruptions as are needed, each after so many answers.
    pub(crate) async fn run_in_pieces(&self, num_answers: u64) -> Counts {
        for _ in 0..1000 {
            match self.run(Stub::new(num_answers)).await {
                Ok(counts) => return counts,
                Err(cause) => {
                    let said = format!("{cause:#}");
                    assert!(said.contains("the server is gone"), "{said}");
                }
            }
        }
        panic!("it never ends");
    }

    /// What rows without an answer came to.
    pub(crate) fn rejects(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.folder.join("journal.rejects.jsonl"));
        let text = text.unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// A server that answers every request by its head and body, with a status and a text, and that
/// says that it may be asked again at once.
pub(crate) async fn serve(
    answer: impl FnMut(&Parts, &[u8]) -> (u16, String) + Send + 'static,
) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let answer = Arc::new(Mutex::new(answer));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = Arc::clone(&answer);
            let service = service_fn(move |request: hyper::Request<Incoming>| {
                let answer = Arc::clone(&answer);
                async move {
                    let (head, body) = request.into_parts();
                    let body = body.collect().await.unwrap().to_bytes();
                    let (status, text) = (answer.lock().unwrap())(&head, &body);
                    let answer = hyper::Response::builder().status(status);
                    let answer = answer.header("retry-after", "0");
                    Ok::<_, Infallible>(answer.body(Full::new(Bytes::from(text))).unwrap())
                }
            });
            tokio::spawn(async move {
                let server = auto::Builder::new(TokioExecutor::new());
                let _ = server.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    url
}

/// An error for whoever needs one.
pub(crate) fn interrupted() -> anyhow::Error {
    anyhow!("interrupted")
}
