//! Checks the answers of a load against references that were taken beforehand, each alone
//! (`--verify`).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;
use tokio::sync::Notify;

use super::observe::{Observe, ObserveAnswer};
use super::pace::{Pace, Ramp};
use super::transcript::{Compared, Comparison, Recording, Reference};
use super::workload::{History, Workload};
use super::{Extent, Load, Progress};
use crate::client::failure::{Failure, FailureKind};
use crate::client::request::Endpoint;
use crate::client::{Answer, Server};
use crate::distribution::Delays;
use crate::numbers::grouped;
use crate::report::result::Verification;

/// Answers that are described, of those that aren't identical.
const MAX_EXAMPLES: usize = 5;
/// Characters of a prompt that name its request.
const MAX_NAME_CHARS: usize = 40;

/// Fields of a body that decide when it is answered, not what.
const NOT_OF_THE_ANSWER: [&str; 5] =
    ["stream_options", "service_tier", "priority", "user", "metadata"];

/// The references of a load, and what was found by them since it was last asked. It observes the
/// load.
#[derive(Debug)]
pub struct Verifier {
    endpoint: Endpoint,
    compared: Compared,
    references: HashMap<String, Arc<Reference>>,
    verification: Arc<Mutex<Verification>>,
}

impl Verifier {
    /// Asks for each different request of `load`, of which there are as many as
    /// [`Workload::distinct`] says, one after the other, and keeps the answers. `progress` counts
    /// them. When `stop` resolves before that, there is no verifier.
    ///
    /// # Errors
    /// When there are more requests than can be told, a body's answer is left to chance, or a
    /// request isn't answered whole.
    pub async fn take_references(
        server: &Server,
        load: &Load,
        progress: &Arc<Progress>,
        stop: impl Future<Output = ()>,
    ) -> Result<Option<Self>> {
        let Some(num_conversations) = load.workload.distinct else {
            bail!("a load whose requests never repeat can't be verified");
        };
        let workload = Workload { think: Delays::default(), ..load.workload.clone() };
        let endpoint = load.parameters.endpoint;
        let first = workload.conversation(0).body(
            0,
            &History::default(),
            &load.parameters,
            workload.seed,
        )?;
        check_determined(&first)?;
        let (_, compared) = ask_first(server, endpoint, &first)
            .await
            .with_context(|| format!("no reference answer to {}: not started", name(&first)))?;

        let turns = (0..num_conversations).map(|index| workload.conversation(index).turns.len());
        let num_requests = turns.map(|turns| turns as u64).sum();
        let taker = Arc::new(Taker {
            endpoint,
            compared,
            references: Mutex::default(),
            failure: Mutex::default(),
            failed: Notify::new(),
        });
        let alone = Load {
            parameters: load.parameters.clone(),
            workload,
            pace: Pace::Closed { concurrency: Ramp::constant(1.0) },
            extent: Extent::requests(num_requests),
            slo: Default::default(),
            observer: Some(Arc::new(taker.clone())),
        };
        let stop = async {
            tokio::select! {
                () = stop => {}
                () = taker.failed.notified() => {}
            }
        };
        let measured = alone.run(server, progress, stop).await?;
        if let Some(failure) = lock(&taker.failure).take() {
            return Err(anyhow!(failure));
        }
        if measured.interrupted {
            return Ok(None);
        }
        let references = std::mem::take(&mut *lock(&taker.references));
        Ok(Some(Self { endpoint, compared, references, verification: Arc::default() }))
    }

    /// What was found since the last time, or the beginning.
    pub fn take(&self) -> Verification {
        Verification {
            references: self.references.len() as u64,
            compared: self.compared.to_string(),
            ..std::mem::take(&mut *lock(&self.verification))
        }
    }
}

impl Observe for Verifier {
    fn sent(&self, body: &mut Value, _at: Duration) -> Option<Box<dyn ObserveAnswer>> {
        // A turn after an answer that differed has no reference.
        let reference = self.references.get(&key(body))?.clone();
        let checking = Checking {
            name: name(body),
            recording: Recording::new(reference),
            verification: self.verification.clone(),
        };
        self.compared.ask(self.endpoint, body);
        Some(Box::new(checking))
    }
}

/// One answer that is being checked.
struct Checking {
    name: String,
    recording: Recording,
    verification: Arc<Mutex<Verification>>,
}

impl ObserveAnswer for Checking {
    fn begin(&mut self) {
        self.recording.begin();
    }

    fn event(&mut self, event: &Value) {
        self.recording.take(event);
    }

    /// One that no stream was opened for is a failure, and no answer that could be compared.
    fn ended(self: Box<Self>, outcome: &Result<Answer, Failure>, _at: Duration) {
        if self.recording.has_begun() {
            let failure = outcome.as_ref().err();
            let comparison = self.recording.compare(failure.is_none());
            count(&mut lock(&self.verification), &comparison, failure, &self.name);
        }
    }
}

