//! HTTP/1 over connections whose fate is known: kept, or made for each request.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::{Method, Request};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::ClientConfig;

use super::failure::{Failure, FailureKind, innermost};

/// How long a connection may be silent before the system asks whether its other end is there.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How long a connection that nobody uses is kept.
const IDLE: Duration = Duration::from_secs(90);

/// What becomes of a connection when its answer has come.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Connections {
    /// It is kept, and the next request takes it.
    #[default]
    Pooled,
    /// It is closed: each request makes one of its own.
    PerRequest,
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

/// The head of an answer, with its body to come.
pub(super) type Response = hyper::Response<Incoming>;

/// Connections to servers. A proxy is never asked: it would be measured with the server.
#[derive(Clone)]
pub(super) struct Http(Client<HttpsConnector<HttpConnector>, Full<Bytes>>);

impl Http {
    pub(super) fn new(connections: Connections, tls: ClientConfig) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_keepalive(Some(KEEP_ALIVE));
        let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http();
        let mut builder = Client::builder(TokioExecutor::new());
        builder.pool_timer(TokioTimer::new()).pool_idle_timeout(IDLE);
        if connections == Connections::PerRequest {
            builder.pool_max_idle_per_host(0);
        }
        Self(builder.build(connector.enable_http1().wrap_connector(tcp)))
    }

    pub(super) async fn get(&self, url: &str, headers: HeaderMap) -> Result<Response, Lost> {
        self.send(Method::GET, url, headers, Bytes::new()).await
    }

    /// Sends JSON.
    pub(super) async fn post(
        &self,
        url: &str,
        mut headers: HeaderMap,
        json: String,
    ) -> Result<Response, Lost> {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        self.send(Method::POST, url, headers, json.into()).await
    }

    async fn send(
        &self,
        method: Method,
        url: &str,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Response, Lost> {
        let request = Request::builder().method(method).uri(url).body(Full::new(body));
        let mut request = request.map_err(|error| Lost::Address(innermost(&error)))?;
        *request.headers_mut() = headers;
        self.0.request(request).await.map_err(|error| {
            let cause = innermost(&error);
            if error.is_connect() { Lost::Unreached(cause) } else { Lost::Broken(cause) }
        })
    }
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Http")
    }
}

/// The next piece of a body; none at its end.
pub(super) async fn chunk(response: &mut Response) -> Result<Option<Bytes>, Lost> {
    while let Some(frame) = response.body_mut().frame().await {
        let frame = frame.map_err(|error| Lost::Broken(innermost(&error)))?;
        if let Ok(data) = frame.into_data() {
            return Ok(Some(data));
        }
    }
    Ok(None)
}

/// How a request got no response, or lost its connection in one, and why.
#[derive(Debug)]
pub(super) enum Lost {
    Address(String),
    Unreached(String),
    Broken(String),
}

impl Lost {
    pub(super) fn at(self, url: &str) -> Failure {
        match self {
            Self::Address(cause) => {
                let said = format!("{url} is not an address that can be asked: {cause}");
                Failure::new(FailureKind::Unreachable, said)
            }
            // Somebody answers, but shows no certificate that we take.
            Self::Unreached(cause) if cause.contains("certificate") => {
                let ways = "trust its authority with --cacert, or anyone with --insecure";
                let said = format!("{url} is not who it says, or nobody we know says so: {cause}");
                Failure::new(FailureKind::Unreachable, format!("{said}; {ways}"))
            }
            Self::Unreached(cause) if cause.contains("corrupt message") => {
                let said = format!("{url} answers, but doesn't speak TLS: try http://");
                Failure::new(FailureKind::Unreachable, said)
            }
            Self::Unreached(cause) => {
                let said = format!("nothing answers at {url}: {cause}");
                Failure::new(FailureKind::Unreachable, said)
            }
            Self::Broken(cause) => {
                Failure::new(FailureKind::Truncated, format!("the connection broke: {cause}"))
            }
        }
    }
}
