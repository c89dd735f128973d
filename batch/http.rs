//! HTTP/1 over kept connections: to the server that answers, to servers that take rows, and to
//! stores of objects.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::{Method, Request, Response, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use object_store::client::{HttpError, HttpErrorKind, HttpRequest, HttpResponse};
use object_store::client::{HttpResponseBody, HttpService};
use rustls::crypto::aws_lc_rs;
use rustls::{ClientConfig, RootCertStore};

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(10);
/// How long a connection may be silent before the system asks whether its other end is there.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How long a connection that nobody uses is kept.
const IDLE: Duration = Duration::from_secs(90);
/// How long a store of objects may take to begin its answer.
const STORE: Duration = Duration::from_secs(60);
/// A longer answer is none that was asked for.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// Connections to servers; clones share them.
#[derive(Clone)]
pub struct Http(Client<HttpsConnector<HttpConnector>, Full<Bytes>>);

/// What a server said.
#[derive(Debug)]
pub struct Said {
    /// Of its last word: redirects are not followed.
    pub status: u16,
    /// For how long it wants not to be asked.
    pub retry_after: Option<Duration>,
    /// Whole, and of a size that was bounded while it came.
    pub body: Bytes,
}

impl Http {
    /// With the authorities that this system trusts; where there are none, only addresses without
    /// TLS can be asked.
    ///
    /// # Errors
    /// When there is no TLS at all.
    pub fn new() -> Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let tls = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .context("no version of TLS")?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_keepalive(Some(KEEP_ALIVE));
        tcp.set_connect_timeout(Some(CONNECT));
        let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http();
        let mut builder = Client::builder(TokioExecutor::new());
        builder.pool_timer(TokioTimer::new()).pool_idle_timeout(IDLE);
        Ok(Self(builder.build(connector.enable_http1().wrap_connector(tcp))))
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Lost> {
        self.0.request(request).await.map_err(|error| Lost::of(&error))
    }

    /// Asks for something small: sends a body, and reads the whole answer in time.
    ///
    /// # Errors
    /// When no whole answer comes.
    pub async fn ask(&self, asked: Asked<'_>, limit: Duration) -> Result<Said, Lost> {
        let request = asked.request().map_err(|cause| Lost::Never(format!("{cause:#}")))?;
        let answered = tokio::time::timeout(limit, async {
            let answer = self.send(request).await?;
            let status = answer.status().as_u16();
            let retry_after = answer.headers().get("retry-after");
            let seconds = retry_after.and_then(|it| it.to_str().ok()?.trim().parse().ok());
            let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES).collect().await;
            let body = body.map_err(|cause| Lost::Broken(cause.to_string()))?.to_bytes();
            Ok(Said { status, retry_after: seconds.map(Duration::from_secs), body })
        });
        let late = || Lost::Broken(format!("no answer within {} s", limit.as_secs()));
        answered.await.unwrap_or_else(|_| Err(late()))
    }
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Http")
    }
}

/// A request with a small body.
#[derive(Clone, Debug)]
pub struct Asked<'a> {
    /// As the server's API has it.
    pub method: Method,
    /// Whom.
    pub url: &'a str,
    /// Goes into `authorization: Bearer`.
    pub key: Option<&'a str>,
    /// Under which name it may come twice and counts once.
    pub idempotency_key: Option<String>,
    /// What the body is.
    pub content_type: &'static str,
    /// In one piece, so that it can be sent again.
    pub body: Bytes,
}

impl Asked<'_> {
    fn request(self) -> Result<Request<Full<Bytes>>> {
        let url: Uri = self.url.parse().with_context(|| format!("{} is no URL", self.url))?;
        let mut headers = HeaderMap::new();
        if let Some(key) = self.key {
            let value = HeaderValue::try_from(format!("Bearer {key}"));
            headers.insert(AUTHORIZATION, value.context("the API key is no header's value")?);
        }
        if let Some(key) = self.idempotency_key {
            headers.insert("idempotency-key", HeaderValue::try_from(key)?);
        }
        if !self.body.is_empty() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        }
        let mut request =
            Request::builder().method(self.method).uri(url).body(Full::new(self.body))?;
        *request.headers_mut() = headers;
        Ok(request)
    }
}

/// How a request got no answer.
#[derive(Debug)]
pub enum Lost {
    /// It can't be sent.
    Never(String),
    /// Nobody is there.
    Unreached(String),
    /// The connection broke.
    Broken(String),
}

impl Lost {
    fn of(error: &hyper_util::client::legacy::Error) -> Self {
        let mut cause: &dyn std::error::Error = error;
        while let Some(source) = cause.source() {
            cause = source;
        }
        let cause = cause.to_string();
        if error.is_connect() { Self::Unreached(cause) } else { Self::Broken(cause) }
    }
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Never(cause) => f.write_str(cause),
            Self::Unreached(cause) => write!(f, "nothing answers: {cause}"),
            Self::Broken(cause) => write!(f, "the connection broke: {cause}"),
        }
    }
}

impl std::error::Error for Lost {}

/// A store of objects asks through the same connections.
#[async_trait]
impl HttpService for Http {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let (head, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        let request = Request::from_parts(head, Full::new(body));
        let answer = tokio::time::timeout(STORE, self.send(request)).await;
        let late = |_| Err(Lost::Broken(format!("no answer within {} s", STORE.as_secs())));
        let answer = answer.unwrap_or_else(late).map_err(|lost| {
            let kind = match lost {
                Lost::Never(_) => HttpErrorKind::Unknown,
                Lost::Unreached(_) => HttpErrorKind::Connect,
                Lost::Broken(_) => HttpErrorKind::Interrupted,
            };
            HttpError::new(kind, lost)
        })?;
        let (head, body) = answer.into_parts();
        let body = body.map_err(|error| HttpError::new(HttpErrorKind::Interrupted, error));
        Ok(Response::from_parts(head, HttpResponseBody::new(body)))
    }
}
