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

/// Reads a time as it is typed: `500ms`, `10s`, `1.5s`, `2m`, `1h`.
///
/// # Errors
/// When it is none; the sentence says what would be one.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no time: give one as in 500ms, 10s or 2m");
    let unit = text.find(|char: char| char.is_ascii_alphabetic()).ok_or_else(wrong)?;
    let (number, unit) = text.split_at(unit);
    let seconds = match unit {
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(wrong()),
    };
    let number: f64 = number.parse().map_err(|_| wrong())?;
    Duration::try_from_secs_f64(number * seconds).map_err(|_| wrong())
}

/// A number with a comma at each thousand.
pub fn grouped(num: u64) -> String {
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

/// The middle one of `values`, NaN where there is none.
pub fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        let times = [0.5, 12.34, 512.3, 12_340.0, 123_400.0].map(time);
        assert_eq!(times, ["0.50 ms", "12.3 ms", "512 ms", "12.34 s", "123 s"]);
    }

    #[test]
    fn a_time_is_a_number_with_its_unit() {
        for (text, ms) in [("500ms", 500), ("10s", 10_000), ("1.5s", 1500), ("2m", 120_000)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)));
        }
        for text in ["", "10", "s", "10 s", "-1s", "1d", "inf", "1e300h", "1ss"] {
            let error = duration(text).unwrap_err();
            assert!(error.contains("is no time: give one as in 500ms"), "{error}");
        }
    }
}
