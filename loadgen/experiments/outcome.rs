//! What an experiment's runs say: the means of two configurations, and whether they differ.

use std::fmt::Write as _;

use crate::numbers::{change, decimal, time};
use crate::report::answers::{self, Verdict};
use crate::report::compare::aligned;
use crate::report::result::{Metric, RunResult, Series};
use crate::report::statistics::{Interval, mean_interval, sign_flip_p};

/// How sure the intervals are.
pub(crate) const CONFIDENCE: f64 = 0.95;

/// Two configurations that were measured in turn.
#[derive(Clone, Debug)]
pub struct ExperimentResult {
    /// The first and the second, in the order in which they were named.
    pub configurations: [Configuration; 2],
    /// Rounds in which both were measured.
    pub num_rounds: usize,
    /// Second minus first of each round.
    pub differences: Vec<Difference>,
}

/// One configuration over all rounds.
#[derive(Clone, Debug)]
pub struct Configuration {
    /// As the configuration calls itself.
    pub label: String,
    /// Mean end-to-end milliseconds.
    pub mean_ms: Spread,
    /// Median, 95th and 99th percentile of each round, averaged.
    pub percentiles_ms: [Option<f64>; 3],
    /// Completed requests a second.
    pub qps: Spread,
    /// Failed requests as a share of all.
    pub error_share: Option<f64>,
    /// Little's law: whether the generator's own numbers fit together.
    pub little: Option<Little>,
    /// Whether the answers were right: the worst round's words.
    pub answers: String,
    /// Why the client, and not the server, was measured, in some round.
    pub bottleneck: Option<String>,
}

/// A mean over rounds; the interval needs two of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The mean, NaN when nothing was measured.
    pub mean: f64,
    /// Half of the interval's width.
    pub half: Option<f64>,
}

/// L = λ·W: the requests in flight are those that arrive a second times how long each stays.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Little {
    /// Requests in flight: of a closed loop those that it keeps, else those that were counted at
    /// the end of each second.
    pub in_flight: f64,
    /// Completed requests a second times mean seconds of a request, averaged over rounds.
    pub product: f64,
}

/// By how much the second configuration differs from the first, over paired rounds.
#[derive(Clone, Debug)]
pub struct Difference {
    /// Which figure of a round, with its unit.
    pub what: &'static str,
    /// In milliseconds, or in requests a second.
    pub is_time: bool,
    /// The mean of the paired differences and its interval.
    pub interval: Interval,
    /// The mean difference as a share of the first configuration's mean.
    pub share: f64,
    /// The sign-flip test's p, where there are few enough rounds to try all.
    pub p: Option<f64>,
}

impl ExperimentResult {
    /// What the runs of an experiment say; none unless they are of two configurations. A round
    /// that lacks one of the two counts nowhere.
    pub fn of(series: &Series) -> Option<Self> {
        let mut labels: Vec<&str> = Vec::new();
        for run in &series.runs {
            if !labels.contains(&run.label.as_str()) {
                labels.push(&run.label);
            }
        }
        let [first, second] = labels[..] else { return None };
        let of = |label: &str| -> Vec<&RunResult> {
            series.runs.iter().filter(|run| run.label == label).collect()
        };
        let (mut first, mut second) = (of(first), of(second));
        let num_rounds = first.len().min(second.len());
        first.truncate(num_rounds);
        second.truncate(num_rounds);
        let differences = [
            difference("Mean latency", true, &first, &second, mean_ms),
            difference("Requests a second", false, &first, &second, qps),
        ];
        Some(Self {
            configurations: [Configuration::of(&first), Configuration::of(&second)],
            num_rounds,
            differences: differences.into_iter().flatten().collect(),
        })
    }

    /// The table and what it means.
    pub fn text(&self) -> String {
        let head = ["configuration", "mean ms", "p50", "p95", "p99", "QPS", "error %", "answers"];
        let mut lines = vec![head.map(str::to_string).to_vec()];
        lines.extend(self.configurations.iter().map(|found| {
            let [p50, p95, p99] = found.percentiles_ms.map(|ms| ms.map_or("-".into(), time));
            vec![
                found.label.clone(),
                found.mean_ms.shown(),
                p50,
                p95,
                p99,
                found.qps.shown(),
                found.error_share.map_or("-".into(), |share| decimal(share * 100.0)),
                found.answers.clone(),
            ]
        }));
        let mut text = aligned(&lines, 1);
        for sentences in [self.findings(), self.checks(), self.doubts()] {
            if !sentences.is_empty() {
                let _ = writeln!(text, "\n{}", sentences.join("\n"));
            }
        }
        text
    }

