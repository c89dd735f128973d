use std::collections::BTreeMap;

use super::*;

const NUM_LINES: u32 = 9;

fn config() -> config::Jobs {
    config::Jobs { window_lines: 4, max_commit_rows: 2, ..config::Jobs::default() }
}

fn line(number: u32) -> Line {
    let asks = Asks { custom_id: format!("id-{number}"), body: "{}".into() };
    Line { number, asks, num_tries: 0 }
}

/// What the disk holds: groups of results, each whole or not there.
#[derive(Clone, Default)]
struct Journal {
    groups: Vec<Vec<(u32, String)>>,
}

impl Journal {
    fn done(&self) -> Numbers {
        let mut done = Numbers::default();
        self.groups.iter().flatten().for_each(|(number, _)| done.insert(*number));
        done
    }

    /// In the order of the lines.
    fn output(&self) -> BTreeMap<u32, String> {
        let mut output = BTreeMap::new();
        for (number, text) in self.groups.iter().flatten() {
            assert_eq!(output.insert(*number, text.clone()), None, "line {number} is there twice");
        }
        output
    }
}

/// At which of the boundaries a process ends: none of them is like another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    /// Results are known; their group is not on the disk.
    Before(usize),
    /// It is, and nobody has heard of it.
    After(usize),
    Heard(usize),
    Never,
}

/// Runs a job until its end or its cut: reads windows, computes three lines at a time, fails some
/// tries, and commits groups of two. `computed` counts what was computed of each line.
fn run(journal: &mut Journal, cut: Cut, computed: &mut [u32]) -> Option<End> {
    let now = Instant::now();
    let mut job = Job::new(&config(), NUM_LINES, journal.done(), now + Duration::from_secs(60));
    let (mut now, mut read_to, mut num_groups) = (now, 0, 0);
    let (mut computing, mut answered): (Vec<Line>, Vec<Line>) = Default::default();
    loop {
        if let Some(end) = job.ended() {
            return Some(end);
        }
        if job.reads() {
            let mut lines: Vec<_> = (read_to + 1..=NUM_LINES.min(read_to + 4)).map(line).collect();
            // As a window orders them.
            lines.reverse();
            read_to = (read_to + 4).min(NUM_LINES);
            job.read(lines, read_to == NUM_LINES);
        }
        while computing.len() < 3
            && let Some(line) = job.next(now)
        {
            computed[line.number as usize - 1] += 1;
            computing.push(line);
        }
        if let Some(line) = computing.pop() {
            let trouble = match line.number % 4 {
                1 if line.num_tries == 0 => Some(Setback::Lost),
                2 if computed[line.number as usize - 1] == 1 => Some(Setback::Later(None)),
                _ => None,
            };
            match trouble {
                Some(trouble) if job.tries_again(line.clone(), trouble, now) => {}
                _ => {
                    job.answered();
                    answered.push(line);
                }
            }
        }
        now += Duration::from_millis(100);
        if answered.len() < 2 && (answered.is_empty() || !computing.is_empty()) {
            continue;
        }
        if cut == Cut::Before(num_groups) {
            return None;
        }
        let group: Vec<_> = answered.drain(..answered.len().min(2)).collect();
        let text = |line: &Line| (line.number, format!("answer to {}", line.number));
        journal.groups.push(group.iter().map(text).collect());
        if cut == Cut::After(num_groups) {
            return None;
        }
        job.committed(&group.iter().map(|line| line.number).collect::<Vec<_>>());
        if cut == Cut::Heard(num_groups) {
            return None;
        }
        num_groups += 1;
    }
}

