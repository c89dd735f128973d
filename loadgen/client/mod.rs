//! Sends one request and times every token of its answer: what is asked ([`request`]), how the
//! stream is read ([`sse`]), what comes of it ([`answer`]), what can go wrong ([`failure`]), over
//! which connections ([`http`]), and whose certificate is taken ([`trust`]).

pub mod answer;
pub mod failure;
pub mod http;
pub mod request;
pub mod sse;
pub mod trust;

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use hyper::Uri;
pub use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::Value;
use tokio::time::{Instant, timeout};

pub use answer::Answer;
use failure::{Failure, FailureKind};
pub use http::Connections;
use http::{Http, Response};
use request::Endpoint;
pub use trust::Trust;

/// Bytes that are read of a list of models, or of what a server counts.
const MAX_TEXT_BYTES: usize = 4 << 20;
/// How long a server may take to say who it is.
const ABOUT: Duration = Duration::from_secs(2);
/// Bytes that are read of an answer in one piece.
const MAX_ANSWER_BYTES: usize = 64 << 20;
/// Bytes that are read of an error's body.
const MAX_ERROR_BYTES: usize = 64 << 10;
/// How long a body that has told all may take to end; its connection can be used again then.
const BODY_END: Duration = Duration::from_millis(50);
/// Characters of it that are shown when it isn't an error object.
const MAX_SHOWN_CHARS: usize = 200;

/// The header that names whose a request is.
pub(crate) const TENANT: &str = "x-tenant";
/// The header that names a request's service tier where the body doesn't.
pub(crate) const TIER: &str = "x-service-tier";

/// How a server is asked.
#[derive(Clone, Debug, Default)]
pub struct Manner {
    /// What becomes of a connection when its answer has come.
    pub connections: Connections,
    /// Whose certificate is taken, where the address is one of https.
    pub trust: Trust,
    /// Headers of every request, a key's among them.
    pub headers: HeaderMap,
}

/// A server at an address, with what goes along with every request to it. Clones share connections.
#[derive(Clone, Debug)]
pub struct Server {
    http: Http,
    headers: HeaderMap,
    /// Without a slash at its end, without `/v1`.
    url: String,
    timeout: Duration,
}

/// Who hears of an answer while it comes. A closure that takes text is one.
pub trait Listen {
    /// A stream of events has been opened.
    fn begin(&mut self) {}

    /// An event has come, an error's too.
    fn event(&mut self, _event: &Value) {}

    /// A piece of text has come, of the event that was told last.
    fn text(&mut self, _text: &str) {}
}

impl<F: FnMut(&str)> Listen for F {
    fn text(&mut self, text: &str) {
        self(text);
    }
}

impl Server {
    /// A server at `url`, as in `http://127.0.0.1:8000`, with or without `/v1`. A request that
    /// isn't answered whole within `timeout` has failed.
    ///
    /// # Errors
    /// When the address can't be one of a server.
    pub fn new(url: &str, timeout: Duration) -> Result<Self> {
        Self::asked(url, timeout, Manner::default())
    }

