//! How sure a mean is: Student's interval, and the sign-flip test beside it, which supposes less.

use statrs::distribution::{ContinuousCDF, StudentsT};

/// More pairs than this are not enumerated by [`sign_flip_p`].
const MAX_FLIPPED: usize = 20;

/// A mean and where the true one lies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// The mean of the sample.
    pub mean: f64,
    /// The interval's lower end.
    pub low: f64,
    /// The interval's upper end.
    pub high: f64,
}

impl Interval {
    /// Whether zero is outside: a difference whose interval says so is real.
    pub(crate) fn excludes_zero(&self) -> bool {
        self.low > 0.0 || self.high < 0.0
    }
}

/// The interval that holds the true mean with `confidence` (such as 0.95), if what is measured
/// strays normally: mean ± t·s/√n, Student's t with n − 1 degrees of freedom. None for fewer
/// than two values, or ones that aren't finite.
pub(crate) fn mean_interval(values: &[f64], confidence: f64) -> Option<Interval> {
    let num = values.len() as f64;
    if values.len() < 2 || values.iter().any(|value| !value.is_finite()) {
        return None;
    }
    let mean = values.iter().sum::<f64>() / num;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (num - 1.0);
    let t = StudentsT::new(0.0, 1.0, num - 1.0).ok()?.inverse_cdf(0.5 + confidence / 2.0);
    let half = t * (variance / num).sqrt();
    Some(Interval { mean, low: mean - half, high: mean + half })
}

/// How often differences with these sizes would have a mean at least as far from zero if each
/// were as likely to be positive as negative: all 2ⁿ choices of signs are tried. It supposes
/// nothing of how they stray, and can't fall below 2/2ⁿ. None for no or more than 20 differences.
pub(crate) fn sign_flip_p(differences: &[f64]) -> Option<f64> {
    let num = differences.len();
    if num == 0 || num > MAX_FLIPPED || differences.iter().any(|value| !value.is_finite()) {
        return None;
    }
    let observed = differences.iter().sum::<f64>().abs();
    // The sums are of the same numbers in other orders of rounding.
    let least = observed * (1.0 - 1e-9);
    let extreme = (0u32..1 << num).filter(|signs| {
        let flipped = differences.iter().enumerate().map(|(index, difference)| {
            if signs >> index & 1 == 1 { -difference } else { *difference }
        });
        flipped.sum::<f64>().abs() >= least
    });
    Some(extreme.count() as f64 / f64::from(1u32 << num))
}

/// A slope and where the true one lies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Slope {
    /// Of the line of least squares.
    pub slope: f64,
    /// The interval's lower end.
    pub low: f64,
    /// The interval's upper end.
    pub high: f64,
}

/// The slope of the line of least squares through points (x, y), and the interval that holds the
/// true one with `confidence`: slope ± t·√(s²/Σ(x − x̄)²), s² the squared residuals over n − 2,
/// Student's t with n − 2 degrees of freedom. None for fewer than three points, one x for all, or
/// values that aren't finite.
pub fn slope_interval(points: &[(f64, f64)], confidence: f64) -> Option<Slope> {
    let num = points.len() as f64;
    if points.len() < 3 || points.iter().any(|(x, y)| !x.is_finite() || !y.is_finite()) {
        return None;
    }
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / num;
    let (mean_x, mean_y) = (mean(|point| point.0), mean(|point| point.1));
    let spread: f64 = points.iter().map(|(x, _)| (x - mean_x).powi(2)).sum();
    if spread == 0.0 {
        return None;
    }
    let slope = points.iter().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum::<f64>() / spread;
    let residual = |(x, y): &(f64, f64)| (y - mean_y - slope * (x - mean_x)).powi(2);
    let variance = points.iter().map(residual).sum::<f64>() / (num - 2.0);
    let t = StudentsT::new(0.0, 1.0, num - 2.0).ok()?.inverse_cdf(0.5 + confidence / 2.0);
    let half = t * (variance / spread).sqrt();
    Some(Slope { slope, low: slope - half, high: slope + half })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slope_is_the_one_of_the_textbook() {
        // y = 1, 3, 4, 7 at x = 0, 1, 2, 3: slope 1.9, squared residuals 0.7, Σ(x − x̄)² = 5;
        // t(0.975, 2) = 4.302653.
        let points = [(0.0, 1.0), (1.0, 3.0), (2.0, 4.0), (3.0, 7.0)];
        let found = slope_interval(&points, 0.95).unwrap();
        let half = 4.302_652_7 * (0.7f64 / 2.0 / 5.0).sqrt();
        assert!((found.slope - 1.9).abs() < 1e-12, "{found:?}");
        assert!((found.high - (1.9 + half)).abs() < 1e-6, "{found:?}");
        assert!((found.low - (1.9 - half)).abs() < 1e-6, "{found:?}");
        assert_eq!(slope_interval(&points[..2], 0.95), None);
        assert_eq!(slope_interval(&[(1.0, 1.0), (1.0, 2.0), (1.0, 3.0)], 0.95), None);
    }

    #[test]
    fn an_interval_is_the_one_of_the_textbook() {
        // Mean 3, s = √2.5, n = 5; t(0.975, 4) = 2.776445.
        let found = mean_interval(&[1.0, 2.0, 3.0, 4.0, 5.0], 0.95).unwrap();
        let half = 2.776_445_1 * (2.5f64 / 5.0).sqrt();
        assert!((found.mean - 3.0).abs() < 1e-12);
        assert!((found.low - (3.0 - half)).abs() < 1e-6, "{found:?}");
        assert!((found.high - (3.0 + half)).abs() < 1e-6, "{found:?}");
        assert!(found.excludes_zero());
        // Two values: t(0.995, 1) = 63.656741, and s/√n = 0.5.
        let wide = mean_interval(&[0.0, 1.0], 0.99).unwrap();
        assert!((wide.high - (0.5 + 63.656_741 * 0.5)).abs() < 1e-4, "{wide:?}");
        assert!(!wide.excludes_zero());
        assert_eq!(mean_interval(&[1.0], 0.95), None);
        assert_eq!(mean_interval(&[1.0, f64::NAN], 0.95), None);
    }

    #[test]
    fn an_interval_holds_the_true_mean_as_often_as_it_says() {
        // Sums of twelve uniform draws are nearly normal, with mean 6.
        let mut state = 1u64;
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 11) as f64 / (1u64 << 53) as f64
        };
        let held = (0..4000)
            .filter(|_| {
                let values: Vec<f64> = (0..5).map(|_| (0..12).map(|_| uniform()).sum()).collect();
                let found = mean_interval(&values, 0.95).unwrap();
                found.low <= 6.0 && 6.0 <= found.high
            })
            .count();
        assert!((3750..3850).contains(&held), "{held} of 4000, which should be 3800 ± 41");
    }

    #[test]
    fn flipping_signs_counts_what_is_as_extreme() {
        // Only all positive and all negative have such a mean.
        assert_eq!(sign_flip_p(&[1.0, 2.0, 3.0, 4.0, 5.0]), Some(2.0 / 32.0));
        // |3| of {±1, ±2}: 2 of 4; |1| of them: all.
        assert_eq!(sign_flip_p(&[1.0, 2.0]), Some(0.5));
        assert_eq!(sign_flip_p(&[-1.0, 2.0]), Some(1.0));
        assert_eq!(sign_flip_p(&[0.1, 0.2, -0.3]), Some(1.0));
        assert_eq!(sign_flip_p(&[]), None);
    }
}
