//! Libraries that panic at what they are given.

use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::{Result, anyhow};

/// Does what a library may panic at: on some files that are broken, and with some templates. That
/// is their fault, not ours.
pub(crate) fn guarded<T>(deed: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(deed)).unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().map(String::as_str);
        let said = said.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("unknown");
        Err(anyhow!("it can't be worked with: {said}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_library_panics_at_is_an_error_in_its_words() {
        assert_eq!(guarded(|| Ok(7)).unwrap(), 7);
        let refused = guarded::<()>(|| panic!("no such {}", "part")).unwrap_err();
        assert_eq!(refused.to_string(), "it can't be worked with: no such part");
    }
}
