//! Bodies in: no more memory, time or computing than the configuration allows.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use protocol::config::Http;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::ApiState;
use crate::openai::{ApiError, Context};

/// Bodies become tokens on threads of their own: a small one may render to much, and whoever
/// holds up the runtime holds up health checks and the nodes' connections with it.
#[derive(Debug)]
pub struct Parsing {
    threads: Semaphore,
    kib: Semaphore,
    max_kib: u32,
}

impl Parsing {
    /// As many at once, in number and in bytes, as the configuration allows.
    pub fn new(config: &Http) -> Self {
        let max_kib = u32::try_from(config.max_parsing_bytes.div_ceil(1 << 10)).unwrap_or(u32::MAX);
        let kib = Semaphore::new((max_kib as usize).min(Semaphore::MAX_PERMITS));
        Self { threads: Semaphore::new(config.max_parsing_threads), kib, max_kib }
    }
}

/// A permit to read a body and answer it, before anything of it is held in memory.
pub(super) fn admit(state: &ApiState) -> Result<OwnedSemaphorePermit, ApiError> {
    Arc::clone(&state.permits).try_acquire_owned().map_err(|_| {
        let max = state.config.max_concurrent_requests;
        let message = format!(
            "{max} requests are being answered (http.max_concurrent_requests); try again later"
        );
        ApiError::unavailable(message, "too_many_requests")
    })
}

/// Reads a body and parses it, where that holds nobody up, in the order of arrival.
pub(super) async fn parsed<T: Send + 'static>(
    state: &Arc<ApiState>,
    request: Request,
    parse: impl FnOnce(&[u8], Context<'_>) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let body = read(state, request).await?;
    let stopped = || ApiError::internal("reading the request stopped unexpectedly");
    let Parsing { threads, kib, max_kib } = &state.parsing;
    // One that is larger than all may be has them all to itself.
    let wanted = u32::try_from(body.len().div_ceil(1 << 10)).map_or(*max_kib, |n| n.min(*max_kib));
    let held = kib.acquire_many(wanted).await.map_err(|_| stopped())?;
    let thread = threads.acquire().await.map_err(|_| stopped())?;
    held.forget();
    thread.forget();
    let state = Arc::clone(state);
    // The permits go back from there: it is not stopped when its client goes.
    tokio::task::spawn_blocking(move || {
        let _back = Back { parsing: &state.parsing, kib: wanted as usize };
        parse(&body, state.context())
    })
    .await
    .unwrap_or_else(|_| Err(stopped()))
}

/// Gives permits back, also where parsing panicked.
struct Back<'a> {
    parsing: &'a Parsing,
    kib: usize,
}

impl Drop for Back<'_> {
    fn drop(&mut self) {
        self.parsing.threads.add_permits(1);
        self.parsing.kib.add_permits(self.kib);
    }
}

/// Reads a body. Of one that is too large more is read and dropped, so that its client comes to
/// read why: a connection that is closed while it still sends tells it nothing.
async fn read(state: &ApiState, request: Request) -> Result<Bytes, ApiError> {
    let (max, max_dropped) = (state.config.max_body_bytes, state.config.max_dropped_bytes);
    let timeout = Duration::from_millis(state.config.body_timeout_ms);
    let mut stream = request.into_body().into_data_stream();
    let read = async {
        let (mut body, mut num_dropped) = (BytesMut::new(), 0);
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|_| ApiError::malformed("the body can't be read"))?;
            if num_dropped == 0 && body.len() + chunk.len() <= max {
                body.extend_from_slice(&chunk);
                continue;
            }
            num_dropped += std::mem::take(&mut body).len() + chunk.len();
            if num_dropped > max.saturating_add(max_dropped) {
                break;
            }
        }
        if num_dropped > 0 {
            let message = format!("the body has more than {max} bytes (http.max_body_bytes)");
            return Err(ApiError::malformed(message).status(413).code("body_too_large"));
        }
        Ok(body.freeze())
    };
    tokio::time::timeout(timeout, read).await.unwrap_or_else(|_| {
        let millis = timeout.as_millis();
        let message = format!("the body did not arrive within {millis} ms (http.body_timeout_ms)");
        Err(ApiError::malformed(message).status(408).code("request_timeout"))
    })
}
