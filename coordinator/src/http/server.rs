//! Connections: how many there may be, for how long they may be idle, and which give way.
//!
//! A client may close its half of a connection once it has asked, and still gets its answer. Health
//! checks have connections of their own: whatever else is asked, some are left for them.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{HeaderValue, Version, header};
use axum::response::{IntoResponse, Response};
use futures::future::BoxFuture;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use protocol::config::Http;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tracing::{debug, warn};

use super::socket::Socket;
use super::{Api, health};
use crate::openai::ApiError;

/// After an accept that failed: the system may be out of something that others give back soon.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long a client that was answered may still send.
const LINGER: Duration = Duration::from_secs(10);

/// Open files that are not connections: model, logs, sockets of nodes.
const OTHER_FILES: u64 = 128;

struct Connections {
    open: Mutex<HashMap<u64, Arc<Connection>>>,
    // For those that ask for more than health.
    places: Arc<Semaphore>,
    max: usize,
}

#[derive(Clone, Copy)]
struct Limits {
    idle_timeout: Duration,
    send_timeout: Duration,
    max_dropped_bytes: usize,
}

struct Connection {
    num_requests: AtomicUsize,
    // When the last request ended, or it began.
    idle_since: Mutex<Instant>,
    evicted: Notify,
}

impl Connections {
    fn new(config: &Http) -> Self {
        let max = max_connections(config.max_connections, config.reserved_connections);
        let places = Arc::new(Semaphore::new(max - config.reserved_connections.min(max - 1)));
        Self { open: Mutex::default(), places, max }
    }

    /// A place for a new connection, if need be that of the one that is idle for longest.
    fn admit(&self, number: u64) -> Option<Arc<Connection>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.len() >= self.max {
            let idle = open.iter().filter(|(_, it)| it.num_requests.load(Ordering::Acquire) == 0);
            let (longest, connection) = idle.min_by_key(|(_, it)| it.idle_since())?;
            connection.evicted.notify_one();
            let longest = *longest;
            open.remove(&longest);
        }
        let connection = Arc::new(Connection {
            num_requests: AtomicUsize::new(0),
            idle_since: Mutex::new(Instant::now()),
            evicted: Notify::new(),
        });
        open.insert(number, Arc::clone(&connection));
        Some(connection)
    }

    fn forget(&self, number: u64) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
    }
}

