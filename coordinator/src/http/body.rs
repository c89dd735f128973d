//! Bodies in: no more memory, time or computing than the configuration allows.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use axum::http::header;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use tokio::sync::OwnedSemaphorePermit;

use super::ApiState;
use super::caller::{Caller, over};
use crate::keys::Open;
use crate::openai::{ApiError, Context};

/// A permit to read a body and answer it, as long as it is held.
pub(super) struct Permit {
    _of_all: OwnedSemaphorePermit,
    _of_key: Open,
}

/// A permit, before anything of a body is held in memory. Whoever is refused since all are busy
/// has used nothing of what the key may.
pub(super) fn admit(state: &ApiState, caller: &Caller) -> Result<Permit, ApiError> {
    let of_all = Arc::clone(&state.permits).try_acquire_owned().map_err(|_| {
        let max = state.config.max_concurrent_requests;
        let message = format!(
            "{max} requests are being answered (http.max_concurrent_requests); try again later"
        );
        ApiError::unavailable(message, "too_many_requests")
    })?;
    Ok(Permit { _of_all: of_all, _of_key: caller.0.open().map_err(|quota| over(state, quota))? })
}

/// Reads a body and parses it, where that holds nobody up; `renders` says whether a template may be
/// rendered for it.
pub(super) async fn parsed<T: Send + 'static>(
    state: &Arc<ApiState>,
    caller: &Caller,
    request: Request,
    renders: bool,
    parse: impl FnOnce(&[u8], Context<'_>) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let body = read(state, request).await?;
    state.completions.parse(&caller.0, (body, renders), parse).await
}

/// Reads a body. Of one that is too large more is read and dropped, so that its client comes to
/// read why: a connection that is closed while it still sends tells it nothing.
pub(super) async fn read(state: &ApiState, request: Request) -> Result<Bytes, ApiError> {
    let encoding = request.headers().get(header::CONTENT_ENCODING);
    if let Some(encoding) = encoding.filter(|it| !it.as_bytes().eq_ignore_ascii_case(b"identity")) {
        let message =
            format!("content-encoding {encoding:?} is not read here; send the body plain");
        return Err(ApiError::malformed(message).status(415).code("unsupported_encoding"));
    }
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
