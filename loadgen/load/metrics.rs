//! Adds up what was measured, in one histogram per metric.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::Value;

use super::outcome::Outcome;
use super::slo::Slo;
use crate::client::failure::FailureKind;
use crate::report::result::{FailureCount, Metric};

/// Longest time that is told apart from longer ones.
const MAX_MICROSECONDS: u64 = 3_600_000_000;

/// Percentiles of a curve: each half of what is left is cut in so many steps.
const STEPS_PER_HALF: u32 = 10;

/// Everything measured of some requests.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    /// Requests that were answered whole.
    pub num_completed: u64,
    /// Requests without an answer, by what became of them.
    pub failures: BTreeMap<FailureKind, FailureCount>,
    /// Tokens of the prompts that were answered.
    pub num_prompt_tokens: Count,
    /// Tokens of the whole answers.
    pub num_completion_tokens: Count,
    /// Answers that kept the objective.
    pub num_good: u64,
    /// Answers that broke it, by the limit that they broke.
    pub broken: BTreeMap<Metric, u64>,
    ttft: Times,
    tpot: Times,
    itl: Times,
    e2el: Times,
}

/// A histogram of times: microseconds, three significant digits.
#[derive(Clone, Debug)]
pub struct Times(Histogram<u64>);

/// A sum of what a server counts: unknown as soon as it doesn't count one of the parts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Count(Option<u64>);

impl Default for Count {
    fn default() -> Self {
        Self(Some(0))
    }
}

impl Count {
    /// Adds a part. A server may count what it likes.
    pub(crate) fn add(&mut self, part: Option<u64>) {
        self.0 = self.0.zip(part).map(|(sum, part)| sum.saturating_add(part));
    }

    /// The sum; none when it isn't known.
    pub(crate) fn known(self) -> Option<u64> {
        self.0
    }
}

impl Metrics {
    /// Adds what became of one request. A failed one counts in no time and in no throughput.
    pub(crate) fn record(&mut self, outcome: &Outcome, slo: &Slo) {
        let answer = match &outcome.answer {
            Ok(answer) => answer,
            Err(failure) => {
                let new = || FailureCount { count: 0, example: failure.message.clone() };
                self.failures.entry(failure.kind).or_insert_with(new).count += 1;
                return;
            }
        };
        self.num_completed += 1;
        self.num_prompt_tokens.add(answer.num_prompt_tokens);
        self.num_completion_tokens.add(answer.num_completion_tokens);
        let timing = outcome.timing(answer);
        self.ttft.extend(timing.ttft);
        self.tpot.extend(timing.tpot);
        self.itl.extend(answer.gaps());
        self.e2el.extend([timing.e2el]);
        let mut is_good = true;
        for metric in slo.broken(&timing) {
            is_good = false;
            *self.broken.entry(metric).or_default() += 1;
        }
        self.num_good += u64::from(is_good);
    }

    /// The histogram of a metric.
    pub fn times(&self, metric: Metric) -> &Times {
        match metric {
            Metric::Ttft => &self.ttft,
            Metric::Tpot => &self.tpot,
            Metric::Itl => &self.itl,
            Metric::E2el => &self.e2el,
        }
    }

    /// Requests without a whole answer.
    pub fn num_failed(&self) -> u64 {
        self.failures.values().map(|failures| failures.count).sum()
    }

    /// `{mean,median,std,p50,p90,p95,p99,p99.9,max}_{ttft,tpot,itl,e2el}_ms`, as vllm bench names
    /// them; null where nothing was measured.
    pub(crate) fn statistics(&self) -> BTreeMap<String, Value> {
        let of = |metric: Metric| {
            let (times, name) = (self.times(metric), metric.name());
            let values = [
                ("mean", times.mean_ms()),
                ("median", times.percentile_ms(50.0)),
                ("std", times.std_ms()),
                ("p50", times.percentile_ms(50.0)),
                ("p90", times.percentile_ms(90.0)),
                ("p95", times.percentile_ms(95.0)),
                ("p99", times.percentile_ms(99.0)),
                ("p99.9", times.percentile_ms(99.9)),
                ("max", times.percentile_ms(100.0)),
            ];
            let is_empty = times.is_empty();
            values.map(|(statistic, ms)| {
                let ms = if is_empty { Value::Null } else { ms.into() };
                (format!("{statistic}_{name}_ms"), ms)
            })
        };
        Metric::ALL.into_iter().flat_map(of).collect()
    }
}

impl Times {
    /// Whether nothing was measured.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Milliseconds on the average.
    pub(crate) fn mean_ms(&self) -> f64 {
        self.0.mean() / 1e3
    }

    /// Their standard deviation in milliseconds.
    pub(crate) fn std_ms(&self) -> f64 {
        self.0.stdev() / 1e3
    }

    /// Milliseconds that `percentile` % of the times don't pass.
    pub fn percentile_ms(&self, percentile: f64) -> f64 {
        self.0.value_at_percentile(percentile) as f64 / 1e3
    }

    /// Pairs (percentile in %, milliseconds), ascending, closer together towards the end.
    pub(crate) fn curve(&self) -> Vec<(f64, f64)> {
        let steps = self.0.iter_quantiles(STEPS_PER_HALF);
        steps
            .map(|step| (step.quantile_iterated_to() * 1e2, step.value_iterated_to() as f64 / 1e3))
            .collect()
    }