impl Connection {
    fn idle_since(&self) -> Instant {
        *self.idle_since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Resolves when nothing was asked on it for `limit`.
    async fn idle_for(&self, limit: Duration) {
        loop {
            let since = self.idle_since();
            tokio::time::sleep_until((since + limit).into()).await;
            let is_idle = self.num_requests.load(Ordering::Acquire) == 0;
            if is_idle && self.idle_since() == since {
                return;
            }
            if !is_idle {
                tokio::time::sleep(limit).await;
            }
        }
    }
}

/// A request under way: its connection isn't idle, and keeps its place among those that ask for
/// more than health, until the last byte of its answer is sent.
struct Busy {
    connection: Arc<Connection>,
    place: Option<OwnedSemaphorePermit>,
}

impl Busy {
    fn new(connection: &Arc<Connection>, places: &Arc<Semaphore>) -> Self {
        connection.num_requests.fetch_add(1, Ordering::AcqRel);
        let place = Arc::clone(places).try_acquire_owned().ok();
        Self { connection: Arc::clone(connection), place }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let Connection { idle_since, num_requests, .. } = &*self.connection;
        *idle_since.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        num_requests.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Serves until `shutdown` resolves and the answers under way have ended.
///
/// # Errors
/// Never: an accept that fails is tried again.
pub(super) async fn serve(
    listener: TcpListener,
    api: Arc<Api>,
    config: &Http,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let connections = Arc::new(Connections::new(config));
    let (stop, stopping) = watch::channel(());
    let limits = Limits {
        idle_timeout: Duration::from_millis(config.idle_timeout_ms),
        send_timeout: Duration::from_millis(config.send_timeout_ms),
        max_dropped_bytes: config.max_dropped_bytes,
    };
    let mut shutdown = std::pin::pin!(shutdown);
    let mut is_full = false;
    for number in 0.. {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut shutdown => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(cause) => {
                warn!(%cause, "a connection can't be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some(connection) = connections.admit(number) else {
            if !std::mem::replace(&mut is_full, true) {
                warn!(max = connections.max, "connections are refused (http.max_connections)");
            }
            continue;
        };
        is_full = false;
        let (connections, api, stopping) =
            (Arc::clone(&connections), Arc::clone(&api), stopping.clone());
        tokio::spawn(async move {
            one(stream, &connection, &connections.places, api, limits, stopping).await;
            connections.forget(number);
        });
    }
    drop(listener);
    drop(stopping);
    // Each connection ends with the answer that is under way on it.
    let _ = stop.send(());
    stop.closed().await;
    Ok(())
}

async fn one(
    stream: TcpStream,
    connection: &Arc<Connection>,
    places: &Arc<Semaphore>,
    api: Arc<Api>,
    Limits { idle_timeout, send_timeout, max_dropped_bytes }: Limits,
    mut stopping: watch::Receiver<()>,
) {
    // A token is a small packet that must not wait for the one before it to be acknowledged.
    if let Err(cause) = stream.set_nodelay(true) {
        debug!(%cause, "a connection keeps its delay");
    }
    let socket = Socket::new(stream);
    let service = service_fn(|request: hyper::Request<Incoming>| {
        let mut busy = Busy::new(connection, places);
        let (api, socket) = (Arc::clone(&api), socket.clone());
        let is_health = health::is_health(request.uri().path());
        let has_place = is_health || busy.place.is_some();
        if is_health {
            busy.place = None;
        }
        // With no other under way, nothing of an answer is on the wire before this one's begins.
        let is_alone = connection.num_requests.load(Ordering::Acquire) == 1;
        let can_tell = request.version() == Version::HTTP_11 && is_alone;
        async move {
            let request: Request = request.map(Body::new);
            let answer = async { if has_place { api.answer(request).await } else { full() } };
            let response = tokio::select! {
                response = answer => response,
                () = socket.gone(), if can_tell => return Err(Gone),
            };
            let (parts, body) = response.into_parts();
            let kind = parts.headers.get(header::CONTENT_TYPE);
            let streams = kind.is_some_and(|kind| kind.as_bytes().starts_with(EVENT_STREAM));
            let watch = (can_tell && streams).then(|| Watch::Ended(socket.watch_end()));
            Ok(Response::from_parts(parts, WhileBusy { body, socket, watch, _busy: busy }))
        }
    });
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .half_close(true)
        .timer(TokioTimer::new())
        // Of a head that comes byte by byte, too.
        .header_read_timeout(idle_timeout);
    builder.http2().timer(TokioTimer::new());
    let served = builder.serve_connection(TokioIo::new(socket.directions(send_timeout)), service);
    let mut served = std::pin::pin!(served);
    loop {
        tokio::select! {
            ended = &mut served => {
                match ended {
                    // What was refused before all of it had come is read, so that its client
                    // comes to read why: closed while it sends, it would be told nothing.
                    Ok(()) => {
                        let _ = tokio::time::timeout(LINGER, socket.drain(max_dropped_bytes)).await;
                    }
                    Err(cause) => debug!(%cause, "a connection has ended"),
                }
                return;
            }
            () = connection.evicted.notified() => return,
            () = connection.idle_for(idle_timeout) => return,
            Ok(()) = stopping.changed() => served.as_mut().graceful_shutdown(),
        }
    }
}

fn full() -> Response {
    let message = "the server has as many connections as it may have (http.max_connections)";
    let mut response = ApiError::unavailable(message, "too_many_connections").into_response();
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// The client has left before it was answered.
#[derive(Debug, thiserror::Error)]
#[error("the client has left")]
struct Gone;

const EVENT_STREAM: &[u8] = b"text/event-stream";

/// A line that readers of events pass over.
const COMMENT: &[u8] = b":\n\n";

/// A body that keeps its connection busy until it is dropped. A stream in which nothing happens
/// says something when its client closes its half: one that is gone refuses it.
struct WhileBusy {
    body: Body,
    socket: Socket,
    watch: Option<Watch>,
    _busy: Busy,
}

enum Watch {
    Ended(BoxFuture<'static, ()>),
    Refused(BoxFuture<'static, ()>),
}

impl hyper::body::Body for WhileBusy {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            return Poll::Ready(frame);
        }
        match &mut self.watch {
            None => Poll::Pending,
            Some(Watch::Ended(ended)) => {
                std::task::ready!(ended.as_mut().poll(context));
                self.watch = Some(Watch::Refused(self.socket.watch_refusal()));
                Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(COMMENT)))))
            }
            Some(Watch::Refused(refused)) => {
                std::task::ready!(refused.as_mut().poll(context));
                self.watch = None;
                Poll::Ready(Some(Err(axum::Error::new(Gone))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// As many connections as are configured, or as open files allow; says so where those are fewer.
fn max_connections(configured: usize, reserved: usize) -> usize {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return configured };
    let wanted = (configured as u64).saturating_add(OTHER_FILES);
    let mut limit = soft;
    // What the system allows anyway needs nobody's consent.
    if soft < wanted && setrlimit(Resource::RLIMIT_NOFILE, wanted.min(hard), hard).is_ok() {
        limit = wanted.min(hard);
    }
    if limit >= wanted {
        return configured;
    }
    // However few: health is answered, and somebody else.
    let max =
        (limit.saturating_sub(OTHER_FILES) as usize).max(limit as usize / 2).max(reserved + 1);
    warn!(
        max,
        limit, "fewer connections than http.max_connections: open files are limited (ulimit -n)"
    );
    max.min(configured)
}
