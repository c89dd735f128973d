//! So much a minute: a bucket that holds a minute's worth and fills again evenly.
//!
//! Pure, and exact in whole numbers: who waits for as long as it says, and finds nobody else
//! there, gets what was asked for.

use std::time::{Duration, Instant};

/// Parts of one. In a nanosecond as many parts come back as the limit of a minute is.
const PARTS: u128 = 60_000_000_000;

/// What was taken and has not come back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    // In parts.
    taken: u128,
    // Of this moment.
    at: Instant,
    age: Age,
}

/// How much has come back of what was taken, as a share: every taker's the same at any moment, so
/// that their shares together are what has come back.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Age {
    // Ends when all has come back.
    era: u64,
    // The logarithm of the share that has not, negated.
    logarithm: f64,
}

/// Something that was taken, so that a part of it can be given back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Taken(Age);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Left {
    /// At once.
    pub remaining: u32,
    /// Until it is as much as ever.
    pub reset: Duration,
}

impl Bucket {
    pub(super) fn new(now: Instant) -> Self {
        Self { taken: 0, at: now, age: Age { era: 0, logarithm: 0.0 } }
    }

    /// Takes `num`, all or nothing.
    ///
    /// # Errors
    /// When there are too few: how long it takes until there are enough, if nobody else comes. It
    /// is for ever where `num` is more than `limit`.
    pub(super) fn take(&mut self, num: u64, limit: u32, now: Instant) -> Result<Taken, Duration> {
        self.fill(limit, now);
        let (num, most) = (u128::from(num) * PARTS, u128::from(limit) * PARTS);
        if num > most {
            return Err(Duration::MAX);
        }
        let over = (self.taken + num).saturating_sub(most);
        if over > 0 {
            return Err(time(over, limit));
        }
        self.taken += num;
        Ok(Taken(self.age))
    }

    /// Gives back `num` of what was `taken`; not what has come back by itself since.
    pub(super) fn give_back(&mut self, num: u64, taken: Taken, limit: u32, now: Instant) {
        self.fill(limit, now);
        let Taken(Age { era, logarithm }) = taken;
        if era == self.age.era {
            let share = (logarithm - self.age.logarithm).exp().clamp(0.0, 1.0);
            let parts = (u128::from(num) * PARTS) as f64 * share;
            self.taken = self.taken.saturating_sub(parts as u128);
            self.begin_era_if_full();
        }
    }

    pub(super) fn left(&mut self, limit: u32, now: Instant) -> Left {
        self.fill(limit, now);
        let most = u128::from(limit) * PARTS;
        let remaining = most.saturating_sub(self.taken) / PARTS;
        Left { remaining: remaining as u32, reset: time(self.taken, limit) }
    }

    fn fill(&mut self, limit: u32, now: Instant) {
        // A clock that goes back brings nothing, and takes nothing.
        let passed = now.saturating_duration_since(self.at);
        self.at = self.at.max(now);
        let back = passed.as_nanos().saturating_mul(limit.into()).min(self.taken);
        if back == 0 {
            return;
        }
        let before = self.taken;
        self.taken -= back;
        self.age.logarithm += (before as f64).ln() - (self.taken.max(1) as f64).ln();
        self.begin_era_if_full();
    }

    fn begin_era_if_full(&mut self) {
        if self.taken == 0 {
            self.age = Age { era: self.age.era + 1, logarithm: 0.0 };
        }
    }
}

