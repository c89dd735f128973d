//! How nodes come and go: in sessions, of which only the newest of each node counts.

use std::time::Instant;

use protocol::{NodeId, NodeReport, SessionId};

use super::{Action, Cluster};
use crate::members::Over;

impl Cluster {
    /// Whether this is the node's newest session, so that what it says counts.
    pub fn is_current(&self, node: NodeId, session: SessionId) -> bool {
        self.members.is_current(node, session)
    }

    pub(super) fn connected(&mut self, node: NodeId, session: SessionId, now: Instant) {
        let older = self.members.connect(node, session, now);
        self.left(older, "the node joined again", now);
    }

    pub(super) fn join(&mut self, report: NodeReport, now: Instant) {
        if !self.members.join(report) {
            return;
        }
        self.last_change = now;
        self.backoff.reset();
        self.actions.push(Action::Publish);
        self.place_if_settled(now);
    }

    pub(super) fn lost(&mut self, node: NodeId, session: SessionId, cause: &str, now: Instant) {
        let over = self.members.lose(node, session);
        self.left(over, cause, now);
    }

    /// A local node's process has ended, whether it had joined or not.
    pub(super) fn exited(&mut self, pid: Option<u32>, cause: String, now: Instant) {
        let over = self.members.exit(pid);
        self.left(over, &cause, now);
        if self.pipelines.is_empty() {
            self.trouble = cause;
            self.actions.push(Action::Publish);
        }
    }

    /// Whoever has connected and doesn't say what it has is to try again.
    pub(super) fn disconnect_silent(&mut self, now: Instant) {
        let silent = self.members.silent(&self.config.transport, now);
        self.actions.extend(silent.map(Action::Disconnect));
    }

    /// A session is over, for whatever reason: so that its node hears of it, too, it is closed.
    fn left(&mut self, over: Option<Over>, cause: &str, now: Instant) {
        let Some(Over { node, session, had_joined }) = over else { return };
        self.actions.push(Action::Disconnect(session));
        self.known.forget(node);
        if !had_joined {
            return;
        }
        self.last_change = now;
        self.actions.push(Action::Publish);
        let held: Vec<_> =
            self.pipelines.values().filter(|it| it.is_on(node)).map(|it| it.id).collect();
        for id in held {
            self.lose_pipeline(id, &format!("node {node} is lost: {cause}"), now);
        }
        self.backoff.reset();
    }
}
