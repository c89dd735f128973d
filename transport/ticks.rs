//! When a process wakes though nothing has come: seldom, and for all that is due at once.
//!
//! An idle process is as cheap as it seldom wakes. So what happens from time to time happens at
//! common times, and what is due after a while may be late by a part of that.

use std::pin::Pin;
use std::sync::OnceLock;
use std::task::{Context, Poll};
use std::time::Duration;

use quinn::AsyncTimer;
use tokio::time::{Instant, Sleep, sleep, sleep_until};

/// Between two common times. tokio keeps timers that are further away than 64 ms in slots of so
/// much, counted from the start of its runtime, and wakes at the beginning of a slot to look into
/// it: what is due right there is woken once.
const GRAIN: Duration = Duration::from_millis(64);

/// What is further away than this may be a grain late.
const FAR: Duration = GRAIN.saturating_mul(4);

/// A timer that is moved on by so much is taken out and put in again. tokio would leave it where it
/// is, and wake for it at the old time.
const LEAP: Duration = Duration::from_millis(5);

static BEGIN: OnceLock<Instant> = OnceLock::new();

/// Times are common from now on: to be called right before the process' runtime is made, whose
/// count begins with it. Where it isn't, as in virtual time, everything is on time.
pub fn begin() {
    BEGIN.get_or_init(Instant::now);
}

/// Lets `period` pass since the last of its times, or a little more; the first comes sooner.
pub async fn pass(period: Duration) {
    match BEGIN.get() {
        // Those of one period are together, whenever each of them began.
        Some(begin) if period >= FAR => {
            sleep_until(after(*begin, Instant::now(), rounded(period))).await;
        }
        _ => sleep(period).await,
    }
}

/// The first whole number of `period`s since `begin` that is later than now.
fn after(begin: Instant, now: Instant, period: Duration) -> Instant {
    let passed = now.saturating_duration_since(begin).as_nanos();
    let num = passed / period.as_nanos() + 1;
    begin + period.saturating_mul(u32::try_from(num).unwrap_or(u32::MAX))
}

/// Up to whole grains.
fn rounded(period: Duration) -> Duration {
    let num = period.as_nanos().div_ceil(GRAIN.as_nanos());
    GRAIN.saturating_mul(u32::try_from(num).unwrap_or(u32::MAX))
}

/// When a timer is woken that is due at `deadline`.
fn due(begin: Option<Instant>, now: Instant, deadline: Instant) -> Instant {
    match begin {
        Some(begin) if deadline.saturating_duration_since(now) >= FAR => {
            begin + rounded(deadline.saturating_duration_since(begin))
        }
        _ => deadline,
    }
}

/// A connection's timer. quinn has one for each, which it moves with every packet.
#[derive(Debug)]
pub(crate) struct Timer {
    sleep: Pin<Box<Sleep>>,
}

impl Timer {
    pub(crate) fn new(deadline: Instant) -> Self {
        let due = due(BEGIN.get().copied(), Instant::now(), deadline);
        Self { sleep: Box::pin(sleep_until(due)) }
    }

    fn move_to(&mut self, due: Instant) {
        if due > self.sleep.deadline() + LEAP {
            self.sleep.set(sleep_until(due));
        } else {
            self.sleep.as_mut().reset(due);
        }
    }
}

impl AsyncTimer for Timer {
    fn reset(mut self: Pin<&mut Self>, deadline: std::time::Instant) {
        let due = due(BEGIN.get().copied(), Instant::now(), deadline.into());
        self.move_to(due);
    }

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        Future::poll(self.sleep.as_mut(), context)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn what_is_far_is_due_at_a_common_time_and_never_early() {
        let begin = Instant::now();
        for (now, deadline, expected) in [
            // Near: a lost packet isn't waited for any longer.
            (0, 25, 25),
            (1000, 1255, 1255),
            // Far: with others, by less than a grain.
            (0, 256, 256),
            (1000, 1257, 1280),
            (1000, 2500, 2560),
            (1024, 2560, 2560),
        ] {
            let at = |millis| begin + MS * millis;
            assert_eq!(due(Some(begin), at(now), at(deadline)), at(expected), "{now} {deadline}");
            assert_eq!(due(None, at(now), at(deadline)), at(deadline));
        }
    }

    /// By its default settings. Where a process is heard and hears nothing, it counts from the
    /// first sign of life that nobody answers.
    #[test]
    fn a_way_that_is_cut_in_one_direction_is_given_up_within_two_seconds() {
        let config = protocol::config::Transport::default();
        let [keep_alive, idle] =
            [config.keep_alive_ms, config.idle_timeout_ms].map(Duration::from_millis);
        let begin = Instant::now();
        for heard in (0..1000).map(|millis| begin + MS * millis) {
            let sign = due(Some(begin), heard, heard + keep_alive);
            let given_up = due(Some(begin), sign, sign + idle);
            assert!(given_up - heard <= MS * 2000, "{:?}", given_up - heard);
        }
    }

    #[test]
    fn those_of_one_period_are_woken_together() {
        let begin = Instant::now();
        let at = |millis| begin + MS * millis;
        assert_eq!(rounded(MS * 500), MS * 512);
        for (now, expected) in [(0, 512), (3, 512), (511, 512), (512, 1024), (700, 1024)] {
            assert_eq!(after(begin, at(now), MS * 512), at(expected), "{now}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_timer_that_is_moved_away_is_on_time() {
        let start = Instant::now();
        let mut timer = Box::pin(Timer::new(start + MS * 20));
        let mut is_moved = false;
        let waited = poll_fn(|context| {
            if AsyncTimer::poll(timer.as_mut(), context).is_ready() {
                return Poll::Ready(Instant::now() - start);
            }
            if !std::mem::replace(&mut is_moved, true) {
                AsyncTimer::reset(timer.as_mut(), (start + MS * 400).into_std());
            }
            AsyncTimer::poll(timer.as_mut(), context).map(|()| Instant::now() - start)
        });
        assert_eq!(waited.await, MS * 400);
        assert_eq!(timer.sleep.deadline(), start + MS * 400);
        // And nearer, and where it has passed already.
        AsyncTimer::reset(timer.as_mut(), (start + MS * 410).into_std());
        AsyncTimer::reset(timer.as_mut(), (start + MS * 405).into_std());
        poll_fn(|context| AsyncTimer::poll(timer.as_mut(), context)).await;
        assert_eq!(start.elapsed(), MS * 405);
        AsyncTimer::reset(timer.as_mut(), start.into_std());
        poll_fn(|context| AsyncTimer::poll(timer.as_mut(), context)).await;
        assert_eq!(start.elapsed(), MS * 405);
    }
}
