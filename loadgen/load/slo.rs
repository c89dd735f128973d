//! The objective that answers should keep: `ttft=200ms,itl=50ms`.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use super::outcome::Timing;
use crate::numbers::{self, parse_time};
use crate::report::result::Metric;

/// Limits by metric. An answer keeps the objective when it keeps them all: its time to first
/// token, its mean time per token, the longest time between two pieces of its text, its end.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Slo(BTreeMap<Metric, Duration>);

impl Slo {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Milliseconds by metric's name.
    pub(crate) fn limits_ms(&self) -> BTreeMap<String, f64> {
        let ms = |(metric, limit): (&Metric, &Duration)| {
            (metric.name().to_owned(), limit.as_secs_f64() * 1e3)
        };
        self.0.iter().map(ms).collect()
    }

    /// Whether it can be told from answers that come in one piece.
    pub(crate) fn needs_streaming(&self) -> bool {
        self.0.keys().any(|&metric| metric != Metric::E2el)
    }

    /// The limits that an answer breaks. Where it has no such time (a lone token has no token
    /// after it), there is nothing to break.
    pub fn broken(&self, timing: &Timing) -> impl Iterator<Item = Metric> {
        self.0.iter().filter_map(|(&metric, &limit)| {
            let time = match metric {
                Metric::Ttft => timing.ttft,
                Metric::Tpot => timing.tpot,
                Metric::Itl => timing.longest_gap,
                Metric::E2el => Some(timing.e2el),
            };
            time.is_some_and(|time| time > limit).then_some(metric)
        })
    }
}

impl std::fmt::Display for Slo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, (metric, limit)) in self.0.iter().enumerate() {
            let comma = if index > 0 { ", " } else { "" };
            let limit = numbers::time(limit.as_secs_f64() * 1e3);
            write!(f, "{comma}{} ≤ {limit}", metric.name())?;
        }
        Ok(())
    }
}

impl FromStr for Slo {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut limits = BTreeMap::new();
        for part in text.split(',') {
            let wrong = |what: String| {
                format!("{part:?} is no objective: {what}; write it as in ttft=200ms,itl=50ms")
            };
            let (name, limit) = part.split_once('=').ok_or_else(|| wrong("no =".into()))?;
            let metric = Metric::ALL.into_iter().find(|metric| metric.name() == name);
            let metric =
                metric.ok_or_else(|| wrong(format!("{name:?} is not ttft, tpot, itl or e2el")))?;
            let limit = parse_time(limit).map_err(wrong)?;
            if limits.insert(metric, limit).is_some() {
                return Err(wrong(format!("{name} is there twice")));
            }
        }
        Ok(Self(limits))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_breaks_the_limits_that_it_passes() {
        let ms = Duration::from_millis;
        let slo: Slo = "ttft=200ms,itl=50ms,e2el=1s".parse().unwrap();
        let broken = |ttft, gap, e2el| {
            let timing =
                Timing { ttft: Some(ms(ttft)), tpot: None, longest_gap: gap, e2el: ms(e2el) };
            slo.broken(&timing).collect::<Vec<_>>()
        };
        assert_eq!(broken(200, Some(ms(50)), 1000), []);
        assert_eq!(broken(201, None, 1001), [Metric::Ttft, Metric::E2el]);
        assert_eq!(broken(1, Some(ms(51)), 1), [Metric::Itl]);
        assert_eq!(slo.to_string(), "ttft ≤ 200 ms, itl ≤ 50.0 ms, e2el ≤ 1.00 s");
    }

    #[test]
    fn what_is_no_objective_is_refused_with_what_would_be_one() {
        for (text, said) in [
            ("ttft", "no ="),
            ("ttf=3ms", "\"ttf\" is not ttft, tpot, itl or e2el"),
            ("ttft=200", "\"200\" is no time"),
            ("ttft=1s,ttft=2s", "twice"),
            ("", "no ="),
        ] {
            let error = text.parse::<Slo>().unwrap_err();
            assert!(error.contains(said) && error.contains("ttft=200ms,itl=50ms"), "{error}");
        }
    }
}
