//! Names of hosts, looked up.

use std::io;
use std::net::SocketAddr;

use protocol::Address;

/// Every address that a host has, IPv4 first: what listens on `localhost` is met at 127.0.0.1, by
/// whichever order a system lists the two.
///
/// # Errors
/// When nobody knows the host.
pub async fn resolve(address: &Address) -> io::Result<Vec<SocketAddr>> {
    let found = tokio::net::lookup_host((address.host(), address.port())).await;
    let named = |cause: io::Error| {
        io::Error::new(cause.kind(), format!("can't look up {}: {cause}", address.host()))
    };
    let mut found: Vec<_> = found.map_err(named)?.collect();
    found.sort_by_key(SocketAddr::is_ipv6);
    found.dedup();
    if found.is_empty() {
        return Err(named(io::Error::new(io::ErrorKind::NotFound, "it has no address")));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn localhost_is_met_at_127_0_0_1_and_an_address_is_itself() {
        let found = resolve(&"localhost:7".parse().unwrap()).await.unwrap();
        assert_eq!(found[0], SocketAddr::from(([127, 0, 0, 1], 7)), "{found:?}");
        let found = resolve(&"[::1]:8".parse().unwrap()).await.unwrap();
        assert_eq!(found.len(), 1);
        assert!(found[0].is_ipv6());
        let error = resolve(&"nobody.invalid:9".parse().unwrap()).await.unwrap_err();
        assert!(error.to_string().contains("nobody.invalid"), "{error}");
    }
}
