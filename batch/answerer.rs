//! Who answers requests: a running server, by its API; in tests a stub.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use futures::future::BoxFuture;
use hyper::Method;
use serde_json::{Value, json};
use tokio::runtime::Handle;

use crate::clean::Tokens;
use crate::http::{Asked, Http, Lost, Said};
use crate::template::Request;

/// How long an answer may take. An offline request waits for others.
const LIMIT: Duration = Duration::from_secs(24 * 3600);
/// How long a question may take whose answer needs no model.
const SHORT: Duration = Duration::from_secs(30);
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How often a request is tried that the server fails at.
const MAX_FAILURES: u32 = 5;

/// Why there is no answer, and never will be.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Failed {
    /// This request can't be answered; others can.
    Request(String),
    /// No request will be: the run stops, and can be resumed.
    Server(String),
}

/// Answers requests. Whatever may help later is tried again by itself.
pub trait Answerer: Send + Sync + 'static {
    /// The answer's body, as the API has it.
    fn answer<'a>(&'a self, request: &'a Request) -> BoxFuture<'a, Result<Value, Failed>>;
}

/// A running server.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    http: Http,
    url: String,
    key: Option<String>,
    /// No answer is of use after it.
    until: Option<Instant>,
    /// For how long one that doesn't answer, or is too busy, is asked again.
    patience: Duration,
}

impl Server {
    /// One at an address.
    ///
    /// # Errors
    /// When it is none.
    pub(crate) fn new(
        http: Http,
        url: &str,
        key: Option<String>,
        until: Option<Instant>,
        patience: Duration,
    ) -> Result<Self> {
        let url = url.trim_end_matches('/').to_owned();
        ensure!(
            url.starts_with("http://") || url.starts_with("https://"),
            "--server must begin with http:// or https://"
        );
        Ok(Self { http, url, key, until, patience })
    }

    /// The one model that it serves.
    ///
    /// # Errors
    /// When it can't be asked, or serves several.
    pub(crate) async fn model(&self) -> Result<String> {
        let said = self.ask(Method::GET, "/v1/models", None, SHORT).await;
        let said = said.with_context(|| {
            format!("{} can't be asked; where the server is says --server", self.url)
        })?;
        let body: Value = serde_json::from_slice(&said.body).unwrap_or_default();
        ensure!(said.status == 200, "{} answers {}: {}", self.url, said.status, message(&body));
        match body["data"].as_array().map(Vec::as_slice) {
            Some([model]) => Ok(model["id"].as_str().context("a model has no id")?.to_owned()),
            Some(models) => {
                let names: Vec<_> = models.iter().filter_map(|it| it["id"].as_str()).collect();
                bail!("--model must say which: {}", names.join(", "))
            }
            None => bail!("{} names no models", self.url),
        }
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
        limit: Duration,
    ) -> Result<Said, Lost> {
        let url = format!("{}{path}", self.url);
        let asked = Asked {
            method,
            url: &url,
            key: self.key.as_deref(),
            idempotency_key: None,
            content_type: "application/json",
            body: body.unwrap_or_default().into(),
        };
        self.http.ask(asked, limit).await
    }

    /// Time left until no answer is of use.
    fn left(&self) -> Option<Duration> {
        self.until.map(|until| until.saturating_duration_since(Instant::now()))
    }

