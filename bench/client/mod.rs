//! Sends one request and times every token of its answer: what is asked ([`request`]), how the
//! stream is read ([`sse`]), what comes of it ([`answer`]), what can go wrong ([`failure`]).

pub mod answer;
pub mod failure;
pub mod request;
pub mod sse;

use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use reqwest::{Client, Response};
use serde_json::Value;
use tokio::time::Instant;

pub use answer::Answer;
use failure::{Failure, FailureKind};
use request::Endpoint;

/// Bytes that are read of a list of models.
const MAX_LIST_BYTES: usize = 4 << 20;
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
pub const TENANT: &str = "x-tenant";
/// The header that names a request's service tier where the body doesn't.
pub const TIER: &str = "x-service-tier";

/// What becomes of a connection when its answer has come.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Connections {
    /// It is kept, and the next request takes it.
    #[default]
    Pooled,
    /// It is closed: each request makes one of its own.
    PerRequest,
}

/// A server, and how it is asked.
#[derive(Clone, Debug)]
pub struct Server {
    client: Client,
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
        let parsed = reqwest::Url::parse(url)
            .with_context(|| format!("{url:?} is no address: give one as in http://host:8000"))?;
        if parsed.scheme() != "http" {
            bail!("{url}: only http:// addresses can be asked");
        }
        let url = url.trim_end_matches('/');
        let url = url.strip_suffix("/v1").unwrap_or(url).trim_end_matches('/').to_string();
        Ok(Self { client: Connections::Pooled.client()?, url, timeout })
    }

    /// The same server, asked over such connections. Those that were open are let go.
    ///
    /// # Errors
    /// When the system gives no client.
    pub fn over(mut self, connections: Connections) -> Result<Self> {
        self.client = connections.client()?;
        Ok(self)
    }

    /// Its address.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The name of the first model that the server lists.
    ///
    /// # Errors
    /// When it can't be asked or lists none.
    pub async fn first_model(&self) -> Result<String, Failure> {
        let request = self.client.get(format!("{}/v1/models", self.url)).timeout(self.timeout);
        let response = request.send().await.map_err(|error| self.lost(&error))?;
        let response = refuse_status(response).await?;
        let malformed = |what: &str| {
            let message = format!("{}/v1/models {what}; name one with --model", self.url);
            Failure::new(FailureKind::Malformed, message)
        };
        let body = beginning(response, MAX_LIST_BYTES).await;
        let list: Value =
            serde_json::from_slice(&body).map_err(|_| malformed("isn't a list of models"))?;
        match list["data"][0]["id"].as_str() {
            Some(model) => Ok(model.to_string()),
            None => Err(malformed("lists no model")),
        }
    }

    /// What it says of itself: its `server` header, and what `/health/stages` tells where it is
    /// ours. None when nobody answers.
    pub async fn about(&self) -> Option<(Option<String>, Value)> {
        let request = self.client.get(format!("{}/health/stages", self.url)).timeout(ABOUT);
        let response = request.send().await.ok()?;
        let name = response.headers().get("server").and_then(|name| name.to_str().ok());
        let name = name.map(|name| name.chars().take(MAX_SHOWN_CHARS).collect());
        let body = beginning(response, MAX_LIST_BYTES).await;
        Some((name, serde_json::from_slice(&body).unwrap_or_default()))
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
    pub async fn ask_with(
        &self,
        headers: &[(&'static str, &str)],
        endpoint: Endpoint,
        body: &Value,
        listener: impl Listen,
    ) -> Result<Answer, Failure> {
        let sent = Instant::now();
        let mut request = self.client.post(format!("{}{}", self.url, endpoint.path())).json(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let asked = async {
            let response = request.send().await.map_err(|error| self.lost(&error))?;
            let response = refuse_status(response).await?;
            if body["stream"] == true {
                self.stream(response, sent, listener).await
            } else {
                self.whole(response, sent, listener).await
            }
        };
        match tokio::time::timeout(self.timeout, asked).await {
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
        while let Some(piece) = response.chunk().await.map_err(|error| self.lost(&error))? {
            let arrived = sent.elapsed();
            parser
                .feed(&piece, &mut events)
                .map_err(|error| Failure::new(FailureKind::Malformed, error.to_string()))?;
            for event in events.drain(..) {
                if event == "[DONE]" {
                    answer.end = arrived;
                    let rest = async { while let Ok(Some(_)) = response.chunk().await {} };
                    let _ = tokio::time::timeout(BODY_END, rest).await;
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
        if parser.unfinished() == Some("[DONE]") {
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
        while let Some(piece) = response.chunk().await.map_err(|error| self.lost(&error))? {
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

    fn lost(&self, error: &reqwest::Error) -> Failure {
        Failure::of_transport(error, &self.url)
    }
}

impl Connections {
    fn client(self) -> Result<Client> {
        // A proxy would be measured with the server.
        let builder = Client::builder().no_proxy();
        let builder = match self {
            Self::Pooled => builder,
            Self::PerRequest => builder.pool_max_idle_per_host(0),
        };
        builder.build().context("no HTTP client")
    }
}

impl FromStr for Connections {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "pooled" => Ok(Self::Pooled),
            "per-request" => Ok(Self::PerRequest),
            _ => Err(format!("{name:?} is no policy: use pooled or per-request")),
        }
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
    while let Ok(Some(piece)) = response.chunk().await {
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
        Some(name) if !name.starts_with(expected) => {
            let message = format!("answered {name} where {expected} was asked for");
            Err(Failure::new(FailureKind::Malformed, message))
        }
        _ => Ok(response),
    }
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
