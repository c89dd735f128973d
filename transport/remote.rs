//! An actor in another process, and the little that may be done to it.

use std::time::Duration;

use ractor::rpc::CallResult;
use ractor::{ActorCell, ActorId, ActorRef, Message, RpcReplyPort};
use tracing::debug;

/// A reference to an actor in another process. It can be told and asked, never stopped: to stop
/// what stands for a remote actor here ends the session with its whole process.
#[derive(Debug)]
pub struct Remote<M>(ActorRef<M>);

impl<M> Clone for Remote<M> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<M: Message> Remote<M> {
    /// The actor that a process group names. One that takes other messages than `M` answers none.
    pub fn new(actor: ActorCell) -> Self {
        Self(actor.into())
    }

    /// Which of the actors that this process knows.
    pub fn id(&self) -> ActorId {
        self.0.get_id()
    }

    /// Sends a message, which may get lost without a word: whoever waits for its effect waits with
    /// a limit. False when it is certain that it was lost.
    pub fn tell(&self, message: M) -> bool {
        self.0.cast(message).is_ok()
    }

    /// Asks, and waits for the answer up to `limit`. None when there is no answer, which says
    /// nothing about whether the question was heard: a reply that is lost, or that the other side
    /// forgets, looks the same, and so does an error that the library reports for a plain timeout.
    pub async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(RpcReplyPort<T>) -> M,
        limit: Duration,
    ) -> Option<T> {
        // The library's own limit too: it is what frees the place of a reply that never comes.
        let asked = tokio::time::timeout(limit, self.0.call(question, Some(limit))).await;
        match asked {
            Ok(Ok(CallResult::Success(answer))) => Some(answer),
            other => {
                let cause = match other {
                    Ok(Ok(CallResult::Timeout)) | Err(_) => "it took too long",
                    Ok(Ok(_)) => "no reply came",
                    Ok(Err(_)) => "it is gone",
                };
                debug!(actor = %self.id(), cause, "no answer");
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use protocol::message::{NodeMsg, Wire};
    use protocol::{NodeReport, SessionId};
    use ractor::{Actor, ActorProcessingErr};

    use super::*;
    use crate::tests::{NODE, loopback};

    /// Answers every second question, and forgets the others in turn: one at once, one never.
    struct Forgetful;

    impl Actor for Forgetful {
        type Msg = NodeMsg;
        type State = (u32, Vec<RpcReplyPort<Wire<NodeReport>>>);
        type Arguments = ();

        async fn pre_start(
            &self,
            _myself: ActorRef<Self::Msg>,
            (): (),
        ) -> Result<Self::State, ActorProcessingErr> {
            Ok((0, Vec::new()))
        }

        async fn handle(
            &self,
            _myself: ActorRef<Self::Msg>,
            message: NodeMsg,
            (num_asked, kept): &mut Self::State,
        ) -> Result<(), ActorProcessingErr> {
            if let NodeMsg::Report(_, reply) = message {
                *num_asked += 1;
                match *num_asked {
                    1 => drop(reply),
                    2 => kept.push(reply),
                    _ => {
                        let report = NodeReport {
                            node: NODE,
                            session: SessionId(1),
                            hostname: "here".into(),
                            pid: 1,
                            data_addr: loopback(),
                            pool: String::new(),
                            labels: Vec::new(),
                            adapters: Vec::new(),
                            held: Vec::new(),
                        };
                        let _ = reply.send(report.into());
                    }
                }
            }
            Ok(())
        }
    }

    #[tokio::test]
    async fn whatever_is_no_answer_is_none_within_its_limit() {
        let (actor, _) = Actor::spawn(None, Forgetful, ()).await.unwrap();
        let remote = Remote::<NodeMsg>::new(actor.get_cell());
        let report = |reply| NodeMsg::Report(Wire::from(()), reply);
        let begin = Instant::now();
        assert!(remote.ask(report, Duration::from_secs(60)).await.is_none(), "it forgets");
        assert!(remote.ask(report, Duration::from_millis(100)).await.is_none(), "it keeps it");
        let answer = remote.ask(report, Duration::from_secs(60)).await;
        assert_eq!(answer.unwrap().0.unwrap().node, NODE);
        actor.stop_and_wait(None, None).await.unwrap();
        assert!(remote.ask(report, Duration::from_secs(60)).await.is_none(), "it is gone");
        assert!(
            !remote.tell(NodeMsg::Report(Wire::from(()), ractor::concurrency::oneshot().0.into()))
        );
        assert!(begin.elapsed() < Duration::from_secs(30));
    }
}
