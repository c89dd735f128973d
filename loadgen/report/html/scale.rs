//! From values to places on an axis, and the ticks beside it.

/// How values are laid out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Scale {
    /// Evenly, from zero.
    Linear,
    /// By their logarithm.
    Log,
    /// Percentiles by the logarithm of what is above them, as HdrHistogram plots them: each nine
    /// is as wide as the one before.
    Percentile,
}

/// Where values of a range lie between 0 and 1.
#[derive(Clone, Debug)]
pub(super) struct Range {
    scale: Scale,
    /// Of the laid out values, not of the values.
    low: f64,
    high: f64,
}

/// Decades of a logarithmic axis; what is lower isn't drawn.
const MAX_DECADES: f64 = 3.5;
/// How far past the last percentile that is less than 100 the maximum is drawn, in nines.
const MAX_GAP: f64 = 0.45;

impl Range {
    /// A range that holds `values`; those that can't be laid out count nowhere.
    pub(super) fn around(scale: Scale, values: impl Iterator<Item = f64>) -> Self {
        let laid: Vec<f64> =
            values.map(|value| scale.lay(value)).filter(|value| value.is_finite()).collect();
        let max = laid.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let min = laid.iter().copied().fold(f64::INFINITY, f64::min);
        let (low, high) = match scale {
            _ if laid.is_empty() => (0.0, 1.0),
            Scale::Linear => (0.0, if max > 0.0 { max * 1.04 } else { 1.0 }),
            // At least a decade's third: a flat line would otherwise fill the plot with noise.
            Scale::Log => (min.max(max - MAX_DECADES) - 0.05, max.max(min + 0.3) + 0.05),
            Scale::Percentile => (0.0, max.max(1.0) + MAX_GAP),
        };
        Self { scale, low, high }
    }

    /// Where `value` is, between 0 and 1; none when it isn't in the range.
    pub(super) fn place(&self, value: f64) -> Option<f64> {
        let laid = match self.scale {
            Scale::Percentile if value >= 100.0 => self.high,
            scale => scale.lay(value),
        };
        let place = (laid - self.low) / (self.high - self.low);
        (place.is_finite() && (-1e-9..=1.0 + 1e-9).contains(&place)).then_some(place)
    }

    /// About `num` values that people like, with what is written beside them.
    pub(super) fn ticks(&self, num: usize) -> Vec<(f64, String)> {
        let values: Vec<(f64, String)> = match self.scale {
            Scale::Linear => {
                let step = nice_step((self.high - self.low) / num as f64);
                let decimals = (-step.log10().floor()).max(0.0) as usize;
                let counted = (0..=2 * num).map(|count| count as f64 * step);
                counted.map(|value| (value, shown(value, decimals))).collect()
            }
            Scale::Log => {
                let decades = (self.low.floor() as i32)..=(self.high.ceil() as i32);
                let digits: &[f64] = match (self.high - self.low) as usize {
                    0..=1 => &[1.0, 2.0, 3.0, 5.0, 7.0],
                    2 => &[1.0, 2.0, 5.0],
                    _ => &[1.0],
                };
                decades
                    .flat_map(|decade| digits.iter().map(move |digit| (decade, *digit)))
                    .map(|(decade, digit)| {
                        let value = digit * 10f64.powi(decade);
                        (value, shown(value, (-decade).max(0) as usize))
                    })
                    .collect()
            }
            Scale::Percentile => {
                let nines = ["0", "50", "90", "99", "99.9", "99.99", "99.999", "99.9999"];
                let values = nines.iter().filter_map(|text| {
                    let value: f64 = text.parse().ok()?;
                    // Else it would be written over the maximum.
                    let apart = self.scale.lay(value) < self.high - 0.9 * MAX_GAP;
                    apart.then(|| (value, (*text).to_string()))
                });
                values.chain([(100.0, "max".to_string())]).collect()
            }
        };
        values.into_iter().filter(|(value, _)| self.place(*value).is_some()).collect()
    }
}

impl Scale {
    fn lay(self, value: f64) -> f64 {
        match self {
            Self::Linear => value,
            Self::Log => value.log10(),
            Self::Percentile => -(1.0 - value / 100.0).log10(),
        }
    }
}

/// The next of 1, 2 and 5 times a power of ten.
fn nice_step(least: f64) -> f64 {
    let power = 10f64.powf(least.log10().floor());
    [1.0, 2.0, 5.0, 10.0]
        .map(|digit| digit * power)
        .into_iter()
        .find(|step| *step >= least * 0.999)
        .unwrap_or(10.0 * power)
}

fn shown(value: f64, decimals: usize) -> String {
    match value {
        value if value.abs() >= 1e6 => format!("{}M", (value / 1e4).round() / 100.0),
        value if value.abs() >= 1e4 => format!("{}k", (value / 1e2).round() / 10.0),
        value => format!("{value:.decimals$}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(range: &Range, num: usize) -> Vec<String> {
        range.ticks(num).into_iter().map(|(_, text)| text).collect()
    }

    #[test]
    fn ticks_are_round_numbers_within_the_range() {
        let range = Range::around(Scale::Linear, [3.0, 87.0].into_iter());
        assert_eq!(written(&range, 5), ["0", "20", "40", "60", "80"]);
        let small = Range::around(Scale::Linear, [0.0, 0.34].into_iter());
        assert_eq!(written(&small, 4), ["0.0", "0.1", "0.2", "0.3"]);
        let large = Range::around(Scale::Linear, [24_000.0].into_iter());
        assert_eq!(written(&large, 3), ["0", "10k", "20k"]);
        let log = Range::around(Scale::Log, [1.0, 1500.0].into_iter());
        assert_eq!(written(&log, 5), ["1", "10", "100", "1000"]);
    }

    #[test]
    fn each_nine_is_as_wide_as_the_one_before() {
        let range = Range::around(Scale::Percentile, [0.0, 50.0, 99.9, 100.0].into_iter());
        let at = |value| range.place(value).unwrap();
        assert!((at(99.0) - at(90.0) - (at(99.9) - at(99.0))).abs() < 1e-9);
        assert_eq!((at(0.0), at(100.0)), (0.0, 1.0));
        assert_eq!(written(&range, 5), ["0", "50", "90", "99", "99.9", "max"]);
    }

    #[test]
    fn what_cannot_be_laid_out_has_no_place() {
        let log = Range::around(Scale::Log, [0.0, f64::NAN, -3.0].into_iter());
        assert_eq!(log.place(0.0), None);
        assert_eq!(log.place(f64::NAN), None);
        let nothing = Range::around(Scale::Linear, std::iter::empty());
        assert!(!nothing.ticks(5).is_empty());
        let zero = Range::around(Scale::Linear, [0.0].into_iter());
        assert_eq!(zero.place(0.0), Some(0.0));
    }
}
