//! Nodes' sessions: a control and a data connection each. When either ends the session is over and
//! the other is closed, so that no node is half there and its side begins anew.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use dashmap::DashMap;
use protocol::{NodeId, NodeReport, SessionId};
use tracing::{debug, warn};
use transport::{Connection, ControlStream, NodeServerHandle, PeerName, ticks};

use crate::cluster::Input;
use crate::stages::Stages;

/// Between two looks at what QUIC says of the way to a node.
const HEAR_PAUSE: Duration = Duration::from_secs(2);

/// Sessions that are open, by their control connections.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    open: DashMap<SessionId, Connection>,
}

/// How the way to a node is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Probe {
    /// Bytes that are sent; 0: it isn't.
    pub num_bytes: usize,
    pub timeout: Duration,
}

impl Probe {
    /// Measures it once, then passes on what QUIC says of it.
    async fn measure(self, node: NodeId, data: &Connection, tell: &impl Fn(Input)) -> String {
        let Self { num_bytes, timeout } = self;
        if num_bytes > 0 {
            match data.probe(num_bytes, timeout).await {
                Ok(speed) => {
                    debug!(%node, ?speed, "the way to a node is measured");
                    tell(Input::Measured { ends: (None, Some(node)), speed });
                }
                Err(cause) => debug!(%node, %cause, "the way to a node isn't measured"),
            }
        }
        loop {
            ticks::pass(HEAR_PAUSE).await;
            tell(Input::Heard((None, Some(node)), data.rtt().as_secs_f64() * 1e6));
        }
    }
}

impl Sessions {
    /// A node's control connection: from its greeting to the end of its session.
    pub(crate) async fn serve(
        &self,
        node: NodeId,
        control: Connection,
        stages: &Stages,
        server: &NodeServerHandle,
        probe: Probe,
        tell: impl Fn(Input),
    ) {
        let (session, stream) = match ControlStream::accept(&control).await {
            Ok(greeted) => greeted,
            Err(cause) => {
                warn!(%node, %cause, "a node's control stream can't be opened");
                control.close(&cause.to_string());
                return;
            }
        };
        let Some(data) = stages.connection(node, session).await else {
            let cause = "the data connection of this session doesn't come";
            warn!(%node, %session, cause, "a node's session can't be opened");
            control.close(cause);
            return;
        };
        self.open.insert(session, control.clone());
        let wire_version = control.wire_version();
        tell(Input::Connected { node, session, wire_version });
        let cause = match server.accept(stream) {
            Ok(()) => tokio::select! {
                cause = control.closed() => cause,
                cause = probe.measure(node, &data, &tell) => cause,
                cause = data.closed() => format!("its data connection: {cause}"),
            },
            Err(cause) => cause.to_string(),
        };
        debug!(%node, %session, cause, "a session is over");
        self.open.remove(&session);
        control.close(&cause);
        data.close(&cause);
        tell(Input::Lost { node, session, cause });
    }

    /// Puts right what a node can't know of itself: where it is seen, and where it belongs.
    ///
    /// # Errors
    /// Why its neighbours couldn't reach it.
    pub(crate) fn correct(&self, report: &mut NodeReport) -> Result<(), String> {
        let Some(control) = self.open.get(&report.session) else { return Ok(()) };
        report.pool = control.pool().unwrap_or_default().to_owned();
        report.data_addr = place(report.data_addr, control.remote_addr().ip())?;
        Ok(())
    }

    /// A neighbour's address for the node of this session: who is on the coordinator's machine is
    /// known to others by the address at which they reach the coordinator.
    pub(crate) fn address_for(&self, session: SessionId, addr: SocketAddr) -> SocketAddr {
        let Some(control) = self.open.get(&session) else { return addr };
        let is_elsewhere = !control.remote_addr().ip().is_loopback();
        match control.local_ip() {
            Some(ip) if is_elsewhere && addr.ip().is_loopback() => SocketAddr::new(ip, addr.port()),
            _ => addr,
        }
    }

    /// The wire version that the node of this session understands.
    pub(crate) fn wire_version(&self, session: SessionId) -> Option<u16> {
        Some(self.open.get(&session)?.wire_version())
    }

    /// Ends every session of these nodes.
    pub(crate) fn end(&self, nodes: &HashSet<NodeId>, cause: &str) {
        for control in &self.open {
            if matches!(control.peer(), PeerName::Node(node) if nodes.contains(&node)) {
                control.close(cause);
            }
        }
    }

    /// Closes a session's connections, if they are open: its node is to begin a new one.
    pub(crate) fn disconnect(&self, session: SessionId) {
        if let Some(control) = self.open.get(&session) {
            control.close("the coordinator has ended the session");
        }
    }
}

/// Where a node is reached that reports `addr` and is seen at `seen`.
fn place(addr: SocketAddr, seen: IpAddr) -> Result<SocketAddr, String> {
    let ip = match addr.ip().to_canonical() {
        ip if ip.is_unspecified() => seen,
        ip => ip,
    };
    if matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local()) {
        return Err(format!(
            "its neighbours would have to reach it at {ip}, which is good on one link only: give \
             it another address of the coordinator with --join, or one of its own with --advertise"
        ));
    }
    if ip.is_loopback() && !seen.is_loopback() {
        return Err(format!(
            "its neighbours would have to reach it at {ip}, which is their own machine: give it \
             another address with --advertise"
        ));
    }
    Ok(SocketAddr::new(ip, addr.port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_where_it_is_seen_unless_it_says_better() {
        let at = |addr: &str, seen: &str| {
            place(addr.parse().unwrap(), seen.parse().unwrap()).map(|it| it.to_string())
        };
        for (addr, seen, expected) in [
            ("0.0.0.0:7", "10.0.0.2", "10.0.0.2:7"),
            ("[::]:7", "10.0.0.2", "10.0.0.2:7"),
            ("[::]:7", "fd00::2", "[fd00::2]:7"),
            ("[::]:7", "127.0.0.1", "127.0.0.1:7"),
            ("127.0.0.1:7", "127.0.0.1", "127.0.0.1:7"),
            ("203.0.113.9:7", "10.0.0.2", "203.0.113.9:7"),
            ("[::ffff:10.0.0.3]:7", "10.0.0.2", "10.0.0.3:7"),
        ] {
            assert_eq!(at(addr, seen).unwrap(), expected, "{addr} {seen}");
        }
        for (addr, seen, expected) in [
            ("[::]:7", "fe80::1", "good on one link only"),
            ("[fe80::1]:7", "fd00::2", "good on one link only"),
            ("127.0.0.1:7", "10.0.0.2", "their own machine"),
        ] {
            let said = at(addr, seen).unwrap_err();
            assert!(said.contains(expected) && said.contains("--advertise"), "{said}");
        }
    }
}
