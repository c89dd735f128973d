//! Turns on an adapter: processes that share one compute a step each, one after another.
//!
//! A GPU that is handed the work of two processes goes to and fro between them, kernel by kernel or
//! slice by slice of time, and both take longer than their sum. So whoever is about to hand a step
//! over waits for a lock on a file of the adapter's, which the driver knows nothing of. The system
//! takes it from a process that ends. One that stops while it has it holds nobody up for long.

use std::cell::Cell;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::adapters::AdapterInfo;

/// How long a turn is waited for: longer than a step takes others.
const MAX_WAIT: Duration = Duration::from_millis(500);

/// How long none is waited for, after one that didn't come.
const MAX_TRUST: Duration = Duration::from_secs(5);

/// Between two looks; a step takes hundreds of these.
const PAUSE: Duration = Duration::from_micros(20);

/// An adapter's file.
#[derive(Debug)]
pub(crate) struct Turns {
    file: File,
    /// While others are not waited for.
    alone_until: Cell<Option<Instant>>,
}

/// Nobody else's, until it is dropped.
#[derive(Debug)]
pub struct Turn<'a>(Option<&'a Turns>);

impl Turns {
    /// Of an adapter, as processes share it that keep their kernels in `folder`.
    pub(crate) fn open(folder: &Path, info: &AdapterInfo) -> Option<Self> {
        let adapter = format!("{} {} {}", info.index, info.name, info.backend);
        let name = blake3::hash(adapter.as_bytes()).to_hex();
        let path = folder.join(format!("turns-{}", &name[..16]));
        let opened = std::fs::create_dir_all(folder)
            .and_then(|()| OpenOptions::new().create(true).truncate(false).write(true).open(&path));
        match opened {
            Ok(file) => Some(Self { file, alone_until: Cell::new(None) }),
            Err(error) => {
                tracing::warn!(%error, file = %path.display(), "no turns: steps may interleave");
                None
            }
        }
    }

    /// The next turn; or none of one's own, where it doesn't come in time.
    pub(crate) fn take(&self) -> Turn<'_> {
        let began = Instant::now();
        if self.alone_until.get().is_some_and(|until| began < until) {
            return Turn(None);
        }
        loop {
            match self.file.try_lock() {
                Ok(()) => return Turn(Some(self)),
                Err(TryLockError::WouldBlock) if began.elapsed() < MAX_WAIT => {
                    std::thread::sleep(PAUSE);
                }
                Err(error) => {
                    let error = io::Error::from(error);
                    tracing::warn!(%error, "no turn came: steps of other processes may interleave");
                    self.alone_until.set(Some(Instant::now() + MAX_TRUST));
                    return Turn(None);
                }
            }
        }
    }
}

impl Turn<'_> {
    /// Where nobody takes turns.
    pub(crate) fn none() -> Self {
        Turn(None)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Some(Turns { file, .. }) = self.0
            && let Err(error) = file.unlock()
        {
            tracing::warn!(%error, "a turn didn't end");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::thread;

    use super::*;
    use crate::adapters::Adapters;
    use crate::gpu::{Gpu, GpuOptions};
    use crate::kernel::Pass;
    use crate::testing;

    #[test]
    fn who_does_not_give_his_turn_back_is_not_waited_for_again() {
        let Some(info) = Adapters::list().into_iter().next() else { return };
        let folder = tempfile::tempdir().unwrap();
        let [one, other] = [(); 2].map(|()| Turns::open(folder.path(), &info).unwrap());
        drop(one.take());
        drop(other.take());
        let held = one.take();
        assert!(held.0.is_some());
        let began = Instant::now();
        assert!(other.take().0.is_none() && began.elapsed() >= MAX_WAIT);
        let again = Instant::now();
        assert!(other.take().0.is_none() && again.elapsed() < MAX_WAIT);
        drop(held);
        // Another card's file is another one.
        let mut second = info;
        second.index += 1;
        let held = one.take();
        assert!(Turns::open(folder.path(), &second).unwrap().take().0.is_some());
        drop(held);
    }

    #[test]
    fn steps_of_two_that_share_an_adapter_do_not_overlap() {
        let folder = tempfile::tempdir().unwrap();
        let adapter = testing::adapter();
        let options = GpuOptions {
            cache_dir: Some(folder.path().to_owned()),
            takes_turns: Some(true),
            ..GpuOptions::default()
        };
        let open = || Gpu::open_with(adapter.as_deref(), options.clone());
        let (Ok(one), Ok(other)) = (open(), open()) else { return };
        let steps = Mutex::new(Vec::new());
        thread::scope(|scope| {
            for gpu in [one, other] {
                let steps = &steps;
                scope.spawn(move || {
                    for _ in 0..20 {
                        let turn = gpu.turn();
                        let began = Instant::now();
                        gpu.run(&Pass::new()).unwrap();
                        thread::sleep(Duration::from_millis(1));
                        steps.lock().unwrap().push((began, Instant::now()));
                        drop(turn);
                    }
                });
            }
        });
        let mut steps = steps.into_inner().unwrap();
        steps.sort();
        assert_eq!(steps.len(), 40);
        assert!(steps.windows(2).all(|pair| pair[0].1 <= pair[1].0));
    }
}
