//! Bodies in: no more memory, time or computing than the configuration allows.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use tokio::sync::OwnedSemaphorePermit;

use super::ApiState;
use crate::openai::{ApiError, Context};

/// Tokenizing a larger body takes long enough for others to notice.
const MAX_INLINE_BYTES: usize = 16 << 10;

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

/// Reads a body and parses it, where that holds nobody up.
pub(super) async fn parsed<T: Send + 'static>(
    state: &Arc<ApiState>,
    request: Request,
    parse: impl FnOnce(&[u8], Context<'_>) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let body = read(state, request).await?;
    if body.len() <= MAX_INLINE_BYTES {
        return parse(&body, state.context());
    }
    let state = Arc::clone(state);
    tokio::task::spawn_blocking(move || parse(&body, state.context()))
        .await
        .unwrap_or_else(|_| Err(ApiError::internal("reading the request stopped unexpectedly")))
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
