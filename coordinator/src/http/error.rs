//! Errors as responses.

use axum::Json;
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};

use crate::openai::{ApiError, Style};

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

/// As the clients of a style expect it.
pub(super) fn told(error: ApiError, style: Style) -> Response {
    let body = style.error(&error);
    let mut response = error.into_response();
    if style == Style::Messages {
        let (mut parts, _) = response.into_parts();
        parts.headers.remove(header::CONTENT_LENGTH);
        response = (parts.status, parts.headers, Json(body)).into_response();
    }
    response
}

pub(super) async fn not_found(uri: Uri) -> ApiError {
    let message = format!("there is no {}; the API is under /v1", uri.path());
    ApiError::malformed(message).status(404).code("unknown_url")
}

pub(super) async fn method_not_allowed(method: Method, uri: Uri) -> ApiError {
    let message = format!("{} doesn't take {method}", uri.path());
    ApiError::malformed(message).status(405).code("method_not_allowed")
}
