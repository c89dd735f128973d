//! When requests start. Pure: times go in, starts come out.
//!
//! In an *open loop* they start when they are due, whether or not others have ended; in a *closed
//! loop* one starts when another ends. Each start says when it was intended, and latencies are
//! measured from there: a server that stalls makes later requests wait, and their waiting counts.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand_distr::Distribution as _;

use crate::distribution::{Purpose, random};

/// When requests start.
#[derive(Clone, Debug)]
pub enum Pace {
    /// When they are due.
    Open {
        /// When that is.
        arrivals: Arrivals,
        /// Requests in flight at most; one that is due waits, and its waiting counts.
        max_concurrency: Option<u64>,
    },
    /// When another has ended.
    Closed {
        /// Requests in flight.
        concurrency: Ramp,
    },
}

/// The starts of an open loop.
#[derive(Clone, Debug)]
pub enum Arrivals {
    /// Drawn.
    Random {
        /// The time between them.
        gaps: Gaps,
        /// Requests a second.
        rate: Ramp,
    },
    /// At these times, ascending, since the run's start.
    Trace(Arc<[Duration]>),
}

/// How the times between arrivals are distributed; their mean follows from the rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Gaps {
    /// Exponential: as many independent users arrive.
    Poisson,
    /// Gamma of this shape: burstier than Poisson below 1, more even above.
    Gamma(f64),
    /// All the same.
    Constant,
}

/// A quantity that may change over the run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ramp {
    from: f64,
    to: f64,
    /// Seconds from `from` to `to`; it stays there.
    over: f64,
    growth: Growth,
}

/// How a ramp gets from its beginning to its end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Growth {
    /// By the same amount every second.
    Linear,
    /// By the same factor every second.
    Exponential,
}

/// A request that starts. Times are since the run's start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Start {
    /// When it should have been sent: what latencies are measured from.
    pub intended: Duration,
    /// When nothing but the generator stood in its way any more: what lag is measured from.
    pub due: Duration,
}

impl Ramp {
    /// The same from beginning to end.
    pub fn constant(value: f64) -> Self {
        Self { from: value, to: value, over: 0.0, growth: Growth::Linear }
    }

    /// From one value to another. Both are above 0.
    pub fn new(from: f64, to: f64, over: Duration, growth: Growth) -> Self {
        Self { from, to, over: over.as_secs_f64(), growth }
    }

    /// The rate or concurrency that the run is named after.
    pub fn end(&self) -> f64 {
        self.to
    }

    /// Its value after `time` seconds.
    fn at(&self, time: f64) -> f64 {
        if time >= self.over {
            return self.to;
        }
        let share = time / self.over;
        match self.growth {
            Growth::Linear => self.from + (self.to - self.from) * share,
            Growth::Exponential => self.from * (self.to / self.from).powf(share),
        }
    }

    /// When it first is at least `value`; none when it never is.
    fn time_of(&self, value: f64) -> Option<f64> {
        if self.from >= value {
            return Some(0.0);
        }
        if self.to < value {
            return None;
        }
        let share = match self.growth {
            Growth::Linear => (value - self.from) / (self.to - self.from),
            Growth::Exponential => (value / self.from).ln() / (self.to / self.from).ln(),
        };
        Some(share * self.over)
    }

    /// When its integral over time reaches `sum`.
    fn time_of_integral(&self, sum: f64) -> f64 {
        let (from, to, over) = (self.from, self.to, self.over);
        if over == 0.0 || from == to {
            return sum / to;
        }
        match self.growth {
            Growth::Linear => {
                let whole = (from + to) / 2.0 * over;
                if sum >= whole {
                    return over + (sum - whole) / to;
                }
                let slope = (to - from) / over;
                2.0 * sum / (from + (from * from + 2.0 * slope * sum).sqrt())
            }
            Growth::Exponential => {
                let growth = (to / from).ln() / over;
                let whole = (to - from) / growth;
                if sum >= whole {
                    return over + (sum - whole) / to;
                }
                (growth * sum / from).ln_1p() / growth
            }
        }
    }
}

impl Gaps {
    /// A time to the next arrival where the mean is 1.
    fn sample(self, random: &mut StdRng) -> f64 {
        match self {
            Self::Poisson => rand_distr::Exp1.sample(random),
            // A shape that no gamma distribution has is refused where it is parsed.
            Self::Gamma(shape) => rand_distr::Gamma::new(shape, 1.0 / shape)
                .map_or(1.0, |distribution| distribution.sample(random)),
            Self::Constant => 1.0,
        }
    }
}

