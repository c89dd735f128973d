//! Where something listens or is found: a host, by address or by name, and a port.

use std::fmt;
use std::net::{Ipv6Addr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// `HOST:PORT`. A name is looked up by whoever binds or dials.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Address {
    // Without the brackets that an IPv6 address is written in.
    host: String,
    port: u16,
}

/// Characters of a name in the DNS, at most.
const MAX_HOST_CHARS: usize = 253;

impl Address {
    /// The host, as whoever looks it up wants it.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Its port, which every address names.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl From<SocketAddr> for Address {
    fn from(addr: SocketAddr) -> Self {
        Self { host: addr.ip().to_string(), port: addr.port() }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || {
            format!("{text:?} is no HOST:PORT, as in localhost:8000, 10.0.0.1:8000 or [::1]:8000")
        };
        let (host, port) = text.rsplit_once(':').ok_or_else(expected)?;
        let port = Some(port).filter(|port| port.bytes().all(|c| c.is_ascii_digit()));
        let port = port.and_then(|port| port.parse().ok()).ok_or_else(expected)?;
        let in_brackets = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let is_right = match in_brackets {
            // A zone (`%eth0`) is the resolver's to understand.
            Some(host) => host.split('%').next().is_some_and(|ip| ip.parse::<Ipv6Addr>().is_ok()),
            None => {
                let is_sane = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
                (1..=MAX_HOST_CHARS).contains(&host.len()) && host.chars().all(is_sane)
            }
        };
        if !is_right {
            return Err(expected());
        }
        Ok(Self { host: in_brackets.unwrap_or(host).to_owned(), port })
    }
}

impl TryFrom<String> for Address {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Address> for String {
    fn from(address: Address) -> Self {
        address.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_addresses_are_hosts_and_come_back_as_they_were_written() {
        for (text, host, port) in [
            ("localhost:8000", "localhost", 8000),
            ("gpu-1.example.org:0", "gpu-1.example.org", 0),
            ("0.0.0.0:7000", "0.0.0.0", 7000),
            ("[::1]:65535", "::1", 65535),
            ("[fe80::1%eth0]:1", "fe80::1%eth0", 1),
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!((address.host(), address.port()), (host, port));
            assert_eq!(address.to_string(), text);
        }
        let addr = SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], 7));
        assert_eq!(Address::from(addr).to_string(), addr.to_string());
    }

    #[test]
    fn what_is_no_host_and_port_is_refused_with_what_would_be_right() {
        let long = "x".repeat(254) + ":1";
        for text in [
            "",
            "localhost",
            ":8000",
            "localhost:",
            "localhost:http",
            "localhost:65536",
            "localhost:+1",
            "::1:8000",
            "[::1:8000",
            "[localhost]:8000",
            "http://localhost:8000",
            "local host:8000",
            &long,
        ] {
            let error = text.parse::<Address>().unwrap_err();
            assert!(error.contains("HOST:PORT") && error.contains("localhost:8000"), "{error}");
        }
    }
}