    /// The percentile log that HdrHistogram's tools write and plot, in milliseconds.
    pub fn hgrm(&self) -> String {
        let mut text = format!(
            "{:>12} {:>14} {:>10} {:>14}\n\n",
            "Value", "Percentile", "TotalCount", "1/(1-Percentile)"
        );
        let mut count = 0;
        for step in self.0.iter_quantiles(STEPS_PER_HALF) {
            count += step.count_since_last_iteration();
            let (ms, quantile) =
                (step.value_iterated_to() as f64 / 1e3, step.quantile_iterated_to());
            let _ = write!(text, "{ms:>12.3} {quantile:>14.12} {count:>10}");
            if quantile < 1.0 {
                let _ = write!(text, " {:>14.2}", 1.0 / (1.0 - quantile));
            }
            text.push('\n');
        }
        let max = self.0.max() as f64 / 1e3;
        let _ = writeln!(
            text,
            "#[Mean    = {:>12.3}, StdDeviation   = {:>12.3}]",
            self.mean_ms(),
            self.std_ms()
        );
        let _ = writeln!(text, "#[Max     = {max:>12.3}, Total count    = {:>12}]", self.0.len());
        let _ =
            writeln!(text, "#[Buckets = {:>12}, SubBuckets     = {:>12}]", self.0.buckets(), 2048);
        text
    }
}

impl Extend<Duration> for Times {
    fn extend<I: IntoIterator<Item = Duration>>(&mut self, times: I) {
        for time in times {
            let time = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
            self.0.record(time.min(MAX_MICROSECONDS)).expect("it grows to what is recorded");
        }
    }
}

impl Default for Times {
    /// It grows with the times that are recorded.
    fn default() -> Self {
        let histogram = Histogram::new(3);
        Self(histogram.expect("three digits are few"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Answer;

    fn ms(times: &[u64]) -> crate::client::answer::Pieces {
        times.iter().map(|&time| Duration::from_millis(time)).collect()
    }

    fn near(measured: f64, expected: f64) {
        assert!((measured - expected).abs() <= expected * 1e-3, "{measured} is not {expected}");
    }

    /// An answer to a request that was sent 20 ms late.
    fn outcome(answer: Answer) -> Outcome {
        Outcome {
            tier: None,
            tenant: None,
            intended: Duration::from_millis(5),
            due: Duration::from_millis(5),
            sent: Duration::from_millis(25),
            ended: Duration::from_millis(25) + answer.end,
            answer: Ok(answer),
        }
    }

    #[test]
    fn the_times_of_an_answer_are_those_of_its_pieces_from_when_it_should_have_been_sent() {
        let mut metrics = Metrics::default();
        let answer = Answer {
            pieces: ms(&[100, 110, 140]),
            end: Duration::from_millis(150),
            num_prompt_tokens: Some(7),
            num_completion_tokens: Some(5),
        };
        metrics.record(&outcome(answer), &"ttft=120ms,itl=29ms".parse().unwrap());
        near(metrics.times(Metric::Ttft).mean_ms(), 120.0);
        near(metrics.times(Metric::Itl).mean_ms(), 20.0);
        near(metrics.times(Metric::Itl).percentile_ms(100.0), 30.0);
        // Four tokens after the first, in 40 ms.
        near(metrics.times(Metric::Tpot).mean_ms(), 10.0);
        near(metrics.times(Metric::E2el).mean_ms(), 170.0);
        let counts = (metrics.num_prompt_tokens.known(), metrics.num_completion_tokens.known());
        assert_eq!(counts, (Some(7), Some(5)));
        assert_eq!((metrics.num_good, &metrics.broken), (0, &BTreeMap::from([(Metric::Itl, 1)])));
    }

    #[test]
    fn an_answer_without_text_has_an_end_and_no_first_token() {
        let mut metrics = Metrics::default();
        let answer = Answer { end: Duration::from_millis(5), ..Answer::default() };
        metrics.record(&outcome(answer), &Slo::default());
        assert_eq!((metrics.num_completed, metrics.num_good), (1, 1));
        let statistics = metrics.statistics();
        assert_eq!(statistics["p99_ttft_ms"], Value::Null);
        near(statistics["median_e2el_ms"].as_f64().unwrap(), 25.0);
    }

    #[test]
    fn percentiles_of_known_times_are_found() {
        let mut times = Times::default();
        times.extend((1..=10_000).map(Duration::from_micros));
        for percentile in [50.0, 95.0, 99.0] {
            near(times.percentile_ms(percentile), percentile / 10.0);
        }
        for (percentile, ms) in times.curve().into_iter().skip(1) {
            near(ms, percentile / 10.0);
        }
        times.extend([Duration::from_secs(100_000)]);
        near(times.percentile_ms(100.0), MAX_MICROSECONDS as f64 / 1e3);
    }

    #[test]
    fn a_percentile_log_has_the_form_of_hdrhistograms_tools() {
        let mut times = Times::default();
        times.extend((1..=1000).map(Duration::from_millis));
        let log = times.hgrm();
        let mut lines = log.lines();
        let columns: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
        assert_eq!(columns, ["Value", "Percentile", "TotalCount", "1/(1-Percentile)"]);
        let median = lines.clone().find(|line| line.contains(" 0.500000000000 ")).unwrap();
        let numbers: Vec<f64> =
            median.split_whitespace().map(|number| number.parse().unwrap()).collect();
        near(numbers[0], 500.0);
        assert_eq!(numbers[2..], [500.0, 2.0]);
        let footer: Vec<&str> = lines.filter(|line| line.starts_with("#[")).collect();
        assert!(footer[0].starts_with("#[Mean    =      500.5"), "{}", footer[0]);
        assert!(footer[1].ends_with("Total count    =         1000]"), "{}", footer[1]);
    }
}
