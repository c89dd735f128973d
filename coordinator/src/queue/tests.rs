use super::*;
use crate::testing::{request, scheduler};

fn queue(change: impl FnOnce(&mut config::Scheduler)) -> Queue {
    Queue::new(scheduler(change))
}

fn of(priority: Priority, id: u64) -> Request {
    Request { priority, ..request(id, 4, 4) }
}

fn by(tenant: &str, weight: u32, id: u64) -> Request {
    Request { tenant: tenant.into(), weight, ..request(id, 4, 4) }
}

/// Everything in the order in which it would run, by request.
fn order(queue: &mut Queue, now: Instant) -> Vec<u64> {
    let next = || queue.pop(now, |_| Fit::Now).map(|(sequence, _)| sequence.request_id().0);
    std::iter::from_fn(next).collect()
}

#[test]
fn a_higher_priority_goes_first_and_equals_in_the_order_of_arrival() {
    let (mut queue, now) = (queue(|config| config.min_share = 0.0), Instant::now());
    let arrivals = [
        (1, Priority::Offline),
        (2, Priority::Standard),
        (3, Priority::Realtime),
        (4, Priority::Interactive),
        (5, Priority::Standard),
        (6, Priority::Realtime),
    ];
    for (id, priority) in arrivals {
        queue.submit(of(priority, id), now);
    }
    assert_eq!(order(&mut queue, now), [3, 6, 4, 2, 5, 1]);
    assert!(queue.is_empty() && queue.next_timer().is_none() && queue.num_requests() == 0);
}

#[test]
fn whoever_comes_back_stands_where_it_stood() {
    let (mut queue, now) = (queue(|_| {}), Instant::now());
    (1..=3).for_each(|id| queue.submit(request(id, 4, 4), now));
    let (first, _) = queue.pop(now, |_| Fit::Now).unwrap();
    queue.submit(request(4, 4, 4), now);
    queue.put(first, now);
    assert_eq!(order(&mut queue, now), [1, 2, 3, 4]);
}

/// 256 prompts in one body, and a small request behind it: bodies take turns.
#[test]
fn a_large_body_holds_nobody_up() {
    let (mut queue, now) = (queue(|_| {}), Instant::now());
    (0..256).for_each(|turn| queue.submit(Request { turn, ..request(1000, 4, 4) }, now));
    queue.submit(Request { num_choices: 16, ..request(7, 4, 4) }, now);
    queue.submit(request(8, 4, 4), now);
    let order = order(&mut queue, now);
    assert_eq!(order[..3], [1000, 7, 8]);
    let last_of_7 = order.iter().rposition(|id| *id == 7).unwrap();
    assert!(last_of_7 < 34, "its choices take turns with the large one's prompts: {last_of_7}");
    assert_eq!(order.len(), 256 + 16 + 1);
}

/// What is computed for tenants, over a thousand requests that always wait.
fn shares(weights: &[(&str, u32)]) -> Vec<f64> {
    let (mut queue, now) = (queue(|_| {}), Instant::now());
    let mut id = 0;
    for (tenant, weight) in weights {
        for _ in 0..1000 {
            queue.submit(by(tenant, *weight, id), now);
            id += 1;
        }
    }
    let mut tokens: HashMap<Tenant, usize> = HashMap::new();
    for _ in 0..900 {
        let (sequence, _) = queue.pop(now, |_| Fit::Now).unwrap();
        // Its prompt was charged; then an answer that nobody knew the length of.
        let answer = 1 + (sequence.ticket as usize * 7) % 13;
        queue.charge(sequence.request(), answer);
        *tokens.entry(Arc::clone(&sequence.request().tenant)).or_default() += 4 + answer;
    }
    let all: usize = tokens.values().sum();
    weights.iter().map(|(tenant, _)| tokens[*tenant] as f64 / all as f64).collect()
}

#[test]
fn tenants_share_by_their_weights() {
    for (weights, expected) in [
        (&[("a", 1), ("b", 1), ("c", 1)][..], &[1.0 / 3.0, 1.0 / 3.0, 1.0 / 3.0][..]),
        (&[("a", 1), ("b", 3)], &[0.25, 0.75]),
    ] {
        for (share, expected) in shares(weights).into_iter().zip(expected) {
            assert!((share / expected - 1.0).abs() < 0.05, "{share} for {expected}");
        }
    }
}

#[test]
fn a_tenant_that_was_idle_has_saved_nothing_up() {
    let (mut queue, now) = (queue(|_| {}), Instant::now());
    (0..100).for_each(|id| queue.submit(by("busy", 1, id), now));
    for _ in 0..50 {
        queue.pop(now, |_| Fit::Now).unwrap();
    }
    (100..150).for_each(|id| queue.submit(by("new", 1, id), now));
    let order = order(&mut queue, now);
    let num_new = order[..20].iter().filter(|id| **id >= 100).count();
    assert!((9..=11).contains(&num_new), "{num_new} of the next 20");
}

