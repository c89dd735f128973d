//! Web pages: those whose origin is configured may ask, whatever others make a browser send is
//! refused. A browser asks before most requests, but posts simple ones unasked, to loopback too.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::ApiState;
use crate::openai::ApiError;

/// Seconds that a browser may remember what it was told.
const MAX_AGE: HeaderValue = HeaderValue::from_static("600");

const METHODS: HeaderValue = HeaderValue::from_static("GET, POST, DELETE, OPTIONS");

/// Headers of answers that a page may read.
const EXPOSED: HeaderValue = HeaderValue::from_static("x-request-id, retry-after, traceparent");

pub(super) async fn guard(
    State(state): State<Arc<ApiState>>,
    request: Request,
    next: Next,
) -> Response {
    let Some(origin) = request.headers().get(header::ORIGIN).cloned() else {
        return next.run(request).await;
    };
    let is_allowed = allows(&state.config.cors_origins, &origin);
    if request.method() == Method::OPTIONS
        && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
    {
        let mut response = StatusCode::NO_CONTENT.into_response();
        let wanted = request.headers().get(header::ACCESS_CONTROL_REQUEST_HEADERS).cloned();
        let headers = response.headers_mut();
        headers.insert(header::VARY, HeaderValue::from_static("origin"));
        if is_allowed {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS);
            headers.insert(header::ACCESS_CONTROL_MAX_AGE, MAX_AGE);
            let allowed = HeaderName::from_static("access-control-allow-headers");
            headers.extend(wanted.map(|wanted| (allowed, wanted)));
        }
        return response;
    }
    if !is_allowed && !is_own(&origin, request.headers()) {
        let origin = String::from_utf8_lossy(origin.as_bytes()).into_owned();
        let message = format!(
            "pages of {origin} may not ask this server; http.cors_origins names those that may"
        );
        return ApiError::malformed(message).status(403).code("origin_not_allowed").into_response();
    }
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.append(header::VARY, HeaderValue::from_static("origin"));
    if is_allowed {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
    }
    response
}

fn allows(configured: &[String], origin: &HeaderValue) -> bool {
    configured.iter().any(|known| known == "*" || known.as_bytes() == origin.as_bytes())
}

/// Whether a page comes from this server itself.
fn is_own(origin: &HeaderValue, headers: &HeaderMap) -> bool {
    let origin = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    origin.is_some_and(|(_, origin)| host == Some(origin))
}
