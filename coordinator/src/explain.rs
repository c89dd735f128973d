//! `autoglm explain`: asks a server why a request waits or waited, and prints what it says.

use std::future::poll_fn;
use std::io::Write;
use std::pin::Pin;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use hyper::body::Body;
use hyper::{Method, Request, Uri, header};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

/// Where the key is looked for when no flag has it.
pub(crate) const KEY_VARIABLE: &str = "AUTOGLM_API_KEY";

/// What a server gets to answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A longer answer is none of ours.
const MAX_ANSWER_BYTES: usize = 16 << 20;

/// Says why a request waits or waited.
#[derive(Args)]
pub struct Arguments {
    /// The `id` of the answer, which is its header `x-request-id` too.
    id: String,
    /// The server.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8000")]
    url: String,
    /// An API key of the same tenant, or of scope admin [default: AUTOGLM_API_KEY].
    #[arg(long, value_name = "KEY")]
    api_key: Option<String>,
    /// As the server says it, in JSON.
    #[arg(long)]
    json: bool,
}

impl Arguments {
    /// Asks and prints.
    ///
    /// # Errors
    /// When the server can't be asked, or doesn't know the request.
    pub fn run(self, out: &mut impl Write) -> Result<()> {
        let (status, text) = self.ask()?;
        let story: Value = serde_json::from_str(&text)
            .with_context(|| format!("{} answers {status} and no JSON", self.url))?;
        if status != 200 {
            bail!("{status}: {}", story["error"]["message"].as_str().unwrap_or(&text));
        }
        if self.json {
            writeln!(out, "{text}")?;
        } else {
            write!(out, "{}", table(&story))?;
        }
        Ok(())
    }

    /// Status and body.
    fn ask(&self) -> Result<(u16, String)> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        ensure!(
            !self.id.is_empty() && self.id.bytes().all(is_plain),
            "{:?} is no request's id: they look like cmpl-0123456789abcdef",
            self.id
        );
        let key = self.api_key.clone().or_else(|| std::env::var(KEY_VARIABLE).ok());
        fetch(&self.url, &format!("/v1/requests/{}", self.id), key)
    }
}

/// What a server answers when it is asked for `path`: status and body.
///
/// # Errors
/// When it can't be asked, or doesn't answer in time.
pub(crate) fn fetch(url: &str, path: &str, key: Option<String>) -> Result<(u16, String)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let asked = async { tokio::time::timeout(TIMEOUT, get(url, path, key)).await };
    runtime.block_on(asked).with_context(|| format!("{url} doesn't answer"))?
}

async fn get(server: &str, path: &str, key: Option<String>) -> Result<(u16, String)> {
    let url = format!("{}{path}", server.trim_end_matches('/'));
    let url: Uri = url.parse().with_context(|| format!("{server} is no URL"))?;
    ensure!(
        url.scheme_str() == Some("http"),
        "--url must begin with http://: behind a proxy that speaks https, ask the server itself"
    );
    let mut request = Request::builder().method(Method::GET).uri(url);
    if let Some(key) = key {
        request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
    }
    let request = request.body(String::new()).context("the API key is no header's value")?;
    let client = Client::builder(TokioExecutor::new()).build_http();
    let answer = client.request(request).await;
    let answer = answer.with_context(|| format!("{server} can't be asked"))?;
    let (status, mut body) = (answer.status().as_u16(), answer.into_body());
    let mut bytes = Vec::new();
    while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        let Ok(data) = frame?.into_data() else { continue };
        ensure!(bytes.len() + data.len() <= MAX_ANSWER_BYTES, "the answer is too long");
        bytes.extend_from_slice(&data);
    }
    Ok((status, String::from_utf8(bytes).context("the answer is no text")?))
}

/// A line for each decision, then for each choice that waits.
fn table(story: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let choice = |value: &Value| value.as_u64().map_or("all".to_owned(), |it| it.to_string());
    let id = text(&story["id"]);
    let (state, priority) = (text(&story["state"]), text(&story["priority"]));
    let mut lines = format!("{id}: {state}, priority {priority}\n");
    let mut line = |time: String, choice: String, what: String, why: String| {
        lines += &format!("{time:>11}  {choice:>6}  {what:<9}  {why}\n");
    };
    line("time".into(), "choice".into(), "what".into(), "why".into());
    let forgotten = story["num_forgotten"].as_u64().unwrap_or(0);
    if forgotten > 0 {
        let why = format!("{forgotten} older decisions (scheduler.max_explained_decisions)");
        line(String::new(), String::new(), "forgotten".into(), why);
    }
    for it in story["decisions"].as_array().into_iter().flatten() {
        let (what, why) = (text(&it["what"]), text(&it["why"]));
        line(seconds(&it["at_ms"]), choice(&it["choice"]), what, why);
    }
    for it in story["waiting"].as_array().into_iter().flatten() {
        let why = format!(
            "for {}, {} before it at priority {}, {} passed it: {}",
            seconds(&it["waited_ms"]),
            it["num_before"],
            text(&it["priority"]),
            it["num_passed"],
            text(&it["why"])
        );
        line(seconds(&story["age_ms"]), choice(&it["choice"]), "waits".into(), why);
    }
    lines
}

fn seconds(millis: &Value) -> String {
    format!("{:.3} s", millis.as_u64().unwrap_or(0) as f64 / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_story_is_a_table_of_what_happened_when_and_why() {
        let story = json!({
            "id": "cmpl-000000000000000a", "state": "waiting", "priority": "standard",
            "age_ms": 2500, "num_forgotten": 3,
            "decisions": [
                {"at_ms": 0, "choice": 0, "what": "queued", "why": "it waits for its turn"},
                {"at_ms": 1004, "choice": null, "what": "failed", "why": "x"},
            ],
            "waiting": [{
                "choice": 1, "waited_ms": 2496, "priority": "interactive", "num_before": 7,
                "num_passed": 2, "why": "it needs 9 KV blocks to begin, 4 are free",
            }],
        });
        let expected = "cmpl-000000000000000a: waiting, priority standard\n\
            \x20      time  choice  what       why\n\
            \x20                    forgotten  3 older decisions \
            (scheduler.max_explained_decisions)\n\
            \x20   0.000 s       0  queued     it waits for its turn\n\
            \x20   1.004 s     all  failed     x\n\
            \x20   2.500 s       1  waits      for 2.496 s, 7 before it at priority interactive, \
            2 passed it: it needs 9 KV blocks to begin, 4 are free\n";
        assert_eq!(table(&story), expected);
    }
}
