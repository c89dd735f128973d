//! Asks a running server by its API: what the operator's commands share.

use std::future::poll_fn;
use std::io::Write;
use std::pin::Pin;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use hyper::body::{Body, Bytes, Incoming};
use hyper::{Method, Request, Uri, header};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

/// Where the key is looked for when no flag has it.
const KEY_VARIABLE: &str = "AUTOGLM_API_KEY";

/// What a server gets to answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A longer answer is none of ours.
const MAX_ANSWER_BYTES: usize = 16 << 20;

/// Which server, and by whose key.
#[derive(Args, Clone, Debug)]
pub struct Server {
    /// The server.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8000")]
    url: String,
    /// An API key of scope admin; for requests one of their tenant does too [default:
    /// AUTOGLM_API_KEY].
    #[arg(long, value_name = "KEY")]
    api_key: Option<String>,
}

impl Server {
    /// One that is asked for what needs no key.
    pub(crate) fn at(url: &str) -> Self {
        Self { url: url.to_owned(), api_key: None }
    }

    /// What the server says to a request without a body.
    ///
    /// # Errors
    /// When it can't be asked, or says no.
    pub(crate) async fn ask(&self, method: Method, path: &str) -> Result<Value> {
        let asked = tokio::time::timeout(TIMEOUT, self.send(method, path)).await;
        let (status, text) = asked.with_context(|| {
            format!("{} doesn't answer within {} s", self.url, TIMEOUT.as_secs())
        })??;
        let said: Value = serde_json::from_str(&text)
            .with_context(|| format!("{} answers {status} and no JSON", self.url))?;
        if status != 200 {
            bail!("{status}: {}", said["error"]["message"].as_str().unwrap_or(&text));
        }
        Ok(said)
    }

    /// Copies what the server says to a request for a file, as it comes.
    ///
    /// # Errors
    /// When it can't be asked, says no, or stops in the middle.
    pub(crate) async fn copy(&self, path: &str, out: &mut impl Write) -> Result<()> {
        let (status, mut body) = self.open(Method::GET, path).await?;
        ensure!(status == 200, "{status}: {}", text(body).await?);
        while let Some(data) = next(&mut body).await? {
            out.write_all(&data)?;
        }
        Ok(())
    }

    /// Status and body.
    async fn send(&self, method: Method, path: &str) -> Result<(u16, String)> {
        let (status, body) = self.open(method, path).await?;
        Ok((status, text(body).await?))
    }

    /// Status, and a body that is yet to come.
    async fn open(&self, method: Method, path: &str) -> Result<(u16, Incoming)> {
        let url = format!("{}{path}", self.url.trim_end_matches('/'));
        let url: Uri = url.parse().with_context(|| format!("{} is no URL", self.url))?;
        ensure!(
            url.scheme_str() == Some("http"),
            "--url must begin with http://: behind a proxy that speaks https, ask the server itself"
        );
        let key = self.api_key.clone().or_else(|| std::env::var(KEY_VARIABLE).ok());
        let mut request = Request::builder().method(method).uri(url);
        if let Some(key) = key {
            request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
        }
        let request = request.body(String::new()).context("the API key is no header's value")?;
        let client = Client::builder(TokioExecutor::new()).build_http();
        let answer = client.request(request).await;
        let answer = answer.with_context(|| {
            format!("{} can't be asked; where the server is says --url", self.url)
        })?;
        Ok((answer.status().as_u16(), answer.into_body()))
    }
}

async fn text(mut body: Incoming) -> Result<String> {
    let mut bytes = Vec::new();
    while let Some(data) = next(&mut body).await? {
        ensure!(bytes.len() + data.len() <= MAX_ANSWER_BYTES, "the answer is too long");
        bytes.extend_from_slice(&data);
    }
    String::from_utf8(bytes).context("the answer is no text")
}

/// The next of a body's bytes.
async fn next(body: &mut Incoming) -> Result<Option<Bytes>> {
    while let Some(frame) = poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await {
        if let Ok(data) = frame?.into_data() {
            return Ok(Some(data));
        }
    }
    Ok(None)
}

/// Runs what a command does on a thread of its own.
///
/// # Errors
/// Its own.
pub(crate) fn block_on<T>(command: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_is_not_there_is_named_with_the_flag_that_names_another() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let server = Server::at(&format!("http://{free}"));
        let said = block_on(server.ask(Method::GET, "/v1/admin/status")).unwrap_err().to_string();
        assert!(said.contains(&free.to_string()) && said.contains("--url"), "{said}");
        let said = block_on(Server::at("https://x").ask(Method::GET, "/")).unwrap_err().to_string();
        assert!(said.contains("must begin with http://"), "{said}");
    }
}
