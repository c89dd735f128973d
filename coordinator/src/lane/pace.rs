//! What steps take at the stages, and what on their way: where it pays to run ahead.

use std::time::Duration;

use protocol::StageTiming;

use crate::step_cost::StepCost;

/// What a measurement still counts for when the next has come.
const DECAY: f64 = 0.95;

/// The way by the coordinator is worth hiding where it takes a greater share of a step than this:
/// whoever comes then waits behind one more step.
const WORTH: f64 = 1.0 / 32.0;

/// Seconds of the last steps, the newest counting most.
#[derive(Debug, Default)]
pub(super) struct Pace {
    computing: f64,
    on_the_way: f64,
    cost: StepCost,
}

impl Pace {
    /// A step of so many tokens has come back after this time, of which its stages tell their
    /// parts.
    pub(super) fn record(
        &mut self,
        num_tokens: usize,
        duration: Duration,
        timings: &[StageTiming],
    ) {
        if timings.is_empty() {
            return;
        }
        let micros = |of: fn(&StageTiming) -> u64| {
            Duration::from_micros(timings.iter().map(of).sum::<u64>())
        };
        let computing = micros(|it| {
            u64::from(it.upload_us) + u64::from(it.compute_us) + u64::from(it.readback_us)
        });
        self.cost.record(num_tokens, computing);
        let on_the_way = duration.saturating_sub(micros(StageTiming::total_us));
        for (sum, new) in [(&mut self.computing, computing), (&mut self.on_the_way, on_the_way)] {
            *sum = *sum * DECAY + new.as_secs_f64();
        }
    }

    /// Tokens that take as long to compute as what each step takes beside them; `None` while too
    /// little is known.
    pub(super) fn fixed_tokens(&self) -> Option<f64> {
        self.cost.fixed_tokens()
    }

    /// Whether stages would wait for the coordinator for long enough to run ahead of it. Of the
    /// ways that a step goes, one more than there are stages, two are to and from it.
    pub(super) fn is_worth_hiding(&self, num_stages: usize) -> bool {
        let by_coordinator = self.on_the_way * 2.0 / (num_stages as f64 + 1.0);
        by_coordinator > self.computing * WORTH
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A step of so many milliseconds at each of these stages, and so many on its way; behind
    /// others it waits for as long again, which is neither.
    fn pace(stages: &[u32], way: u64) -> Pace {
        let timing = |ms: &u32| StageTiming {
            wait_us: ms * 1000,
            upload_us: ms * 100,
            compute_us: ms * 900,
            ..StageTiming::default()
        };
        let timings: Vec<_> = stages.iter().map(timing).collect();
        let within: u32 = stages.iter().sum();
        let duration = Duration::from_millis(u64::from(within) * 2 + way);
        let mut pace = Pace::default();
        (0..100).for_each(|_| pace.record(1, duration, &timings));
        pace
    }

    #[test]
    fn a_way_that_is_a_small_part_of_a_step_is_not_worth_hiding() {
        assert!(!Pace::default().is_worth_hiding(1), "nothing is known");
        assert!(!pace(&[64], 1).is_worth_hiding(1));
        assert!(pace(&[64], 3).is_worth_hiding(1));
        // Two of the three ways are by the coordinator.
        assert!(!pace(&[32, 32], 2).is_worth_hiding(2));
        assert!(pace(&[32, 32], 4).is_worth_hiding(2));
    }

    #[test]
    fn it_follows_what_changes() {
        let mut pace = pace(&[64], 3);
        let timing = StageTiming { compute_us: 640_000, ..StageTiming::default() };
        (0..20).for_each(|_| pace.record(1, Duration::from_millis(643), &[timing]));
        assert!(!pace.is_worth_hiding(1));
        // Who tells nothing changes nothing.
        (0..20).for_each(|_| pace.record(1, Duration::from_millis(643), &[]));
        assert!(!pace.is_worth_hiding(1));
    }
}