/// Goal: wherever a process ends, the next goes on, and the output is what an undisturbed run
/// makes. Method: every boundary of the journal, and for each every boundary of the run after it.
#[test]
fn a_job_that_is_cut_off_at_any_two_boundaries_answers_each_line_once() {
    let mut undisturbed = Journal::default();
    let mut computed = [0; NUM_LINES as usize];
    assert_eq!(run(&mut undisturbed, Cut::Never, &mut computed), Some(End::Completed));
    let expected = undisturbed.output();
    assert_eq!(expected.len(), NUM_LINES as usize);
    let num_groups = undisturbed.groups.len();
    let cuts =
        |num: usize| (0..num).flat_map(|at| [Cut::Before(at), Cut::After(at), Cut::Heard(at)]);
    let mut num_cut = 0;
    for first in cuts(num_groups) {
        for second in cuts(num_groups) {
            let mut journal = Journal::default();
            let mut computed = [0; NUM_LINES as usize];
            assert_eq!(run(&mut journal, first, &mut computed), None, "{first:?}");
            let before = journal.done();
            let mut again = [0; NUM_LINES as usize];
            num_cut += usize::from(run(&mut journal, second, &mut again).is_none());
            let end = run(&mut journal, Cut::Never, &mut computed);
            assert_eq!(end, Some(End::Completed), "{first:?} {second:?}");
            assert_eq!(journal.output(), expected, "{first:?} {second:?}");
            for number in (1..=NUM_LINES).filter(|number| before.contains(*number)) {
                assert_eq!(again[number as usize - 1], 0, "what is durable isn't computed again");
            }
        }
    }
    assert!(num_cut > 40, "{num_cut}");
}

fn reading(lines: u32) -> (Job, Instant) {
    let now = Instant::now();
    let deadline = now + Duration::from_secs(600);
    let mut job = Job::new(&config(), lines, Numbers::default(), deadline);
    assert!(job.reads() && !job.reads());
    job.read((1..=lines).map(line).collect(), true);
    (job, now)
}

#[test]
fn what_waits_for_a_place_is_tried_for_ever_and_what_is_lost_a_few_times() {
    let (mut job, mut now) = reading(1);
    let mut pauses = Vec::new();
    for _ in 0..100 {
        let line = job.next(now).expect("it is tried again");
        assert!(job.tries_again(line, Setback::Later(None), now));
        assert_eq!(job.next(now), None);
        pauses.push((job.next_timer(now) - now).as_millis());
        now = job.next_timer(now);
        if pauses.len() == 8 {
            break;
        }
    }
    assert_eq!(pauses, [250, 500, 1000, 2000, 4000, 8000, 15_000, 15_000]);
    let line = job.next(now).unwrap();
    // Who says how long it takes is asked no sooner.
    assert!(job.tries_again(line, Setback::Later(Some(Duration::from_secs(7))), now));
    let num_retries = config().max_line_retries;
    for _ in 0..num_retries {
        now = job.next_timer(now);
        let line = job.next(now).unwrap();
        assert!(job.tries_again(line, Setback::Lost, now));
    }
    now = job.next_timer(now);
    let line = job.next(now).unwrap();
    assert!(!job.tries_again(line, Setback::Lost, now));
    job.answered();
    job.committed(&[1]);
    assert_eq!(job.ended(), Some(End::Completed));
}

#[test]
fn a_job_that_is_cancelled_or_late_keeps_what_is_known_and_begins_nothing() {
    for (end, expected) in [(0, End::Cancelled), (1, End::Expired)] {
        let (mut job, now) = reading(4);
        let known = job.next(now).unwrap();
        job.next(now).unwrap();
        job.answered();
        if end == 0 {
            job.cancel();
        } else {
            job.tick(now + Duration::from_secs(599));
            assert!(!job.is_given_up());
            job.tick(now + Duration::from_secs(600));
        }
        assert!(job.is_given_up());
        assert_eq!((job.next(now), job.ended()), (None, None));
        job.abandoned();
        assert_eq!(job.ended(), None, "what is known becomes durable first");
        job.committed(&[known.number]);
        assert_eq!((job.ended(), job.num_done()), (Some(expected), 1));
        // Whoever was cancelled doesn't expire as well.
        job.tick(now + Duration::from_secs(999));
        assert_eq!(job.ended(), Some(expected));
    }
}

#[test]
fn what_is_known_and_not_durable_has_a_bound() {
    let (mut job, now) = reading(20);
    for _ in 1..=8 {
        job.next(now).unwrap();
        job.answered();
    }
    // A disk that takes nothing holds everything up.
    assert_eq!(job.next(now), None);
    job.committed(&[1, 2]);
    assert!(job.next(now).is_some());
}
