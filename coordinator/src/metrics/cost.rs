//! What counting takes of the processor: `cargo test -p coordinator cost -- --nocapture` prints it.

use std::time::{Duration, Instant};

use protocol::{StageIndex, StageTiming, config};

use super::{Metrics, StepReport};
use crate::trips::Trip;

/// A decode step of two stages for one sequence: the fewest tokens to divide its cost among.
#[test]
fn counting_a_step_takes_microseconds() {
    const STEPS: u32 = 100_000;
    let timings = [0, 1].map(|stage| StageTiming {
        stage: StageIndex(stage),
        compute_us: 900,
        handoff_us: 50,
        upload_us: 20,
        rtt_us: 80,
        received_bytes: 1000,
        ..StageTiming::default()
    });
    let trip = Trip {
        away: Duration::from_millis(2),
        sent: transport::Sent::default(),
        decode: Duration::from_micros(5),
        num_bytes: 300,
    };
    let cost = |enabled| {
        let metrics = Metrics::new("model", &config::Metrics { enabled, ..Default::default() });
        let start = Instant::now();
        for _ in 0..STEPS {
            metrics.step(&StepReport {
                pipeline: protocol::PipelineId(0),
                ended: Instant::now(),
                duration: Duration::from_millis(3),
                num_tokens: 1,
                timings: &timings,
                trip: Some(trip),
            });
            metrics.queued([0; 4]);
            metrics.running(1);
            metrics.kv(3, 4);
            metrics.next_token(Duration::from_millis(3), None);
        }
        start.elapsed().as_secs_f64() * 1e6 / f64::from(STEPS)
    };
    let (without, with) = (cost(false), cost(true));
    println!("counting a step of two stages and one token: {:.2} µs", with - without);
    // Far above what it takes, so that a busy machine is no failure; a series that is looked up by
    // text, or a wait, would be one.
    assert!(with - without < 100.0, "{with} µs");
}
