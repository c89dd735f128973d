use std::time::Duration;

use protocol::TokenId;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

use super::*;
use crate::actor::Msg;
use crate::engine::Submission;
use crate::openai::testing::Served;
use crate::request::{FinishReason, RequestError};
use crate::status::Status;
use crate::testing::inbox;

/// Completions whose requests come out of a mailbox.
async fn completions() -> (Arc<Completions>, mpsc::UnboundedReceiver<Msg>) {
    let (coordinator, inbox) = inbox().await;
    let (_, status) = watch::channel(Arc::new(Status::default()));
    let served = Served::chat();
    let completions = Completions {
        engine: Engine::new(coordinator, 8, status),
        tokenizer: served.tokenizer,
        chat_template: served.chat_template,
        model: served.model,
        parsing: Parsing::new(&served.config),
        config: served.config,
        metrics: Arc::new(Metrics::new("m", &protocol::config::Metrics::default())),
        tracer: Tracer::default(),
        traces: Traces::default(),
        log_requests: true,
        durables: Default::default(),
    };
    (Arc::new(completions), inbox)
}

/// Somebody's, or nobody's.
fn origin(is_awaited: bool) -> Origin {
    let start = Instant::now();
    let (client_request, parent, trace_state) = (None, None, String::new());
    Origin { start, is_awaited, client_request, parent, trace_state }
}

fn answered() -> Vec<Event> {
    let token = Event::Token { choice: 0, token: TokenId(7), logprobs: None, text: "a".into() };
    let reason = FinishReason::Length;
    vec![
        Event::Admitted { choice: 0, num_cached_tokens: 3, class: 0 },
        token,
        Event::Finished { choice: 0, reason, text: String::new() },
    ]
}

/// What becomes of a prompt of four tokens to which `said` is said, and what was asked for it.
async fn ask(
    completions: &Arc<Completions>,
    inbox: &mut mpsc::UnboundedReceiver<Msg>,
    (is_awaited, terms): (bool, Terms),
    (more, said): (Value, Vec<Event>),
) -> (Result<Answer, ApiError>, crate::request::Request) {
    let mut body = json!({"model": "m", "prompt": [5, 6, 7, 8], "max_tokens": 1});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let access = Arc::new(Access::anybody());
    let asked = Asked::new(completions, &access, Style::Completion, origin(is_awaited));
    let answer = async {
        let completion = asked.submit(body.to_string().into(), terms).await?;
        completion.whole().await
    };
    let compute = async {
        let Some(Msg::Submit(Submission { mut requests, .. })) = inbox.recv().await else {
            panic!("a submission")
        };
        let (request, teller) = requests.remove(0);
        teller.accept(Ok(()));
        said.into_iter().for_each(|event| teller.tell(event));
        request
    };
    tokio::join!(answer, compute)
}

#[tokio::test]
async fn who_asks_may_know_better_than_the_body_when_and_with_which_seed() {
    let (completions, mut inbox) = completions().await;
    let late = Instant::now() + Duration::from_secs(1 << 20);
    let terms = Terms { deadline: Some(late), priority: Some(Priority::Offline), seed: Some(9) };
    let body = json!({"service_tier": "realtime", "max_time_ms": 5});
    let (answer, request) = ask(&completions, &mut inbox, (false, terms), (body, answered())).await;
    let asked = (request.priority, request.deadline, request.sampling.seed);
    assert_eq!(asked, (Priority::Offline, Some(late), 9));
    let answer = answer.unwrap();
    assert_eq!((answer.num_prompt_tokens(), answer.num_cached_tokens()), (4, 3));
    let text: Value = serde_json::from_str(&answer.finish()).unwrap();
    assert_eq!(text["choices"][0]["text"], "a");
    // A seed of the body's own stays.
    let (_, request) =
        ask(&completions, &mut inbox, (false, terms), (json!({"seed": 4}), answered())).await;
    assert_eq!(request.sampling.seed, 4);
}

/// Goal: a line that waits for hours says nothing of how long people wait, and a failure that is
/// tried again is no alarm. Method: the same, awaited and not, answered and failed.
#[tokio::test]
async fn only_what_somebody_waits_for_is_timed_and_raises_alarms() {
    let (completions, mut inbox) = completions().await;
    for (is_awaited, expected) in [(false, 0), (true, 1)] {
        let how = (is_awaited, Terms::default());
        let failed = vec![Event::Failed(RequestError::ShuttingDown)];
        ask(&completions, &mut inbox, how, (json!({}), answered())).await.0.unwrap();
        ask(&completions, &mut inbox, how, (json!({}), failed)).await.0.unwrap_err();
        let text = completions.metrics.text();
        let is_there = |line: &str| text.lines().any(|it| it == line);
        assert!(is_there(&format!("autoglm_time_to_first_token_seconds_count {expected}")));
        let failures = "autoglm_errors_total{kind=\"shutting_down\"}";
        assert_eq!(text.contains(failures), is_awaited, "{text}");
    }
    // The tokens are counted all the same.
    assert!(completions.metrics.text().contains("autoglm_generation_tokens_total 2"));
}
