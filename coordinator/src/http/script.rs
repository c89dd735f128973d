//! Stands behind the API in its tests: says what a script has for each request.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use protocol::RequestId;
use ractor::ActorRef;

use crate::actor::Msg;
use crate::cluster::Input;
use crate::engine::Submission;
use crate::events::Teller;
use crate::request::{Event, Request, SubmitError};
use crate::testing::inbox;

pub(super) enum Script {
    /// Sends these events; like the real one, it keeps the channel open until the client leaves.
    Say(Vec<Event>),
    /// Sends these events and is gone.
    Vanish(Vec<Event>),
    Refuse(SubmitError),
}

/// An actor that plays it. `num_closed` counts the requests that their clients left.
pub(super) async fn play(
    script: impl Fn(&Request) -> Script + Send + 'static,
    num_closed: Arc<AtomicUsize>,
) -> ActorRef<Msg> {
    let (coordinator, mut inbox) = inbox().await;
    tokio::spawn(async move {
        let mut open = HashMap::new();
        while let Some(message) = inbox.recv().await {
            match message {
                Msg::Submit(submission) => act(submission, &script, &mut open),
                Msg::Happened(Input::Cancel(request)) => {
                    // Whoever was refused or left alone isn't here any more.
                    let was_open = open.remove(&request).is_some();
                    num_closed.fetch_add(usize::from(was_open), Ordering::SeqCst);
                }
                other => panic!("{other:?}"),
            }
        }
    });
    coordinator
}

/// Says what the script has for the requests of a body, as the coordinator's actor would.
fn act(
    submission: Submission,
    script: impl Fn(&Request) -> Script,
    open: &mut HashMap<RequestId, Teller>,
) {
    let mut scripts = Vec::new();
    for (request, teller) in submission.requests {
        match script(&request) {
            Script::Say(said) => scripts.push((said, Some(request.id), teller)),
            Script::Vanish(said) => scripts.push((said, None, teller)),
            Script::Refuse(error) => return teller.accept(Err(error)),
        }
    }
    for (said, stays, teller) in scripts {
        teller.accept(Ok(()));
        said.into_iter().for_each(|event| teller.tell(event));
        open.extend(stays.map(|id| (id, teller)));
    }
}
