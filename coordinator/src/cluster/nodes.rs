//! How nodes come and go: in sessions, of which only the newest of each node counts.

use std::time::{Duration, Instant};

use protocol::{NodeId, NodeReport, SessionId};

use super::{Action, Cluster, unsuited};
use crate::duty::Duty;
use crate::members::Over;
use crate::status::QuarantineStatus;
use crate::trust::Quarantine;

impl Cluster {
    /// Whether this is the node's newest session, so that what it says counts.
    pub(crate) fn is_current(&self, node: NodeId, session: SessionId) -> bool {
        self.members.is_current(node, session)
    }

    pub(super) fn connected(
        &mut self,
        session: (NodeId, SessionId),
        wire_version: u16,
        now: Instant,
    ) {
        let older = self.members.connect(session, wire_version, now);
        self.failed(older, "the node joined again", now);
    }

    pub(super) fn join(&mut self, report: NodeReport, now: Instant) {
        if !self.members.join(report) {
            return;
        }
        let report = self.members.joined().last().expect("it just joined");
        self.trust.is_back(report.node);
        let wanted = (self.model.id, self.config.model.quantize);
        self.known.told(report, wanted, self.model.cost.layers.len());
        self.last_change = now;
        self.backoff.reset();
        self.actions.push(Action::Publish);
    }

    /// It goes on purpose, which is no failure.
    pub(super) fn leaves(&mut self, node: NodeId, session: SessionId, cause: &str, now: Instant) {
        let over = self.members.lose(node, session);
        if over.as_ref().is_some_and(|over| over.had_joined) {
            self.actions.push(Action::Gone { node, cause: cause.to_owned(), on_purpose: true });
        }
        self.left(over, cause, now);
    }

    pub(super) fn lost(&mut self, node: NodeId, session: SessionId, cause: &str, now: Instant) {
        let over = self.members.lose(node, session);
        self.failed(over, cause, now);
    }

    /// A local node's process has ended, whether it had joined or not.
    pub(super) fn exited(&mut self, pid: Option<u32>, cause: String, now: Instant) {
        let over = self.members.exit(pid);
        self.failed(over, &cause, now);
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

    /// A session is over that should not be.
    fn failed(&mut self, over: Option<Over>, cause: &str, now: Instant) {
        if let Some(Over { node, .. }) = over.filter(|over| over.had_joined) {
            self.actions.push(Action::Gone { node, cause: cause.to_owned(), on_purpose: false });
            self.node_failed(node, cause, now);
        }
        self.left(over, cause, now);
    }

    /// A node has failed, perhaps once too often.
    pub(super) fn node_failed(&mut self, node: NodeId, cause: &str, now: Instant) {
        let left_out = self.trust.failed(node, cause, &self.config.coordinator, now);
        if let Some(pause) = left_out {
            let cause = cause.to_owned();
            self.actions.push(Action::Quarantined { node, pause, cause });
        }
    }

    /// Whoever was left out for long enough may serve again.
    pub(super) fn let_in(&mut self, now: Instant) {
        for node in self.trust.tick(&self.config.coordinator, now) {
            self.last_change = now;
            self.actions.push(Action::LetIn(node));
            self.actions.push(Action::Publish);
        }
    }

    /// Nodes that have joined and aren't left out, by what they did or are, or by what somebody
    /// said.
    pub(super) fn usable(&self) -> impl Iterator<Item = &NodeReport> {
        self.members.joined().iter().filter(move |it| self.is_usable(it))
    }

    pub(super) fn is_usable(&self, it: &NodeReport) -> bool {
        let is_active = self.duties.of(it.node) == Duty::Active && !self.trust.is_out(it.node);
        is_active && unsuited(&self.config.model, it).is_none()
    }

    /// Those of them that are in no pipeline.
    pub(super) fn free(&self) -> impl Iterator<Item = &NodeReport> {
        self.usable().filter(|it| !self.pipelines.values().any(|of| of.is_on(it.node)))
    }

    /// How many of those that are waited for are here: also local ones that are left out for what
    /// they did or somebody said, since nobody comes in their place.
    pub(super) fn num_here(&self) -> usize {
        let suited =
            self.members.joined().iter().filter(|it| unsuited(&self.config.model, it).is_none());
        let is_local = |it: &NodeReport| it.data_addr.ip().to_canonical().is_loopback();
        suited.filter(|it| self.is_usable(it) || is_local(it)).count()
    }

    /// Free nodes that a pipeline may be made of: if it `avoids` any, without those that are to be
    /// avoided, where there are enough others: as many as there are stages or, where nobody has
    /// said how many, any once loads fail again and again. None while one that is needed may turn
    /// out to be gone.
    pub(super) fn trusted(&self, avoids: bool, now: Instant) -> Option<Vec<&NodeReport>> {
        let (avoided, mut trusted): (Vec<_>, Vec<_>) =
            self.free().partition(|it| self.trust.is_avoided(it.node, now));
        let num_stages = self.config.coordinator.num_stages();
        let are_enough = match num_stages {
            0 => self.backoff.has_repeated() && !trusted.is_empty(),
            _ => trusted.len() >= num_stages,
        };
        if avoided.is_empty() || (avoids && are_enough) {
            return Some(trusted);
        }
        if avoided.iter().any(|it| self.trust.may_be_gone(it.node, now)) {
            return None;
        }
        trusted.extend(avoided);
        Some(trusted)
    }

    /// How long it takes until a node that is gone has turned out to be.
    pub(super) fn silence(&self) -> Duration {
        let transport = &self.config.transport;
        Duration::from_millis(transport.idle_timeout_ms + transport.keep_alive_ms)
    }

    pub(super) fn quarantined(&self) -> Vec<QuarantineStatus> {
        let status = |(node, it): (NodeId, &Quarantine)| QuarantineStatus {
            node,
            until: it.until,
            cause: it.cause.clone(),
        };
        self.trust.quarantined().map(status).collect()
    }

    /// A session is over, for whatever reason: so that its node hears of it, too, it is closed.
    fn left(&mut self, over: Option<Over>, cause: &str, now: Instant) {
        let Some(Over { node, session, had_joined }) = over else { return };
        self.actions.push(Action::Disconnect(session));
        self.known.forget(node);
        self.ways.forget(node);
        self.duties.left(node, session);
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
