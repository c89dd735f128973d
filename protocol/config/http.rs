//! The API's part of `cluster.toml`.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::ConfigError;
use crate::Address;

/// The API.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Http {
    /// Where the API listens: HOST:PORT, the host an address or a name.
    pub addr: Address,
    /// The file of API keys, as `autoglm key` writes it; it is read again when it changes. Empty:
    /// `keys.toml` in the data directory, where there is one. Once there are keys, requests need
    /// one.
    pub api_keys: PathBuf,
    /// Whether the API may listen beyond loopback without keys, open to whoever reaches it.
    pub allow_anonymous: bool,
    /// Bytes of a request's body; one more is answered 413.
    pub max_body_bytes: usize,
    /// Bytes of a refused body that are read and dropped, so that its client comes to read why.
    pub max_dropped_bytes: usize,
    /// Requests that are answered at once; one more is answered 503.
    pub max_concurrent_requests: usize,
    /// Connections at once; for one more, that without a request for longest is closed. Fewer
    /// where the system's limit of open files is lower.
    pub max_connections: usize,
    /// Of those, how many are left for health checks whatever else is asked.
    pub reserved_connections: usize,
    /// Milliseconds that a connection is kept without a request, or with one whose head doesn't
    /// come to an end.
    pub idle_timeout_ms: u64,
    /// Milliseconds that the body of a request may take to arrive.
    pub body_timeout_ms: u64,
    /// Milliseconds that a client may leave an answer unread before it counts as gone.
    pub send_timeout_ms: u64,
    /// Web pages that may ask, by origin as in `https://chat.example.org`; `*` is all of them. The
    /// others' browsers are told nothing, and what a page can send unasked is refused.
    pub cors_origins: Vec<String>,
    /// Names under which whoever asks may know this server while there are no API keys, beside its
    /// addresses, `localhost` and the machine's name, and, where others than this machine reach it,
    /// beside names that nobody can register; `*` is all of them. A web page could have any other
    /// name point here.
    pub hosts: Vec<String>,
    /// Most probable tokens that a request may ask for with each token.
    pub max_logprobs: u32,
    /// Choices of one request (`n`).
    pub max_choices: u32,
    /// Sequences of one request: prompts times choices.
    pub max_request_sequences: usize,
    /// Stop strings of one request.
    pub max_stop_strings: usize,
    /// Characters of one stop string.
    pub max_stop_chars: usize,
    /// Entries of one request's `logit_bias`.
    pub max_logit_bias: usize,
    /// Tokens of an answer when the request names no limit. 0: as many as fit.
    pub default_max_tokens: u32,
    /// Steps that rendering a chat template may take; what it reads and makes costs steps, too.
    pub max_template_fuel: u64,
    /// Bodies that are turned into tokens at once, each by a thread of its own; one more waits.
    pub max_parsing_threads: usize,
    /// Bytes of those bodies together; a larger one is turned into tokens alone.
    pub max_parsing_bytes: usize,
    /// Bytes that a chat template may make of a request.
    pub max_rendered_bytes: usize,
    /// Bytes of a grammar that an answer keeps to, a JSON schema for instance.
    pub max_grammar_bytes: usize,
    /// Symbols that such a grammar may become.
    pub max_grammar_symbols: usize,
    /// Compiled grammars that are kept for who asks for the same one again.
    pub max_kept_grammars: usize,
}

impl Default for Http {
    fn default() -> Self {
        Self {
            addr: SocketAddr::from(([127, 0, 0, 1], 8000)).into(),
            api_keys: PathBuf::new(),
            allow_anonymous: false,
            max_body_bytes: 8 << 20,
            max_dropped_bytes: 64 << 20,
            max_concurrent_requests: 1024,
            max_connections: 2048,
            reserved_connections: 16,
            idle_timeout_ms: 75_000,
            body_timeout_ms: 60_000,
            send_timeout_ms: 60_000,
            cors_origins: Vec::new(),
            hosts: Vec::new(),
            max_logprobs: 20,
            max_choices: 16,
            max_request_sequences: 256,
            max_stop_strings: 16,
            max_stop_chars: 1024,
            max_logit_bias: 1024,
            default_max_tokens: 0,
            max_template_fuel: 10_000_000,
            max_parsing_threads: 4,
            max_parsing_bytes: 16 << 20,
            max_rendered_bytes: 16 << 20,
            max_grammar_bytes: 64 << 10,
            max_grammar_symbols: 100_000,
            max_kept_grammars: 64,
        }
    }
}

impl Http {
    /// # Errors
    /// When requests can't be served so.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if self.max_connections <= self.reserved_connections {
            return Err(ConfigError::Value {
                key: "http.max_connections",
                value: self.max_connections.to_string(),
                expected: "must be more than http.reserved_connections",
            });
        }
        if let Some(origin) = self.cors_origins.iter().find(|origin| !is_origin(origin)) {
            return Err(ConfigError::Value {
                key: "http.cors_origins",
                value: origin.clone(),
                expected: "must be * or SCHEME://HOST[:PORT] as browsers write it, in small \
                           letters and without a path",
            });
        }
        let is_name = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        match self.hosts.iter().find(|it| *it != "*" && (it.is_empty() || !it.chars().all(is_name)))
        {
            None => Ok(()),
            Some(host) => Err(ConfigError::Value {
                key: "http.hosts",
                value: host.clone(),
                expected: "must be * or a name, without a scheme or a port",
            }),
        }
    }
}

/// Whether this can be what a browser sends as `Origin`.
fn is_origin(text: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_graphic() && !c.is_ascii_uppercase() && !"/\"*".contains(c);
    let is_right = |(scheme, host): (&str, &str)| {
        !scheme.is_empty() && !host.is_empty() && (scheme.chars().chain(host.chars())).all(is_plain)
    };
    text == "*" || text.split_once("://").is_some_and(is_right)
}

#[cfg(test)]
mod tests {

    #[test]
    fn what_cannot_be_served_is_refused_by_name() {
        for (lines, name) in [
            ("addr = \"8000\"", "HOST:PORT"),
            ("max_connections = 16", "http.max_connections = 16: must be more than"),
            ("reserved_connections = 0", "http.reserved_connections = 0"),
            ("idle_timeout_ms = 0", "http.idle_timeout_ms = 0"),
            ("max_request_sequences = 0", "http.max_request_sequences = 0"),
            ("cors_origins = [\"chat.example.org\"]", "http.cors_origins = chat.example.org"),
            ("cors_origins = [\"*\", \"https://a/\"]", "http.cors_origins = https://a/"),
            ("cors_origins = [\"https://A\"]", "http.cors_origins = https://A"),
            ("cors_origins = [\"https://*.a\"]", "http.cors_origins = https://*.a"),
            ("hosts = [\"llm\", \"llm.example.org:80\"]", "http.hosts = llm.example.org:80"),
            ("hosts = [\"\"]", "http.hosts = "),
        ] {
            let error = crate::Config::parse(&format!("[http]\n{lines}")).unwrap_err().to_string();
            assert!(error.contains(name), "{lines}: {error}");
        }
        let lines = "addr = \"localhost:8000\"\ncors_origins = [\"https://a:8\", \"tauri://b\"]";
        let config = crate::Config::parse(&format!("[http]\n{lines}")).unwrap();
        assert_eq!(config.http.addr.host(), "localhost");
    }
}
