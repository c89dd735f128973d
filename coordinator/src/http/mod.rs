//! The API over HTTP: routes, bodies' limits, errors, metrics. The only place that names axum.

mod admin;
#[cfg(test)]
mod admin_tests;
#[cfg(test)]
mod agents_tests;
mod answer;
mod batches;
#[cfg(test)]
mod batches_tests;
mod body;
mod caller;
mod cors;
#[cfg(test)]
mod dialect_tests;
mod durable;
#[cfg(test)]
mod durable_tests;
mod error;
mod files;
mod health;
mod host;
#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod keys_tests;
#[cfg(test)]
mod limit_tests;
#[cfg(test)]
mod metrics_tests;
mod models;
mod origin;
mod paging;
mod requests;
#[cfg(test)]
mod requests_tests;
#[cfg(test)]
mod script;
mod server;
#[cfg(test)]
mod server_tests;
mod snapshot;
#[cfg(test)]
mod snapshot_tests;
mod socket;
mod storage;
#[cfg(test)]
mod tests;
mod tokens;
mod ui;

use std::future::Future;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use futures::StreamExt;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::batch_job::BatchJobs;
use crate::completion::Completions;
use crate::keys::Keys;
use crate::metrics;
use crate::openai::ApiError;

/// What every handler sees: what completions need, and what HTTP does.
#[derive(Debug)]
pub(crate) struct ApiState {
    pub completions: Arc<Completions>,
    pub keys: Arc<Keys>,
    /// Files, and the jobs that answer them.
    pub jobs: BatchJobs,
    /// A permit for each request that may be answered at once.
    pub permits: Arc<Semaphore>,
    /// Cancelled when the server is to end: what would never end by itself ends then.
    pub closing: CancellationToken,
}

impl Deref for ApiState {
    type Target = Completions;

    fn deref(&self) -> &Completions {
        &self.completions
    }
}

