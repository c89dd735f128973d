//! Numbers as people read them, and what is computed from a few of them.

use std::time::Duration;

/// Milliseconds, in the unit that reads best.
pub fn time(ms: f64) -> String {
    match ms {
        ms if ms < 10.0 => format!("{ms:.2} ms"),
        ms if ms < 100.0 => format!("{ms:.1} ms"),
        ms if ms < 1e3 => format!("{ms:.0} ms"),
        ms if ms < 1e5 => format!("{:.2} s", ms / 1e3),
        ms => format!("{:.0} s", ms / 1e3),
    }
}

/// A time as it is written on a command line: `200ms`, `1.5s`, `2m`, `50us`.
///
/// # Errors
/// One sentence when it is none.
pub fn parse_time(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(format!("{text:?} is no time: write it as in 200ms, 1.5s or 2m")),
    };
    let seconds = digits.parse::<f64>().ok().map(|number| number * unit);
    match seconds.filter(|seconds| (0.0..=1e9).contains(seconds)) {
        Some(seconds) => Ok(Duration::from_secs_f64(seconds)),
        None => Err(format!("{text:?} is no time: write it as in 200ms, 1.5s or 2m")),
    }
}

/// A number with a comma at each thousand.
pub(crate) fn grouped(num: u64) -> String {
    let digits = num.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number that is grouped, where it is known.
pub(crate) fn count(num: Option<u64>) -> String {
    num.map_or("unknown".to_string(), grouped)
}

/// A number with three digits or more.
pub fn decimal(value: f64) -> String {
    match value.abs() {
        size if size < 9.995 => format!("{value:.2}"),
        size if size < 99.95 => format!("{value:.1}"),
        size if size < 1e15 && value >= 0.0 => grouped(value.round() as u64),
        _ => format!("{value:.0}"),
    }
}

/// A share of the whole, such as 0.034, in percent.
pub fn percent(share: f64) -> String {
    match share * 100.0 {
        0.0 => "0 %".to_string(),
        percent if percent < 0.995 => format!("{percent:.2} %"),
        percent => format!("{percent:.1} %"),
    }
}

/// A change such as 0.034, in percent with its sign.
pub(crate) fn change(share: f64) -> String {
    let decimals = usize::from(share.abs() < 0.0995);
    format!("{:+.decimals$} %", share * 100.0)
}

/// The middle one of `values`, NaN where there is none.
pub fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The least value that such a share of all don't pass, NaN where there is none.
pub fn percentile(values: &[f64], share: f64) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let at = ((values.len() as f64 * share).ceil() as usize).saturating_sub(1);
    values.get(at).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_a_value_that_was_measured() {
        let values: Vec<_> = (1..=100).rev().map(f64::from).collect();
        assert_eq!([0.5, 0.95].map(|share| percentile(&values, share)), [50.0, 95.0]);
        assert_eq!(percentile(&[7.0], 0.95), 7.0);
        assert!(percentile(&[], 0.5).is_nan());
    }

    #[test]
    fn numbers_read_well() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        let times = [0.5, 12.34, 512.3, 12_340.0, 123_400.0].map(time);
        assert_eq!([0.0, 3.456, 12.34, 1234.5].map(decimal), ["0.00", "3.46", "12.3", "1,235"]);
        assert_eq!([0.0, 0.0012, 0.25].map(percent), ["0 %", "0.12 %", "25.0 %"]);
        assert_eq!([-0.034, 0.5].map(change), ["-3.4 %", "+50 %"]);
        assert_eq!(times, ["0.50 ms", "12.3 ms", "512 ms", "12.34 s", "123 s"]);
    }

    #[test]
    fn times_are_read_with_their_unit() {
        let read = |text| parse_time(text).map(|time| time.as_micros());
        assert_eq!(
            ["50us", "200ms", "1.5s", "2m", "1h"].map(read),
            [Ok(50), Ok(200_000), Ok(1_500_000), Ok(120_000_000), Ok(3_600_000_000)]
        );
        for bad in ["", "5", "ms", "-1s", "NaNs", "1e300s", "5 days", "é"] {
            assert!(parse_time(bad).unwrap_err().contains("is no time"), "{bad}");
        }
    }
}