/// More realtime work than can be computed: waiting lifts the others, and offline has its share.
#[test]
fn nobody_waits_for_ever() {
    let mut queue = queue(|config| {
        (config.aging_ms, config.offline_aging_ms, config.min_share) = (1000, 1000, 0.0);
    });
    let start = Instant::now();
    queue.submit(of(Priority::Offline, 1), start);
    let (mut waited, mut id, mut now) = (None, 10, start);
    for second in 0..20 {
        now = start + Duration::from_secs(second);
        assert!(queue.advance(now).expired.is_empty());
        for _ in 0..2 {
            queue.submit(of(Priority::Realtime, id), now);
            id += 1;
        }
        let (sequence, wait) = queue.pop(now, |_| Fit::Now).unwrap();
        if sequence.request_id().0 == 1 {
            waited = Some(wait);
            break;
        }
    }
    assert_eq!(waited, Some(Duration::from_secs(3)), "a level a second, then by arrival");
    assert!(queue.next_timer().is_none_or(|at| at > now));

    let mut queue = self::queue(|config| config.min_share = 0.1);
    (0..1000).for_each(|id| queue.submit(of(Priority::Realtime, id), start));
    (1000..2000).for_each(|id| queue.submit(of(Priority::Offline, id), start));
    let next = |queue: &mut Queue| queue.pop(start, |_| Fit::Now).unwrap().0.priority();
    let offline = (0..500).filter(|_| next(&mut queue) == Priority::Offline).count();
    assert!((45..=55).contains(&offline), "{offline} of 500");
}

/// Each has its own time, and 0 is never.
#[test]
fn offline_work_is_lifted_by_a_time_of_its_own() {
    for (aging_ms, offline_aging_ms, lifts) in
        [(1000, 5000, [Some(5), Some(1)]), (3000, 1000, [Some(1), Some(3)]), (0, 0, [None, None])]
    {
        let start = Instant::now();
        let lifted = [Priority::Offline, Priority::Standard].map(|priority| {
            let mut queue = queue(|config| {
                (config.aging_ms, config.offline_aging_ms) = (aging_ms, offline_aging_ms);
                config.min_share = 0.0;
            });
            // Two came at once: the one that waits is lifted above the other's priority in time.
            queue.submit(of(priority, 1), start);
            let at = queue.next_timer()?;
            let level = Priority::ALL[priority.index() + 1];
            let lifted = Lifted { request: RequestId(1), choice: 0, level, is_urgent: false };
            assert_eq!(queue.advance(at).lifted, [lifted]);
            queue.submit(of(Priority::ALL[priority.index() + 1], 2), at);
            assert_eq!(order(&mut queue, at), [1, 2], "it came first");
            Some((at - start).as_secs())
        });
        assert_eq!(lifted, lifts, "{aging_ms} and {offline_aging_ms} ms");
    }
}

#[test]
fn a_deadline_lifts_when_its_slack_runs_out_and_drops_when_it_passes() {
    let mut queue = queue(|config| {
        (config.target_step_ms, config.aging_ms, config.min_share) = (100, 0, 0.0);
    });
    let now = Instant::now();
    // Four tokens and one chunk take half a second by the configured pace.
    let deadline = Some(now + Duration::from_secs(2));
    queue.submit(Request { deadline, ..of(Priority::Standard, 1) }, now);
    queue.submit(of(Priority::Interactive, 2), now);
    let peek = |queue: &mut Queue| queue.most_urgent().unwrap().request_id().0;
    assert!(queue.advance(now + Duration::from_millis(1400)).lifted.is_empty());
    let mut first = None;
    let fits = |sequence: &mut Sequence| {
        first.get_or_insert(sequence.request_id().0);
        Fit::Later
    };
    queue.pop(now, fits);
    assert_eq!(first, Some(2));
    let advanced = queue.advance(now + Duration::from_millis(1500));
    let (request, level) = (RequestId(1), Priority::Realtime);
    assert_eq!(advanced.lifted, [Lifted { request, choice: 0, level, is_urgent: true }]);
    assert!(advanced.expired.is_empty());
    let mut first = None;
    let fits = |sequence: &mut Sequence| {
        first.get_or_insert(sequence.request_id().0);
        Fit::Later
    };
    queue.pop(now, fits);
    assert_eq!(first, Some(1), "no time is left to wait");
    assert_eq!(peek(&mut queue), 2, "but nobody gives way to it: it came as standard");
    let expired = queue.advance(now + Duration::from_secs(2)).expired;
    assert_eq!(expired.iter().map(|it| it.request_id().0).collect::<Vec<_>>(), [1]);
    assert_eq!(queue.len(), 1);
}

