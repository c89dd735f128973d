//! Bodies in: no more memory, time or computing than the configuration allows.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use tokio::sync::OwnedSemaphorePermit;

use super::ApiState;
use crate::openai::{ApiError, Context};

/// A client that sends slower holds up others: each body under way has a permit.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

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

async fn read(state: &ApiState, request: Request) -> Result<Bytes, ApiError> {
    match tokio::time::timeout(BODY_TIMEOUT, Bytes::from_request(request, &())).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(rejection)) => Err(unreadable(&rejection, state.config.max_body_bytes)),
        Err(_) => {
            let seconds = BODY_TIMEOUT.as_secs();
            let message = format!("the body did not arrive within {seconds} s");
            Err(ApiError::malformed(message).status(408).code("request_timeout"))
        }
    }
}

fn unreadable(rejection: &BytesRejection, max_bytes: usize) -> ApiError {
    if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
        let message = format!("the body has more than {max_bytes} bytes (http.max_body_bytes)");
        return ApiError::malformed(message).status(413).code("body_too_large");
    }
    ApiError::malformed("the body can't be read")
}
