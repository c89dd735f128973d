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

/// The style in which whoever asks at a path expects errors, whatever is there.
pub(super) fn style_of(path: &str) -> Style {
    if path.starts_with("/v1/messages") { Style::Messages } else { Style::Chat }
}

/// For whoever asks for something else.
const THERE_IS: &str = "there are /v1/chat/completions, /v1/completions, /v1/responses, \
    /v1/messages, /v1/embeddings, /v1/models, /v1/files, /v1/batches and, for people, /ui";

pub(super) async fn not_found(uri: Uri) -> ApiError {
    let path = uri.path();
    let is_there = |path: &str| super::is_route(path);
    let twice = path.strip_prefix("/v1").filter(|path| is_there(path));
    let message = if let Some(meant) = twice {
        format!(
            "there is no {path}, but {meant}: this client adds /v1 itself; let its base URL end \
             before /v1"
        )
    } else if is_there(&format!("/v1{path}")) {
        format!(
            "there is no {path}, but /v1{path}: this client adds no /v1; let its base URL end \
             with /v1"
        )
    } else {
        format!("there is no {path}; {THERE_IS}")
    };
    ApiError::malformed(message).status(404).code("unknown_url")
}

pub(super) async fn method_not_allowed(method: Method, uri: Uri) -> Response {
    let message = format!("{} doesn't take {method}", uri.path());
    let error = ApiError::malformed(message).status(405).code("method_not_allowed");
    told(error, style_of(uri.path()))
}
