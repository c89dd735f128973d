//! `/ui`: a page that shows what `/v1/admin/snapshot` tells, and says what operators say. Its files
//! are in the binary, and hold nothing of the cluster: what they ask for needs a key as any other.

use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::http::{HeaderName, header};
use axum::response::{IntoResponse, Redirect, Response};

use super::ApiResult;
use crate::openai::ApiError;

/// Nothing is loaded from elsewhere, nothing is run that stands in the page, and nobody frames it.
const POLICY: &str =
    "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Name, type and text.
const FILES: [(&str, &str, &str); 8] = [
    ("index.html", "text/html", include_str!("../ui/index.html")),
    ("style.css", "text/css", include_str!("../ui/style.css")),
    ("icon.svg", "image/svg+xml", include_str!("../ui/icon.svg")),
    ("app.js", "text/javascript", include_str!("../ui/app.js")),
    ("charts.js", "text/javascript", include_str!("../ui/charts.js")),
    ("dom.js", "text/javascript", include_str!("../ui/dom.js")),
    ("format.js", "text/javascript", include_str!("../ui/format.js")),
    ("panels.js", "text/javascript", include_str!("../ui/panels.js")),
];

/// Whether a path is one of the page's, for which no key is needed.
pub(super) fn is_page(path: &str) -> bool {
    path == "/" || path == "/ui" || path.starts_with("/ui/")
}

/// From the address that the server says, in a browser.
pub(super) async fn lead() -> Redirect {
    Redirect::temporary("/ui")
}

pub(super) async fn page() -> Response {
    file(&FILES[0])
}

pub(super) async fn part(name: Result<Path<String>, PathRejection>) -> ApiResult {
    let found = name.ok().and_then(|Path(name)| FILES.iter().find(|(it, ..)| *it == name));
    found.map(file).ok_or_else(|| {
        ApiError::malformed("the page at /ui has no such file").status(404).code("not_found")
    })
}

fn file((_, kind, text): &(&str, &str, &'static str)) -> Response {
    let headers = [
        (header::CONTENT_TYPE, format!("{kind}; charset=utf-8")),
        (header::CONTENT_SECURITY_POLICY, POLICY.to_owned()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        (header::REFERRER_POLICY, "no-referrer".to_owned()),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin".to_owned()),
        // Another release may have other files.
        (header::CACHE_CONTROL, "no-cache".to_owned()),
    ];
    (headers, *text).into_response()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Script, Server};
    use super::*;
    use crate::keys::Keys;
    use crate::keys::tests::key;

    #[tokio::test]
    async fn the_page_needs_no_key_and_loads_nothing_from_elsewhere() {
        let server = Server::with(
            |_| Script::Say(Vec::new()),
            |served| served.keys = Keys::of(vec![key("anna", "sk-anna")]),
        );
        let server = server.await;
        let lead = server.call("GET", "/", b"").await;
        assert_eq!((lead.status, lead.header("location")), (307, Some("/ui")));
        let page = server.call("GET", "/ui", b"").await;
        assert_eq!(page.status, 200, "{}", page.body);
        assert!(page.header("content-security-policy").unwrap().starts_with("default-src 'self';"));
        // What the policy forbids would silently be missing.
        for forbidden in ["<script>", "<style", " style=", " onclick=", "http://", "https://"] {
            assert!(!page.body.contains(forbidden), "{forbidden}");
        }
        let named = page.body.split(['"', '\'']).filter(|it| it.starts_with("/ui/"));
        let mut names: Vec<_> = named.map(str::to_owned).collect();
        for (name, _, text) in FILES {
            names.push(format!("/ui/{name}"));
            let imported = text.split('"').filter_map(|it| it.strip_prefix("./"));
            names.extend(imported.map(|it| format!("/ui/{it}")));
        }
        assert!(names.len() > 12, "{names:?}");
        for name in names {
            let part = server.call("GET", &name, b"").await;
            assert_eq!(part.status, 200, "{name}");
            assert_eq!(part.header("x-content-type-options"), Some("nosniff"));
        }
        for missing in ["/ui/other.js", "/ui/../Cargo.toml", "/ui/%2e%2e/x", "/uix"] {
            assert!([401, 404].contains(&server.call("GET", missing, b"").await.status));
        }
    }

    #[test]
    fn files_of_the_page_are_short() {
        for (name, _, text) in FILES {
            let num_lines = text.lines().count();
            assert!(num_lines <= 500, "{name} has {num_lines} lines");
        }
    }
}
