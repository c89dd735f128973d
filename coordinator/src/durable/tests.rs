//! Coordinators that end in the middle of an answer, and others that go on with it.

use std::path::Path;
use std::time::Instant;

use protocol::TokenId;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

use super::*;
use crate::actor::Msg;
use crate::completion::{Asked, Completion, Origin, Parsing, Terms};
use crate::engine::{Engine, Submission};
use crate::events::Teller;
use crate::keys::Access;
use crate::metrics::Metrics;
use crate::openai::Style;
use crate::openai::testing::Served;
use crate::request::{Event, FinishReason, Request, Resumed, SubmitError};
use crate::status::Status;
use crate::testing::inbox;

/// As much of a coordinator as answers need: whoever asks finds its requests in a mailbox.
struct Coordinator {
    completions: Arc<Completions>,
    inbox: mpsc::UnboundedReceiver<Msg>,
}

impl Coordinator {
    async fn start(dir: &Path, change: impl FnOnce(&mut config::Durable)) -> Self {
        let mut config = config::Durable::default();
        change(&mut config);
        let store = Store::open(dir).await.unwrap();
        let durables = Durables::open(store, config).await.unwrap();
        let (coordinator, inbox) = inbox().await;
        let (_, status) = watch::channel(Arc::new(Status::default()));
        let served = Served::chat();
        let completions = Arc::new(Completions {
            durables,
            engine: Engine::new(coordinator, 8, status),
            tokenizer: served.tokenizer,
            chat_template: served.chat_template,
            model: served.model,
            parsing: Parsing::new(&served.config),
            config: served.config,
            metrics: Arc::new(Metrics::new("m", &config::Metrics::default())),
            tracer: telemetry::Tracer::default(),
            traces: config::Traces::default(),
            log_requests: false,
        });
        Self { completions, inbox }
    }

    fn durables(&self) -> &Durables {
        &self.completions.durables
    }

    /// What the scheduler is asked for next.
    async fn submitted(&mut self) -> (Request, Teller) {
        loop {
            match self.inbox.recv().await.expect("a submission") {
                Msg::Submit(Submission { mut requests, .. }) => return requests.remove(0),
                // Whoever was given up is cancelled.
                other => assert!(matches!(other, Msg::Happened(_)), "{other:?}"),
            }
        }
    }

    async fn ask(
        &mut self,
        more: Value,
        accepted: Result<(), SubmitError>,
    ) -> Result<(Completion, Request, Teller), ApiError> {
        let mut body = json!({
            "model": "m", "prompt": [5, 6], "max_tokens": 3, "stream": true, "durable": true,
        });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let (client_request, parent, trace_state) = (None, None, String::new());
        let start = Instant::now();
        let origin = Origin { start, is_awaited: false, client_request, parent, trace_state };
        let access = Arc::new(Access::anybody());
        let asked = Asked::new(&self.completions, &access, Style::Completion, origin);
        let submit = asked.submit(body.to_string().into(), Terms::default());
        let accept = async {
            let (request, teller) = self.submitted().await;
            teller.accept(accepted);
            (request, teller)
        };
        // Whoever is refused before has nothing to accept.
        tokio::pin!(submit, accept);
        tokio::select! {
            refused = &mut submit => refused.map(|_| panic!("it waits")),
            (request, teller) = &mut accept => Ok((submit.await?, request, teller)),
        }
    }

    /// So many records of an answer, once they are there.
    async fn records(&self, id: RequestId, num: usize) -> (Vec<Record>, bool) {
        let log = self.durables().find(id, &self.completions).await.unwrap().expect("it is kept");
        for at in 0..num {
            assert!(matches!(log.after(at).await, Next::Records(_)), "{at}");
        }
        log.records()
    }
}

fn token(token: u32, text: &str) -> Event {
    Event::Token { choice: 0, token: TokenId(token), logprobs: None, text: text.into() }
}

