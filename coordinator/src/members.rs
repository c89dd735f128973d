//! Which nodes are here, and in which session. A node that comes back begins a new one: from then
//! on, news of the older one changes nothing.

use std::time::{Duration, Instant};

use protocol::{NodeId, NodeReport, SessionId, config};

#[derive(Debug, Default)]
pub(crate) struct Members {
    // The newest session of each node, in the order in which they began.
    sessions: Vec<Session>,
    // Those of them that have said what they have, in the order in which they did.
    joined: Vec<NodeReport>,
}

#[derive(Debug)]
struct Session {
    node: NodeId,
    id: SessionId,
    wire_version: u16,
    since: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Over {
    pub(crate) node: NodeId,
    pub(crate) session: SessionId,
    /// Whether the node had said what it has.
    pub(crate) had_joined: bool,
}

impl Members {
    /// Those that have joined, in that order.
    pub(crate) fn joined(&self) -> &[NodeReport] {
        &self.joined
    }

    /// Whether this is the node's newest session.
    pub(crate) fn is_current(&self, node: NodeId, session: SessionId) -> bool {
        self.sessions.iter().any(|it| (it.node, it.id) == (node, session))
    }

    /// The newest wire version that a node that is here and this process speak.
    pub(crate) fn wire_version(&self, node: NodeId) -> Option<u16> {
        Some(self.sessions.iter().find(|session| session.node == node)?.wire_version)
    }

    /// A node has connected: what it was in an older session is over.
    pub(crate) fn connect(
        &mut self,
        (node, session): (NodeId, SessionId),
        wire_version: u16,
        now: Instant,
    ) -> Option<Over> {
        let older = self.forget(node);
        self.sessions.push(Session { node, id: session, wire_version, since: now });
        older
    }

    /// A node has said what it has. False when it is not of the node's newest session, or known.
    pub(crate) fn join(&mut self, report: NodeReport) -> bool {
        let is_known = self.joined.iter().any(|known| known.node == report.node);
        let joins = !is_known && self.is_current(report.node, report.session);
        if joins {
            self.joined.push(report);
        }
        joins
    }

    /// A node's session is over, if it is its newest.
    pub(crate) fn lose(&mut self, node: NodeId, session: SessionId) -> Option<Over> {
        if self.is_current(node, session) { self.forget(node) } else { None }
    }

    /// A local process has ended, and with it the session of its node, if that had joined.
    pub(crate) fn exit(&mut self, pid: Option<u32>) -> Option<Over> {
        let is_it = |known: &&NodeReport| {
            Some(known.pid) == pid && known.data_addr.ip().to_canonical().is_loopback()
        };
        self.forget(self.joined.iter().find(is_it)?.node)
    }

    /// Those that have connected and don't say what they have for too long: they are to try again.
    pub(crate) fn silent(
        &self,
        config: &config::Transport,
        now: Instant,
    ) -> impl Iterator<Item = SessionId> {
        let after = Duration::from_millis(2 * config.connect_timeout_ms);
        let is_silent = move |session: &&Session| {
            now.saturating_duration_since(session.since) > after
                && self.joined.iter().all(|known| known.node != session.node)
        };
        self.sessions.iter().filter(is_silent).map(|session| session.id)
    }

    fn forget(&mut self, node: NodeId) -> Option<Over> {
        let num_before = self.joined.len();
        self.joined.retain(|known| known.node != node);
        let had_joined = self.joined.len() < num_before;
        let at = self.sessions.iter().position(|session| session.node == node)?;
        Some(Over { node, session: self.sessions.remove(at).id, had_joined })
    }
}