/// Observes the requests that are asked alone.
struct Taker {
    endpoint: Endpoint,
    compared: Compared,
    references: Mutex<HashMap<String, Arc<Reference>>>,
    failure: Mutex<Option<String>>,
    failed: Notify,
}

impl Observe for Arc<Taker> {
    fn sent(&self, body: &mut Value, _at: Duration) -> Option<Box<dyn ObserveAnswer>> {
        let taking = Taking {
            key: key(body),
            name: name(body),
            recording: Recording::new(Arc::default()),
            taker: self.clone(),
        };
        self.compared.ask(self.endpoint, body);
        Some(Box::new(taking))
    }
}

struct Taking {
    key: String,
    name: String,
    recording: Recording,
    taker: Arc<Taker>,
}

impl ObserveAnswer for Taking {
    fn event(&mut self, event: &Value) {
        self.recording.take(event);
    }

    fn ended(self: Box<Self>, outcome: &Result<Answer, Failure>, _at: Duration) {
        let Self { key, name, recording, taker } = *self;
        let reference = match outcome {
            Ok(_) => recording.into_reference().ok_or_else(|| TOO_LONG.to_string()),
            Err(failure) => Err(failure.to_string()),
        };
        match reference {
            Ok(reference) => {
                lock(&taker.references).insert(key, Arc::new(reference));
            }
            Err(cause) => {
                let failure = format!("no reference answer to {name}: not started: {cause}");
                lock(&taker.failure).get_or_insert(failure);
                taker.failed.notify_one();
            }
        }
    }
}

const TOO_LONG: &str = "the answer is too long to be a reference";

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What was found, on one line.
pub fn sentence(verification: &Verification) -> String {
    let Verification { checked, identical, references, compared, .. } = verification;
    let by = format!("by {compared}, against {} references", grouped(*references));
    if *checked == 0 {
        return format!("none came that could be checked {by}");
    }
    let checked_by = format!("{} checked {by}", grouped(*checked));
    if checked == identical && verification.broken_streams == 0 {
        return format!("{checked_by}: all identical");
    }
    let found = [
        (verification.broken_streams, "broken streams"),
        (verification.differing_tokens, "tokens differ"),
        (verification.differing_ends, "ends differ"),
    ];
    let found = found.into_iter().filter(|(num, _)| *num > 0);
    let found: Vec<String> = found.map(|(num, what)| format!("{} {what}", grouped(num))).collect();
    format!("{checked_by}: {} identical, {}", grouped(*identical), found.join(", "))
}

impl Verification {
    /// Whether every answer that came was whole and the reference's.
    pub fn is_clean(&self) -> bool {
        self.checked == self.identical && self.broken_streams == 0
    }
}

/// An answer counts as identical when it is whole, and all of it equals the reference.
fn count(
    verification: &mut Verification,
    comparison: &Comparison,
    failure: Option<&Failure>,
    name: &str,
) {
    verification.checked += 1;
    verification.differing_tokens += comparison.num_differing;
    verification.broken_streams += u64::from(failure.is_some());
    verification.differing_ends += u64::from(comparison.ending.is_some());
    if failure.is_none() && comparison.is_identical() {
        verification.identical += 1;
    } else if verification.examples.len() < MAX_EXAMPLES {
        verification.examples.push(describe(comparison, failure, name));
    }
}

fn describe(comparison: &Comparison, failure: Option<&Failure>, name: &str) -> String {
    let mut said = Vec::new();
    if comparison.num_differing > 0 {
        let (equal, differing) = (comparison.num_equal, comparison.num_differing);
        said.push(format!("{equal} equal tokens, then {differing} that differ"));
    }
    said.extend(comparison.ending.clone());
    said.extend(failure.map(|failure| match comparison.num_equal {
        0 => format!("the stream broke: {failure}"),
        num => format!("the stream broke, with {num} equal tokens: {failure}"),
    }));
    format!("{name}: {}", said.join("; "))
}

/// The first reference decides what this server can be compared by.
async fn ask_first(
    server: &Server,
    endpoint: Endpoint,
    body: &Value,
) -> Result<(Reference, Compared), Failure> {
    for compared in [Compared::TokenIds, Compared::Tokens] {
        match ask(server, endpoint, body, compared).await {
            Ok(reference) if reference.allows(compared) => return Ok((reference, compared)),
            // It doesn't know the fields: it ignores them, or refuses them.
            Ok(_) | Err(Failure { kind: FailureKind::Status(400..=499), .. }) => {}
            Err(failure) => return Err(failure),
        }
    }
    Ok((ask(server, endpoint, body, Compared::Text).await?, Compared::Text))
}

