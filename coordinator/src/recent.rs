//! The last hour, as a monitor shows it: points of its curves, what happened, and where the steps
//! of each pipeline spend their time now.
//!
//! Pure, and of fixed size. What is observed is added to a point that is under way; a look at the
//! clock closes it, so that no observation asks what time it is.

mod parts;
mod spread;

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use protocol::{NodeId, PipelineId, config};

use self::parts::Parts;
pub(crate) use self::spread::Spread;
use crate::lane::Prefix;
use crate::metrics::{StepReport, StepWays};
use crate::snapshot::{EventKind, Happened, Point, StepTime};

/// The curves, the time line, and the newest steps.
#[derive(Debug)]
pub(crate) struct Recent {
    max_points: usize,
    max_events: usize,
    interval: Duration,
    points: VecDeque<(Instant, Point)>,
    open: Open,
    events: VecDeque<(Instant, Happened)>,
    next_point: u64,
    next_event: u64,
    pipelines: BTreeMap<PipelineId, Parts>,
}

/// The point that is under way.
#[derive(Debug, Default)]
struct Open {
    began: Option<Instant>,
    first_token: Spread,
    between_tokens: Spread,
    queue_wait: Spread,
    // What needs no percentile is counted where it is told.
    point: Point,
    // The newest, with which the next point begins.
    running: usize,
    waiting: usize,
    kv: f64,
}

/// What was seen up to which number: no more is told of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Points that are closed.
    pub points: u64,
    /// Events up to this number; the first is 1.
    pub events: u64,
}

impl Recent {
    /// Nothing happened.
    pub(crate) fn new(config: &config::Metrics) -> Self {
        Self {
            max_points: config.history_points as usize,
            max_events: config.max_events as usize,
            interval: Duration::from_millis(config.history_interval_ms),
            points: VecDeque::new(),
            open: Open::default(),
            events: VecDeque::new(),
            next_point: 0,
            next_event: 0,
            pipelines: BTreeMap::new(),
        }
    }

    /// Closes the point that is under way, once its time is over.
    pub(crate) fn tick(&mut self, now: Instant) {
        let began = *self.open.began.get_or_insert(now);
        if now.saturating_duration_since(began) < self.interval {
            return;
        }
        let point = self.open.close(self.next_point, now);
        self.next_point += 1;
        if self.points.len() >= self.max_points {
            self.points.pop_front();
        }
        if self.max_points > 0 {
            self.points.push_back((now, point));
        }
    }

    /// The first token of an answer, after this time.
    pub(crate) fn first_token(&mut self, after: Duration) {
        self.open.first_token.add(after);
        self.open.point.generated_tokens += 1;
    }

    /// Another token of a choice, after this time.
    pub(crate) fn next_token(&mut self, after: Duration) {
        self.open.between_tokens.add(after);
        self.open.point.generated_tokens += 1;
    }

    /// A sequence was admitted after this wait.
    pub(crate) fn admitted(&mut self, wait: Duration) {
        self.open.queue_wait.add(wait);
    }

    /// A request has ended with this status.
    pub(crate) fn ended(&mut self, code: u16) {
        let point = &mut self.open.point;
        match code {
            429 | 503 => point.refused += 1,
            500.. => point.failed += 1,
            _ => point.ended += 1,
        }
    }

    /// What the prefix cache had.
    pub(crate) fn prefix(&mut self, prefix: Prefix) {
        self.open.point.prefix_tokens += prefix.num_looked_for as u64;
        self.open.point.prefix_hits += prefix.num_found as u64;
    }

    pub(crate) fn queued(&mut self, num_waiting: usize) {
        self.open.waiting = num_waiting;
        self.open.point.waiting = self.open.point.waiting.max(num_waiting as u64);
    }

    /// Sequences that run.
    pub(crate) fn running(&mut self, num_running: usize) {
        self.open.running = num_running;
        self.open.point.running = self.open.point.running.max(num_running as u64);
    }

