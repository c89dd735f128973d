//! Under which names this server answers whoever brings no key. A page can have its own name point
//! to an address of ours, and its browser then takes us for it: it asks without leave, and reads
//! what we answer. So names count only that no stranger can have.

use std::net::{IpAddr, Ipv6Addr};

use axum::extract::Request;
use axum::http::header;
use axum::response::Response;
use protocol::config::Http;

use super::error;
use crate::openai::ApiError;

/// Ends of names that nobody can register.
const PRIVATE: [&str; 5] = [".local", ".internal", ".svc", ".home.arpa", ".localhost"];

#[derive(Debug)]
pub(super) struct Hosts {
    names: Vec<String>,
    // Whoever is near enough to give out private names reaches this server anyway.
    may_be_private: bool,
}

impl Hosts {
    /// Those of a server that listens so; `may_be_private` says whether others reach it than this
    /// machine.
    pub(super) fn new(config: &Http, may_be_private: bool) -> Self {
        let mut names: Vec<_> = config.hosts.iter().map(|name| name.to_lowercase()).collect();
        let own = sysinfo::System::host_name().unwrap_or_default().to_lowercase();
        let short = own.split('.').next().unwrap_or_default().to_owned();
        let bound = config.addr.host().to_lowercase();
        names.extend([own, short, bound, "localhost".to_owned()]);
        names.retain(|name| !name.is_empty());
        Self { names, may_be_private }
    }

    /// Looks at a request of somebody who needs no key. One that names no host is no browser's.
    ///
    /// # Errors
    /// The answer, where the request goes no further.
    pub(super) fn check(&self, request: &Request) -> Result<(), Box<Response>> {
        let host = request.headers().get_all(header::HOST).iter();
        // HTTP/2 and proxies' requests have it in their target.
        let target = request.uri().authority().map(|it| it.as_str().as_bytes());
        let wrong = target.into_iter().chain(host.map(|it| it.as_bytes())).find(|it| !self.has(it));
        let Some(wrong) = wrong else { return Ok(()) };
        let message = format!(
            "this server has no API keys and doesn't answer as {:?}, which a web page could have \
             made point here: ask it by address or as localhost, name it in http.hosts of \
             cluster.toml, or make API keys (autoglm key create)",
            String::from_utf8_lossy(wrong).chars().take(100).collect::<String>()
        );
        let refused = ApiError::malformed(message).status(403).code("host_not_allowed");
        Err(Box::new(error::told(refused, error::style_of(request.uri().path()))))
    }

    /// Whether it is one of ours, whatever the port.
    fn has(&self, host: &[u8]) -> bool {
        let Ok(host) = std::str::from_utf8(host) else { return false };
        // Some proxies say whom they know.
        let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
        if let Some((address, port)) = host.strip_prefix('[').and_then(|it| it.split_once(']')) {
            return address.parse::<Ipv6Addr>().is_ok() && (port.is_empty() || is_port(port));
        }
        let name = match host.split_once(':') {
            Some((name, _)) if is_port(&host[name.len()..]) => name,
            Some(_) => return false,
            None => host,
        };
        let name = name.strip_suffix('.').unwrap_or(name).to_lowercase();
        let is_own = |known: &String| known == "*" || *known == name;
        let is_private = || !name.contains('.') || PRIVATE.iter().any(|end| name.ends_with(end));
        name.is_empty()
            || name.parse::<IpAddr>().is_ok()
            || name.ends_with(".localhost")
            || self.names.iter().any(is_own)
            || (self.may_be_private && is_private())
    }
}

fn is_port(text: &str) -> bool {
    text.strip_prefix(':').is_some_and(|port| port.bytes().all(|c| c.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_count_that_no_stranger_can_have() {
        let config = Http { hosts: vec!["Llm.example.org".into()], ..Http::default() };
        let (near, far) = (Hosts::new(&config, false), Hosts::new(&config, true));
        let own = sysinfo::System::host_name().unwrap();
        for host in [
            "127.0.0.1:8000",
            "10.0.0.7",
            "[::1]:8000",
            "[fe80::1]",
            "localhost",
            "LOCALHOST:8000",
            "localhost.:8000",
            "a.localhost:1",
            "llm.example.org",
            "llm.example.org:443",
            &own,
            "",
        ] {
            assert!(near.has(host.as_bytes()) && far.has(host.as_bytes()), "{host}");
        }
        for host in [
            "autoglm:8000",
            "autoglm.models",
            "autoglm.models.svc.cluster.local:8000",
            "gpu-1.local",
            "x.internal",
        ] {
            assert!(!near.has(host.as_bytes()), "{host}");
            let is_private = host != "autoglm.models";
            assert_eq!(far.has(host.as_bytes()), is_private, "{host}");
        }
        for host in [
            "evil.example:8000",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "127.0.0.1:8000:x",
            "[::1].evil.example",
            "localhost@evil.example",
            "evil.example\\localhost",
            "evil.example#.localhost:x",
            "\u{ff4c}.example",
        ] {
            assert!(!near.has(host.as_bytes()) && !far.has(host.as_bytes()), "{host}");
        }
        let all = Hosts::new(&Http { hosts: vec!["*".into()], ..Http::default() }, false);
        assert!(all.has(b"evil.example"));
    }
}
