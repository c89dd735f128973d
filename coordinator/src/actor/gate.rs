//! What nodes see of the coordinator: an actor of its own, since a message that crosses processes
//! can't carry what local ones carry.

use protocol::message::{COORDINATOR_GROUP, CoordinatorMsg, Drain, Leaving, Wire};
use ractor::{Actor, ActorProcessingErr, ActorRef, pg};
use tracing::warn;

use super::Msg;
use crate::cluster::Input;

/// The coordinator's remote face: nodes cast to it, it passes on.
pub(crate) struct GateActor;

impl Actor for GateActor {
    type Msg = CoordinatorMsg;
    type State = ActorRef<Msg>;
    type Arguments = ActorRef<Msg>;

    async fn pre_start(
        &self,
        myself: ActorRef<CoordinatorMsg>,
        coordinator: ActorRef<Msg>,
    ) -> Result<ActorRef<Msg>, ActorProcessingErr> {
        pg::join(COORDINATOR_GROUP.to_owned(), vec![myself.get_cell()]);
        Ok(coordinator)
    }

    async fn handle(
        &self,
        _myself: ActorRef<CoordinatorMsg>,
        message: CoordinatorMsg,
        coordinator: &mut ActorRef<Msg>,
    ) -> Result<(), ActorProcessingErr> {
        let input = match message {
            CoordinatorMsg::Ready(Wire(echo)) => echo.map(Input::Ready),
            CoordinatorMsg::Failed(Wire(failed)) => failed.map(Input::Failed),
            CoordinatorMsg::Progress(Wire(progress)) => progress.map(Input::Progress),
            CoordinatorMsg::Fetching(Wire(fetching)) => fetching.map(Input::Fetching),
            CoordinatorMsg::Ways(Wire(ways)) => ways.map(Input::Ways),
            CoordinatorMsg::Drain(Wire(drain)) => {
                drain.map(|Drain { node, session }| Input::Drain { node, session })
            }
            CoordinatorMsg::Leaving(Wire(leaving)) => {
                let input =
                    |Leaving { node, session, cause }| Input::Leaving { node, session, cause };
                leaving.map(input)
            }
        };
        match input {
            Ok(input) => {
                let _ = coordinator.cast(Msg::Happened(input));
            }
            // A malformed message is the sender's fault; this actor goes on.
            Err(cause) => warn!(%cause, "a node's message is malformed"),
        }
        Ok(())
    }
}
