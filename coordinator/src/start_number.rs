//! Counts the coordinator's starts, on disk before the first plan: half of every epoch, so that
//! nothing from before a restart passes for new.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::data_dir;

/// The number of this start, one more than the last.
///
/// # Errors
/// When the data directory can't be written, or the file isn't a number.
pub(crate) fn next(dir: &Path) -> Result<u64> {
    let path = dir.join("starts");
    let last = match fs::read_to_string(&path) {
        Ok(text) => text
            .trim()
            .parse::<u64>()
            .with_context(|| format!("{} should hold one number", path.display()))?,
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => 0,
        Err(cause) => return Err(cause).with_context(|| format!("can't read {}", path.display())),
    };
    data_dir::replace(&path, format!("{}\n", last + 1).as_bytes())
        .with_context(|| format!("can't write {}", path.display()))?;
    Ok(last + 1)
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_start_has_a_higher_number() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(super::next(dir.path()).unwrap(), 1);
        assert_eq!(super::next(dir.path()).unwrap(), 2);
        std::fs::write(dir.path().join("starts"), "rubbish").unwrap();
        assert!(super::next(dir.path()).unwrap_err().to_string().contains("one number"));
    }
}