impl Arrivals {
    /// Their times. The first of drawn ones is at 0.
    fn times(&self, seed: u64) -> Box<dyn Iterator<Item = Duration> + Send> {
        match self.clone() {
            Self::Random { gaps, rate } => {
                let (mut random, mut sum) = (random(Purpose::Arrivals, seed, 0), 0.0);
                Box::new(std::iter::from_fn(move || {
                    let time = rate.time_of_integral(sum);
                    sum += gaps.sample(&mut random);
                    Duration::try_from_secs_f64(time).ok()
                }))
            }
            Self::Trace(times) => Box::new((0..times.len()).map(move |index| times[index])),
        }
    }
}

/// Says when the next request starts.
pub(crate) struct Pacer {
    state: State,
    /// Nothing is intended to start at this time or later.
    end: Option<Duration>,
}

enum State {
    Open {
        times: Box<dyn Iterator<Item = Duration> + Send>,
        next: Option<Duration>,
        max_concurrency: u64,
        /// Since when there has been room.
        room_since: Duration,
    },
    Closed {
        concurrency: Ramp,
        /// When requests ended whose places haven't been taken yet.
        freed: VecDeque<Duration>,
    },
}

impl Pacer {
    pub(crate) fn new(pace: &Pace, seed: u64, end: Option<Duration>) -> Self {
        let state = match pace {
            Pace::Open { arrivals, max_concurrency } => {
                let mut times = arrivals.times(seed);
                State::Open {
                    next: times.next(),
                    times,
                    max_concurrency: max_concurrency.unwrap_or(u64::MAX),
                    room_since: Duration::ZERO,
                }
            }
            Pace::Closed { concurrency } => {
                State::Closed { concurrency: *concurrency, freed: VecDeque::new() }
            }
        };
        Self { state, end }
    }

    /// The next request that starts by `now`, with `running` in flight.
    pub(crate) fn start(&mut self, now: Duration, running: u64) -> Option<Start> {
        let start = match &mut self.state {
            State::Open { times, next, max_concurrency, room_since } => {
                let intended = next.filter(|&next| next <= now && running < *max_concurrency)?;
                if self.end.is_none_or(|end| intended < end) {
                    *next = times.next();
                }
                Start { intended, due: intended.max(*room_since) }
            }
            State::Closed { concurrency, freed } => {
                if running >= limit(concurrency, now) {
                    return None;
                }
                let intended = freed.pop_front().or_else(|| began(concurrency, running))?;
                Start { intended, due: intended }
            }
        };
        self.end.is_none_or(|end| start.intended < end).then_some(start)
    }

    /// When to look again although no request ends; none when there is nothing to wait for.
    pub(crate) fn wake(&self, now: Duration, running: u64) -> Option<Duration> {
        let time = match &self.state {
            State::Open { next, max_concurrency, .. } => {
                next.filter(|_| running < *max_concurrency)
            }
            State::Closed { concurrency, .. } => {
                began(concurrency, running).filter(|&time| time > now)
            }
        };
        time.filter(|&time| self.end.is_none_or(|end| time < end))
    }

    /// A request ended at `at`, which leaves `running`; its place can be taken from then on.
    pub(crate) fn freed(&mut self, at: Duration, running: u64) {
        match &mut self.state {
            State::Open { max_concurrency, room_since, .. } => {
                if running + 1 == *max_concurrency {
                    *room_since = at;
                }
            }
            State::Closed { concurrency, freed } => {
                if running + (freed.len() as u64) < limit(concurrency, at) {
                    freed.push_back(at);
                }
            }
        }
    }
}

/// Requests in flight at a time; at least one.
fn limit(concurrency: &Ramp, at: Duration) -> u64 {
    // What rounding takes from a whole number isn't missing.
    ((concurrency.at(at.as_secs_f64()) + 1e-6).floor() as u64).max(1)
}

/// When a closed loop had or has room for one more than `running`.
fn began(concurrency: &Ramp, running: u64) -> Option<Duration> {
    if running == 0 {
        return Some(Duration::ZERO);
    }
    concurrency.time_of((running + 1) as f64).map(Duration::from_secs_f64)
}

impl fmt::Display for Pace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open { arrivals: Arrivals::Trace(_), .. } => f.write_str("trace"),
            Self::Open { arrivals: Arrivals::Random { gaps, rate }, .. } => {
                match gaps {
                    Gaps::Poisson => f.write_str("poisson")?,
                    Gaps::Gamma(shape) => write!(f, "gamma {shape}")?,
                    Gaps::Constant => f.write_str("constant")?,
                }
                rate.fmt(f)
            }
            Self::Closed { concurrency } => {
                f.write_str("closed loop")?;
                concurrency.fmt(f)
            }
        }
    }
}