fn admitted() -> Event {
    Event::Admitted { choice: 0, num_cached_tokens: 1, class: 5 }
}

fn finished() -> Event {
    Event::Finished { choice: 0, reason: FinishReason::Length, text: String::new() }
}

/// Goal: what one coordinator began another ends, and nothing is asked or said twice. Method: the
/// first one is gone after a token; the second is asked by nobody.
#[tokio::test]
async fn an_answer_goes_on_where_the_last_coordinator_was() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = Coordinator::start(dir.path(), |_| {}).await;
    let (completion, asked, teller) = first.ask(json!({}), Ok(())).await.unwrap();
    let id = asked.id;
    let recording = tokio::spawn(completion.record(first.durables().clone(), None, ()));
    [admitted(), token(39, "H")].into_iter().for_each(|event| teller.tell(event));
    let (said, has_ended) = first.records(id, 2).await;
    assert_eq!((said.len(), has_ended), (2, false));
    recording.abort();
    drop((first, teller));

    let mut second = Coordinator::start(dir.path(), |_| {}).await;
    second.durables().resume(&second.completions).await.unwrap();
    let (again, teller) = second.submitted().await;
    assert_eq!(again.resumed, Some(Resumed { tokens: [TokenId(39)].into(), class: Some(5) }));
    assert_eq!((again.id, &again.prompt, again.max_tokens), (id, &asked.prompt, asked.max_tokens));
    assert_eq!(again.sampling, asked.sampling, "with the seed that was drawn");
    let rest = [admitted(), token(73, "i"), token(3, "!"), finished()];
    rest.into_iter().for_each(|event| teller.tell(event));
    let (said, has_ended) = second.records(id, 5).await;
    assert!(has_ended);
    let events: Vec<_> = said.into_iter().map(|it| it.heard().unwrap().event).collect();
    let whole = [admitted(), token(39, "H"), token(73, "i"), token(3, "!"), finished()];
    assert_eq!(events, whole);
    drop((second, teller));

    let third = Coordinator::start(dir.path(), |_| {}).await;
    third.durables().resume(&third.completions).await.unwrap();
    assert_eq!(third.records(id, 5).await.0.len(), 5, "it has ended, and can be read");
}

/// A coordinator may end between the last token and the word that it was the last.
#[tokio::test]
async fn an_end_that_did_not_come_to_the_disk_is_made_up_for() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = Coordinator::start(dir.path(), |_| {}).await;
    let (completion, asked, teller) = first.ask(json!({}), Ok(())).await.unwrap();
    let recording = tokio::spawn(completion.record(first.durables().clone(), None, ()));
    let said = [admitted(), token(39, ""), token(73, ""), token(3, "")];
    said.into_iter().for_each(|event| teller.tell(event));
    first.records(asked.id, 4).await;
    recording.abort();
    drop((first, teller));
    let mut second = Coordinator::start(dir.path(), |_| {}).await;
    second.durables().resume(&second.completions).await.unwrap();
    let (said, has_ended) = second.records(asked.id, 5).await;
    assert!(has_ended && second.inbox.try_recv().is_err(), "nothing is computed: {said:?}");
}

