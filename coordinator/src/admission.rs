//! Who may join: whoever proves a token that is valid, as a node that isn't here yet. A member
//! gets another certificate for itself.

use std::sync::Arc;

use dashmap::DashMap;
use protocol::NodeId;
use transport::{Applicant, JoinError, Token};

/// Decides who may join; clones share what they know.
#[derive(Clone, Debug)]
pub struct Admission {
    token: Token,
    // Control connections of each node that has any.
    connected: Arc<DashMap<NodeId, u32>>,
}

impl Admission {
    /// Nobody is here, and this token is valid.
    pub fn new(token: Token) -> Self {
        Self { token, connected: Arc::default() }
    }

    /// # Errors
    /// Why this one may not join, or not yet.
    pub fn decide(&self, applicant: &Applicant) -> Result<(), JoinError> {
        let node = applicant.node;
        if applicant.is_member {
            // Its certificate names it and nobody else.
            Ok(())
        } else if !applicant.knows(&self.token) {
            Err(JoinError::NoToken)
        } else if self.connected.contains_key(&node) {
            // Whoever knows a token could otherwise take over the prompts of a node that serves.
            Err(JoinError::Connected { node })
        } else {
            Ok(())
        }
    }

    /// This node is here as long as what is returned.
    pub fn enter(&self, node: NodeId) -> Entered {
        *self.connected.entry(node).or_default() += 1;
        Entered { node, connected: Arc::clone(&self.connected) }
    }
}

/// That a node is here.
#[derive(Debug)]
pub struct Entered {
    node: NodeId,
    connected: Arc<DashMap<NodeId, u32>>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.connected.remove_if_mut(&self.node, |_, count| {
            *count -= 1;
            *count == 0
        });
    }
}
