//! Wakes at a time, more exactly than the runtime's timers, which tick in milliseconds: in an open
//! loop half a tick of lag would be in every latency, and in every time of a server whose law is
//! known.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use tokio::time::Instant;

/// A timer for any number of tasks. A thread of its own sleeps for them.
#[derive(Debug)]
pub(crate) struct Alarm {
    shared: Arc<Shared>,
    has_thread: bool,
}

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

/// Who waits until when; a number tells those of one time apart.
#[derive(Debug, Default)]
struct Waiting {
    tasks: BTreeMap<(Instant, u64), oneshot::Sender<()>>,
    next_number: u64,
    has_ended: bool,
}

/// One that waits, until it is dropped.
struct Wish<'a> {
    shared: &'a Shared,
    key: (Instant, u64),
}

impl Alarm {
    /// One that is as exact as the system lets a thread sleep; the runtime's where there is no
    /// thread to be had.
    pub(crate) fn new() -> Self {
        let shared = Arc::new(Shared::default());
        let of_thread = shared.clone();
        let thread = std::thread::Builder::new().name("alarm".to_owned());
        let has_thread = thread.spawn(move || of_thread.serve()).is_ok();
        Self { shared, has_thread }
    }

    /// Waits until `time`, and may be dropped before.
    pub(crate) async fn at(&self, time: Instant) {
        if time <= Instant::now() {
            return;
        }
        if !self.has_thread {
            return tokio::time::sleep_until(time).await;
        }
        let (wish, ring) = self.shared.wish(time);
        // The thread lives for as long as `self` does.
        let _ = ring.await;
        drop(wish);
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        self.shared.lock().has_ended = true;
        self.shared.changed.notify_one();
    }
}

impl Drop for Wish<'_> {
    fn drop(&mut self) {
        self.shared.lock().tasks.remove(&self.key);
    }
}

impl Shared {
    fn wish(&self, time: Instant) -> (Wish<'_>, oneshot::Receiver<()>) {
        let (task, ring) = oneshot::channel();
        let mut waiting = self.lock();
        let key = (time, waiting.next_number);
        waiting.next_number += 1;
        waiting.tasks.insert(key, task);
        // The thread sleeps long enough for all others.
        if waiting.tasks.first_key_value().is_some_and(|(first, _)| *first == key) {
            self.changed.notify_one();
        }
        (Wish { shared: self, key }, ring)
    }

    fn serve(&self) {
        let mut waiting = self.lock();
        while !waiting.has_ended {
            let now = Instant::now();
            waiting = match waiting.tasks.first_entry() {
                None => self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner),
                Some(first) if first.key().0 <= now => {
                    // Whoever waited no longer needs no ring.
                    let _ = first.remove().send(());
                    waiting
                }
                Some(first) => {
                    let rest = first.key().0 - now;
                    let waited = self.changed.wait_timeout(waiting, rest);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn an_alarm_rings_at_each_ones_time_and_not_early() {
        let alarm = Alarm::new();
        let start = Instant::now();
        let times = [30, 10, 20, 10].map(Duration::from_millis);
        let waits = times.map(|time| {
            let alarm = &alarm;
            async move {
                alarm.at(start + time).await;
                (start.elapsed() >= time).then_some(time)
            }
        });
        assert_eq!(futures::future::join_all(waits).await, times.map(Some));
        alarm.at(start).await;
    }

    #[tokio::test]
    async fn one_that_waits_no_longer_leaves_nothing() {
        let alarm = Alarm::new();
        let (soon, late) = (Duration::from_millis(1), Duration::from_secs(600));
        let dropped = tokio::time::timeout(soon, alarm.at(Instant::now() + late)).await;
        assert!(dropped.is_err() && alarm.shared.lock().tasks.is_empty());
    }
}
