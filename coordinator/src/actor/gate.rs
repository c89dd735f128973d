//! What nodes see of the coordinator: an actor of its own, since a message that crosses processes
//! can't carry what local ones carry.

use std::collections::HashSet;

use protocol::message::{COORDINATOR_GROUP, CoordinatorMsg, Drain, Leaving, Wire};
use ractor::{Actor, ActorProcessingErr, ActorRef, pg};
use tracing::{debug, warn};

use super::Msg;
use crate::cluster::Input;

/// The coordinator's remote face: nodes cast to it, it passes on.
pub(crate) struct GateActor;

/// What the gate remembers.
pub(crate) struct Gate {
    coordinator: ActorRef<Msg>,
    // Kinds of messages of which a malformed one came: it is said once, whoever sends them.
    malformed: HashSet<&'static str>,
}

impl Actor for GateActor {
    type Msg = CoordinatorMsg;
    type State = Gate;
    type Arguments = ActorRef<Msg>;

    async fn pre_start(
        &self,
        myself: ActorRef<CoordinatorMsg>,
        coordinator: ActorRef<Msg>,
    ) -> Result<Gate, ActorProcessingErr> {
        pg::join(COORDINATOR_GROUP.to_owned(), vec![myself.get_cell()]);
        Ok(Gate { coordinator, malformed: HashSet::new() })
    }

    async fn handle(
        &self,
        _myself: ActorRef<CoordinatorMsg>,
        message: CoordinatorMsg,
        gate: &mut Gate,
    ) -> Result<(), ActorProcessingErr> {
        gate.pass_on(message);
        Ok(())
    }
}

impl Gate {
    fn pass_on(&mut self, message: CoordinatorMsg) {
        let (kind, input) = match message {
            CoordinatorMsg::Ready(Wire(echo)) => ("Ready", echo.map(Input::Ready)),
            CoordinatorMsg::Failed(Wire(failed)) => ("Failed", failed.map(Input::Failed)),
            CoordinatorMsg::Progress(Wire(progress)) => ("Progress", progress.map(Input::Progress)),
            CoordinatorMsg::Fetching(Wire(fetching)) => ("Fetching", fetching.map(Input::Fetching)),
            CoordinatorMsg::Ways(Wire(ways)) => ("Ways", ways.map(Input::Ways)),
            CoordinatorMsg::Drain(Wire(drain)) => {
                ("Drain", drain.map(|Drain { node, session }| Input::Drain { node, session }))
            }
            CoordinatorMsg::Leaving(Wire(leaving)) => {
                let input =
                    |Leaving { node, session, cause }| Input::Leaving { node, session, cause };
                ("Leaving", leaving.map(input))
            }
        };
        match input {
            Ok(input) => {
                let _ = self.coordinator.cast(Msg::Happened(input));
            }
            // The sender's fault; this actor goes on. Who that is doesn't show: messages of all
            // nodes come here as if one had sent them.
            Err(cause) if self.malformed.insert(kind) => {
                warn!(kind, %cause, "a node's message is malformed, and dropped as others will be");
            }
            Err(cause) => debug!(kind, %cause, "a node's message is malformed, again"),
        }
    }
}

#[cfg(test)]
mod tests {
    use protocol::codec::CodecError;

    use super::*;
    use crate::testing::inbox;

    #[tokio::test]
    async fn malformed_messages_are_dropped_and_each_kind_is_said_once() {
        let (coordinator, mut inbox) = inbox().await;
        let mut gate = Gate { coordinator, malformed: HashSet::new() };
        for _ in 0..3 {
            gate.pass_on(CoordinatorMsg::Drain(Wire(Err(CodecError::Trailing(1)))));
        }
        let (node, session) = Default::default();
        gate.pass_on(CoordinatorMsg::Drain(Drain { node, session }.into()));
        assert_eq!(gate.malformed, HashSet::from(["Drain"]));
        assert!(matches!(inbox.recv().await, Some(Msg::Happened(Input::Drain { .. }))));
    }
}
