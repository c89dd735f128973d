//! Several loads one after the other: which values are tried, and when to stop.

use std::fmt::Write as _;
use std::str::FromStr;

use super::metrics::Metrics;
use super::slo::Slo;

/// Values of one sweep.
const MAX_STEPS: usize = 1000;

/// The values of a sweep: `1,2,4`, `1..64x2` (doubled from 1 to 64), `10..50+10`, or several of
/// them with commas.
#[derive(Clone, Debug, PartialEq)]
pub struct Steps(Vec<f64>);

impl Steps {
    /// Rates or concurrencies, in the order in which they are tried.
    pub fn values(&self) -> &[f64] {
        &self.0
    }
}

impl FromStr for Steps {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut steps = Vec::new();
        for part in text.split(',') {
            let wrong =
                || format!("{part:?} is no step: write 1,2,4 or 1..64x2 or 10..50+10, above 0");
            let number = |text: &str| {
                let number = text.parse::<f64>().ok();
                number.filter(|number| (1e-6..=1e9).contains(number)).ok_or_else(wrong)
            };
            let Some((from, rest)) = part.split_once("..") else {
                steps.push(number(part)?);
                continue;
            };
            let from = number(from)?;
            let at = rest.find(['x', '+']).ok_or_else(wrong)?;
            let (to, by) = (number(&rest[..at])?, number(&rest[at + 1..])?);
            let multiplies = rest.as_bytes()[at] == b'x';
            if from > to || (multiplies && by <= 1.0) {
                return Err(wrong());
            }
            let mut value = from;
            // What rounding adds to a whole number isn't too much.
            while value <= to * (1.0 + 1e-9) {
                steps.push(value);
                value = if multiplies { value * by } else { value + by };
                if steps.len() > MAX_STEPS {
                    return Err(format!("{text:?} has more than {MAX_STEPS} steps"));
                }
            }
        }
        Ok(Self(steps))
    }
}

/// How the objective was broken, in one sentence; none when at least the share `needed` of the
/// requests kept it. A request that failed did not.
pub fn broken(metrics: &Metrics, slo: &Slo, needed: f64) -> Option<String> {
    let num = metrics.num_completed + metrics.num_failed();
    if slo.is_empty() || num == 0 {
        return None;
    }
    let percent = |part: u64| part as f64 / num as f64 * 100.0;
    if metrics.num_good as f64 >= needed * num as f64 {
        return None;
    }
    // 0.99 as 99, not as 99.00000000000001.
    let needed = (needed * 1e6).round() / 1e4;
    let mut sentence = format!(
        "{:.1} % of the requests kept {slo}, {needed} % are needed",
        percent(metrics.num_good)
    );
    let mut join = ": ";
    for (metric, &count) in &metrics.broken {
        let _ = write!(sentence, "{join}{:.1} % broke {}", percent(count), metric.name());
        join = ", ";
    }
    if metrics.num_failed() > 0 {
        let _ = write!(sentence, "{join}{:.1} % failed", percent(metrics.num_failed()));
    }
    Some(sentence)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::failure::FailureKind;
    use crate::report::result::{FailureCount, Metric};

    #[test]
    fn steps_are_listed_multiplied_and_added() {
        let steps = |text: &str| text.parse::<Steps>().map(|steps| steps.0);
        assert_eq!(steps("1,2.5,4"), Ok(vec![1.0, 2.5, 4.0]));
        assert_eq!(steps("1..64x2"), Ok(vec![1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0]));
        assert_eq!(steps("1,10..30+10"), Ok(vec![1.0, 10.0, 20.0, 30.0]));
        assert_eq!(steps("0.1..0.3+0.1").map(|steps| steps.len()), Ok(3));
        for bad in ["", "0", "1..8", "8..1x2", "1..8x1", "1..8*2", "-1", "1..8+-1", "a"] {
            assert!(steps(bad).unwrap_err().contains("is no step"), "{bad}");
        }
        assert!(steps("1..1e9+1").unwrap_err().contains("more than 1000 steps"));
    }

    #[test]
    fn a_broken_objective_says_by_what() {
        let slo: Slo = "ttft=200ms".parse().unwrap();
        let mut metrics = Metrics::default();
        (metrics.num_completed, metrics.num_good) = (100, 99);
        assert_eq!(broken(&metrics, &slo, 0.99), None);
        assert_eq!(broken(&metrics, &Slo::default(), 1.0), None);
        metrics.num_good = 80;
        metrics.broken.insert(Metric::Ttft, 20);
        let failures = FailureCount { count: 25, example: String::new() };
        metrics.failures.insert(FailureKind::Timeout, failures);
        let expected = "64.0 % of the requests kept ttft ≤ 200 ms, 99 % are needed: \
                        16.0 % broke ttft, 20.0 % failed";
        assert_eq!(broken(&metrics, &slo, 0.99).unwrap(), expected);
    }
}
