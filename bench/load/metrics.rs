//! Adds up what was measured, in one histogram per metric.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::client::Answer;
use crate::client::failure::{Failure, FailureKind};

/// Longest time that is told apart from longer ones.
const MAX_MICROSECONDS: u64 = 3_600_000_000;

/// Everything measured so far.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    /// Requests that were answered whole.
    pub num_completed: u64,
    /// The others, by kind.
    pub failures: BTreeMap<FailureKind, Failures>,
    /// Tokens of the prompts that were answered, as far as the server counted them.
    pub num_prompt_tokens: u64,
    /// Tokens of the whole answers.
    pub num_completion_tokens: u64,
    /// Pieces of text that these answers came in.
    pub num_pieces: u64,
    /// From sending a request to the first text of its answer.
    pub time_to_first_token: Times,
    /// From the first text to the last, divided by the tokens after the first.
    pub time_per_token: Times,
    /// From one piece of text to the next.
    pub inter_token_latency: Times,
    /// From sending a request to the end of its stream.
    pub end_to_end: Times,
}

/// Failures of one kind.
#[derive(Clone, Debug)]
pub struct Failures {
    /// How many.
    pub num: u64,
    /// What the first of them said.
    pub example: String,
}

/// A histogram of times: microseconds, three significant digits.
#[derive(Clone, Debug)]
pub struct Times(Histogram<u64>);

impl Metrics {
    /// Adds what became of one request. A failed one counts in no time and in no throughput.
    pub fn record(&mut self, outcome: &Result<Answer, Failure>) {
        let answer = match outcome {
            Ok(answer) => answer,
            Err(failure) => {
                let new = || Failures { num: 0, example: failure.message.clone() };
                self.failures.entry(failure.kind).or_insert_with(new).num += 1;
                return;
            }
        };
        self.num_completed += 1;
        self.num_prompt_tokens += answer.num_prompt_tokens.unwrap_or(0);
        self.num_completion_tokens += answer.num_tokens();
        self.num_pieces += answer.pieces.len() as u64;
        self.time_to_first_token.extend(answer.first_token());
        self.time_per_token.extend(answer.time_per_token());
        self.inter_token_latency.extend(answer.pieces.windows(2).map(|two| two[1] - two[0]));
        self.end_to_end.extend([answer.end]);
    }

    /// Requests without a whole answer.
    pub fn num_failed(&self) -> u64 {
        self.failures.values().map(|failures| failures.num).sum()
    }
}

impl Times {
    /// Whether nothing was measured.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Milliseconds on the average.
    pub fn mean_ms(&self) -> f64 {
        self.0.mean() / 1e3
    }

    /// Their standard deviation in milliseconds.
    pub fn std_ms(&self) -> f64 {
        self.0.stdev() / 1e3
    }

    /// Milliseconds that `percentile` % of the times don't pass.
    pub fn percentile_ms(&self, percentile: f64) -> f64 {
        self.0.value_at_percentile(percentile) as f64 / 1e3
    }
}

impl Extend<Duration> for Times {
    fn extend<I: IntoIterator<Item = Duration>>(&mut self, times: I) {
        for time in times {
            self.0.saturating_record(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
        }
    }
}

impl Default for Times {
    fn default() -> Self {
        let histogram = Histogram::new_with_max(MAX_MICROSECONDS, 3);
        Self(histogram.expect("an hour is more than two microseconds, and three digits are few"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(times: &[u64]) -> Vec<Duration> {
        times.iter().map(|&time| Duration::from_millis(time)).collect()
    }

    fn near(measured: f64, expected: f64) {
        assert!((measured - expected).abs() <= expected * 1e-3, "{measured} is not {expected}");
    }

    #[test]
    fn the_times_of_an_answer_are_those_of_its_pieces() {
        let mut metrics = Metrics::default();
        metrics.record(&Ok(Answer {
            pieces: ms(&[100, 110, 140]),
            end: Duration::from_millis(150),
            num_prompt_tokens: Some(7),
            num_completion_tokens: Some(5),
        }));
        near(metrics.time_to_first_token.mean_ms(), 100.0);
        near(metrics.inter_token_latency.mean_ms(), 20.0);
        near(metrics.inter_token_latency.percentile_ms(100.0), 30.0);
        // Four tokens after the first, in 40 ms.
        near(metrics.time_per_token.mean_ms(), 10.0);
        near(metrics.end_to_end.mean_ms(), 150.0);
        assert_eq!((metrics.num_prompt_tokens, metrics.num_completion_tokens), (7, 5));
        assert_eq!(metrics.num_pieces, 3);
    }

    #[test]
    fn an_answer_without_text_has_an_end_and_no_first_token() {
        let mut metrics = Metrics::default();
        metrics.record(&Ok(Answer { end: Duration::from_millis(5), ..Answer::default() }));
        assert_eq!(metrics.num_completed, 1);
        assert!(metrics.time_to_first_token.is_empty());
        near(metrics.end_to_end.mean_ms(), 5.0);
    }

    #[test]
    fn percentiles_of_known_times_are_found() {
        let mut times = Times::default();
        times.extend((1..=10_000).map(Duration::from_micros));
        for percentile in [50.0, 95.0, 99.0] {
            near(times.percentile_ms(percentile), percentile / 10.0);
        }
        times.extend([Duration::from_secs(100_000)]);
        near(times.percentile_ms(100.0), MAX_MICROSECONDS as f64 / 1e3);
    }
}
