//! Web pages: those whose origin is configured may ask, whatever others make a browser send is
//! refused. A browser asks before most requests, but posts simple ones unasked, to loopback too.

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::ApiState;
use crate::openai::ApiError;

/// Seconds that a browser may remember what it was told.
const MAX_AGE: HeaderValue = HeaderValue::from_static("600");

const METHODS: HeaderValue = HeaderValue::from_static("GET, POST, DELETE, OPTIONS");

/// Headers of answers that a page may read.
const EXPOSED: HeaderValue = HeaderValue::from_static(
    "x-request-id, retry-after, traceparent, x-ratelimit-limit-requests, \
     x-ratelimit-limit-tokens, x-ratelimit-remaining-requests, x-ratelimit-remaining-tokens, \
     x-ratelimit-reset-requests, x-ratelimit-reset-tokens",
);

/// The page that a request comes from, if it comes from one.
pub(super) struct Page {
    origin: Option<HeaderValue>,
    is_allowed: bool,
}

impl Page {
    /// Looks at a request before anything else does.
    ///
    /// # Errors
    /// The answer, where the request goes no further.
    pub(super) fn of(state: &ApiState, request: &Request) -> Result<Self, Box<Response>> {
        let Some(origin) = request.headers().get(header::ORIGIN).cloned() else {
            return Ok(Self { origin: None, is_allowed: false });
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
            return Err(Box::new(response));
        }
        if !is_allowed && !is_own(&origin, request.headers()) {
            let origin = String::from_utf8_lossy(origin.as_bytes()).into_owned();
            let message = format!(
                "pages of {origin} may not ask this server; http.cors_origins names those that may"
            );
            let refused = ApiError::malformed(message).status(403).code("origin_not_allowed");
            return Err(Box::new(refused.into_response()));
        }
        Ok(Self { origin: Some(origin), is_allowed })
    }

    /// What its browser is to know of the answer.
    pub(super) fn tell(self, response: &mut Response) {
        let Some(origin) = self.origin else { return };
        let headers = response.headers_mut();
        headers.append(header::VARY, HeaderValue::from_static("origin"));
        if self.is_allowed {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
        }
    }
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
