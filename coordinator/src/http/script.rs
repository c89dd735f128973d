//! Stands behind the API in its tests: says what a script has for each request.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use protocol::RequestId;
use ractor::ActorRef;

use crate::actor::{Look, Msg};
use crate::cluster::Input;
use crate::cluster_tests::Test;
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
        let mut open = HashMap::<RequestId, Teller>::new();
        // Nothing is computed: what is asked of the scheduler is what it decides before.
        let mut scheduler = Test::new(|config| config.scheduler.max_num_seqs = 1);
        scheduler.join(1, 1 << 30);
        scheduler.wait(Duration::from_secs(60));
        scheduler.load();
        while let Some(message) = inbox.recv().await {
            match message {
                Msg::Submit(submission) => {
                    let asked = submission.requests.iter().map(|(request, _)| request.clone());
                    scheduler.handle(Input::Submit(asked.collect()));
                    act(submission, &script, &mut open);
                }
                Msg::Look(Look(look)) => look(&scheduler.cluster, scheduler.now),
                Msg::Happened(input @ Input::Withdraw(_)) => {
                    scheduler.handle(input);
                    for (request, event) in std::mem::take(&mut scheduler.told) {
                        if let Event::Failed(_) = event
                            && let Some(teller) = open.remove(&RequestId(request))
                        {
                            teller.tell(event);
                        }
                    }
                }
                Msg::Happened(Input::Cancel(request)) => {
                    // Whoever was refused or left alone isn't here any more.
                    scheduler.handle(Input::Cancel(request));
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
