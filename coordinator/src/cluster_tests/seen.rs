use super::*;
use crate::request::{Priority, Request};
use crate::snapshot::{Snapshot, SnapshotQuery};

/// One place, and so many requests of so many tenants.
fn crowd(num: u64, num_tenants: u64) -> Test {
    let mut test = Test::new(|config| {
        config.scheduler.max_num_seqs = 1;
        config.scheduler.max_queued_requests = 1 << 20;
    });
    test.join(1, 1 << 30);
    test.wait(Duration::from_secs(60));
    test.load();
    for id in 0..num {
        let tenant = format!("tenant-{}", id % num_tenants).into();
        let priority = Priority::ALL[id as usize % 4];
        test.handle(Input::Submit(vec![Request { tenant, priority, ..request(id, 4, 2) }]));
        test.now += Duration::from_millis(1);
    }
    test
}

fn look(test: &Test, wanted: SnapshotQuery) -> Snapshot {
    test.cluster.seen(&wanted, test.now)
}

#[test]
fn a_look_tells_of_each_tenant_and_priority_whoever_waits_longest_first() {
    let test = crowd(9, 3);
    let seen = look(&test, SnapshotQuery::default());
    assert_eq!((seen.load.running, seen.load.waiting, seen.num_requests), (1, 8, 9));
    let running: Vec<_> = seen.requests.iter().filter(|it| it.state == "running").collect();
    let [running] = &running[..] else { panic!("{running:?}") };
    assert_eq!((running.pipelines.as_slice(), running.prompt_tokens), (&[0][..], 4));
    let told: usize = seen.queue.iter().map(|group| group.num).sum();
    assert_eq!((told, seen.queue_more), (8, 0));
    let ages: Vec<_> = seen.queue.iter().map(|group| group.oldest_ms).collect();
    assert!(ages.is_sorted_by(|a, b| a >= b), "{ages:?}");
    assert!(seen.queue.iter().all(|group| group.why.contains("scheduler.max_num_seqs")));
    let of = |seen: &Snapshot| seen.requests.iter().map(|it| it.id.clone()).collect::<Vec<_>>();
    let all = of(&seen);
    let newest =
        look(&test, SnapshotQuery { num_requests: 2, newest: true, ..SnapshotQuery::default() });
    assert_eq!(of(&newest), [all[8].clone(), all[7].clone()]);
}

/// What somebody's look takes of the scheduler's time: `cargo test -p coordinator seen --
/// --nocapture` prints it.
#[test]
fn a_look_at_ten_thousand_requests_of_a_thousand_tenants_is_bounded() {
    let test = crowd(10_000, 1000);
    let began = Instant::now();
    let seen = look(&test, SnapshotQuery::default());
    let took = began.elapsed();
    let bytes = serde_json::to_string(&seen).unwrap().len();
    println!("a look takes {took:?}, as text it has {bytes} bytes");
    assert_eq!((seen.requests.len(), seen.num_requests), (200, 10_000));
    assert_eq!((seen.queue.len(), seen.queue_more > 0), (100, true));
    assert!(bytes < 128 << 10 && took < Duration::from_secs(5), "{bytes} {took:?}");
}
