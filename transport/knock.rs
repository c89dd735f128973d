//! Whether anybody is there still: a process that was killed says nothing, but its machine does.
//!
//! QUIC's own socket isn't told of ICMP's "port unreachable", since it is connected to nobody. A
//! socket that is connected to the silent address alone hears it as an error.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::net::UdpSocket;

/// No QUIC packet: whoever is there drops it.
const KNOCK: [u8; 1] = [0];

/// Resolves when nothing was heard over `connection` for `interval`, and the machine that it leads
/// to says that nobody listens there any more; or when the connection has ended.
pub(crate) async fn until_nobody_listens(connection: &quinn::Connection, interval: Duration) {
    // A firewall, a translator of addresses or a proxy may refuse whoever isn't the one that was
    // dialled: where a knock is refused while somebody is there, it tells nothing.
    if is_refused(connection.remote_address(), interval).await {
        connection.closed().await;
        return;
    }
    let mut num_heard = 0;
    while connection.close_reason().is_none() {
        tokio::time::sleep(interval).await;
        let heard = connection.stats().udp_rx.datagrams;
        let is_silent = heard == num_heard;
        num_heard = heard;
        if is_silent && is_refused(connection.remote_address(), interval).await {
            return;
        }
    }
}

/// Resolves only when the machine of this address says, within `timeout`, that nobody listens
/// there.
pub(crate) async fn refused(addr: SocketAddr, timeout: Duration) {
    if !is_refused(addr, timeout).await {
        std::future::pending::<()>().await;
    }
}

/// Whether a packet to this address comes back as one that nobody takes.
async fn is_refused(addr: SocketAddr, timeout: Duration) -> bool {
    // A simulated network has no ICMP.
    #[cfg(test)]
    if turmoil::in_simulation() {
        return false;
    }
    let any = match addr {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    // A machine without a socket to spare waits for silence, as it would without all this.
    let Ok(socket) = UdpSocket::bind(any).await else { return false };
    let knock = async {
        socket.connect(addr).await?;
        socket.send(&KNOCK).await?;
        socket.recv(&mut [0; 1]).await
    };
    let is_refused = |cause: &std::io::Error| cause.kind() == std::io::ErrorKind::ConnectionRefused;
    tokio::time::timeout(timeout, knock)
        .await
        .is_ok_and(|heard| heard.is_err_and(|cause| is_refused(&cause)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::loopback;

    #[tokio::test]
    async fn a_closed_port_refuses_and_an_open_one_is_only_silent() {
        let listener = std::net::UdpSocket::bind(loopback()).unwrap();
        let (addr, timeout) = (listener.local_addr().unwrap(), Duration::from_millis(300));
        assert!(!is_refused(addr, timeout).await);
        drop(listener);
        assert!(is_refused(addr, timeout).await);
    }
}