    async fn try_answer(&self, request: &Request) -> Result<Value, Failed> {
        let (mut since, mut pause, mut num_failures) = (None, FIRST_PAUSE, 0);
        loop {
            let mut body = request.body.clone();
            if let Some(left) = self.left() {
                let millis = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
                if millis == 0 {
                    return Err(Failed::Server("the window has ended".into()));
                }
                // The server takes a day at most, which is as good as for ever.
                if millis <= 86_400_000 {
                    body.entry("max_time_ms").or_insert(millis.into());
                }
            }
            let body = serde_json::to_vec(&body).expect("a body is JSON");
            let said = self.ask(Method::POST, &request.path, Some(body), LIMIT).await;
            let (why, wait) = match said {
                Ok(said) => match read(&said) {
                    Ok(answer) => return Ok(answer),
                    Err((failed, wait)) => match failed {
                        // Then this row is no worse than all others that wait, unless it said
                        // itself how long it may take.
                        Failed::Request(_)
                            if said.status == 504
                                && self.until.is_some()
                                && !request.body.contains_key("max_time_ms") =>
                        {
                            return Err(Failed::Server("the window has ended".into()));
                        }
                        failed @ Failed::Request(_) => return Err(failed),
                        failed @ Failed::Server(_) if matches!(said.status, 401 | 403) => {
                            return Err(failed);
                        }
                        Failed::Server(why) => {
                            num_failures += u32::from(matches!(said.status, 500 | 504));
                            if num_failures == MAX_FAILURES {
                                // It may be this request's fault, which others needn't wait for.
                                return Err(Failed::Request(why));
                            }
                            (why, wait)
                        }
                    },
                },
                Err(Lost::Never(cause)) => return Err(Failed::Server(cause)),
                Err(lost) => (format!("{}: {lost}", self.url), None),
            };
            let since = *since.get_or_insert_with(Instant::now);
            if since.elapsed() > self.patience {
                let seconds = self.patience.as_secs();
                return Err(Failed::Server(format!("{why}; it was so for {seconds} s")));
            }
            // One that says 0 would be asked without any rest.
            tokio::time::sleep(wait.unwrap_or_default().max(pause).min(LONGEST_PAUSE)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

/// What an answer means: it, or why there is none and when to try again.
fn read(said: &Said) -> Result<Value, (Failed, Option<Duration>)> {
    let body: Value = serde_json::from_slice(&said.body).unwrap_or_default();
    match said.status {
        200 if body["choices"].is_array() => Ok(body),
        200 => Err((Failed::Request("the server's answer is none of its API's".into()), None)),
        status => {
            let why = format!("the server answers {status}: {}", message(&body));
            // What is full, out of order or away now may be better soon; who may not ask, or asks
            // for what isn't there, never gets more by asking again.
            let failed = match status {
                // It is a proxy's, unless the server says that the time was up.
                504 if body["error"]["code"] != "deadline_exceeded" => Failed::Server(why),
                401 | 403 | 408 | 425 | 429 | 500 | 502 | 503 => Failed::Server(why),
                _ => Failed::Request(why),
            };
            Err((failed, said.retry_after))
        }
    }
}

fn message(body: &Value) -> &str {
    body["error"]["message"].as_str().unwrap_or("it doesn't say why")
}

impl Answerer for Server {
    fn answer<'a>(&'a self, request: &'a Request) -> BoxFuture<'a, Result<Value, Failed>> {
        Box::pin(self.try_answer(request))
    }
}

/// Asks the server, which has the model's tokenizer.
pub(crate) struct ServerTokens {
    server: Server,
    model: String,
    runtime: Handle,
}

impl std::fmt::Debug for ServerTokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ServerTokens")
    }
}

impl ServerTokens {
    /// Asks `/tokenize` of the server for each text; `runtime` is where that waits.
    pub(crate) fn new(server: Server, model: String, runtime: Handle) -> Self {
        Self { server, model, runtime }
    }
}

impl Tokens for ServerTokens {
    fn count(&mut self, text: &str) -> Result<Option<usize>> {
        let body = json!({"model": self.model, "prompt": text, "add_special_tokens": false});
        let body = serde_json::to_vec(&body)?;
        let (since, mut pause) = (Instant::now(), FIRST_PAUSE);
        loop {
            let asked = self.server.ask(Method::POST, "/tokenize", Some(body.clone()), SHORT);
            let why = match self.runtime.block_on(asked) {
                Ok(said) => {
                    let body: Value = serde_json::from_slice(&said.body).unwrap_or_default();
                    if let Some(count) = body["count"].as_u64() {
                        return Ok(Some(usize::try_from(count)?));
                    }
                    // The server takes no bodies of that length.
                    if said.status == 413 {
                        return Ok(None);
                    }
                    let why =
                        format!("{} answers {}: {}", self.server.url, said.status, message(&body));
                    if said.status < 500 && said.status != 429 {
                        bail!("tokens can't be counted: {why}");
                    }
                    why
                }
                Err(lost) => lost.to_string(),
            };
            ensure!(since.elapsed() < self.server.patience, "tokens can't be counted: {why}");
            std::thread::sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::testing::serve;

    /// A server that gives these answers, one after the other; and what it is asked.
    async fn scripted(script: Vec<(u16, Value)>) -> (Server, std::sync::Arc<Mutex<Vec<Value>>>) {
        let (mut script, asked) = (script.into_iter(), std::sync::Arc::default());
        let kept: std::sync::Arc<Mutex<Vec<Value>>> = std::sync::Arc::clone(&asked);
        let url = serve(move |_, body| {
            let body = serde_json::from_slice(body).unwrap_or_default();
            kept.lock().unwrap().push(body);
            let (status, answer) = script.next().unwrap_or((418, Value::Null));
            (status, answer.to_string())
        });
        let url = url.await;
        let patience = Duration::from_secs(60);
        let server = Server::new(Http::new().unwrap(), &url, Some("key".into()), None, patience);
        (server.unwrap(), asked)
    }

    fn request() -> Request {
        let body = json!({"prompt": "a"}).as_object().unwrap().clone();
        Request { path: "/v1/completions".into(), body }
    }

    fn error(message: &str) -> Value {
        json!({"error": {"message": message}})
    }

    #[tokio::test]
    async fn what_may_help_later_is_tried_again_and_what_never_helps_is_not() {
        let good = json!({"choices": [{"text": "b"}]});
        let away = (504, Value::Null);
        let script = vec![(503, error("full")), away, (429, error("slow")), (200, good.clone())];
        let (server, asked) = scripted(script).await;
        let start = Instant::now();
        assert_eq!(server.answer(&request()).await, Ok(good));
        assert_eq!(asked.lock().unwrap().len(), 4);
        // The tests' servers say that they may be asked again at once.
        assert!(start.elapsed() >= FIRST_PAUSE * (1 + 2 + 4), "{:?}", start.elapsed());

        let (server, asked) = scripted(vec![(400, error("too long"))]).await;
        let said = server.answer(&request()).await.unwrap_err();
        assert_eq!(said, Failed::Request("the server answers 400: too long".into()));
        assert_eq!(asked.lock().unwrap().len(), 1);

        let (server, asked) = scripted(vec![(500, error("broken")); 9]).await;
        let said = server.answer(&request()).await.unwrap_err();
        assert_eq!(said, Failed::Request("the server answers 500: broken".into()));
        assert_eq!(asked.lock().unwrap().len(), MAX_FAILURES as usize);

        let (server, _) = scripted(vec![(401, error("who are you"))]).await;
        let said = server.answer(&request()).await.unwrap_err();
        assert_eq!(said, Failed::Server("the server answers 401: who are you".into()));
    }

    #[tokio::test]
    async fn a_server_that_is_away_for_too_long_ends_the_run_and_so_does_the_window() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", free.local_addr().unwrap());
        drop(free);
        let http = Http::new().unwrap();
        let away = Server::new(http, &url, None, None, Duration::from_millis(300)).unwrap();
        let said = away.answer(&request()).await.unwrap_err();
        assert!(
            matches!(&said, Failed::Server(why) if why.contains("nothing answers")),
            "{said:?}"
        );

        let late = json!({"error": {"message": "late", "code": "deadline_exceeded"}});
        let (mut server, asked) = scripted(vec![(504, late.clone()), (504, late)]).await;
        server.until = Some(Instant::now() + Duration::from_secs(3600));
        let ended = Failed::Server("the window has ended".into());
        assert_eq!(server.answer(&request()).await, Err(ended.clone()));
        let millis = asked.lock().unwrap()[0]["max_time_ms"].as_u64().unwrap();
        assert!((3_500_000..=3_600_000).contains(&millis), "{millis}");
        // A row whose own time was up has nothing to do with the others'.
        let mut own = request();
        own.body.insert("max_time_ms".into(), 5.into());
        let said = Failed::Request("the server answers 504: late".into());
        assert_eq!(server.answer(&own).await, Err(said));
        server.until = Some(Instant::now());
        assert_eq!(server.answer(&request()).await, Err(ended));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_server_counts_tokens_and_names_its_model() {
        let models = json!({"data": [{"id": "glm"}]});
        let counted = (200, json!({"count": 7}));
        let script = vec![(200, models), (500, Value::Null), counted, (413, Value::Null)];
        let (server, asked) = scripted(script).await;
        let model = server.model().await.unwrap();
        assert_eq!(model, "glm");
        let mut tokens = ServerTokens::new(server, model, Handle::current());
        let counted = tokio::task::spawn_blocking(move || {
            [tokens.count("a b").unwrap(), tokens.count("a b, and so on").unwrap()]
        });
        assert_eq!(counted.await.unwrap(), [Some(7), None]);
        assert_eq!(asked.lock().unwrap()[2]["prompt"], "a b");
        let (server, _) = scripted(vec![(200, json!({"data": [{"id": "a"}, {"id": "b"}]}))]).await;
        let said = server.model().await.unwrap_err().to_string();
        assert!(said.contains("--model must say which: a, b"), "{said}");
    }
}
