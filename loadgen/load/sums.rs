//! What a run adds up, and which requests count.
//!
//! The *window* begins when the warm-up ends, and ends when sending ends (`--duration`) or, where
//! a number of requests decides, with the last answer.
//!
//! * Requests, latencies and the objective: those that should have been sent within the window
//!   count, whenever they end.
//! * Throughput: whole answers that ended within the window, and their tokens that arrived in
//!   it, whenever they were asked for. In a steady state that is what the server does in a second;
//!   counting answers by their start would credit an overloaded server with what is offered.

use std::collections::BTreeMap;
use std::time::Duration;

use super::metrics::{Count, Metrics, Times};
use super::outcome::Outcome;
use super::slo::Slo;
use crate::report::result::Second;

/// Seconds that a timeline holds; what comes later counts in the last one.
const MAX_SECONDS: u64 = 1 << 20;

/// The sums of a run, as far as it is.
#[derive(Clone, Debug)]
pub struct Sums {
    slo: Slo,
    /// The window; it may lack an end.
    from: Duration,
    until: Option<Duration>,
    /// All requests of the window.
    pub all: Metrics,
    /// Those of each tier and each tenant.
    pub groups: BTreeMap<String, Metrics>,
    /// How much later than due requests of the window were sent.
    pub lag: Times,
    /// What arrived within the window.
    pub arrived: Arrived,
    seconds: Vec<Tally>,
}

/// What arrived within a window of time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Arrived {
    /// Answers that ended within the window, whenever they were due.
    pub answers: u64,
    /// Of them, those that kept the objective.
    pub good: u64,
    /// Tokens of whole answers. Where the server counts other than we see pieces, each piece
    /// counts for its share.
    pub tokens: f64,
    /// Tokens of the prompts of these answers.
    pub prompt_tokens: Count,
}

#[derive(Clone, Debug, Default)]
struct Tally {
    started: u64,
    completed: u64,
    failed: u64,
    tokens: f64,
    num_ttft: u64,
    ttft: Duration,
}

impl Sums {
    /// Nothing yet. Requests count from `from`, those of before are warm-up.
    pub(crate) fn new(slo: Slo, from: Duration, until: Option<Duration>) -> Self {
        Self {
            slo,
            from,
            until,
            all: Metrics::default(),
            groups: BTreeMap::new(),
            lag: Times::default(),
            arrived: Arrived::default(),
            seconds: Vec::new(),
        }
    }

    /// A request was sent.
    pub(crate) fn started(&mut self, at: Duration) {
        self.second(at).started += 1;
    }

    /// A request has ended.
    pub(crate) fn record(&mut self, outcome: &Outcome) {
        let counts = self.in_window(outcome.intended);
        if counts {
            self.all.record(outcome, &self.slo);
            self.lag.extend([outcome.sent.saturating_sub(outcome.due)]);
            let tier = outcome.tier.as_ref().map(|name| format!("tier {name}"));
            let tenant = outcome.tenant.as_ref().map(|name| format!("tenant {name}"));
            for group in tier.into_iter().chain(tenant) {
                self.groups.entry(group).or_default().record(outcome, &self.slo);
            }
        }
        let Ok(answer) = &outcome.answer else {
            self.second(outcome.ended).failed += 1;
            return;
        };
        // When it was over for the user; the connection may have taken longer.
        let end = outcome.sent + answer.end;
        self.second(end).completed += 1;
        if let Some(first) = answer.first_token() {
            let waited = outcome.sent.saturating_sub(outcome.intended);
            let second = self.second(outcome.sent + first);
            second.num_ttft += 1;
            second.ttft += waited + first;
        }
        let pieces = answer.pieces.iter().map(|piece| outcome.sent + piece);
        let per_piece = answer.num_tokens() as f64 / answer.pieces.len().max(1) as f64;
        let last = [end];
        let pieces: &mut dyn Iterator<Item = Duration> =
            if answer.pieces.is_empty() { &mut last.into_iter() } else { &mut { pieces } };
        for at in pieces {
            self.second(at).tokens += per_piece;
            if self.in_window(at) {
                self.arrived.tokens += per_piece;
            }
        }
        if self.in_window(end) {
            self.arrived.answers += 1;
            self.arrived.prompt_tokens.add(answer.num_prompt_tokens);
            let is_good = self.slo.broken(&outcome.timing(answer)).next().is_none();
            self.arrived.good += u64::from(is_good);
        }
    }

