//! What is said of a request when somebody asks why it waits: what was decided, and what it waits
//! for now.

use std::time::{Duration, Instant};

use protocol::RequestId;

use super::Cluster;
use crate::history::{Decision, Entry, Story};
use crate::lane::Obstacle;
use crate::request::{FinishReason, Priority, RequestError, Tenant};
use crate::sequence::Sequence;

/// Prompts of a body whose places in the queue are told.
const MAX_PLACES: usize = 64;

/// A body's requests, and why they are where they are.
#[derive(Clone, Debug, PartialEq)]
pub struct Explained {
    /// The body's name: its first request's.
    pub id: RequestId,
    /// Whose it is.
    pub tenant: Tenant,
    /// The priority that it came with.
    pub priority: Priority,
    /// How it stands.
    pub state: State,
    /// Since it came.
    pub age: Duration,
    /// What was decided, oldest first.
    pub decisions: Vec<Entry>,
    /// Older decisions, which were forgotten.
    pub num_forgotten: usize,
    /// What waits of it.
    pub waiting: Vec<Waiting>,
}

/// How a body stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// All of it that is open waits.
    Waiting,
    /// Something of it runs.
    Running,
    /// It was answered.
    Finished,
    /// Somebody has cancelled it, or its client went away.
    Cancelled,
    /// It could not be answered.
    Failed,
}

impl State {
    /// Its name in answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Finished => "finished",
            Self::Cancelled => "cancelled",
            Self::Failed => "failed",
        }
    }

    /// Whether more is to come.
    pub fn is_open(self) -> bool {
        matches!(self, Self::Waiting | Self::Running)
    }
}

/// A choice that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Its number in its request.
    pub choice: u32,
    /// For how long, since it waits.
    pub waited: Duration,
    /// The priority that waiting, or a near deadline, has given it by now.
    pub level: Priority,
    /// Sequences before it, if no other came.
    pub num_before: usize,
    /// Sequences that passed it, since they were smaller.
    pub num_passed: u32,
    /// One sentence for a person: what it waits for.
    pub why: String,
}

impl Cluster {
    /// A body's requests, by the name of the first.
    pub fn explain(&self, body: RequestId, now: Instant) -> Option<Explained> {
        self.history.story(body).map(|story| self.explain_story(body, story, now))
    }

    /// Open bodies of tenants that `may_see` allows, newest first, after `before`.
    pub(crate) fn open_requests(
        &self,
        before: Option<RequestId>,
        max: usize,
        now: Instant,
        may_see: impl Fn(&str) -> bool,
    ) -> Vec<Explained> {
        let open = self.history.open(before).filter(|(_, story)| may_see(&story.tenant));
        open.take(max).map(|(body, story)| self.explain_story(body, story, now)).collect()
    }

    fn explain_story(&self, id: RequestId, story: &Story, now: Instant) -> Explained {
        let mut waiting = Vec::new();
        // One body may be of very many prompts; places in the queue are counted one by one.
        for (number, request) in (0..).zip(&story.requests).take(MAX_PLACES) {
            for place in self.queue.places(*request) {
                let num_choices = place.sequence.request().num_choices;
                waiting.push(Waiting {
                    choice: number * num_choices + place.sequence.choice,
                    waited: now.saturating_duration_since(place.since),
                    level: place.level,
                    num_before: place.num_before,
                    num_passed: place.sequence.num_passed,
                    why: self.why_waiting(place.sequence),
                });
            }
        }
        waiting.sort_by_key(|it| it.choice);
        let state = match story.entries.back().map(|entry| &entry.decision) {
            _ if story.num_open > 0 && self.runs(story) => State::Running,
            _ if story.num_open > 0 => State::Waiting,
            Some(Decision::Left | Decision::Failed(RequestError::Cancelled)) => State::Cancelled,
            Some(Decision::Failed(_)) => State::Failed,
            _ => State::Finished,
        };
        Explained {
            id,
            tenant: story.tenant.clone(),
            priority: story.priority,
            state,
            age: now.saturating_duration_since(story.arrived),
            decisions: story.entries.iter().cloned().collect(),
            num_forgotten: story.num_forgotten,
            waiting,
        }
    }

    /// Whether more of it is open than waits.
    pub(super) fn runs(&self, story: &Story) -> bool {
        let num_waiting = |request: &RequestId| self.queue.num_waiting_of(*request);
        story.requests.iter().map(num_waiting).sum::<usize>() < story.num_open as usize
    }

    pub(super) fn why_waiting(&self, waiting: &Sequence) -> String {
        match self.open_lanes().map(|lane| lane.obstacle(waiting)).min() {
            None => format!("no pipeline serves: {}", self.waiting_for()),
            Some(Obstacle::Turn) => {
                "the next step, unless others go first or compute its beginning".to_owned()
            }
            Some(Obstacle::Places { max }) => {
                format!("{max} sequences run, as many as may (scheduler.max_num_seqs)")
            }
            Some(Obstacle::Blocks { needed, free }) => {
                format!("it needs {needed} KV blocks to begin, {free} are free")
            }
            Some(Obstacle::TooLarge) => "no pipeline that serves is large enough".to_owned(),
        }
    }
}

impl Decision {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Lifted { .. } => "lifted",
            Self::Admitted { .. } => "admitted",
            Self::Chunked { .. } => "chunked",
            Self::Begun => "begun",
            Self::Preempted { .. } => "preempted",
            Self::Moved { .. } => "moved",
            Self::Retried { .. } => "retried",
            Self::Finished(_) => "finished",
            Self::Failed(RequestError::DeadlineExceeded(_)) => "expired",
            Self::Failed(RequestError::Cancelled) | Self::Left => "cancelled",
            Self::Failed(_) => "failed",
        }
    }

    /// One sentence for a person.
    pub(crate) fn why(&self) -> String {
        match self {
            Self::Queued => "it waits for its turn".to_owned(),
            Self::Admitted { pipeline, num_cached_tokens, num_passed } => format!(
                "to pipeline {pipeline}, {num_cached_tokens} tokens cached, {num_passed} passed it"
            ),
            Self::Chunked { num_computed, num_tokens } => {
                format!("{num_computed} of {num_tokens} tokens are in a step")
            }
            Self::Lifted { level, is_urgent } => {
                let cause = if *is_urgent { "its deadline comes near" } else { "it waited long" };
                format!("to priority {}: {cause}", level.name())
            }
            Self::Begun => "its first token is there".to_owned(),
            Self::Preempted { by } => format!("it gave way to priority {}", by.name()),
            Self::Moved { pipeline, cause } => format!("pipeline {pipeline} is lost: {cause}"),
            Self::Retried { cause } => format!("its step failed, it is computed alone: {cause}"),
            Self::Finished(FinishReason::Stop) => "an end token".to_owned(),
            Self::Finished(FinishReason::StopString(_)) => "a stop string".to_owned(),
            Self::Finished(FinishReason::Length) => "as long as was asked for".to_owned(),
            Self::Failed(error) => error.to_string(),
            Self::Left => "its client went away".to_owned(),
        }
    }
}
