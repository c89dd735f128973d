//! The generator in virtual time, against servers that follow a known law: everything that decides
//! and adds up is the generator's own, only the waiting isn't done.

use std::collections::BTreeMap;
use std::time::Duration;

use super::outcome::Outcome;
use super::pace::{Arrivals, Gaps, Pace, Pacer, Ramp};
use super::slo::Slo;
use super::sums::Sums;
use crate::client::Answer;
use crate::distribution::{Delays, Purpose, random};
use crate::report::result::Metric;

/// Sends up to `num` requests, for as long as `end` allows, to a server that answers number
/// `index`, sent at `at`, as `law` says.
fn simulate(
    pace: &Pace,
    num: u64,
    end: Option<Duration>,
    law: impl Fn(u64, Duration) -> Answer,
) -> Sums {
    let mut pacer = Pacer::new(pace, 7, end);
    let mut sums = Sums::new(Slo::default(), Duration::ZERO, end);
    let mut now = Duration::ZERO;
    let mut index = 0;
    let mut running = BTreeMap::new();
    loop {
        while index < num {
            let Some(start) = pacer.start(now, running.len() as u64) else { break };
            let answer = law(index, now);
            let ended = now + answer.end;
            let outcome = Outcome {
                tier: None,
                tenant: None,
                intended: start.intended,
                due: start.due,
                sent: now,
                ended,
                answer: Ok(answer),
            };
            running.insert((ended, index), outcome);
            index += 1;
        }
        let wake = pacer.wake(now, running.len() as u64).filter(|_| index < num);
        let ends = running.first_key_value().map(|((time, _), _)| *time);
        match (wake, ends) {
            (Some(wake), ends) if ends.is_none_or(|ends| wake < ends) => now = wake,
            (_, Some(ends)) => {
                let Some((_, ended)) = running.pop_first() else { break };
                now = ends;
                sums.record(&ended);
                pacer.freed(now, running.len() as u64);
            }
            _ => break,
        }
    }
    sums
}

fn open(gaps: Gaps, rate: f64) -> Pace {
    let rate = Ramp::constant(rate);
    Pace::Open { arrivals: Arrivals::Random { gaps, rate }, max_concurrency: None }
}

fn closed(concurrency: f64) -> Pace {
    Pace::Closed { concurrency: Ramp::constant(concurrency) }
}

/// An answer of two tokens.
fn two_tokens(first: Duration, second: Duration) -> Answer {
    let pieces = [first, first + second].into_iter().collect();
    Answer { end: first + second, pieces, ..Answer::default() }
}

#[test]
fn a_million_draws_of_a_known_law_come_back_within_one_percent() {
    let first: Delays = "50ms+lognormal:200ms:0.5".parse().unwrap();
    let second: Delays = "exponential:30ms".parse().unwrap();
    // Percentiles with the normal distribution's own.
    let normal = [
        (50.0, 0.0),
        (90.0, 1.281_551_565_5),
        (95.0, 1.644_853_626_9),
        (99.0, 2.326_347_874_0),
        (99.9, 3.090_232_306_2),
    ];
    for pace in [open(Gaps::Poisson, 2000.0), open(Gaps::Gamma(0.3), 500.0), closed(300.0)] {
        let sums = simulate(&pace, 1_000_000, None, |index, _| {
            let mut random = random(Purpose::MockTimes, 1, index);
            two_tokens(first.sample(&mut random), second.sample(&mut random))
        });
        assert_eq!(sums.all.num_completed, 1_000_000);
        assert_eq!(sums.lag.percentile_ms(100.0), 0.0);
        for (percentile, deviations) in normal {
            let exact = 50.0 + 200.0 * f64::exp(0.5 * deviations);
            let gap = -30.0 * (1.0 - percentile / 100.0_f64).ln();
            for (metric, exact) in [(Metric::Ttft, exact), (Metric::Itl, gap), (Metric::Tpot, gap)]
            {
                let measured = sums.all.times(metric).percentile_ms(percentile);
                let off = (measured / exact - 1.0).abs();
                assert!(off <= 0.01, "{pace}: p{percentile} {metric:?} {measured}, not {exact}");
            }
        }
    }
}

/// What a server does that answers in 20 ms but does nothing for a second.
fn stalled(at: Duration) -> Answer {
    let (from, until) = (Duration::from_secs(10), Duration::from_secs(11));
    let usual = at + Duration::from_millis(20);
    let end = if (from..until).contains(&usual) { until } else { usual };
    two_tokens(end - at, Duration::ZERO)
}

#[test]
fn a_stall_of_a_second_shows_in_an_open_loop_and_hides_in_a_closed_one() {
    let end = Some(Duration::from_secs(30));
    let p99 = |pace: &Pace| {
        let sums = simulate(pace, u64::MAX, end, |_, at| stalled(at));
        sums.all.times(Metric::Ttft).percentile_ms(99.0)
    };
    // Of 3000 requests a hundred came in that second, the 30 slowest in its first 0.3 s.
    let open = p99(&open(Gaps::Constant, 100.0));
    assert!((open - 720.0).abs() < 20.0, "{open}");
    let closed = p99(&closed(1.0));
    assert!((closed - 20.0).abs() < 1.0, "one request of a thousand saw it: {closed}");
}

#[test]
fn a_cap_on_an_open_loop_hides_no_waiting() {
    let arrivals = Arrivals::Random { gaps: Gaps::Constant, rate: Ramp::constant(100.0) };
    let pace = Pace::Open { arrivals, max_concurrency: Some(1) };
    let law = |_, _| two_tokens(Duration::from_millis(20), Duration::ZERO);
    let sums = simulate(&pace, 1000, None, law);
    // Twice as much is offered as is served: the last one waits for half of the run.
    let max = sums.all.times(Metric::E2el).percentile_ms(100.0);
    assert!((max - 10_010.0).abs() < 20.0, "{max}");
    assert_eq!(sums.lag.percentile_ms(100.0), 0.0, "it wasn't the generator's fault");
}
