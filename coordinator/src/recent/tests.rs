use std::sync::Mutex;

use super::*;
use protocol::{StageIndex, StageTiming};

fn recent(points: u32, max_events: u32) -> Recent {
    let history = config::Metrics { history_points: points, max_events, ..Default::default() };
    Recent::new(&history)
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_point_tells_of_its_own_time_and_the_oldest_is_forgotten() {
    let (mut recent, start) = (recent(3, 0), Instant::now());
    recent.tick(start);
    for number in 1..=5u32 {
        recent.queued(number as usize);
        recent.queued(0);
        recent.running(2);
        (0..number).for_each(|_| recent.next_token(Duration::from_millis(10)));
        recent.tick(start + SECOND * (10 * number - 1));
        recent.tick(start + SECOND * 10 * number);
    }
    let (points, _) = recent.beyond(Seen::default(), start + SECOND * 53);
    let told: Vec<_> =
        points.iter().map(|it| (it.number, it.generated_tokens, it.ago_ms)).collect();
    assert_eq!(told, [(2, 3, 23_000), (3, 4, 13_000), (4, 5, 3_000), (5, 0, 0)]);
    assert_eq!((points[0].waiting, points[0].took_ms), (3, 10_000), "the most that waited");
    let [half, _, most] = points[1].between_tokens_ms.unwrap();
    assert!((9.0..11.5).contains(&half) && most < 11.5, "{half} {most}");
    // What goes on isn't forgotten when a point ends.
    assert_eq!((points[3].running, points[3].waiting), (2, 0));
    assert_eq!(points[3].between_tokens_ms, None);
    let (points, _) = recent.beyond(recent.seen(), start + SECOND * 54);
    assert_eq!(points.iter().map(|it| it.number).collect::<Vec<_>>(), [5]);
}

#[test]
fn requests_are_told_by_what_became_of_them() {
    let (mut recent, start) = (recent(3, 0), Instant::now());
    recent.tick(start);
    [200, 400, 499, 429, 503, 500, 504].into_iter().for_each(|code| recent.ended(code));
    let point = recent.beyond(Seen::default(), start).0.pop().unwrap();
    assert_eq!((point.ended, point.refused, point.failed), (3, 2, 2));
}

#[test]
fn events_have_numbers_by_which_whoever_saw_some_hears_the_rest() {
    let (mut recent, start) = (recent(3, 2), Instant::now());
    for node in ["a", "b", "c"] {
        let happened = Happened { node: node.into(), ..Happened::default() };
        recent.happened(start, EventKind::Lost, happened);
    }
    let told = |seen| {
        let (_, events) = recent.beyond(seen, start + SECOND);
        events.into_iter().map(|it| (it.number, it.node, it.ago_ms)).collect::<Vec<_>>()
    };
    let all = [(2, "b".to_owned(), 1000), (3, "c".to_owned(), 1000)];
    assert_eq!(told(Seen::default()), all);
    assert_eq!(told(Seen { points: 0, events: 2 }), all[1..]);
    assert_eq!(told(recent.seen()), []);
}

/// Goal: the parts of a step are those of the newest seconds, as a mean over steps. Method: steps
/// of 10 ms, of which the stages compute 4 and 2, then much longer ones.
#[test]
fn a_pipelines_steps_are_told_as_a_mean_of_its_last_seconds() {
    let (mut recent, start) = (recent(1, 0), Instant::now());
    let pipeline = PipelineId(3);
    let mut steps = |num: u32, millis: u32, from: Instant| {
        let timing = |stage, compute_us| StageTiming {
            stage: StageIndex(stage),
            compute_us,
            wait_us: 500,
            decode_us: 100,
            ..StageTiming::default()
        };
        let timings = [timing(0, 400 * millis), timing(1, 200 * millis)];
        let ways = StepWays { transfers: vec![0.001, 0.002, 0.0005], ..StepWays::default() };
        for number in 1..=num {
            let duration = Duration::from_millis(millis.into());
            let ended = from + duration * number;
            let (num_tokens, timings, trip) = (4, &timings[..], None);
            let step = StepReport { pipeline, ended, duration, num_tokens, timings, trip };
            recent.step(&step, Some(&ways));
        }
        from + Duration::from_millis((millis * num).into())
    };
    let now = steps(1000, 10, start);
    steps(2000, 40, now);
    let time = recent.step_time(pipeline).unwrap();
    let near = |found: f64, expected: f64| {
        assert!((found / expected - 1.0).abs() < 0.02, "{found} for {expected}");
    };
    near(time.step_ms, 40.0);
    near(time.tokens, 4.0);
    near(time.stages[0].compute_ms, 16.0);
    near(time.stages[1].compute_ms, 8.0);
    near(time.stages[0].busy, 0.4);
    near(time.stages[1].network_ms, 2.1);
    near(time.stages[1].wait_ms, 0.5);
    near(time.coordinator.network_ms, 0.5);
    recent.forget(pipeline);
    assert_eq!(recent.step_time(pipeline), None);
}

/// What watching costs whoever computes: `cargo test -p coordinator recent -- --nocapture`.
#[test]
fn what_is_kept_has_a_fixed_size_and_a_token_costs_next_to_nothing() {
    const NUM: u32 = 1_000_000;
    // As it is shared by those who tell it something.
    let (recent, start) = (Mutex::new(recent(360, 500)), Instant::now());
    let lock = || recent.lock().unwrap();
    let began = Instant::now();
    for number in 0..NUM {
        lock().next_token(Duration::from_micros(u64::from(number)));
    }
    let token = began.elapsed();
    let began = Instant::now();
    let timings = [StageTiming { compute_us: 9000, wait_us: 500, ..StageTiming::default() }; 2];
    let ways = StepWays { transfers: vec![0.001, 0.002, 0.0005], ..StepWays::default() };
    for number in 0..NUM {
        let ended = start + Duration::from_millis(10) * number;
        lock().step(
            &StepReport {
                pipeline: PipelineId(0),
                ended,
                duration: Duration::from_millis(10),
                num_tokens: 16,
                timings: &timings,
                trip: None,
            },
            Some(&ways),
        );
        lock().queued(3);
        lock().running(16);
        lock().kv(0.5);
        lock().tick(ended);
        if number % 1000 == 0 {
            lock().happened(start, EventKind::Scaled, Happened::default());
        }
    }
    let step = began.elapsed();
    let each = |all: Duration| all.as_nanos() / u128::from(NUM);
    println!("a token: {} ns, a step: {} ns", each(token), each(step));
    let recent = lock();
    assert_eq!((recent.points.len(), recent.events.len()), (360, 500));
    assert!(recent.points.capacity() * size_of::<(Instant, Point)>() < 256 << 10);
    assert!(token + step < SECOND * 20, "{token:?} {step:?}");
}
