//! Whether anybody is there still: a process that was killed says nothing, but its machine does.
//!
//! QUIC's own socket isn't told of ICMP's "port unreachable", since it is connected to nobody. A
//! socket that is connected to the silent address alone hears it as an error.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::sync::Notify;

use crate::ticks;

/// No QUIC packet: whoever is there drops it.
const KNOCK: [u8; 1] = [0];

/// When it is looked whether the other side is silent.
#[derive(Debug)]
pub(crate) enum Looks {
    /// From time to time: it gives signs of life more often.
    Every(Duration),
    /// So long after something was sent, which is acknowledged sooner.
    After(Duration, Notify),
}

impl Looks {
    /// Whether the other side is silent for as long as it never is. `num_heard` is what had been
    /// heard when it was looked last.
    async fn is_silent(&self, connection: &quinn::Connection, num_heard: &mut u64) -> bool {
        let heard = || connection.stats().udp_rx.datagrams;
        match self {
            Self::Every(period) => ticks::pass(*period).await,
            Self::After(period, sent) => {
                sent.notified().await;
                *num_heard = heard();
                tokio::time::sleep(*period).await;
            }
        }
        let before = std::mem::replace(num_heard, heard());
        before == *num_heard
    }

    /// Something was sent.
    pub(crate) fn sent(&self) {
        if let Self::After(_, sent) = self {
            sent.notify_one();
        }
    }
}

/// Resolves when nothing was heard over `connection` where something should have been, and the
/// machine that it leads to says that nobody listens there any more; or when the connection has
/// ended.
pub(crate) async fn until_nobody_listens(connection: &quinn::Connection, looks: &Looks) {
    let (Looks::Every(patience) | Looks::After(patience, _)) = looks;
    // A firewall, a translator of addresses or a proxy may refuse whoever isn't the one that was
    // dialled: where a knock is refused while somebody is there, it tells nothing.
    if is_refused(connection.remote_address(), *patience).await {
        connection.closed().await;
        return;
    }
    let mut num_heard = 0;
    while connection.close_reason().is_none() {
        let is_silent = looks.is_silent(connection, &mut num_heard).await;
        if is_silent && is_refused(connection.remote_address(), *patience).await {
            // Whoever was heard meanwhile is there, whatever refuses.
            if connection.stats().udp_rx.datagrams != num_heard {
                connection.closed().await;
            }
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
