//! Where a completion comes from, as its headers tell.

use std::time::Instant;

use axum::http::HeaderMap;
use protocol::TraceContext;

use crate::completion::Origin;

/// Characters of a client's own name for its request; a longer one is not repeated.
const MAX_CLIENT_ID_CHARS: usize = 128;

/// The specification wants at least so many characters of a `tracestate` passed on; more are not.
const MAX_STATE_BYTES: usize = 512;

/// Of a request with these headers, for whose answer somebody waits.
pub(super) fn of(headers: &HeaderMap, start: Instant) -> Origin {
    Origin {
        start,
        is_awaited: true,
        client_request: client_request(headers),
        parent: parent(headers),
        trace_state: trace_state(headers).unwrap_or_default(),
    }
}

/// The caller's place in its trace; a header that stands twice says nothing.
fn parent(headers: &HeaderMap) -> Option<TraceContext> {
    let mut all = headers.get_all("traceparent").iter();
    let header = all.next().filter(|_| all.next().is_none())?;
    TraceContext::parse(header.to_str().ok()?.trim())
}

fn trace_state(headers: &HeaderMap) -> Option<String> {
    let all = headers.get_all("tracestate").iter().map(|value| value.to_str().ok());
    let all = all.collect::<Option<Vec<_>>>()?.join(",");
    (all.len() <= MAX_STATE_BYTES).then_some(all)
}

/// What a client or a proxy calls its request, where that is a plain word: it goes into logs.
fn client_request(headers: &HeaderMap) -> Option<String> {
    let id = headers.get("x-request-id")?.to_str().ok()?;
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.:/+=".contains(c);
    let is_sane = (1..=MAX_CLIENT_ID_CHARS).contains(&id.len()) && id.chars().all(is_plain);
    is_sane.then(|| id.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_names_its_request_in_plain_words_or_not_at_all() {
        let long = "x".repeat(129);
        let cases = [
            ("7b3e-a.b_c:1", true),
            (&long[1..], true),
            ("", false),
            (&long[..], false),
            ("a b", false),
            ("a\"b", false),
            ("caf\u{e9}", false),
        ];
        for (id, is_taken) in cases {
            let mut headers = HeaderMap::new();
            headers.insert("x-request-id", id.parse().unwrap());
            assert_eq!(client_request(&headers).is_some(), is_taken, "{id}");
        }
    }
}