/// How long so many parts take to come back.
fn time(parts: u128, limit: u32) -> Duration {
    let nanos = parts.div_ceil(u128::from(limit.max(1)));
    let (seconds, nanos) = (nanos / 1_000_000_000, (nanos % 1_000_000_000) as u32);
    Duration::new(u64::try_from(seconds).unwrap_or(u64::MAX), nanos)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn remaining(bucket: &mut Bucket, limit: u32, now: Instant) -> u32 {
        bucket.left(limit, now).remaining
    }

    #[test]
    fn a_minutes_worth_goes_at_once_and_comes_back_evenly() {
        let start = Instant::now();
        let mut bucket = Bucket::new(start);
        for _ in 0..60 {
            bucket.take(1, 60, start).unwrap();
        }
        assert_eq!(bucket.take(1, 60, start).unwrap_err(), SECOND);
        assert_eq!(bucket.left(60, start), Left { remaining: 0, reset: 60 * SECOND });
        let almost = start + SECOND - Duration::from_nanos(1);
        assert_eq!(bucket.take(1, 60, almost).unwrap_err(), Duration::from_nanos(1));
        bucket.take(1, 60, start + SECOND).unwrap();
        assert_eq!(bucket.take(5, 60, start + SECOND).unwrap_err(), 5 * SECOND);
        let later = start + 31 * SECOND;
        assert_eq!(bucket.left(60, later), Left { remaining: 30, reset: 30 * SECOND });
        // Rest brings no more than a minute's worth.
        let rested = start + 600 * SECOND;
        assert_eq!(bucket.left(60, rested), Left { remaining: 60, reset: Duration::ZERO });
    }

    #[test]
    fn what_can_never_be_had_is_waited_for_in_vain() {
        let now = Instant::now();
        let mut bucket = Bucket::new(now);
        assert_eq!(bucket.take(61, 60, now).unwrap_err(), Duration::MAX);
        assert_eq!(remaining(&mut bucket, 60, now), 60);
        bucket.take(60, 60, now).unwrap();
    }

    #[test]
    fn what_was_not_used_comes_back_at_once() {
        let start = Instant::now();
        let mut bucket = Bucket::new(start);
        let taken = bucket.take(100, 100, start).unwrap();
        bucket.give_back(90, taken, 100, start);
        assert_eq!(remaining(&mut bucket, 100, start), 90);
        // Ten came back after 6 s, and no more can: it is as full as ever.
        assert_eq!(remaining(&mut bucket, 100, start + 6 * SECOND), 100);
    }

    /// Goal: who holds much for long and uses nothing has no more than who asks for little. Method:
    /// what came back by itself is given back too.
    #[test]
    fn what_has_come_back_by_itself_is_not_given_back_again() {
        let start = Instant::now();
        let mut bucket = Bucket::new(start);
        let first = bucket.take(100, 100, start).unwrap();
        let minute = start + 60 * SECOND;
        bucket.take(100, 100, minute).unwrap();
        bucket.give_back(100, first, 100, minute);
        assert_eq!(remaining(&mut bucket, 100, minute), 0);
    }

    #[test]
    fn several_that_used_nothing_leave_it_full() {
        let start = Instant::now();
        let mut bucket = Bucket::new(start);
        let taken: Vec<_> = (0..10).map(|_| bucket.take(10, 100, start).unwrap()).collect();
        let later = start + 30 * SECOND;
        assert_eq!(remaining(&mut bucket, 100, later), 50);
        taken.into_iter().for_each(|taken| bucket.give_back(10, taken, 100, later));
        assert_eq!(remaining(&mut bucket, 100, later), 100);
    }

    #[test]
    fn a_clock_that_jumps_does_no_harm() {
        let start = Instant::now() + 3600 * SECOND;
        let mut bucket = Bucket::new(start);
        bucket.take(60, 60, start).unwrap();
        assert_eq!(remaining(&mut bucket, 60, start - 3600 * SECOND), 0);
        // Nor is the way back counted as time that has passed.
        assert_eq!(remaining(&mut bucket, 60, start), 0);
        assert_eq!(remaining(&mut bucket, 60, start + 1_000_000_000 * SECOND), 60);
    }

    #[test]
    fn a_limit_that_changes_holds_from_then_on() {
        let start = Instant::now();
        let mut bucket = Bucket::new(start);
        bucket.take(60, 60, start).unwrap();
        assert_eq!(remaining(&mut bucket, 100, start), 40);
        assert_eq!(bucket.left(10, start), Left { remaining: 0, reset: 360 * SECOND });
        assert_eq!(bucket.take(10, 10, start).unwrap_err(), 360 * SECOND);
    }

    proptest! {
        /// Goal: over any time no more is used than a minute's worth and what comes back, whoever
        /// reserves, uses and gives back how much and when; and a wait is true. Method: random
        /// takers, each of whom gives back a part later.
        #[test]
        fn nobody_gets_more_than_the_limit(
            limit in 1u32..1000,
            steps in proptest::collection::vec((0u64..20_000, 0u64..1200, 0.0f64..1.0), 1..60),
        ) {
            let start = Instant::now();
            let (mut now, mut used) = (start, 0u64);
            let mut bucket = Bucket::new(start);
            let mut open = Vec::new();
            for (millis, num, share) in steps {
                now += Duration::from_millis(millis);
                match bucket.take(num, limit, now) {
                    Ok(taken) => {
                        let unused = (num as f64 * share) as u64;
                        used += num - unused;
                        open.push((unused, taken));
                    }
                    Err(wait) if num > limit.into() => prop_assert_eq!(wait, Duration::MAX),
                    Err(wait) => {
                        let (mut punctual, mut early) = (bucket, bucket);
                        prop_assert!(punctual.take(num, limit, now + wait).is_ok());
                        let too_early = now + wait - Duration::from_nanos(1);
                        prop_assert!(early.take(num, limit, too_early).is_err());
                    }
                }
                if share < 0.5 && let Some((unused, taken)) = open.pop() {
                    bucket.give_back(unused, taken, limit, now);
                }
                let came = f64::from(limit) * (1.0 + (now - start).as_secs_f64() / 60.0);
                prop_assert!(used as f64 <= came + 1e-3, "{} of {}", used, came);
            }
        }
    }
}