    /// The share of KV blocks that is held.
    pub(crate) fn kv(&mut self, used: f64) {
        self.open.kv = used;
        self.open.point.kv_used = self.open.point.kv_used.max(used);
    }

    /// A step of a pipeline has returned.
    pub(crate) fn step(&mut self, step: &StepReport<'_>, ways: Option<&StepWays>) {
        self.open.point.steps += 1;
        self.open.point.computed_tokens += step.num_tokens as u64;
        self.pipelines.entry(step.pipeline).or_default().step(step, ways);
    }

    /// A pipeline is gone: the next of its number is another.
    pub(crate) fn forget(&mut self, pipeline: PipelineId) {
        self.pipelines.remove(&pipeline);
    }

    /// Something that belongs on the time line.
    pub(crate) fn happened(&mut self, now: Instant, kind: EventKind, happened: Happened) {
        if self.max_events == 0 {
            return;
        }
        if self.events.len() >= self.max_events {
            self.events.pop_front();
        }
        self.next_event += 1;
        let number = self.next_event;
        self.events.push_back((now, Happened { number, kind, ..happened }));
    }

    /// How the steps of a pipeline spend their time.
    pub(crate) fn step_time(&self, pipeline: PipelineId) -> Option<StepTime> {
        self.pipelines.get(&pipeline).map(Parts::mean)
    }

    /// Points and events beyond those that were seen, oldest first; the last point is under way.
    pub(crate) fn beyond(&self, seen: Seen, now: Instant) -> (Vec<Point>, Vec<Happened>) {
        let ago = |at: Instant| now.saturating_duration_since(at).as_millis() as u64;
        let points = self.points.iter().filter(|(_, it)| it.number >= seen.points);
        let points = points.map(|(at, it)| Point { ago_ms: ago(*at), ..it.clone() });
        let events = self.events.iter().filter(|(_, it)| it.number > seen.events);
        let events = events.map(|(at, it)| Happened { ago_ms: ago(*at), ..it.clone() });
        let open = self.open.so_far(self.next_point, now);
        (points.chain(open).collect(), events.collect())
    }

    /// Nodes of which nothing newer is known than that they were lost: how long ago, and why.
    pub(crate) fn lost(&self, now: Instant) -> BTreeMap<NodeId, (Duration, &str)> {
        let mut lost = BTreeMap::new();
        for (at, it) in &self.events {
            let Ok(node) = u64::from_str_radix(&it.node, 16).map(NodeId) else { continue };
            match it.kind {
                EventKind::Lost => {
                    lost.insert(node, (now.saturating_duration_since(*at), it.text.as_str()));
                }
                EventKind::Joined | EventKind::Left => {
                    lost.remove(&node);
                }
                _ => {}
            }
        }
        lost
    }

    /// How much time a point stands for.
    pub(crate) fn interval_ms(&self) -> u64 {
        self.interval.as_millis() as u64
    }

    /// What is seen by whoever sees all that there is now.
    pub(crate) fn seen(&self) -> Seen {
        Seen { points: self.next_point, events: self.next_event }
    }
}

impl Open {
    fn so_far(&self, number: u64, now: Instant) -> Option<Point> {
        let took = now.saturating_duration_since(self.began?);
        Some(Point {
            number,
            ago_ms: 0,
            took_ms: took.as_millis() as u64,
            first_token_ms: self.first_token.band_ms(),
            between_tokens_ms: self.between_tokens.band_ms(),
            queue_wait_ms: self.queue_wait.band_ms(),
            ..self.point.clone()
        })
    }

    fn close(&mut self, number: u64, now: Instant) -> Point {
        let point = self.so_far(number, now).expect("it has begun");
        let Self { running, waiting, kv, .. } = *self;
        self.began = Some(now);
        self.point = Point {
            running: running as u64,
            waiting: waiting as u64,
            kv_used: kv,
            ..Point::default()
        };
        for spread in [&mut self.first_token, &mut self.between_tokens, &mut self.queue_wait] {
            spread.clear();
        }
        point
    }
}

#[cfg(test)]
mod tests;
