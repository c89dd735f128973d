//! Why each request waited: what was decided about it, in order, for as long as it is open and for
//! the newest that have ended.
//!
//! Pure. A decision costs a push; whatever is made of them is made when somebody asks.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, Instant};

use protocol::{PipelineId, RequestId, config};

use crate::request::{FinishReason, Priority, Request, RequestError, Tenant};

/// What was decided about one choice of a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// It waits.
    Queued,
    /// It waits at another priority, before all who were not lifted there.
    Lifted {
        /// The priority at which it waits now.
        level: Priority,
        /// Whether its deadline comes near; otherwise it has waited for so long.
        is_urgent: bool,
    },
    /// It runs from now on, of its tokens so many from the prefix cache.
    Admitted {
        /// Where.
        pipeline: PipelineId,
        /// Tokens that need not be computed.
        num_cached_tokens: usize,
        /// Others that went before it since it waited, since they were smaller.
        num_passed: u32,
    },
    /// A step computes a part of what is known of it.
    Chunked {
        /// Tokens that are computed with it.
        num_computed: usize,
        /// Of so many.
        num_tokens: usize,
    },
    /// Its first token is there.
    Begun,
    /// It gave way, and waits again.
    Preempted {
        /// To this priority.
        by: Priority,
    },
    /// Its pipeline was lost: it waits for another.
    Moved {
        /// The one that was lost.
        pipeline: PipelineId,
        /// One sentence for a person.
        cause: String,
    },
    /// A step failed with it and others: it waits to be computed alone.
    Retried {
        /// One sentence for a person.
        cause: String,
    },
    /// It was answered.
    Finished(FinishReason),
    /// It can't be answered, or nobody wants it any more; all choices of its body.
    Failed(RequestError),
    /// Its client went away.
    Left,
}

/// One decision, when, and about which choice of the body.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Since the body's arrival.
    pub at: Duration,
    /// Its index in the answer; none where it is about all.
    pub choice: Option<u32>,
    /// What was decided.
    pub decision: Decision,
}

/// All that is known of a body's requests.
#[derive(Debug)]
pub(crate) struct Story {
    pub tenant: Tenant,
    pub priority: Priority,
    pub arrived: Instant,
    /// In the order of the prompts.
    pub requests: Vec<RequestId>,
    /// The newest decisions, oldest first.
    pub entries: VecDeque<Entry>,
    /// Decisions that those pushed out.
    pub num_forgotten: usize,
    /// Choices that have not ended.
    pub num_open: u32,
    num_choices: u32,
    number: u64,
}

/// The stories of open bodies, and of the newest that have ended.
#[derive(Debug)]
pub(crate) struct History {
    max_ended: usize,
    max_decisions: usize,
    stories: HashMap<RequestId, Story>,
    // Which body a request is of, and its number there.
    bodies: HashMap<RequestId, (RequestId, u32)>,
    // By age.
    open: BTreeMap<u64, RequestId>,
    ended: VecDeque<RequestId>,
    next_number: u64,
}

impl History {
    /// Nothing happened.
    pub(crate) fn new(config: &config::Scheduler) -> Self {
        Self {
            max_ended: config.max_explained_requests,
            max_decisions: config.max_explained_decisions,
            stories: HashMap::new(),
            bodies: HashMap::new(),
            open: BTreeMap::new(),
            ended: VecDeque::new(),
            next_number: 0,
        }
    }

    /// A body's requests wait from now on; their story has the first one's name.
    pub(crate) fn submit(&mut self, requests: &[Request], now: Instant) {
        let Some(first) = requests.first() else { return };
        let number = self.next_number;
        self.next_number += 1;
        let story = Story {
            tenant: first.tenant.clone(),
            priority: first.priority,
            arrived: now,
            requests: requests.iter().map(|request| request.id).collect(),
            entries: VecDeque::new(),
            num_forgotten: 0,
            num_open: requests.iter().map(|request| request.num_choices).sum(),
            num_choices: first.num_choices,
            number,
        };
        self.open.insert(number, first.id);
        let of_body = (0..).zip(requests).map(|(at, request)| (request.id, (first.id, at)));
        self.bodies.extend(of_body);
        self.stories.insert(first.id, story);
        for request in requests {
            for choice in 0..request.num_choices {
                self.record(request.id, Some(choice), Decision::Queued, now);
            }
        }
    }

