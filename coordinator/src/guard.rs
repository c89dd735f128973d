//! Libraries that panic at what they are given: whoever gave it is told, and the process goes on.

use std::panic::AssertUnwindSafe;

use llguidance::panic_utils;

/// Does what a library may panic at; what it was at is thrown away then.
///
/// # Errors
/// What the library says or panics with, as one line.
pub(crate) fn guarded<T>(deed: impl FnOnce() -> anyhow::Result<T>) -> Result<T, String> {
    let done = panic_utils::catch_unwind(AssertUnwindSafe(deed));
    done.map_err(|cause| sentence(&format!("{cause:#}")))
}

/// What a library says, as one line without its own trace, and without a full stop.
pub(crate) fn sentence(cause: &str) -> String {
    const MAX_CHARS: usize = 300;
    let line = cause.split("\n<").next().unwrap_or_default();
    let line = line.split_whitespace().collect::<Vec<_>>().join(" ");
    line.trim_end_matches('.').chars().take(MAX_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_library_panics_at_is_refused_in_its_words() {
        assert_eq!(guarded(|| Ok(7)), Ok(7));
        let refused = guarded::<()>(|| panic!("no\nsuch part."));
        assert_eq!(refused, Err("panic: no such part".into()));
        let refused = guarded::<()>(|| anyhow::bail!("no model"));
        assert_eq!(refused, Err("no model".into()));
    }
}