    /// Whether the differences are real.
    fn findings(&self) -> Vec<String> {
        if self.differences.is_empty() {
            return vec![format!(
                "Nothing can be said of a difference: {} rounds in which both configurations \
                 answered; it takes two, and five to mean something.",
                self.num_rounds,
            )];
        }
        self.differences.iter().map(|found| self.judged(found)).collect()
    }

    /// Whether the generator's numbers fit together.
    fn checks(&self) -> Vec<String> {
        let checked = self.configurations.iter().filter_map(|found| {
            let Little { in_flight, product } = found.little?;
            Some(format!(
                "Little's law, {}: {in_flight:.1} in flight, QPS × mean latency = {product:.1}, \
                 {} off.",
                found.label,
                change(product / in_flight - 1.0),
            ))
        });
        checked.collect()
    }

    fn doubts(&self) -> Vec<String> {
        let doubts = self.configurations.iter().filter_map(|found| {
            let why = found.bottleneck.as_ref()?;
            Some(format!("{}: the client was the bottleneck: {why}.", found.label))
        });
        doubts.collect()
    }

    fn judged(&self, found: &Difference) -> String {
        let [first, second] = [0, 1].map(|index| &self.configurations[index].label);
        let shown = |value: f64| match found.is_time {
            true => format!("{value:+.2} ms"),
            false => format!("{}{}", if value < 0.0 { "" } else { "+" }, decimal(value)),
        };
        let Interval { mean, low, high } = found.interval;
        let verdict = match found.interval.excludes_zero() {
            true => "the difference is real",
            false => "no difference can be shown: the interval holds zero",
        };
        let p = found.p.map_or(String::new(), |p| {
            let least = 2.0 / 2f64.powi(self.num_rounds as i32);
            let least = if p <= least { ", the least that so few rounds can give" } else { "" };
            format!("; sign-flip test p = {p:.3}{least}")
        });
        format!(
            "{}, {second} against {first}: {} ({}), {:.0} % interval {} to {} over {} paired \
             rounds: {verdict}{p}.",
            found.what,
            shown(mean),
            change(found.share),
            CONFIDENCE * 100.0,
            shown(low),
            shown(high),
            self.num_rounds,
        )
    }
}

impl Configuration {
    fn of(runs: &[&RunResult]) -> Self {
        let num_failed: u64 = runs.iter().map(|run| run.failed).sum();
        let num: u64 = num_failed + runs.iter().map(|run| run.completed).sum::<u64>();
        let worst = |wanted| runs.iter().find(|run| answers::verdict(run) == wanted);
        let worst =
            worst(Verdict::Wrong).or_else(|| worst(Verdict::NotVerified)).or_else(|| runs.first());
        Self {
            label: runs.first().map_or(String::new(), |run| run.label.clone()),
            mean_ms: Spread::of(runs, mean_ms),
            percentiles_ms: ["p50", "p95", "p99"]
                .map(|name| average(runs, |run| run.statistic(name, Metric::E2el))),
            qps: Spread::of(runs, qps),
            error_share: (num > 0).then(|| num_failed as f64 / num as f64),
            little: Little::of(runs),
            answers: worst.map_or(String::new(), |run| answers::short(run)),
            bottleneck: runs.iter().find_map(|run| run.client.bottleneck.clone()),
        }
    }
}

impl Spread {
    fn of(runs: &[&RunResult], of: fn(&RunResult) -> Option<f64>) -> Self {
        let values: Vec<f64> = runs.iter().filter_map(|run| of(run)).collect();
        let interval = mean_interval(&values, CONFIDENCE);
        Self {
            mean: average(runs, of).unwrap_or(f64::NAN),
            half: interval.map(|found| found.high - found.mean),
        }
    }

    /// As in `76.1 ± 0.4`.
    fn shown(&self) -> String {
        match self.half {
            _ if self.mean.is_nan() => "-".to_string(),
            Some(half) => format!("{} ± {}", decimal(self.mean), decimal(half)),
            None => decimal(self.mean),
        }
    }
}

