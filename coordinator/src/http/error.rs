//! Errors as responses.

use axum::Json;
use axum::extract::rejection::BytesRejection;
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};

use crate::openai::ApiError;

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(self.body())).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

/// A body that could not be read.
pub(super) fn unreadable(rejection: &BytesRejection, max_bytes: usize) -> ApiError {
    if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
        let message = format!("the body has more than {max_bytes} bytes (http.max_body_bytes)");
        return ApiError::malformed(message).status(413).code("body_too_large");
    }
    ApiError::malformed("the body can't be read")
}

pub(super) async fn not_found(uri: Uri) -> ApiError {
    let message = format!("there is no {}; the API is under /v1", uri.path());
    ApiError::malformed(message).status(404).code("unknown_url")
}

pub(super) async fn method_not_allowed(method: Method, uri: Uri) -> ApiError {
    let message = format!("{} doesn't take {method}", uri.path());
    ApiError::malformed(message).status(405).code("method_not_allowed")
}