    /// A decision about one choice of a request, or about all of its body.
    pub(crate) fn record(
        &mut self,
        request: RequestId,
        choice: Option<u32>,
        decision: Decision,
        now: Instant,
    ) {
        let Some(&(body, at)) = self.bodies.get(&request) else { return };
        let story = self.stories.get_mut(&body).expect("a body with requests has a story");
        if story.num_open == 0 {
            return;
        }
        match decision {
            Decision::Finished(_) => story.num_open -= 1,
            Decision::Failed(_) | Decision::Left => story.num_open = 0,
            _ => {}
        }
        if story.entries.len() >= self.max_decisions {
            story.entries.pop_front();
            story.num_forgotten += 1;
        }
        let choice = choice.map(|choice| at * story.num_choices + choice);
        let at = now.saturating_duration_since(story.arrived);
        story.entries.push_back(Entry { at, choice, decision });
        if story.num_open == 0 {
            self.open.remove(&story.number);
            self.ended.push_back(body);
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        while self.ended.len() > self.max_ended {
            let story = self.ended.pop_front().and_then(|oldest| self.stories.remove(&oldest));
            for request in story.into_iter().flat_map(|story| story.requests) {
                self.bodies.remove(&request);
            }
        }
    }

    /// The story of a body, by the name of its first request.
    pub(crate) fn story(&self, body: RequestId) -> Option<&Story> {
        self.stories.get(&body)
    }

    /// Open bodies, newest first; those older than `before`, where that is one that is known.
    pub(crate) fn open(
        &self,
        before: Option<RequestId>,
    ) -> impl Iterator<Item = (RequestId, &Story)> {
        let end = before.and_then(|body| self.story(body)).map_or(u64::MAX, |it| it.number);
        self.open.range(..end).rev().map(|(_, body)| (*body, &self.stories[body]))
    }

    /// Open bodies, oldest first.
    pub(crate) fn oldest_open(&self) -> impl Iterator<Item = (RequestId, &Story)> {
        self.open.values().map(|body| (*body, &self.stories[body]))
    }

    pub(crate) fn num_open(&self) -> usize {
        self.open.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{request, scheduler};

    fn history(max_ended: usize, max_decisions: usize) -> History {
        History::new(&scheduler(|config| {
            config.max_explained_requests = max_ended;
            config.max_explained_decisions = max_decisions;
        }))
    }

    #[test]
    fn what_has_ended_is_kept_until_newer_ends_push_it_out_and_what_is_open_always() {
        let (mut history, now) = (history(2, 8), Instant::now());
        for id in 1..=5 {
            history.submit(&[request(id, 4, 2)], now);
        }
        for id in [5, 1, 3] {
            let finished = Decision::Finished(FinishReason::Length);
            history.record(RequestId(id), Some(0), finished, now);
        }
        let known = |id| history.story(RequestId(id)).is_some();
        assert_eq!([1, 2, 3, 4, 5].map(known), [true, true, true, true, false]);
        let open = |before| history.open(before).map(|(id, _)| id.0).collect::<Vec<_>>();
        assert_eq!(open(None), [4, 2]);
        assert_eq!(open(Some(RequestId(4))), [2]);
        assert_eq!(history.bodies.len(), 4, "nothing is left of what was pushed out");
    }

    #[test]
    fn the_newest_decisions_of_a_request_are_kept_and_the_others_counted() {
        let (mut history, now) = (history(1, 3), Instant::now());
        history.submit(&[request(1, 4, 2)], now);
        for num_computed in 1..=4 {
            let chunked = Decision::Chunked { num_computed, num_tokens: 9 };
            let at = now + Duration::from_millis(num_computed as u64);
            history.record(RequestId(1), Some(0), chunked, at);
        }
        let story = history.story(RequestId(1)).unwrap();
        let at: Vec<_> = story.entries.iter().map(|entry| entry.at.as_millis()).collect();
        assert_eq!((at, story.num_forgotten), (vec![2, 3, 4], 2));
    }

    #[test]
    fn choices_of_all_prompts_of_a_body_have_the_numbers_that_its_answer_gives_them() {
        let (mut history, now) = (history(1, 8), Instant::now());
        let prompt = |id| Request { num_choices: 2, ..request(id, 4, 2) };
        history.submit(&[prompt(7), prompt(8)], now);
        history.record(RequestId(8), Some(1), Decision::Begun, now);
        history.record(RequestId(8), None, Decision::Failed(RequestError::Cancelled), now);
        history.record(RequestId(7), Some(0), Decision::Begun, now);
        let story = history.story(RequestId(7)).unwrap();
        let choices: Vec<_> = story.entries.iter().map(|entry| entry.choice).collect();
        assert_eq!(choices, [Some(0), Some(1), Some(2), Some(3), Some(3), None]);
        assert!(history.story(RequestId(8)).is_none(), "clients see the body's id only");
        assert_eq!(story.num_open, 0);
    }
}
