//! Who may join: whoever proves a token that is good here, as a node that isn't here yet. A member
//! gets another certificate for itself, unless it is revoked.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dashmap::DashMap;
use jiff::Timestamp;
use protocol::NodeId;
use transport::{Applicant, LOCAL_TOKEN, TokenKey, Verdict};

use crate::store::{Store, StoreError};
use crate::tokens::TokenStanding;

/// Where nodes belong whose token doesn't say.
pub(crate) const DEFAULT_POOL: &str = "default";

/// Within this time failed proofs count.
const MINUTE: Duration = Duration::from_secs(60);

/// Addresses whose failed proofs are counted. Of more at once, whoever fails is to wait.
const MAX_COUNTED: usize = 1024;

/// Why a node may not join.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JoinRefusal {
    /// It proves no token that is known here.
    #[error(
        "a node must prove a join token that is known here: make one with autoglm token create \
         and run the command that it prints; the coordinator's own user on its machine needs none \
         but --token-file with join.token in the coordinator's data directory"
    )]
    NoToken,
    /// The token of the data directory, from elsewhere.
    #[error(
        "join.token is good on the coordinator's machine only: make a token with \
         autoglm token create and run the command that it prints"
    )]
    NotHere,
    /// The token is good no longer.
    #[error(
        "join token {token} is {}: make another with autoglm token create", standing.name()
    )]
    Token {
        /// The name of the join token.
        token: String,
        /// What it is instead.
        standing: TokenStanding,
    },
    /// It would belong elsewhere.
    #[error("the node is to be in pool {wanted}, and {what} is for pool {pool}")]
    OtherPool {
        /// What the node says.
        wanted: String,
        /// What speaks for it.
        what: &'static str,
        pool: String,
    },
    /// The node is revoked.
    #[error(
        "node {0} is revoked: to join again, remove its data directory and give it another token"
    )]
    Revoked(NodeId),
    /// A node of this id is connected.
    #[error("node {0} is connected already; a second one of its id may not join")]
    Connected(NodeId),
    /// It proves nothing, after too many others.
    #[error(
        "too many proofs have failed within a minute, this one among them: try again later, with \
         a join token that is known here"
    )]
    TooMany,
    /// What is kept can't be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl JoinRefusal {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::NoToken => "no_token",
            Self::NotHere => "not_here",
            Self::Token { standing: TokenStanding::Expired, .. } => "expired",
            Self::Token { standing: TokenStanding::UsedUp, .. } => "used_up",
            Self::Token { .. } => "revoked_token",
            Self::OtherPool { .. } => "other_pool",
            Self::Revoked(_) => "revoked_node",
            Self::Connected(_) => "connected",
            Self::TooMany => "too_many",
            Self::Store(_) => "store",
        }
    }

    /// What the node is told: whether it may ask again.
    pub(crate) fn verdict(&self) -> Verdict {
        match self {
            Self::Connected(_) | Self::TooMany | Self::Store(_) => {
                Verdict::NotNow(self.to_string())
            }
            _ => Verdict::Refused(self.to_string()),
        }
    }
}

/// Decides who may join; clones share what they know.
#[derive(Clone, Debug)]
pub(crate) struct Admission {
    store: Store,
    local: TokenKey,
    failures: Arc<Mutex<Failures>>,
    // Control connections of each node that has any.
    connected: Arc<DashMap<NodeId, u32>>,
}

impl Admission {
    /// Nobody is here; the tokens of `store` are good, and on this machine the one of this key.
    pub(crate) fn new(store: Store, local: TokenKey, max_failed_proofs: u32) -> Self {
        let failures = Failures { max: max_failed_proofs, of: HashMap::new() };
        let failures = Arc::new(Mutex::new(failures));
        Self { store, local, failures, connected: Arc::default() }
    }

