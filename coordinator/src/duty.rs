//! Which nodes new pipelines do without since somebody said so: an operator, or a node itself that
//! wants to end.

pub(crate) mod kept;

use std::collections::BTreeMap;
use std::time::Instant;

use protocol::{NodeId, SessionId};

/// What a node is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Duty {
    /// Whatever is placed on it.
    Active,
    /// What it has; nothing new is placed on it.
    Cordoned,
    /// Nothing any more: what it has goes elsewhere.
    Draining,
}

impl Duty {
    /// Its name in answers and tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Cordoned => "cordoned",
            Self::Draining => "draining",
        }
    }

    pub(crate) fn of(name: &str) -> Option<Self> {
        [Self::Active, Self::Cordoned, Self::Draining].into_iter().find(|it| it.name() == name)
    }
}

/// The nodes that aren't active.
#[derive(Debug, Default)]
pub(crate) struct Duties {
    relieved: BTreeMap<NodeId, Relieved>,
}

#[derive(Debug)]
struct Relieved {
    duty: Duty,
    since: Instant,
    // Of a node that asked for it itself: in its next one it is what it was.
    session: Option<SessionId>,
    was_cordoned: bool,
    is_released: bool,
}

impl Relieved {
    fn new(duty: Duty, since: Instant) -> Self {
        Self { duty, since, session: None, was_cordoned: false, is_released: false }
    }
}

impl Duties {
    /// An operator's word. Whether anything changes by it.
    pub(crate) fn set(&mut self, node: NodeId, duty: Duty, now: Instant) -> bool {
        let before = self.of(node);
        if duty == Duty::Active {
            self.relieved.remove(&node);
        } else if before != duty {
            self.relieved.insert(node, Relieved::new(duty, now));
        } else if let Some(relieved) = self.relieved.get_mut(&node) {
            // From now on it is the operator's, who is to take it back.
            relieved.session = None;
        }
        before != duty
    }

    /// A node wants to end with this session. Whether it hadn't been drained before.
    pub(crate) fn leave(&mut self, node: NodeId, session: SessionId, now: Instant) -> bool {
        if self.of(node) == Duty::Draining {
            return false;
        }
        let was_cordoned = self.of(node) == Duty::Cordoned;
        let relieved = Relieved::new(Duty::Draining, now);
        self.relieved.insert(node, Relieved { session: Some(session), was_cordoned, ..relieved });
        true
    }

    /// A node's session is over.
    pub(crate) fn left(&mut self, node: NodeId, session: SessionId) {
        let Some(relieved) = self.relieved.get_mut(&node) else { return };
        relieved.is_released = false;
        if relieved.session == Some(session) {
            // A cordon is the operator's, and is there when the node comes back.
            match relieved.was_cordoned {
                true => *relieved = Relieved::new(Duty::Cordoned, relieved.since),
                false => drop(self.relieved.remove(&node)),
            }
        }
    }

    pub(crate) fn of(&self, node: NodeId) -> Duty {
        self.relieved.get(&node).map_or(Duty::Active, |it| it.duty)
    }

    /// Whether a node itself said that it goes, so that it won't serve again in this session.
    pub(crate) fn is_leaving(&self, node: NodeId) -> bool {
        self.relieved.get(&node).is_some_and(|it| it.session.is_some())
    }

    /// Those that aren't active.
    pub(crate) fn relieved(&self) -> impl Iterator<Item = (NodeId, Duty)> {
        self.relieved.iter().map(|(node, it)| (*node, it.duty))
    }

    /// Those that are to hold nothing any more, and since when.
    pub(crate) fn draining(&self) -> impl Iterator<Item = (NodeId, Instant)> {
        let draining = self.relieved.iter().filter(|(_, it)| it.duty == Duty::Draining);
        draining.map(|(node, it)| (*node, it.since))
    }

    /// A drained node holds nothing any more. Whether that is news.
    pub(crate) fn release(&mut self, node: NodeId) -> bool {
        let relieved = self.relieved.get_mut(&node);
        relieved.is_some_and(|it| !std::mem::replace(&mut it.is_released, true))
    }
}
