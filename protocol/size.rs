//! Sizes in bytes, as people write them.

/// A size such as `6GiB`, `512MiB` or `1000000`.
///
/// # Errors
/// When it isn't one.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 1u64,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        "kb" => 1000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        unit => return Err(format!("unknown unit {unit}: use KiB, MiB or GiB, as in 6GiB")),
    };
    let number: Result<f64, _> = digits.trim().parse();
    let number = number.map_err(|_| "a size is a number and a unit, as in 6GiB".to_owned())?;
    if !number.is_finite() || number < 0.0 {
        return Err("a size is positive".into());
    }
    Ok((number * unit as f64) as u64)
}

#[cfg(test)]
mod tests {
    use super::parse_size;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        assert_eq!(parse_size("6GiB"), Ok(6 << 30));
        assert_eq!(parse_size("1.5g"), Ok(3 << 29));
        assert_eq!(parse_size("100"), Ok(100));
        assert!(parse_size("6 parsecs").is_err());
        assert!(parse_size("-1GiB").is_err());
        assert!(parse_size("GiB").is_err());
    }
}