    /// The pool of a node that may join: whatever it uses up is written. One on trial uses up
    /// nothing, and may have the id of any.
    ///
    /// # Errors
    /// Why this one may not join, or not yet.
    pub(crate) async fn decide(
        &self,
        applicant: &Applicant,
        now: Timestamp,
    ) -> Result<String, JoinRefusal> {
        let node = applicant.node;
        if self.store.revoked_nodes().await?.contains(&node) {
            return Err(JoinRefusal::Revoked(node));
        }
        let belongs = |what, pool: &str| match &applicant.pool {
            Some(wanted) if wanted != pool => {
                let (wanted, pool) = (wanted.clone(), pool.to_owned());
                Err(JoinRefusal::OtherPool { wanted, what, pool })
            }
            _ => Ok(pool.to_owned()),
        };
        if let Some(pool) = &applicant.member {
            // Its certificate names it and nobody else.
            return belongs("its certificate", pool);
        }
        let id = applicant.token().unwrap_or_default();
        let token = if id == LOCAL_TOKEN { None } else { self.store.token(id).await? };
        let key = match &token {
            Some(token) => Some(&token.key),
            None => Some(&self.local).filter(|_| id == LOCAL_TOKEN),
        };
        // Whoever proves nothing isn't told which tokens there are. Every proof is looked at, since
        // nobody guesses a secret: a good one may come from where many have failed.
        if !key.is_some_and(|key| applicant.knows(key)) {
            let may_fail = self.failures().note(applicant.addr.ip(), Instant::now());
            return Err(if may_fail { JoinRefusal::NoToken } else { JoinRefusal::TooMany });
        }
        let connected = || match self.connected.contains_key(&node) && !applicant.is_trial {
            // Whoever knows a token could otherwise take over the prompts of a node that serves.
            true => Err(JoinRefusal::Connected(node)),
            false => Ok(()),
        };
        let Some(token) = token else {
            if !applicant.is_here {
                return Err(JoinRefusal::NotHere);
            }
            connected()?;
            return belongs("join.token", DEFAULT_POOL);
        };
        let pool = belongs("its token", &token.pool)?;
        connected()?;
        let standing = match applicant.is_trial {
            true => token.standing(now),
            false => self.store.use_token(&token.id, node, &applicant.key, now).await?,
        };
        match standing {
            TokenStanding::Valid => Ok(pool),
            standing => Err(JoinRefusal::Token { token: token.id, standing }),
        }
    }

    /// This node is here as long as what is returned.
    pub(crate) fn enter(&self, node: NodeId) -> Entered {
        *self.connected.entry(node).or_default() += 1;
        Entered { node, connected: Arc::clone(&self.connected) }
    }

    fn failures(&self) -> std::sync::MutexGuard<'_, Failures> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Proofs that failed of late, by address.
#[derive(Debug)]
struct Failures {
    max: u32,
    of: HashMap<IpAddr, (Instant, u32)>,
}

impl Failures {
    /// A proof from there has failed. Whether no more have within a minute than may.
    fn note(&mut self, ip: IpAddr, now: Instant) -> bool {
        let ip = network(ip);
        let is_recent = |since: Instant| now.saturating_duration_since(since) < MINUTE;
        if self.of.len() >= MAX_COUNTED && !self.of.contains_key(&ip) {
            self.of.retain(|_, (since, _)| is_recent(*since));
            if self.of.len() >= MAX_COUNTED {
                return false;
            }
        }
        let (since, num) = self.of.entry(ip).or_insert((now, 0));
        if !is_recent(*since) {
            (*since, *num) = (now, 0);
        }
        *num = num.saturating_add(1);
        *num <= self.max
    }
}

/// What is counted as one address: in a network of IPv6 anybody has as many as there are.
fn network(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX)).into(),
        IpAddr::V4(_) => ip,
    }
}

#[derive(Debug)]
pub(crate) struct Entered {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_fails_too_often_is_told_to_wait_and_no_flood_is_counted_whole() {
        let mut failures = Failures { max: 3, of: HashMap::new() };
        let ip = |number: u32| IpAddr::from(number.to_be_bytes());
        let now = Instant::now();
        for number in 0..5 {
            assert_eq!(failures.note(ip(1), now), number < 3);
        }
        assert!(!failures.note(ip(1), now + MINUTE / 2) && failures.note(ip(2), now));
        let now = now + MINUTE;
        assert!(failures.note(ip(1), now), "it counts anew");
        let v6 = |network: u16, host: u16| IpAddr::from([0xfd00, 0, 0, network, 0, 0, 0, host]);
        let of_one: Vec<_> = (0..4).map(|host| failures.note(v6(1, host), now)).collect();
        assert_eq!(of_one, [true, true, true, false], "its machines are counted as one");
        assert!(failures.note(v6(2, 0), now));
        let num_counted = (0..10_000).filter(|it| failures.note(ip(*it), now)).count();
        assert_eq!(failures.of.len(), MAX_COUNTED);
        assert!(num_counted < MAX_COUNTED, "{num_counted}");
        assert!(failures.note(ip(20_000), now + 2 * MINUTE));
    }
}