fn routes() -> [(&'static str, MethodRouter<Arc<ApiState>>); 35] {
    [
        ("/v1/models", get(models::list)),
        ("/v1/models/{*id}", get(models::retrieve)),
        ("/v1/chat/completions", post(answer::chat)),
        ("/v1/completions", post(answer::completion)),
        ("/v1/messages", post(answer::messages)),
        ("/v1/messages/count_tokens", post(answer::count_tokens)),
        ("/v1/responses", post(answer::responses)),
        // A file may be larger than what is held of a body in memory: it has a limit of its own.
        (
            "/v1/files",
            get(files::list).merge(post(files::upload).layer(DefaultBodyLimit::disable())),
        ),
        ("/v1/files/{id}", get(files::retrieve).delete(files::delete)),
        ("/v1/files/{id}/content", get(files::content)),
        ("/v1/batches", get(batches::list).post(batches::create)),
        ("/v1/batches/{id}", get(batches::retrieve)),
        ("/v1/batches/{id}/cancel", post(batches::cancel)),
        ("/v1/requests", get(requests::list)),
        ("/v1/requests/{id}", get(requests::retrieve).delete(requests::cancel)),
        ("/v1/requests/{id}/events", get(durable::events)),
        ("/v1/admin/status", get(admin::status)),
        ("/v1/admin/snapshot", get(snapshot::one)),
        ("/v1/admin/snapshot/events", get(snapshot::events)),
        ("/v1/admin/cordon/{node}", post(admin::cordon)),
        ("/v1/admin/uncordon/{node}", post(admin::uncordon)),
        ("/v1/admin/drain/{node}", post(admin::drain)),
        ("/v1/embeddings", post(answer::embeddings)),
        ("/infill", post(answer::infill)),
        ("/tokenize", post(tokens::tokenize)),
        ("/detokenize", post(tokens::detokenize)),
        ("/", get(ui::lead)),
        ("/ui", get(ui::page)),
        ("/ui/{file}", get(ui::part)),
        // As vLLM's clients and load balancers ask.
        ("/health", get(health::ready)),
        ("/version", get(models::version)),
        ("/health/live", get(health::live)),
        ("/health/ready", get(health::ready)),
        ("/health/stages", get(health::stages)),
        ("/metrics", get(counted)),
    ]
}

/// The routes, and what stands around all of them. Layers of a router would cost each request more
/// than the scheduler does.
struct Api {
    state: Arc<ApiState>,
    router: Router,
    paths: Vec<&'static str>,
    hosts: host::Hosts,
}

impl Api {
    fn new(state: Arc<ApiState>, hosts: host::Hosts) -> Self {
        let routes = routes();
        let paths = routes.iter().map(|(path, _)| *path).collect();
        let router = routes.into_iter().fold(Router::new(), |all, (path, it)| all.route(path, it));
        let router = router
            .fallback(error::not_found)
            .method_not_allowed_fallback(error::method_not_allowed)
            .with_state(Arc::clone(&state));
        Self { state, router, paths, hosts }
    }

    /// Answers, and measures to the end of the answer's body.
    async fn answer(&self, mut request: Request) -> Response {
        let (state, start) = (Arc::clone(&self.state), Instant::now());
        let (method, endpoint) =
            (name_of(request.method()), route_of(&self.paths, request.uri().path()));
        let mut measured = Measured { state, method, endpoint, start };
        let is_open = !self.state.keys.are_needed();
        let named = if is_open { self.hosts.check(&request) } else { Ok(()) };
        let mut response = match named.and_then(|()| cors::Page::of(&self.state, &request)) {
            Ok(page) => {
                let mut response = match caller::identify(&self.state, &mut request) {
                    Err(refusal) => *refusal,
                    Ok(caller) => {
                        let answered = self.router.clone().oneshot(request).await;
                        let mut response = answered.unwrap_or_else(|never| match never {});
                        caller.tell_limits(response.headers_mut());
                        response
                    }
                };
                page.tell(&mut response);
                response
            }
            Err(answer) => *answer,
        };
        if response.status() == StatusCode::METHOD_NOT_ALLOWED {
            // Of methods and routes only those go together that clients can't choose freely.
            measured.endpoint = OTHER;
        }
        response.headers_mut().insert(header::SERVER, HeaderValue::from_static("autoglm"));
        if response.body().size_hint().exact().is_some() {
            // All of it is there; wrapped, it would lose its length.
            return response;
        }
        let (parts, inner) = response.into_parts();
        let body = (inner.into_data_stream(), measured);
        let inner = futures::stream::unfold(body, |(mut stream, measured)| async move {
            stream.next().await.map(|chunk| (chunk, (stream, measured)))
        });
        Response::from_parts(parts, Body::from_stream(inner))
    }
}

/// Whether there is something at this path.
fn is_route(path: &str) -> bool {
    let paths = routes().map(|(path, _)| path);
    route_of(&paths, path) != OTHER
}

/// The route of a path, as a label.
fn route_of(routes: &[&'static str], path: &str) -> &'static str {
    let is_of = |route: &&&str| match route.split_once('{') {
        None => **route == path,
        Some((before, name)) => path.strip_prefix(before).is_some_and(|rest| {
            let after = name.split_once('}').map_or("", |(_, after)| after);
            let is_name = |it: &str| !it.is_empty() && (name.starts_with('*') || !it.contains('/'));
            rest.strip_suffix(after).is_some_and(is_name)
        }),
    };
    routes.iter().find(is_of).copied().unwrap_or(OTHER)
}

/// Serves until `shutdown` resolves and the answers under way have ended.
///
/// # Errors
/// When the listener fails.
pub(crate) async fn serve(
    listener: TcpListener,
    state: Arc<ApiState>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let is_near = listener.local_addr().is_ok_and(|addr| addr.ip().is_loopback());
    let hosts = host::Hosts::new(&state.config, !is_near);
    let api = Arc::new(Api::new(Arc::clone(&state), hosts));
    let closing = state.closing.clone();
    let shutdown = async move {
        shutdown.await;
        closing.cancel();
    };
    server::serve(listener, api, &state.config, shutdown).await
}

async fn counted(State(state): State<Arc<ApiState>>, headers: HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    let (kind, text) = if accept.is_some_and(metrics::wants_plain) {
        (metrics::PLAIN, state.metrics.plain_text())
    } else {
        (metrics::OPEN_METRICS, state.metrics.text())
    };
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

/// The label of whatever isn't ours.
const OTHER: &str = "other";

/// A method as a label: clients can't invent others.
fn name_of(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::PATCH => "PATCH",
        _ => OTHER,
    }
}

/// Dropped with the body that it measures, also when the client has gone.
struct Measured {
    state: Arc<ApiState>,
    method: &'static str,
    endpoint: &'static str,
    start: Instant,
}

impl Drop for Measured {
    fn drop(&mut self) {
        self.state.metrics.http(self.method, self.endpoint, self.start.elapsed());
    }
}

type ApiResult = Result<Response, ApiError>;