#[test]
fn a_cancelled_request_leaves_nothing_behind() {
    let (mut queue, now) = (queue(|_| {}), Instant::now());
    for id in 0..100 {
        let deadline = Some(now + Duration::from_secs(9));
        let request = Request { num_choices: 3, deadline, ..by(&format!("t{}", id % 7), 1, id) };
        queue.submit(request, now);
    }
    for id in 0..100 {
        assert_eq!(queue.cancel(RequestId(id)).len(), 3);
        assert!(queue.cancel(RequestId(id)).is_empty());
    }
    assert!(queue.is_empty() && queue.next_timer().is_none());
    assert!(queue.levels.iter().all(|level| level.tenants.is_empty() && level.order.is_empty()));
    assert!(queue.priorities.iter().all(BTreeSet::is_empty) && queue.requests.is_empty());
}

/// A million waiting requests take so much memory beside their prompts, and the next is found
/// without looking at them: here a tenth of them, so that a test takes no minutes.
#[test]
fn a_long_queue_stays_quick() {
    let (mut queue, now) = (queue(|_| {}), Instant::now());
    let shared = request(0, 4, 4);
    for id in 0..100_000 {
        queue.submit(Request { id: RequestId(id), ..shared.clone() }, now);
    }
    let start = Instant::now();
    for _ in 0..1000 {
        let (sequence, _) = queue.pop(now, |_| Fit::Now).unwrap();
        queue.put(sequence, now);
    }
    // A few microseconds each where nothing else runs; walking the queue would take minutes.
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

/// Whoever doesn't fit hides no one of those who are looked at: where there is one tenant, as many
/// of its own are.
#[test]
fn as_many_are_looked_at_of_one_tenant_as_of_several() {
    for tenants in [&["a"][..], &["a", "b", "c"]] {
        let (mut queue, now) = (queue(|_| {}), Instant::now());
        for id in 0..20 {
            queue.submit(by(tenants[id as usize % tenants.len()], 1, id), now);
        }
        let fits = |sequence: &mut Sequence| {
            if sequence.request_id().0 == 12 { Fit::Now } else { Fit::NotYet }
        };
        let (sequence, _) = queue.pop(now, fits).unwrap();
        assert_eq!(sequence.request_id().0, 12, "of {tenants:?}");
    }
}

/// Single requests come as fast as they are computed: the rest of a body would never be its turn.
#[test]
fn the_rest_of_a_body_is_passed_for_no_longer_than_it_takes_to_be_lifted() {
    for priority in [Priority::Standard, Priority::Realtime] {
        let mut queue = queue(|config| (config.aging_ms, config.min_share) = (2000, 0.0));
        let start = Instant::now();
        queue.submit(Request { num_choices: 4, ..of(priority, 1) }, start);
        let mut waits = Vec::new();
        for id in 10..100 {
            let now = start + Duration::from_millis(100 * (id - 10));
            queue.submit(of(priority, id), now);
            assert!(queue.advance(now).expired.is_empty());
            let (sequence, wait) = queue.pop(now, |_| Fit::Now).unwrap();
            if sequence.request_id().0 == 1 {
                waits.push(wait.as_millis());
            }
        }
        assert_eq!(waits, [0, 2000, 2100, 2200]);
    }
}

/// Whatever comes and goes, what is kept count of is what there is.
#[test]
fn tokens_and_the_longest_wait_are_those_of_whoever_waits() {
    let mut queue = queue(|_| {});
    let start = Instant::now();
    for id in 1..=40 {
        let priority = Priority::ALL[id as usize % Priority::ALL.len()];
        queue.submit(of(priority, id), start + Duration::from_millis(id * 7 % 40));
    }
    let check = |queue: &Queue| {
        for priority in Priority::ALL {
            let waiting = || queue.waiting().filter(|it| it.sequence.priority() == priority);
            let num_tokens: usize = waiting().map(|it| it.sequence.num_tokens()).sum();
            assert_eq!(queue.num_tokens(priority), num_tokens);
            let ids: Vec<_> = waiting().map(|it| it.sequence.request_id()).collect();
            let since = queue.waiting_since().filter(|(id, _)| ids.contains(id));
            assert_eq!(queue.oldest(priority), since.map(|(_, since)| since).min());
        }
    };
    let now = start + Duration::from_secs(1);
    for round in 0..30 {
        check(&queue);
        let (sequence, _) = queue.pop(now, |_| Fit::Now).unwrap();
        match round % 3 {
            0 => queue.put(sequence, now + Duration::from_millis(round)),
            1 => drop(queue.cancel(RequestId(round))),
            _ => {}
        }
    }
    check(&queue);
}