async fn ask(
    server: &Server,
    endpoint: Endpoint,
    body: &Value,
    compared: Compared,
) -> Result<Reference, Failure> {
    let mut recording = Recording::new(Arc::default());
    let mut body = body.clone();
    compared.ask(endpoint, &mut body);
    server.ask(endpoint, &body, &mut recording).await?;
    let failure = || Failure::new(FailureKind::Malformed, TOO_LONG);
    recording.into_reference().ok_or_else(failure)
}

/// An answer can only be compared when neither the clock nor chance has a part in it.
fn check_determined(body: &Value) -> Result<()> {
    let is_greedy = body.get("temperature").and_then(Value::as_f64) == Some(0.0);
    if !is_greedy && body.get("seed").is_none_or(Value::is_null) {
        bail!(
            "the answer to {} is left to chance and can't be verified: \
             give --temperature 0, or a --seed",
            name(body)
        );
    }
    Ok(())
}

/// What decides an answer.
fn key(body: &Value) -> String {
    let mut body = body.clone();
    if let Some(fields) = body.as_object_mut() {
        fields.retain(|field, _| !NOT_OF_THE_ANSWER.contains(&field.as_str()));
    }
    body.to_string()
}

/// The beginning of a request's prompt, quoted.
fn name(body: &Value) -> String {
    let message = body.get("messages").and_then(Value::as_array).and_then(|all| all.last());
    let content = message.and_then(|message| message.get("content"));
    let text = content.or(body.get("prompt")).and_then(Value::as_str).unwrap_or_default();
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match text.char_indices().nth(MAX_NAME_CHARS) {
        Some((end, _)) => format!("\"{}…\"", &text[..end]),
        None => format!("\"{text}\""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn found(num_differing: u64, ending: Option<&str>) -> Comparison {
        Comparison { num_differing, num_equal: 7, ending: ending.map(str::to_string) }
    }

    #[test]
    fn answers_are_counted_by_what_is_wrong_with_them() {
        let mut verification = Verification {
            compared: Compared::Tokens.to_string(),
            references: 32,
            ..Verification::default()
        };
        let broken = Failure::new(FailureKind::Truncated, "stream ended without [DONE]");
        let mut add = |comparison: Comparison, failure: Option<&Failure>| {
            count(&mut verification, &comparison, failure, "\"Hi\"");
            (sentence(&verification), verification.clone())
        };
        let (said, after) = add(found(0, None), None);
        let by = "by tokens and logprobs, against 32 references";
        assert_eq!(said, format!("1 checked {by}: all identical"));
        assert!(after.is_clean());
        let (said, after) = add(found(0, None), Some(&broken));
        assert_eq!(said, format!("2 checked {by}: 1 identical, 1 broken streams"));
        assert!(!after.is_clean());
        add(found(3, None), None);
        add(found(4, None), Some(&broken));
        let (said, after) = add(found(0, Some("finish_reason \"a\" where …")), None);
        let expected = "5 checked by tokens and logprobs, against 32 references: 1 identical, \
                        2 broken streams, 7 tokens differ, 1 ends differ";
        assert_eq!(said, expected);
        assert_eq!((after.checked, after.identical, after.broken_streams), (5, 1, 2));
        let examples = [
            "\"Hi\": the stream broke, with 7 equal tokens: stream ended without [DONE]",
            "\"Hi\": 7 equal tokens, then 3 that differ",
            "\"Hi\": 7 equal tokens, then 4 that differ; the stream broke, with 7 equal tokens: \
             stream ended without [DONE]",
            "\"Hi\": finish_reason \"a\" where …",
        ];
        assert_eq!(after.examples, examples);
    }

    #[test]
    fn what_only_decides_when_is_no_other_request() {
        let body = json!({"prompt": "a", "seed": 1, "service_tier": "flex", "user": "x"});
        let same = json!({"prompt": "a", "seed": 1, "user": "y", "priority": 3});
        assert_eq!(key(&body), key(&same));
        for other in [json!({"prompt": "a", "seed": 2}), json!({"prompt": "b", "seed": 1})] {
            assert_ne!(key(&body), key(&other));
        }
    }

    #[test]
    fn an_answer_that_is_left_to_chance_is_no_reference() {
        for body in [json!({"temperature": 0}), json!({"temperature": 1.0, "seed": 7})] {
            check_determined(&body).unwrap();
        }
        for body in [json!({}), json!({"temperature": 0.7}), json!({"seed": null})] {
            let error = check_determined(&body).unwrap_err().to_string();
            assert!(error.contains("give --temperature 0, or a --seed"), "{error}");
        }
    }

    #[test]
    fn a_request_is_named_by_the_beginning_of_its_prompt() {
        assert_eq!(name(&json!({"prompt": "a\n b"})), "\"a b\"");
        let messages = json!([{"role": "system", "content": "x"}, {"content": "é".repeat(60)}]);
        assert_eq!(name(&json!({"messages": messages})), format!("\"{}…\"", "é".repeat(40)));
        assert_eq!(name(&json!({})), "\"\"");
    }
}