    /// The window of a run that took `elapsed`: its beginning and its length.
    pub fn window(&self, elapsed: Duration) -> (Duration, Duration) {
        let end = self.until.map_or(elapsed, |until| until.min(elapsed));
        let from = self.from.min(end);
        (from, end - from)
    }

    /// Second by second, from the start.
    pub(crate) fn timeline(&self) -> Vec<Second> {
        let (mut running, mut tokens) = (0_u64, 0.0);
        let mut rounded = 0;
        let second = |(second, tally): (usize, &Tally)| {
            running = (running + tally.started).saturating_sub(tally.completed + tally.failed);
            // What is rounded away in one second comes in a later one.
            tokens += tally.tokens;
            let whole = f64::round(tokens) as u64;
            let arrived = whole - std::mem::replace(&mut rounded, whole);
            Second {
                second: second as u64,
                started: tally.started,
                completed: tally.completed,
                failed: tally.failed,
                tokens: arrived,
                running,
                mean_ttft_ms: (tally.num_ttft > 0)
                    .then(|| tally.ttft.as_secs_f64() * 1e3 / tally.num_ttft as f64),
            }
        };
        self.seconds.iter().enumerate().map(second).collect()
    }

    fn in_window(&self, at: Duration) -> bool {
        self.from <= at && self.until.is_none_or(|until| at < until)
    }

    fn second(&mut self, at: Duration) -> &mut Tally {
        let second = at.as_secs().min(MAX_SECONDS) as usize;
        if self.seconds.len() <= second {
            self.seconds.resize_with(second + 1, Tally::default);
        }
        &mut self.seconds[second]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Answer;
    use crate::report::result::Metric;

    fn answered(intended: u64, pieces: &[u64], end: u64) -> Outcome {
        let ms = Duration::from_millis;
        let answer = Answer {
            pieces: pieces.iter().map(|&piece| ms(piece)).collect(),
            end: ms(end),
            num_prompt_tokens: Some(10),
            num_completion_tokens: Some(2 * pieces.len() as u64),
        };
        Outcome {
            tier: Some("a".into()),
            tenant: None,
            intended: ms(intended),
            due: ms(intended),
            sent: ms(intended),
            ended: ms(intended + end),
            answer: Ok(answer),
        }
    }

    #[test]
    fn latencies_count_by_start_and_throughput_by_arrival() {
        let secs = Duration::from_secs;
        let mut sums = Sums::new("e2el=1100ms".parse().unwrap(), secs(1), Some(secs(3)));
        // Of the warm-up: its second piece and its end are in the window.
        sums.record(&answered(500, &[400, 600], 600));
        sums.record(&answered(1500, &[200, 400], 1000));
        // Begins in the window and ends after it.
        sums.record(&answered(2500, &[400, 1100], 1200));
        // Should have been sent after the window.
        sums.record(&answered(3000, &[100], 100));
        assert_eq!((sums.all.num_completed, sums.all.num_good), (2, 1));
        assert_eq!(sums.groups["tier a"].num_completed, 2);
        assert_eq!(sums.all.times(Metric::Ttft).percentile_ms(100.0).round(), 400.0);
        let mut prompt_tokens = Count::default();
        prompt_tokens.add(Some(20));
        let arrived = Arrived { answers: 2, good: 2, tokens: 8.0, prompt_tokens };
        assert_eq!(sums.arrived, arrived);
        assert_eq!(sums.window(secs(4)), (secs(1), secs(2)));
        assert_eq!(sums.window(secs(2)), (secs(1), secs(1)), "it was stopped");
    }

    #[test]
    fn a_timeline_tells_what_happened_in_each_second() {
        let mut sums = Sums::new(Slo::default(), Duration::ZERO, None);
        for outcome in [answered(100, &[200, 1000], 1000), answered(1200, &[500], 1000)] {
            sums.started(outcome.sent);
            sums.record(&outcome);
        }
        let seconds = sums.timeline();
        let told = |second: &Second| {
            (second.started, second.completed, second.running, second.tokens, second.mean_ttft_ms)
        };
        assert_eq!(
            seconds.iter().map(told).collect::<Vec<_>>(),
            [(1, 0, 1, 2, Some(200.0)), (1, 1, 1, 4, Some(500.0)), (0, 1, 0, 0, None)]
        );
    }
}
