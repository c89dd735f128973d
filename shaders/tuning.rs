//! Which of several ways of laying work out over lanes is the fastest on an adapter: tried once,
//! kept on disk. All of them give the same bits, so a choice is about time and nothing else.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::adapters::AdapterInfo;
use crate::error::GpuError;

/// A way is preferred to the first, which is known to be good, if it takes less than this share of
/// its time: less is noise.
const WORTH: f64 = 0.95;

/// Longer files aren't ours.
const MAX_BYTES: u64 = 1 << 20;

/// The choices made on one adapter.
#[derive(Debug, Default)]
pub(crate) struct Tuning {
    file: Option<PathBuf>,
    chosen: RefCell<BTreeMap<String, String>>,
    is_changed: Cell<bool>,
}

impl Tuning {
    /// What was chosen on this adapter before, as kept in `folder`.
    pub(crate) fn open(folder: &Path, info: &AdapterInfo) -> Self {
        // A driver's new version compiles kernels in another way.
        let adapter = format!("{} {} {}", info.name, info.driver, info.backend);
        let name = blake3::hash(adapter.as_bytes()).to_hex();
        let file = folder.join(format!("tuning-{}", &name[..16]));
        let text = match file.metadata() {
            Ok(data) if data.len() <= MAX_BYTES => std::fs::read_to_string(&file),
            Ok(_) => Err(io::Error::other("too long")),
            Err(error) => Err(error),
        };
        let text = match text {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => {
                tracing::warn!(%error, file = %file.display(), "not read: kernels are tried anew");
                String::new()
            }
        };
        let pairs = text.lines().filter_map(|line| line.split_once('\t'));
        let chosen = pairs.map(|(what, way)| (what.to_owned(), way.to_owned())).collect();
        Self { file: Some(file), chosen: RefCell::new(chosen), is_changed: Cell::new(false) }
    }

    /// Whether [`choose`](Self::choose) has to try.
    pub(crate) fn tries(&self, what: &str, ways: &[&str]) -> bool {
        let is_known = |kept: &String| ways.contains(&kept.as_str());
        self.file.is_some()
            && ways.len() > 1
            && !self.chosen.borrow().get(what).is_some_and(is_known)
    }

    /// The fastest of `ways` to compute `what`: as chosen before, or as `time` finds. The first
    /// way where nothing is kept.
    pub(crate) fn choose(
        &self,
        what: &str,
        ways: &[&str],
        mut time: impl FnMut(usize) -> Result<Duration, GpuError>,
    ) -> Result<usize, GpuError> {
        if !self.tries(what, ways) {
            let kept = self.chosen.borrow().get(what).cloned().filter(|_| self.file.is_some());
            let index = kept.and_then(|kept| ways.iter().position(|way| *way == kept));
            return Ok(index.unwrap_or(0));
        }
        let first = time(0)?.as_secs_f64();
        let (mut best, mut least) = (0, first * WORTH);
        for index in 1..ways.len() {
            let seconds = time(index)?.as_secs_f64();
            if seconds < least {
                (best, least) = (index, seconds);
            }
        }
        tracing::debug!(what, way = ways[best], "chosen");
        self.chosen.borrow_mut().insert(what.to_owned(), ways[best].to_owned());
        self.is_changed.set(true);
        Ok(best)
    }

    /// What is kept as `what`, if it `is_right`, or else what `find` finds, which is kept.
    pub(crate) fn keep(
        &self,
        what: &str,
        is_right: impl Fn(&str) -> bool,
        find: impl FnOnce() -> Result<String, GpuError>,
    ) -> Result<String, GpuError> {
        let kept = self.chosen.borrow().get(what).cloned();
        if let Some(kept) = kept.filter(|kept| is_right(kept)) {
            return Ok(kept);
        }
        let found = find()?;
        self.chosen.borrow_mut().insert(what.to_owned(), found.clone());
        self.is_changed.set(true);
        Ok(found)
    }

    /// Keeps what was chosen since, all of it or nothing.
    pub(crate) fn save(&self) -> io::Result<()> {
        let Some(file) = self.file.as_ref().filter(|_| self.is_changed.get()) else {
            return Ok(());
        };
        let mut text = String::new();
        for (what, way) in &*self.chosen.borrow() {
            let _ = writeln!(text, "{what}\t{way}");
        }
        crate::pipeline_cache::write(file, text.as_bytes())?;
        self.is_changed.set(false);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::Adapters;

    #[test]
    fn what_was_found_is_kept_and_not_tried_again() {
        let Some(info) = Adapters::list().into_iter().next() else { return };
        let folder = tempfile::tempdir().unwrap();
        let tuning = Tuning::open(folder.path(), &info);
        let took = |times: [u64; 3]| move |way: usize| Ok(Duration::from_micros(times[way]));
        let never = |_| -> Result<Duration, GpuError> { panic!("known already") };
        let ways = ["wide", "narrow", "deep"];
        assert!(tuning.tries("a", &ways) && !tuning.tries("a", &ways[..1]));
        assert_eq!(tuning.choose("a", &ways, took([100, 50, 60])).unwrap(), 1);
        assert!(!tuning.tries("a", &ways) && tuning.tries("a", &["broad", "flat"]));
        // Not worth a change.
        assert_eq!(tuning.choose("b", &ways, took([100, 97, 98])).unwrap(), 0);
        assert_eq!(tuning.choose("a", &ways, never).unwrap(), 1);
        assert_eq!(tuning.choose("c", &ways[..1], never).unwrap(), 0);
        tuning.save().unwrap();

        let again = Tuning::open(folder.path(), &info);
        assert_eq!(again.choose("a", &ways, never).unwrap(), 1);
        assert_eq!(again.choose("b", &ways, never).unwrap(), 0);
        // A way that is gone is chosen anew.
        assert_eq!(again.choose("a", &["wide", "deep"], took([9, 1, 1])).unwrap(), 1);
        // Without a place to keep it nothing is tried.
        assert_eq!(Tuning::default().choose("a", &ways, never).unwrap(), 0);
        let mut other = info;
        other.driver += " of another version";
        let other = Tuning::open(folder.path(), &other);
        assert_eq!(other.choose("a", &ways, took([1, 5, 5])).unwrap(), 0);
    }

    #[test]
    fn a_spoilt_file_is_as_none() {
        let Some(info) = Adapters::list().into_iter().next() else { return };
        let folder = tempfile::tempdir().unwrap();
        let file = Tuning::open(folder.path(), &info).file.unwrap();
        for spoilt in [&b"\xff\xfe\tx\n"[..], b"no tab\n\n\t\n", &[b'x'; 2 << 20]] {
            std::fs::write(&file, spoilt).unwrap();
            let tuning = Tuning::open(folder.path(), &info);
            let time = |_| Ok(Duration::from_micros(5));
            assert_eq!(tuning.choose("a", &["one", "two"], time).unwrap(), 0);
            tuning.save().unwrap();
            assert_eq!(std::fs::read(&file).unwrap().last(), Some(&b'\n'));
        }
    }
}