/// Goal: a coordinator that stops ends no durable answer; a failure does.
#[tokio::test]
async fn only_what_another_try_would_not_mend_ends_an_answer() {
    let dir = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(dir.path(), |_| {}).await;
    for (error, ends) in [
        (crate::request::RequestError::ShuttingDown, false),
        (crate::request::RequestError::StepFailed("no".into()), true),
    ] {
        let (completion, asked, teller) = coordinator.ask(json!({}), Ok(())).await.unwrap();
        let log = Arc::clone(completion.log().unwrap());
        tokio::spawn(completion.record(coordinator.durables().clone(), None, ()));
        teller.tell(Event::Failed(error.clone()));
        match log.after(0).await {
            Next::BrokenOff(told) if !ends => assert_eq!(told.code, Some("shutting_down")),
            Next::Records(said) if ends => {
                let told = said[0].clone().heard().unwrap_err();
                assert_eq!((told.status, told.code), (500, Some("step_failed")));
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(coordinator.records(asked.id, usize::from(ends)).await.1, ends);
    }
}

/// Goal: no more is kept than configured, for no longer, and nothing of what was refused.
#[tokio::test]
async fn places_are_given_back_by_those_that_end_are_read_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let keep = |it: &mut config::Durable| {
        (it.max_requests, it.keep_ms, it.keep_read_ms) = (1, 100_000, 1000);
    };
    let mut coordinator = Coordinator::start(dir.path(), keep).await;
    let full = Err(SubmitError::QueueFull { max: 8 });
    let refused = coordinator.ask(json!({}), full).await.err().unwrap();
    assert_eq!(refused.code, Some("queue_full"));
    let (completion, asked, teller) = coordinator.ask(json!({}), Ok(())).await.unwrap();
    let refused = coordinator.ask(json!({}), Ok(())).await.err().unwrap();
    assert_eq!((refused.status, refused.code), (503, Some("too_many_durable")));
    tokio::spawn(completion.record(coordinator.durables().clone(), None, ()));
    let shared = coordinator.durables().0.clone().unwrap();
    let num_kept = async || {
        let entries = shared.entries().len();
        assert_eq!(rows::all(shared.store.reader()).await.unwrap().len(), entries);
        entries
    };
    let now = now_ms();
    shared.drop_old(now + 1_000_000).await;
    assert_eq!(num_kept().await, 1, "it has not ended");
    [admitted(), token(39, ""), finished()].into_iter().for_each(|event| teller.tell(event));
    coordinator.records(asked.id, 3).await;
    shared.drop_old(now + 50_000).await;
    assert_eq!(num_kept().await, 1);
    coordinator.durables().was_read(asked.id).await;
    shared.drop_old(now + 50_000).await;
    assert_eq!(num_kept().await, 0);
    let left = coordinator.durables().find(asked.id, &coordinator.completions).await.unwrap();
    assert!(left.is_none());
    let records = "SELECT count(*) FROM durable_records";
    let num: i64 = sqlx::query_scalar(records).fetch_one(shared.store.reader()).await.unwrap();
    assert_eq!(num, 0);
    coordinator.ask(json!({}), Ok(())).await.unwrap();
    let mut none = Coordinator::start(dir.path(), |it| it.max_requests = 0).await;
    let refused = none.ask(json!({}), Ok(())).await.err().unwrap();
    assert!(refused.message.contains("durable.max_requests = 0"), "{refused}");
}

/// Goal: an answer that is broken off holds up no reader, and no place for ever. Method: whoever
/// writes it goes; somebody comes back, and time passes.
#[tokio::test]
async fn an_answer_that_nobody_writes_says_so_and_gives_its_place_back() {
    let dir = tempfile::tempdir().unwrap();
    let keep = |it: &mut config::Durable| {
        (it.max_requests, it.keep_ms) = (1, 1000);
    };
    let mut coordinator = Coordinator::start(dir.path(), keep).await;
    let (completion, asked, _teller) = coordinator.ask(json!({}), Ok(())).await.unwrap();
    drop(completion);
    let found = coordinator.durables().find(asked.id, &coordinator.completions).await;
    let log = found.unwrap().expect("it is kept");
    let next = tokio::time::timeout(Duration::from_secs(60), log.after(0)).await;
    assert!(matches!(next, Ok(Next::BrokenOff(_))), "{next:?}");
    drop(log);
    let (shared, now) = (coordinator.durables().0.clone().unwrap(), now_ms());
    for (at, num_kept) in [(now, 1), (now + 999, 1), (now + 1000, 0)] {
        shared.drop_old(at).await;
        assert_eq!(shared.entries().len(), num_kept);
    }
    coordinator.ask(json!({}), Ok(())).await.unwrap();
}
