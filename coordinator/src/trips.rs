//! When steps left the coordinator, and when what came of them was back.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use protocol::{Epoch, StepId};
use transport::Sent;

/// Steps whose answer nobody took in, of a pipeline that was lost, are forgotten beyond these.
const MAX_KEPT: usize = 1024;

/// A step's way through the pipeline, as the coordinator saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Trip {
    /// From the moment when QUIC had taken the step until the last byte of what came of it was
    /// back.
    pub away: Duration,
    /// What sending the step took.
    pub sent: Sent,
    /// Making a frame of the bytes that came back.
    pub decode: Duration,
    pub num_bytes: usize,
}

#[derive(Debug, Default)]
pub(crate) struct Trips(Mutex<VecDeque<UnderWay>>);

#[derive(Debug)]
struct UnderWay {
    step: (Epoch, StepId),
    left: Option<(Instant, Sent)>,
    back: Option<(Instant, Duration, usize)>,
}

impl Trips {
    /// A step is about to leave. (Its answer may be back before its sender is told that it left.)
    pub(crate) fn leaves(&self, epoch: Epoch, step: StepId) {
        let mut trips = self.trips();
        if trips.len() == MAX_KEPT {
            trips.pop_front();
        }
        trips.push_back(UnderWay { step: (epoch, step), left: None, back: None });
    }

    /// QUIC has all of it.
    pub(crate) fn left(&self, epoch: Epoch, step: StepId, at: Instant, sent: Sent) {
        if let Some(trip) = self.trips().iter_mut().find(|trip| trip.step == (epoch, step)) {
            trip.left = Some((at, sent));
        }
    }

    /// What came of it is back.
    pub(crate) fn back(
        &self,
        (epoch, step): (Epoch, StepId),
        at: Instant,
        decode: Duration,
        num_bytes: usize,
    ) {
        if let Some(trip) = self.trips().iter_mut().find(|trip| trip.step == (epoch, step)) {
            trip.back.get_or_insert((at, decode, num_bytes));
        }
    }

    /// The step's trip, once, if all of it was seen; those of its epoch before it are forgotten.
    pub(crate) fn take(&self, epoch: Epoch, step: StepId) -> Option<Trip> {
        let mut trips = self.trips();
        let at = trips.iter().position(|trip| trip.step == (epoch, step));
        let trip = at.and_then(|at| trips.remove(at));
        trips.retain(|trip| trip.step.0 != epoch || trip.step.1 > step);
        let trip = trip?;
        let (left, sent) = trip.left?;
        let (at, decode, num_bytes) = trip.back?;
        Some(Trip { away: at.saturating_duration_since(left), sent, decode, num_bytes })
    }

    fn trips(&self) -> MutexGuard<'_, VecDeque<UnderWay>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OF: Epoch = Epoch { start: 1, counter: 1 };

    #[test]
    fn a_trip_is_told_once_and_only_whole() {
        let (trips, start) = (Trips::default(), Instant::now());
        let after = |millis| start + Duration::from_millis(millis);
        for step in 1..=4 {
            trips.leaves(OF, StepId(step));
        }
        // 1 never comes back; 2 is back before its sender hears that it left.
        trips.left(OF, StepId(1), after(0), Sent::default());
        trips.back((OF, StepId(2)), after(9), Duration::ZERO, 7);
        let sent = Sent { rtt: Duration::from_millis(1), ..Sent::default() };
        trips.left(OF, StepId(2), after(2), sent);
        let away = Duration::from_millis(7);
        let trip = Trip { away, sent, decode: Duration::ZERO, num_bytes: 7 };
        assert_eq!(trips.take(OF, StepId(2)), Some(trip));
        assert_eq!(trips.take(OF, StepId(2)), None);
        trips.back((OF, StepId(3)), after(9), Duration::ZERO, 7);
        assert_eq!(trips.take(OF, StepId(3)), None, "nobody knows when it left");
        assert_eq!(trips.trips().len(), 1);
    }

    #[test]
    fn steps_that_nobody_takes_are_forgotten() {
        let trips = Trips::default();
        (0..5000).for_each(|step| trips.leaves(OF, StepId(step)));
        assert_eq!(trips.trips().len(), MAX_KEPT);
        assert_eq!(trips.take(OF, StepId(9)), None);
    }
}