impl Little {
    fn of(runs: &[&RunResult]) -> Option<Self> {
        let in_flight = average(runs, |run| match (run.max_concurrency, run.request_rate) {
            (Some(num), None) => Some(num as f64),
            _ => {
                let window = run.timeline.iter().filter(|second| {
                    let from_start = second.second as f64;
                    from_start >= run.warmup && from_start + 1.0 <= run.warmup + run.duration
                });
                let counted: Vec<f64> = window.map(|second| second.running as f64).collect();
                Some(counted.iter().sum::<f64>() / counted.len() as f64)
            }
        })?;
        let product = average(runs, |run| Some(run.request_throughput * mean_ms(run)? / 1e3))?;
        (in_flight > 0.0).then_some(Self { in_flight, product })
    }
}

fn mean_ms(run: &RunResult) -> Option<f64> {
    run.statistic("mean", Metric::E2el)
}

fn qps(run: &RunResult) -> Option<f64> {
    Some(run.request_throughput)
}

fn average(runs: &[&RunResult], of: impl Fn(&RunResult) -> Option<f64>) -> Option<f64> {
    let values: Vec<f64> = runs.iter().filter_map(|run| of(run)).collect();
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    mean.is_finite().then_some(mean)
}

fn difference(
    what: &'static str,
    is_time: bool,
    first: &[&RunResult],
    second: &[&RunResult],
    of: fn(&RunResult) -> Option<f64>,
) -> Option<Difference> {
    let pairs = first.iter().zip(second);
    let differences: Option<Vec<f64>> =
        pairs.map(|(first, second)| Some(of(second)? - of(first)?)).collect();
    let differences = differences?;
    let interval = mean_interval(&differences, CONFIDENCE)?;
    let share = interval.mean / average(first, of)?;
    Some(Difference { what, is_time, interval, share, p: sign_flip_p(&differences) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn series(pairs: &[(f64, f64)]) -> Series {
        let run = |label: &str, ms: f64| {
            let mut run = RunResult {
                label: label.into(),
                completed: 100,
                request_throughput: 180_000.0 / ms,
                max_concurrency: Some(180),
                ..RunResult::default()
            };
            run.statistics.insert("mean_e2el_ms".into(), json!(ms));
            run
        };
        let mut runs = Vec::new();
        for (round, (first, second)) in pairs.iter().enumerate() {
            let mut two = [run("fresh", *first), run("pool", *second)];
            if round % 2 == 1 {
                two.reverse();
            }
            runs.extend(two);
        }
        Series { kind: "experiment".into(), runs, ..Series::default() }
    }

    #[test]
    fn rounds_are_paired_whatever_their_order() {
        // Rounds differ by far more than the configurations: only pairs show it.
        let series =
            series(&[(128.0, 76.0), (228.0, 175.0), (148.0, 97.0), (198.0, 146.0), (158.0, 106.0)]);
        let outcome = ExperimentResult::of(&series).unwrap();
        let latency = &outcome.differences[0];
        assert!((latency.interval.mean + 52.0).abs() < 1e-9, "{latency:?}");
        assert!(latency.interval.excludes_zero());
        assert_eq!(latency.p, Some(2.0 / 32.0));
        let text = outcome.text();
        assert!(text.contains("pool against fresh: -52.00 ms (-30 %), 95 % interval"), "{text}");
        assert!(text.contains("the difference is real; sign-flip test p = 0.062"), "{text}");
        assert!(
            text.contains("Little's law, pool: 180.0 in flight, QPS × mean latency = 180.0,"),
            "{text}"
        );
        assert!(text.contains("not verified"), "{text}");
    }

    #[test]
    fn what_strays_more_than_it_differs_is_not_called_real() {
        let outcome =
            ExperimentResult::of(&series(&[(100.0, 90.0), (100.0, 111.0), (100.0, 98.0)])).unwrap();
        let text = outcome.text();
        assert!(text.contains("no difference can be shown"), "{text}");
        assert!(!text.contains("is real"), "{text}");
    }

    #[test]
    fn an_experiment_that_was_cut_short_counts_its_whole_rounds() {
        let mut cut = series(&[(100.0, 90.0), (101.0, 91.0), (102.0, 92.0)]);
        cut.runs.pop();
        assert_eq!(ExperimentResult::of(&cut).unwrap().num_rounds, 2);
        cut.runs.truncate(1);
        assert!(ExperimentResult::of(&cut).is_none());
    }
}
