//! Who asks: the key of a request is looked at before anything of its body is read. Every handler
//! finds a [`Caller`] among the extensions of its request.
//!
//! Health needs no key, since what asks for it has none, and neither do the files of the page at
//! /ui, which hold nothing of the cluster. Everything else does, once there are keys: /metrics one
//! for metrics, /v1/admin one for admin, the rest, what isn't there included, one for inference.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::Response;

use super::{ApiState, error, health, ui};
use crate::keys::{Access, KeyRefusal, Limits, OverQuota, Scope};
use crate::openai::ApiError;

/// Who asks, and what they may.
#[derive(Clone, Debug)]
pub(super) struct Caller(pub(super) Arc<Access>);

impl Caller {
    /// Says what is left, in OpenAI's headers, where something is limited.
    pub(super) fn tell_limits(&self, headers: &mut HeaderMap) {
        if self.0.limits == Limits::default() {
            return;
        }
        for (left, names) in self.0.left().into_iter().zip([&REQUESTS, &TOKENS]) {
            let Some((limit, left)) = left else { continue };
            let values = [limit.to_string(), left.remaining.to_string(), span(left.reset)];
            for (name, value) in names.iter().zip(values) {
                let value = HeaderValue::try_from(value).expect("digits and units");
                headers.insert(HeaderName::from_static(name), value);
            }
        }
    }

    /// Whose files and jobs are shown; none: everybody's.
    pub(super) fn sees(&self) -> Option<&str> {
        (!self.is_operator()).then_some(&*self.0.tenant)
    }

    /// Whether everything is theirs to see: where no key is needed, there is one tenant.
    fn is_operator(&self) -> bool {
        self.0.name.is_some() && self.0.is_for(Scope::Admin)
    }

    /// Whether requests of `tenant` are theirs to see and to cancel.
    pub(super) fn may_see(&self, tenant: &str) -> bool {
        self.0.is_for(Scope::Admin) || *self.0.tenant == *tenant
    }
}

/// Of a request that its key doesn't allow now: counted, and on its way.
pub(super) fn over(state: &ApiState, quota: OverQuota) -> ApiError {
    state.metrics.refused(quota.reason());
    quota.into()
}

/// Who asks, told to handlers before anything of a body is read.
///
/// # Errors
/// With the answer to those who may not.
pub(super) fn identify(state: &ApiState, request: &mut Request) -> Result<Caller, Box<Response>> {
    let scope = match request.uri().path() {
        path if health::is_health(path) || ui::is_page(path) => {
            return Ok(Caller(state.keys.anybody()));
        }
        "/metrics" => Scope::Metrics,
        path if path.starts_with(ADMIN) => Scope::Admin,
        _ => Scope::Inference,
    };
    let access = state.keys.access(secret(request.headers())).map_err(|refusal| {
        state.metrics.refused(match refusal {
            KeyRefusal::Missing => "no_key",
            KeyRefusal::Unknown => "unknown_key",
            KeyRefusal::Expired(_) => "expired_key",
            KeyRefusal::Revoked(_) => "revoked_key",
        });
        let mut response = error::told(refusal.into(), error::style_of(request.uri().path()));
        let scheme = HeaderValue::from_static("Bearer");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
        Box::new(response)
    })?;
    // Open to all is the model, not the cluster.
    let is_open = scope == Scope::Admin && access.name.is_none() && state.config.allow_anonymous;
    if is_open || !access.is_for(scope) {
        state.metrics.refused("scope");
        let message = match scope {
            _ if is_open => {
                "where the API is open to all, operators need an API key of scope admin: make one \
                 with autoglm key create --scope admin"
                    .to_owned()
            }
            Scope::Admin => "this API key isn't for admin; it takes one of that scope".to_owned(),
            _ => {
                let name = scope.name();
                format!("this API key isn't for {name}; it takes one of scope {name} or admin")
            }
        };
        let error = ApiError::malformed(message).status(403).code("insufficient_scope");
        let style = error::style_of(request.uri().path());
        return Err(Box::new(error::told(error, style)));
    }
    let caller = Caller(access);
    request.extensions_mut().insert(caller.clone());
    Ok(caller)
}

/// What operators see and say.
const ADMIN: &str = "/v1/admin/";

/// OpenAI's clients send it in one header, Anthropic's in another.
fn secret(headers: &HeaderMap) -> Option<&str> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let authorization = text(header::AUTHORIZATION.as_str());
    let bearer = authorization.and_then(|text| text.trim().split_once(' '));
    let bearer = bearer.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    let secret = bearer.map(|(_, secret)| secret).or_else(|| text("x-api-key"));
    secret.map(str::trim).filter(|secret| !secret.is_empty())
}

const REQUESTS: [&str; 3] =
    ["x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"];

const TOKENS: [&str; 3] =
    ["x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"];

/// As in `6m0s`, `1.25s` and `20ms`; rounded up.
fn span(time: Duration) -> String {
    let millis = time.as_nanos().div_ceil(1_000_000);
    let seconds = |millis: u128| match millis % 1000 {
        0 => format!("{}s", millis / 1000),
        rest => {
            let digits = format!("{rest:03}");
            format!("{}.{}s", millis / 1000, digits.trim_end_matches('0'))
        }
    };
    match millis {
        0 => "0s".into(),
        1..1000 => format!("{millis}ms"),
        1000..60_000 => seconds(millis),
        60_000..3_600_000 => format!("{}m{}", millis / 60_000, seconds(millis % 60_000)),
        _ => {
            format!("{}h{}m{}", millis / 3_600_000, millis / 60_000 % 60, seconds(millis % 60_000))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_written_as_openai_writes_them() {
        for (nanos, expected) in [
            (0, "0s"),
            (1, "1ms"),
            (20_000_000, "20ms"),
            (999_000_001, "1s"),
            (1_250_000_000, "1.25s"),
            (59_999_999_999, "1m0s"),
            (90_500_000_000, "1m30.5s"),
            (360_000_000_000, "6m0s"),
            (3_661_000_000_000, "1h1m1s"),
        ] {
            assert_eq!(span(Duration::from_nanos(nanos)), expected);
        }
    }

    #[test]
    fn a_key_comes_as_either_kind_of_client_sends_it() {
        for (name, value, expected) in [
            ("authorization", "Bearer sk-1", Some("sk-1")),
            ("authorization", "bearer   sk-1 ", Some("sk-1")),
            ("x-api-key", "sk-1", Some("sk-1")),
            ("authorization", "Basic sk-1", None),
            ("authorization", "Bearer ", None),
            ("authorization", "Bearer", None),
            ("authorization", "sk-1", None),
            ("x-api-key", "", None),
            ("cookie", "sk-1", None),
        ] {
            let headers = [(HeaderName::from_static(name), HeaderValue::from_static(value))];
            assert_eq!(secret(&headers.into_iter().collect()), expected, "{name}: {value}");
        }
        let mut both = HeaderMap::new();
        both.insert("x-api-key", HeaderValue::from_static("sk-2"));
        both.insert("authorization", HeaderValue::from_static("Basic x"));
        assert_eq!(secret(&both), Some("sk-2"));
        both.insert("authorization", HeaderValue::from_static("Bearer sk-1"));
        assert_eq!(secret(&both), Some("sk-1"));
    }
}