    /// The same, asked in a manner of its own.
    ///
    /// # Errors
    /// When the address can't be one of a server, or no certificate could be trusted.
    pub fn asked(url: &str, timeout: Duration, manner: Manner) -> Result<Self> {
        let form = "give one as in http://host:8000 or https://host";
        let uri: Uri = url.parse().with_context(|| format!("{url:?} is no address: {form}"))?;
        let is_tls = uri.scheme_str() == Some("https");
        ensure!(is_tls || uri.scheme_str() == Some("http"), "{url:?} is no address: {form}");
        ensure!(uri.query().is_none(), "{url:?} has a query, which no endpoint takes: {form}");
        if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            bail!("an address holds no name or password: give a key, or a header `authorization`");
        }
        let url = url.trim_end_matches('/');
        let url = url.strip_suffix("/v1").unwrap_or(url).trim_end_matches('/').to_string();
        let tls = if is_tls { manner.trust.tls()? } else { trust::nobody()? };
        let http = Http::new(manner.connections, tls);
        Ok(Self { http, headers: manner.headers, url, timeout })
    }

    /// As it was given, without `/v1` and a slash at its end.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The name of the first model that the server lists.
    ///
    /// # Errors
    /// When it can't be asked or lists none.
    pub async fn first_model(&self) -> Result<String, Failure> {
        let body = self.text("/v1/models").await?;
        let malformed = |what: &str| {
            let message = format!("{}/v1/models {what}; name one with --model", self.url);
            Failure::new(FailureKind::Malformed, message)
        };
        let list: Value =
            serde_json::from_str(&body).map_err(|_| malformed("isn't a list of models"))?;
        match list["data"][0]["id"].as_str() {
            Some(model) => Ok(model.to_string()),
            None => Err(malformed("lists no model")),
        }
    }

    /// What it says of itself: its `server` header, and what `/health/stages` tells where it is
    /// ours. None when nobody answers.
    pub async fn about(&self) -> Option<(Option<String>, Value)> {
        let response = timeout(ABOUT, self.get("/health/stages")).await.ok()?.ok()?;
        let name = response.headers().get("server").and_then(|name| name.to_str().ok());
        let name = name.map(|name| name.chars().take(MAX_SHOWN_CHARS).collect());
        let body = timeout(ABOUT, beginning(response, MAX_TEXT_BYTES)).await.unwrap_or_default();
        Some((name, serde_json::from_slice(&body).unwrap_or_default()))
    }

    /// The status that it answers a path with; none when nobody answers in time.
    pub async fn status(&self, path: &str) -> Option<u16> {
        let response = timeout(self.timeout, self.get(path)).await.ok()?.ok()?;
        Some(response.status().as_u16())
    }

    /// What it answers a path with.
    ///
    /// # Errors
    /// When it doesn't answer, or not with status 200.
    pub async fn text(&self, path: &str) -> Result<String, Failure> {
        let body = timeout(self.timeout, async {
            let response = refuse_status(self.get(path).await?).await?;
            Ok(beginning(response, MAX_TEXT_BYTES).await)
        });
        let late = || Failure::new(FailureKind::Timeout, format!("{} doesn't answer", self.url));
        let body = body.await.unwrap_or_else(|_| Err(late()))?;
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    async fn get(&self, path: &str) -> Result<Response, Failure> {
        let url = format!("{}{path}", self.url);
        self.http.get(&url, self.headers.clone()).await.map_err(|lost| lost.at(&self.url))
    }

    /// Asks for the answer to `body`, telling `listener` of it as it arrives.
    ///
    /// # Errors
    /// When the answer doesn't come, or not to its end.
    pub async fn ask(
        &self,
        endpoint: Endpoint,
        body: &Value,
        listener: impl Listen,
    ) -> Result<Answer, Failure> {
        self.ask_with(&[], endpoint, body, listener).await
    }

    /// The same with further headers: names and values.
    ///
    /// # Errors
    /// As for [`Server::ask`].
    pub(crate) async fn ask_with(
        &self,
        headers: &[(&'static str, &str)],
        endpoint: Endpoint,
        body: &Value,
        listener: impl Listen,
    ) -> Result<Answer, Failure> {
        let sent = Instant::now();
        let url = format!("{}{}", self.url, endpoint.path());
        let mut all = self.headers.clone();
        for (name, value) in headers {
            let message = |_| format!("{value:?} can't be a header {name}");
            let value = HeaderValue::from_str(value).map_err(message);
            let value = value.map_err(|said| Failure::new(FailureKind::Malformed, said))?;
            all.insert(HeaderName::from_static(name), value);
        }
        let asked = async {
            let response = self.http.post(&url, all, body.to_string()).await;
            let response = response.map_err(|lost| lost.at(&self.url))?;
            let response = refuse_status(response).await?;
            if body["stream"] == true {
                self.stream(response, sent, listener).await
            } else {
                self.whole(response, sent, listener).await
            }
        };
        match timeout(self.timeout, asked).await {
            Ok(answered) => answered,
            Err(_) => {
                let message = format!("not answered within {} s", self.timeout.as_secs_f32());
                Err(Failure::new(FailureKind::Timeout, message))
            }
        }
    }

    async fn stream(
        &self,
        response: Response,
        sent: Instant,
        mut listener: impl Listen,
    ) -> Result<Answer, Failure> {
        let mut response = refuse_other_content(response, "text/event-stream")?;
        listener.begin();
        let (mut parser, mut events) = (sse::Parser::default(), Vec::new());
        let mut answer = Answer::default();
        while let Some(piece) = self.chunk(&mut response).await? {
            let arrived = sent.elapsed();
            parser
                .feed(&piece, &mut events)
                .map_err(|error| Failure::new(FailureKind::Malformed, error.to_string()))?;
            for event in events.drain(..) {
                if event == "[DONE]" {
                    answer.end = arrived;
                    let rest =
                        async { while let Ok(Some(_)) = http::chunk(&mut response).await {} };
                    let _ = timeout(BODY_END, rest).await;
                    return Ok(answer);
                }
                let event = parsed(&event, "an event of the stream")?;
                listener.event(&event);
                for text in answer.take(&event)? {
                    answer.pieces.push(arrived);
                    listener.text(&text);
                }
            }
        }
        if parser.unfinished().as_deref() == Some("[DONE]") {
            answer.end = sent.elapsed();
            return Ok(answer);
        }
        Err(Failure::new(FailureKind::Truncated, "stream ended without [DONE]"))
    }

    /// Reads an answer that comes in one piece: its text has no time of its own.
    async fn whole(
        &self,
        response: Response,
        sent: Instant,
        mut listener: impl Listen,
    ) -> Result<Answer, Failure> {
        let mut response = refuse_other_content(response, "application/json")?;
        let mut body = Vec::new();
        while let Some(piece) = self.chunk(&mut response).await? {
            if body.len() + piece.len() > MAX_ANSWER_BYTES {
                let message = format!("the answer is longer than {MAX_ANSWER_BYTES} bytes");
                return Err(Failure::new(FailureKind::Malformed, message));
            }
            body.extend_from_slice(&piece);
        }
        let end = sent.elapsed();
        listener.begin();
        let event = parsed(&String::from_utf8_lossy(&body), "the answer")?;
        listener.event(&event);
        let mut answer = Answer { end, ..Answer::default() };
        let texts = answer.take(&event)?;
        if event["choices"].as_array().is_none_or(Vec::is_empty) {
            let message = format!("an answer without choices: {}", shown(&event.to_string()));
            return Err(Failure::new(FailureKind::Malformed, message));
        }
        texts.iter().for_each(|text| listener.text(text));
        Ok(answer)
    }

    async fn chunk(&self, response: &mut Response) -> Result<Option<Bytes>, Failure> {
        http::chunk(response).await.map_err(|lost| lost.at(&self.url))
    }
}

fn parsed(text: &str, what: &str) -> Result<Value, Failure> {
    serde_json::from_str(text).map_err(|_| {
        let message = format!("{what} isn't JSON: {}", shown(text));
        Failure::new(FailureKind::Malformed, message)
    })
}

/// Passes on a response of status 200; another's message is the failure's.
async fn refuse_status(response: Response) -> Result<Response, Failure> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let elsewhere = response.headers().get("location").and_then(|url| url.to_str().ok());
    if let Some(url) = elsewhere.filter(|_| status.is_redirection()) {
        // What is measured is one server: to follow would measure two, and give a key away.
        let message = format!("{status}: it sends us to {}: give that address", shown(url));
        return Err(Failure::new(FailureKind::Status(status.as_u16()), message));
    }
    let body = beginning(response, MAX_ERROR_BYTES).await;
    let text = String::from_utf8_lossy(&body);
    let message = serde_json::from_str(&text).ok().as_ref().and_then(error_message);
    let message = match message {
        Some(message) => message,
        None if text.trim().is_empty() => "no reason given".to_string(),
        None => shown(&text),
    };
    Err(Failure::new(FailureKind::Status(status.as_u16()), format!("{status}: {message}")))
}

/// What arrives of a body, up to `max` bytes.
async fn beginning(mut response: Response, max: usize) -> Vec<u8> {
    let mut body = Vec::new();
    while let Ok(Some(piece)) = http::chunk(&mut response).await {
        body.extend_from_slice(&piece[..piece.len().min(max - body.len())]);
        if body.len() == max {
            break;
        }
    }
    body
}

fn refuse_other_content(response: Response, expected: &str) -> Result<Response, Failure> {
    let content_type = response.headers().get("content-type").and_then(|name| name.to_str().ok());
    match content_type {
        Some(name) if !is_media_type(name, expected) => {
            let message = format!("answered {name} where {expected} was asked for");
            Err(Failure::new(FailureKind::Malformed, message))
        }
        _ => Ok(response),
    }
}

/// Whether a header names this type, in capitals or not, with parameters or without.
fn is_media_type(header: &str, expected: &str) -> bool {
    header.split(';').next().is_some_and(|name| name.trim().eq_ignore_ascii_case(expected))
}

/// The message of OpenAI's error object, or of vLLM's older, flat one.
fn error_message(body: &Value) -> Option<String> {
    let error = match body.get("error") {
        Some(Value::Null) | None if body["object"] == "error" => body,
        Some(Value::Null) | None => return None,
        Some(error) => error,
    };
    let message = error.as_str().or_else(|| error.get("message")?.as_str());
    Some(message.map_or_else(|| shown(&error.to_string()), str::to_string))
}

/// The beginning of `text`, on one line.
fn shown(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(MAX_SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}
