//! How long a step takes, as far as it was measured: a fixed part, and a part for each token.

use std::time::Duration;

/// What a measurement still counts for when the next has come.
const DECAY: f64 = 0.98;

/// Steps that must have been measured, by weight.
const MIN_WEIGHT: f64 = 8.0;

/// A line through what was measured, the newest counting most.
#[derive(Debug, Default)]
pub(crate) struct StepCost {
    // Sums of weights, of tokens, of seconds, of tokens squared, of their product.
    n: f64,
    x: f64,
    y: f64,
    xx: f64,
    xy: f64,
}

impl StepCost {
    /// A step of so many tokens took so long.
    pub(crate) fn record(&mut self, num_tokens: usize, duration: Duration) {
        let (x, y) = (num_tokens as f64, duration.as_secs_f64());
        for (sum, new) in [
            (&mut self.n, 1.0),
            (&mut self.x, x),
            (&mut self.y, y),
            (&mut self.xx, x * x),
            (&mut self.xy, x * y),
        ] {
            *sum = *sum * DECAY + new;
        }
    }

    /// Tokens of a step that takes `target`, 0 when the fixed part alone takes longer; `None` while
    /// too little is known.
    pub(crate) fn tokens_within(&self, target: Duration) -> Option<usize> {
        let (fixed, slope) = self.line()?;
        Some(((target.as_secs_f64() - fixed) / slope).max(0.0) as usize)
    }

    /// Tokens that take as long as the fixed part; `None` while too little is known.
    pub(crate) fn fixed_tokens(&self) -> Option<f64> {
        self.line().map(|(fixed, slope)| (fixed / slope).max(0.0))
    }

    /// Seconds of the fixed part, and of each token.
    fn line(&self) -> Option<(f64, f64)> {
        let spread = self.n * self.xx - self.x * self.x;
        if self.n < MIN_WEIGHT || spread < self.xx * 0.01 {
            return None;
        }
        let slope = (self.n * self.xy - self.x * self.y) / spread;
        let fixed = (self.y - slope * self.x) / self.n;
        (slope > 0.0).then_some((fixed, slope))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_found_and_followed_when_it_changes() {
        let mut cost = StepCost::default();
        let target = Duration::from_millis(100);
        assert_eq!(cost.tokens_within(target), None);
        for i in 0..50 {
            let num_tokens = 1 + (i % 5) * 20;
            cost.record(num_tokens, Duration::from_millis(20 + num_tokens as u64));
        }
        assert!(cost.tokens_within(target).unwrap().abs_diff(80) <= 1);
        for i in 0..400 {
            let num_tokens = 1 + (i % 5) * 20;
            cost.record(num_tokens, Duration::from_millis(20 + 4 * num_tokens as u64));
        }
        assert!(cost.tokens_within(target).unwrap().abs_diff(20) <= 1);
        assert_eq!(cost.tokens_within(Duration::from_millis(5)), Some(0));
        let fixed = cost.fixed_tokens().unwrap();
        assert!((fixed - 5.0).abs() < 0.5, "{fixed}");
    }

    #[test]
    fn steps_of_one_size_tell_nothing_of_others() {
        let mut cost = StepCost::default();
        (0..99).for_each(|_| cost.record(16, Duration::from_millis(40)));
        assert_eq!(cost.tokens_within(Duration::from_millis(100)), None);
        assert_eq!(cost.fixed_tokens(), None);
    }
}
