//! What meets the nodes that dial: who may join, whose sessions begin, and who is shown out.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use protocol::config;
use ractor::ActorRef;
use tracing::{debug, info, warn};
use transport::{
    Authority, Endpoint, Incoming, JoinRequest, NodeServerHandle, PeerName, Refusals, Verdict,
    ticks,
};

use crate::actor::Msg;
use crate::admission::Admission;
use crate::cluster::Input;
use crate::metrics::Metrics;
use crate::sessions::{Probe, Sessions};
use crate::stages::Stages;
use crate::store::Store;
use crate::weights::WeightSource;

/// How often it is looked whether the list of revoked nodes may have changed: a command writes it.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Looks between two at the list, whatever its file looks like.
const LOOKS_BETWEEN: u32 = 30;

/// Everything that has to do with a node that dials.
#[derive(Clone)]
pub(crate) struct Door {
    pub endpoint: Endpoint,
    /// Whose certificates they get.
    pub authority: Arc<Authority>,
    pub admission: Admission,
    /// Who carries actors.
    pub node_server: NodeServerHandle,
    pub coordinator: ActorRef<Msg>,
    pub stages: Arc<Stages>,
    /// What nodes get of the model.
    pub weights: Arc<WeightSource>,
    /// Of the nodes that have come in.
    pub sessions: Arc<Sessions>,
    pub metrics: Arc<Metrics>,
    /// Who was refused of late.
    pub refusals: Arc<Refusals>,
    /// How members talk.
    pub transport: config::Transport,
    /// How the way to them is measured.
    pub probe: Probe,
}

impl Door {
    /// Meets whoever dials, until the endpoint is closed.
    pub(crate) async fn keep(self) {
        while let Some(incoming) = self.endpoint.accept().await {
            match incoming {
                Incoming::Join(request) => {
                    let door = self.clone();
                    tokio::spawn(async move { door.meet(request).await });
                }
                Incoming::Control(connection) => {
                    let PeerName::Node(node) = connection.peer() else { continue };
                    let (door, entered) = (self.clone(), self.admission.enter(node));
                    tokio::spawn(async move {
                        let Self { stages, sessions, node_server, coordinator, .. } = &door;
                        let tell = |input| happened(coordinator, input);
                        sessions
                            .serve(node, connection, stages, node_server, door.probe, tell)
                            .await;
                        drop(entered);
                    });
                }
                Incoming::Data(connection) => {
                    let PeerName::Node(node) = connection.peer() else { continue };
                    let (stages, coordinator) = (self.stages.clone(), self.coordinator.clone());
                    let weights = Arc::clone(&self.weights);
                    let tell = move |input| happened(&coordinator, input);
                    tokio::spawn(
                        async move { stages.serve(node, connection, weights, tell).await },
                    );
                }
            }
        }
    }

    /// Lets a node in, or says why not: to the node, and once to the log.
    async fn meet(&self, request: JoinRequest) {
        let addr = request.remote_addr();
        let asking = match request.hear(&self.transport).await {
            Ok(asking) => asking,
            Err(cause) => return self.refused(addr, "protocol", &cause.to_string()),
        };
        let node = asking.applicant.node;
        let decided = self.admission.decide(&asking.applicant, Timestamp::now()).await;
        let verdict = match &decided {
            Ok(pool) => Verdict::Admitted { pool: pool.clone() },
            Err(cause) => cause.verdict(),
        };
        let is_open = !self.endpoint.local_addr().ip().is_loopback();
        let is_member = asking.applicant.member.is_some();
        let is_trial = asking.applicant.is_trial;
        let answered = asking.answer(&self.authority, &self.transport, is_open, &verdict).await;
        match (decided, answered) {
            (Err(cause), _) => self.refused(addr, cause.name(), &cause.to_string()),
            (Ok(_), Err(cause)) => self.refused(addr, "protocol", &cause.to_string()),
            (Ok(pool), Ok(())) if is_trial => info!(%addr, pool, "a node would be admitted"),
            (Ok(pool), Ok(())) if is_member => debug!(%node, %addr, pool, "certificate renewed"),
            (Ok(pool), Ok(())) => info!(%node, %addr, pool, "node admitted"),
        }
    }

    fn refused(&self, addr: SocketAddr, reason: &'static str, cause: &str) {
        self.metrics.join_refused(reason);
        if self.refusals.is_news(addr.ip(), cause, Instant::now()) {
            warn!(%addr, cause, "a node may not join");
        } else {
            debug!(%addr, cause, "a node may not join, again");
        }
    }
}

/// Shows out nodes that are revoked, and lets them in no more. Never ends.
pub(crate) async fn keep_out(
    store: Store,
    endpoint: Endpoint,
    sessions: Arc<Sessions>,
    coordinator: ActorRef<Msg>,
) {
    let (mut known, mut seen) = (HashSet::new(), None);
    for look in 0u32.. {
        let stamp = store.stamp().await;
        let may_have_changed = stamp.is_none() || stamp != seen;
        seen = stamp;
        let revoked = match may_have_changed || look.is_multiple_of(LOOKS_BETWEEN) {
            true => store.revoked_nodes().await.map(Some),
            false => Ok(None),
        };
        match revoked {
            Ok(Some(revoked)) if revoked != known => {
                endpoint.set_revoked(revoked.clone());
                // Their neighbours are to know it, too.
                let _ = coordinator.cast(Msg::Revoked(revoked.iter().copied().collect()));
                for node in revoked.difference(&known) {
                    info!(%node, "node revoked");
                }
                known = revoked;
            }
            Ok(_) => {}
            Err(cause) => {
                seen = None;
                warn!(%cause, "the list of revoked nodes can't be read");
            }
        }
        // One that was being let in meanwhile is found the next time.
        sessions.end(&known, "this node is revoked");
        ticks::pass(LOOK_EVERY).await;
    }
}

/// Tells the coordinator's actor.
pub(crate) fn happened(coordinator: &ActorRef<Msg>, input: Input) {
    // Fails only while the coordinator stops.
    let _ = coordinator.cast(Msg::Happened(input));
}
