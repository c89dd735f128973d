//! Wakes at a time, more exactly than the runtime's timers, which tick in milliseconds: in an open
//! loop half a tick of lag would be in every latency.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;

/// A timer for one task. A thread of its own sleeps for it.
pub(crate) struct Alarm(Option<Arc<Shared>>);

#[derive(Default)]
struct Shared {
    wish: Mutex<Wish>,
    changed: Condvar,
    rings: Notify,
}

/// What the thread shall do.
#[derive(Clone, Copy, Default, PartialEq)]
enum Wish {
    #[default]
    Wait,
    RingAt(Instant),
    End,
}

impl Alarm {
    /// One that is as exact as the system lets a thread sleep; the runtime's where there is no
    /// thread to be had.
    pub(crate) fn new() -> Self {
        let shared = Arc::new(Shared::default());
        let of_thread = shared.clone();
        let thread = std::thread::Builder::new().name("alarm".to_owned());
        Self(thread.spawn(move || of_thread.serve()).ok().map(|_| shared))
    }

    /// Waits until `time`. Can be dropped and asked for another time.
    pub(crate) async fn at(&self, time: tokio::time::Instant) {
        let Some(shared) = &self.0 else { return tokio::time::sleep_until(time).await };
        let time = time.into_std();
        shared.set(Wish::RingAt(time));
        while Instant::now() < time {
            // It may have rung for a time that nobody waited for.
            shared.rings.notified().await;
        }
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        if let Some(shared) = &self.0 {
            shared.set(Wish::End);
        }
    }
}

impl Shared {
    fn set(&self, wish: Wish) {
        let mut current = self.lock();
        if *current != wish {
            *current = wish;
            self.changed.notify_one();
        }
    }

    fn serve(&self) {
        let mut wish = self.lock();
        loop {
            wish = match *wish {
                Wish::End => return,
                Wish::Wait => self.changed.wait(wish).unwrap_or_else(PoisonError::into_inner),
                Wish::RingAt(time) => match time.checked_duration_since(Instant::now()) {
                    Some(rest) if !rest.is_zero() => {
                        let waited = self.changed.wait_timeout(wish, rest);
                        waited.unwrap_or_else(PoisonError::into_inner).0
                    }
                    _ => {
                        *wish = Wish::Wait;
                        self.rings.notify_one();
                        wish
                    }
                },
            };
        }
    }

    fn lock(&self) -> MutexGuard<'_, Wish> {
        self.wish.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn an_alarm_rings_for_the_last_time_that_was_asked_for_and_not_early() {
        let alarm = Alarm::new();
        let start = tokio::time::Instant::now();
        let (early, late) = (Duration::from_millis(5), Duration::from_millis(20));
        // Dropped before it rings, and rung while nobody waits.
        let dropped = tokio::time::timeout(Duration::from_millis(1), alarm.at(start + early)).await;
        assert!(dropped.is_err());
        std::thread::sleep(early);
        alarm.at(start + late).await;
        assert!(start.elapsed() >= late);
        alarm.at(start).await;
    }
}