impl fmt::Display for Ramp {
    /// `, linear from 1 to 8` where it changes, nothing where it doesn't.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.growth {
            Growth::Linear => "linear",
            Growth::Exponential => "exponential",
        };
        if self.over > 0.0 {
            write!(f, ", {name} from {} to {}", self.from, self.to)?;
        }
        Ok(())
    }
}

impl std::str::FromStr for Gaps {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "poisson" => Ok(Self::Poisson),
            None if text == "constant" => Ok(Self::Constant),
            Some(("gamma", shape)) => match shape.parse::<f64>() {
                Ok(shape) if (1e-3..=1e6).contains(&shape) => Ok(Self::Gamma(shape)),
                _ => {
                    Err(format!("{shape:?} is no shape of a gamma distribution: use 0.001 to 1e6"))
                }
            },
            _ => Err(format!("{text:?}: arrivals are poisson, gamma:SHAPE or constant")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(gaps: Gaps, rate: Ramp, num: usize) -> Vec<f64> {
        let arrivals = Arrivals::Random { gaps, rate };
        arrivals.times(7).take(num).map(|time| time.as_secs_f64()).collect()
    }

    #[test]
    fn arrivals_have_the_rate_and_the_burstiness_that_were_asked_for() {
        for (gaps, deviation) in
            [(Gaps::Poisson, 1.0), (Gaps::Gamma(0.25), 2.0), (Gaps::Gamma(4.0), 0.5)]
        {
            let times = times(gaps, Ramp::constant(20.0), 100_001);
            let gaps: Vec<f64> = times.windows(2).map(|two| (two[1] - two[0]) * 20.0).collect();
            let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
            let square = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>();
            let spread = (square / gaps.len() as f64).sqrt();
            assert!((mean - 1.0).abs() < 0.02 && (spread - deviation).abs() < 0.05 * deviation);
        }
        assert_eq!(times(Gaps::Constant, Ramp::constant(4.0), 3), [0.0, 0.25, 0.5]);
    }

    #[test]
    fn a_ramp_of_rates_sends_what_its_integral_says() {
        let ten = Duration::from_secs(10);
        for (growth, expected) in [(Growth::Linear, 55.0), (Growth::Exponential, 39.1)] {
            let ramp = Ramp::new(1.0, 10.0, ten, growth);
            let times = times(Gaps::Constant, ramp, 200);
            let during = times.iter().filter(|&&time| time < 10.0).count() as f64;
            assert!((during - expected).abs() <= 1.0, "{growth:?}: {during}");
            let after = times.iter().filter(|&&time| (10.0..12.0).contains(&time)).count();
            assert_eq!(after, 20, "{growth:?}: the end's rate goes on");
        }
    }

    #[test]
    fn a_cap_delays_what_is_due_and_not_what_is_intended() {
        let ms = Duration::from_millis;
        let arrivals = Arrivals::Trace([0, 10, 20].map(ms).into());
        let mut pacer = Pacer::new(&Pace::Open { arrivals, max_concurrency: Some(1) }, 0, None);
        let start = |intended, due| Some(Start { intended: ms(intended), due: ms(due) });
        assert_eq!(pacer.start(ms(0), 0), start(0, 0));
        assert_eq!((pacer.start(ms(15), 1), pacer.wake(ms(15), 1)), (None, None));
        pacer.freed(ms(40), 0);
        assert_eq!(pacer.start(ms(41), 0), start(10, 40));
        pacer.freed(ms(45), 0);
        assert_eq!(pacer.start(ms(45), 0), start(20, 45));
        assert_eq!((pacer.start(ms(99), 0), pacer.wake(ms(99), 0)), (None, None));
    }

    #[test]
    fn a_closed_loop_takes_the_places_that_are_freed_and_those_of_its_ramp() {
        let secs = Duration::from_secs;
        let concurrency = Ramp::new(1.0, 3.0, secs(10), Growth::Linear);
        let mut pacer = Pacer::new(&Pace::Closed { concurrency }, 0, Some(secs(20)));
        let at = |time| Some(Start { intended: secs(time), due: secs(time) });
        assert_eq!(pacer.start(secs(0), 0), at(0));
        assert_eq!((pacer.start(secs(0), 1), pacer.wake(secs(0), 1)), (None, Some(secs(5))));
        assert_eq!(pacer.start(secs(5), 1), at(5));
        pacer.freed(secs(7), 1);
        assert_eq!(pacer.start(secs(7), 1), at(7));
        assert_eq!(pacer.wake(secs(7), 2), Some(secs(10)));
        pacer.freed(secs(20), 1);
        assert_eq!(pacer.start(secs(20), 1), None, "nothing starts after the end");
    }
}
