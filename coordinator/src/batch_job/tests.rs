//! Jobs on a disk of their own, before a scheduler that answers by rule.

use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use serde_json::{Value, json};

use super::job::End;
use super::line::LineId;
use super::records::Outcome;
use super::runner::Stopped;
use super::testing::{Bench, LONG, Rule, ids, is_long, line, says};
use super::*;
use crate::request::{Event, RequestError};

#[tokio::test]
async fn every_line_is_answered_in_the_order_of_the_input_or_told_why_not() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::open(dir.path(), |request, _| Some(says(request)), |_| {}).await;
    let unknown_model = line("f", "x").replace("\"m\"", "\"other\"");
    let input = [
        // The mark, Windows' ends, and an empty line.
        format!("\u{feff}{}\r\n", line("z", "one prompt")),
        "\r\n".into(),
        format!("{}\n", line("y", "another")),
        "{\"custom_id\": \n".into(),
        format!("{}\n", line("z", "one prompt")),
        format!("{unknown_model}\n"),
        // Without an end.
        line("a", "one prompt"),
    ];
    let id = bench.hand_in(input.concat().as_bytes(), 3600).await;
    let job = bench.finish(&id).await;
    assert_eq!((job.state, job.num_lines, job.num_completed), (JobState::Completed, 6, 3));
    assert_eq!((job.num_failed, job.num_tokens[1], job.num_tokens[2]), (3, 3, 3));
    let output = bench.lines(job.output_file.as_ref()).await;
    assert_eq!(ids(&output), ["z", "y", "a"]);
    assert!(output.iter().all(|line| line["response"]["status_code"] == 200));
    let error = bench.lines(job.error_file.as_ref()).await;
    assert_eq!(ids(&error), ["none", "z", "f"]);
    assert_eq!(
        (&error[0]["error"]["line"], &error[0]["error"]["code"]),
        (&json!(4), &json!("invalid_json_line"))
    );
    assert_eq!(error[1]["error"]["code"], "duplicate_custom_id");
    assert_eq!(error[2]["response"]["status_code"], 404);
    // A line without a seed has one of its own, and always the same.
    let text = |line: &Value| line["response"]["body"]["choices"][0]["text"].clone();
    assert_ne!(text(&output[0]), text(&output[2]));
    let again = bench.hand_in(input.concat().as_bytes(), 3600).await;
    let again = bench.finish(&again).await;
    let again = bench.lines(again.output_file.as_ref()).await;
    let texts = |lines: &[Value]| lines.iter().map(text).collect::<Vec<_>>();
    assert_eq!(texts(&again), texts(&output));
    // Nothing is left of the lines but the files.
    let count = sqlx::query_scalar("SELECT count(*) FROM results");
    let count: i64 = count.fetch_one(bench.store.reader()).await.unwrap();
    assert_eq!(count, 0);
}

#[tokio::test]
async fn an_input_that_is_none_fails_its_job_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let change = |config: &mut Config| config.batch.max_lines = 3;
    let bench = Bench::open(dir.path(), |request, _| Some(says(request)), change).await;
    let many: String = (0..4).map(|n| line(&n.to_string(), "x") + "\n").collect();
    for (input, code) in [("", "empty_file"), ("\n \n", "empty_file"), (&many, "too_many_lines")] {
        let id = bench.hand_in(input.as_bytes(), 3600).await;
        let job = bench.finish(&id).await;
        assert_eq!((job.state, job.num_completed), (JobState::Failed, 0));
        assert_eq!(job.errors.unwrap()["data"][0]["code"], code);
        assert!(job.output_file.is_none() && job.error_file.is_none());
    }
    let three: String = (0..3).map(|n| line(&n.to_string(), "x") + "\n").collect();
    let id = bench.hand_in(three.as_bytes(), 3600).await;
    assert_eq!(bench.finish(&id).await.state, JobState::Completed);
}

/// Goal: what is done stays, and what isn't is named. Method: of four lines one is never answered;
/// the job is cancelled, or its time is up.
#[tokio::test]
async fn cancelled_and_late_jobs_keep_what_is_done_and_name_the_rest() {
    let rule: Rule = |request, _| is_long(request).then(|| says(request));
    let input = [line("a", LONG), line("b", "x"), "{".into(), line("c", LONG)];
    for (seconds, expected, code) in
        [(3600, JobState::Cancelled, "batch_cancelled"), (2, JobState::Expired, "batch_expired")]
    {
        let dir = tempfile::tempdir().unwrap();
        let bench = Bench::open(dir.path(), rule, |_| {}).await;
        let id = bench.hand_in(input.join("\n").as_bytes(), seconds).await;
        let running = tokio::spawn(bench.jobs.clone().run());
        if expected == JobState::Cancelled {
            while bench.get(&id).await.num_completed < 2 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let number = bench.get(&id).await.number;
            assert!(bench.jobs.cancel(number).await.unwrap());
            assert!(!bench.jobs.cancel(number).await.unwrap(), "it is being cancelled");
        }
        let job = bench.finish(&id).await;
        running.abort();
        assert_eq!((job.state, job.num_completed, job.num_failed), (expected, 2, 1));
        assert_eq!(ids(&bench.lines(job.output_file.as_ref()).await), ["a", "c"]);
        let error = bench.lines(job.error_file.as_ref()).await;
        assert_eq!(ids(&error), ["b", "none"]);
        assert_eq!(error[0]["error"]["code"], code);
    }
}

/// Goal: a lost answer is asked for again, and a failure of the line's own is not. Method: of two
/// lines the first tries fail.
#[tokio::test]
async fn only_what_may_pass_is_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let rule: Rule = |request, number| {
        Some(match (number, is_long(request)) {
            (0..2, _) => vec![Event::Failed(RequestError::ShuttingDown)],
            (_, false) => vec![Event::Failed(RequestError::StepFailed("x".into()))],
            _ => says(request),
        })
    };
    let bench = Bench::open(dir.path(), rule, |_| {}).await;
    let input = [line("a", "x"), line("b", LONG)].join("\n");
    let id = bench.hand_in(input.as_bytes(), 3600).await;
    let job = bench.finish(&id).await;
    assert_eq!((job.num_completed, job.num_failed), (1, 1));
    let error = bench.lines(job.error_file.as_ref()).await;
    assert_eq!(error[0]["response"]["body"]["error"]["code"], "step_failed");
    assert_eq!(bench.num_computed.load(Ordering::SeqCst), 4);
}

/// Polls what is inside so often, and then never again.
struct CutOff<F> {
    inside: Pin<Box<F>>,
    num_left: usize,
}

impl<F: Future> Future for CutOff<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if self.num_left == 0 {
            return Poll::Ready(None);
        }
        self.num_left -= 1;
        self.inside.as_mut().poll(context).map(Some)
    }
}

/// Goal: wherever a process ends, the next goes on, and the files are those of an undisturbed run.
/// Method: the job is dropped, with its runtime and its store, wherever it waits; for each of these
/// places another process begins, is cut off too, and a third goes on to the end.
#[test]
fn a_job_that_is_cut_off_wherever_it_waits_makes_the_same_files() {
    const NUM_LINES: usize = 7;
    let line = |n: usize| match n {
        3 => "no line".to_owned(),
        n => line(&format!("id-{n}"), &"word ".repeat(1 + n % 3)),
    };
    let input: String = (0..NUM_LINES).map(|n| line(n) + "\n").collect();
    let small = |config: &mut Config| {
        (config.batch.max_commit_rows, config.batch.window_lines) = (2, 3);
        config.batch.commit_wait_ms = 1;
    };
    let run = |dir: &Path, id: Option<String>, num_polls: usize| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let bench = Bench::open(dir, |request, _| Some(says(request)), small).await;
            let id = match id {
                Some(id) => id,
                None => bench.hand_in(input.as_bytes(), 3600).await,
            };
            if !bench.get(&id).await.state.is_open() {
                return (id, true, 0);
            }
            let before = bench.get(&id).await.num_completed;
            let inside = Box::pin(bench.runner(&id).await.run());
            let ended = CutOff { inside, num_left: num_polls }.await;
            let is_over = ended.is_some_and(|ended| ended.is_ok());
            if is_over {
                // What was durable before wasn't computed again.
                let computed = bench.num_computed.load(Ordering::SeqCst);
                assert_eq!(i64::from(computed), NUM_LINES as i64 - 1 - before);
            }
            (id, is_over, before)
        })
    };
    let files = |dir: &Path, id: &str| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let bench = Bench::open(dir, |request, _| Some(says(request)), small).await;
            let job = bench.get(id).await;
            assert_eq!((job.state, job.num_completed, job.num_failed), (JobState::Completed, 6, 1));
            let output = bench.lines(job.output_file.as_ref()).await;
            let error = bench.lines(job.error_file.as_ref()).await;
            // The input, and the two files: nothing is left of what was begun.
            assert_eq!(bench.jobs.files().blobs.all().unwrap().len(), 3);
            (output, error)
        })
    };
    let undisturbed = tempfile::tempdir().unwrap();
    let (id, is_over, _) = run(undisturbed.path(), None, usize::MAX);
    assert!(is_over);
    let expected = files(undisturbed.path(), &id);
    assert_eq!(expected.0.len() + expected.1.len(), NUM_LINES);
    let (mut num_cut, mut num_resumed) = (0, 0);
    for num_polls in 1.. {
        let dir = tempfile::tempdir().unwrap();
        let (id, is_over, _) = run(dir.path(), None, num_polls);
        let (_, _, before) = run(dir.path(), Some(id.clone()), num_polls);
        num_resumed += usize::from(before > 0);
        assert!(run(dir.path(), Some(id.clone()), usize::MAX).1);
        assert_eq!(files(dir.path(), &id), expected, "cut off after {num_polls} polls");
        if is_over {
            break;
        }
        num_cut += 1;
    }
    assert!(num_cut > 10 && num_resumed > 3, "{num_cut} {num_resumed}");
}

/// Goal: a full disk holds jobs up and loses nothing. Method: the connection that writes may have
/// no more pages, until the store opens another.
#[tokio::test]
async fn a_full_disk_holds_jobs_up_until_there_is_space() {
    let dir = tempfile::tempdir().unwrap();
    let change = |config: &mut Config| config.batch.retry_ms = 500;
    let bench = Bench::open(dir.path(), |request, _| Some(says(request)), change).await;
    let input: String = (0..400).map(|n| line(&format!("id-{n}"), "some words") + "\n").collect();
    let id = bench.hand_in(input.as_bytes(), 3600).await;
    let limit = bench.store.write(|database| {
        Box::pin(async move {
            sqlx::raw_sql("PRAGMA max_page_count = 1").execute(database).await?;
            Ok(())
        })
    });
    limit.await.unwrap();
    let mut disk = bench.jobs.inner.journal.disk();
    let running = tokio::spawn(bench.jobs.clone().run());
    let said = disk.wait_for(|disk| disk.problem().is_some()).await.unwrap().clone();
    assert!(matches!(&said, Disk::Full(cause) if cause.contains("full")), "{said:?}");
    let held_up = bench.get(&id).await;
    assert!(held_up.state.is_open() && held_up.num_completed < 400);
    let job = bench.finish(&id).await;
    running.abort();
    assert_eq!((job.state, job.num_completed), (JobState::Completed, 400));
    assert_eq!(bench.lines(job.output_file.as_ref()).await.len(), 400);
    assert_eq!(bench.jobs.disk(), Disk::Fine);
}

/// Goal: nothing is there twice, whoever runs a job. Method: two run one, from its beginning to its
/// end.
#[tokio::test]
async fn a_job_that_two_run_at_once_has_every_line_and_every_file_once() {
    let dir = tempfile::tempdir().unwrap();
    let small = |config: &mut Config| config.batch.max_commit_rows = 3;
    let bench = Bench::open(dir.path(), |request, _| Some(says(request)), small).await;
    let input: String = (0..40).map(|n| line(&format!("id-{n}"), LONG) + "\n").collect();
    let id = bench.hand_in(input.as_bytes(), 3600).await;
    let (one, other) = (bench.runner(&id).await, bench.runner(&id).await);
    let (one, other) = tokio::join!(one.run(), other.run());
    one.unwrap();
    other.unwrap();
    let job = bench.get(&id).await;
    assert_eq!((job.state, job.num_completed, job.num_failed), (JobState::Completed, 40, 0));
    let output = bench.lines(job.output_file.as_ref()).await;
    let expected: Vec<_> = (0..40).map(|n| format!("id-{n}")).collect();
    assert_eq!(ids(&output), expected);
    let count = sqlx::query_scalar("SELECT count(*) FROM files WHERE purpose = 'batch_output'");
    let count: i64 = count.fetch_one(bench.store.reader()).await.unwrap();
    assert_eq!(count, 1);
}

#[tokio::test]
async fn tenants_take_turns_with_jobs_too() {
    let dir = tempfile::tempdir().unwrap();
    let change = |config: &mut Config| config.batch.max_running_jobs = 2;
    let bench = Bench::open(dir.path(), |_, _| None, change).await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(bench.hand_in(line("a", "x").as_bytes(), 3600).await);
    }
    let other = bench.hand_in(line("a", "x").as_bytes(), 3600).await;
    let give = other.clone();
    let query = bench.store.write(move |database| {
        Box::pin(async move {
            let query = sqlx::query("UPDATE batches SET tenant = 'other' WHERE id = ?");
            query.bind(give).execute(database).await?;
            Ok(())
        })
    });
    query.await.unwrap();
    let running = tokio::spawn(bench.jobs.clone().run());
    while bench.num_computed.load(Ordering::SeqCst) < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(bench.get(&ids[0]).await.state, JobState::InProgress);
    assert_eq!(bench.get(&other).await.state, JobState::InProgress);
    assert_eq!(bench.get(&ids[1]).await.state, JobState::Validating);
    // What is cancelled need not wait for its turn.
    assert!(bench.jobs.cancel(bench.get(&ids[2]).await.number).await.unwrap());
    while bench.get(&ids[2]).await.state != JobState::Cancelled {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    running.abort();
}

/// Goal: whoever looks at lines doesn't wait for ever for those that nobody will write. Method: the
/// store's task ends before a line that is none can be kept.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_lines_are_looked_at_stops_where_nothing_is_written_any_more() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::open(dir.path(), |request, _| Some(says(request)), |_| {}).await;
    let id = bench.hand_in(b"no request\n", 3600).await;
    let runner = bench.runner(&id).await;
    let ended = bench.store.write::<(), _>(|_| Box::pin(async { panic!("its task ends") }));
    ended.await.unwrap_err();
    let stopped = tokio::time::timeout(Duration::from_secs(60), runner.run()).await;
    assert!(matches!(stopped, Ok(Err(Stopped::Disk))), "{stopped:?}");
}

/// Goal: what was known of a job when its turn came isn't relied on. Method: runners that know it
/// as it was before it was cancelled, and before it ended.
#[tokio::test]
async fn a_job_that_was_cancelled_or_ended_before_it_is_taken_up_computes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::open(dir.path(), |request, _| Some(says(request)), |_| {}).await;
    let id = bench.hand_in(line("a", "x").as_bytes(), 3600).await;
    let number = bench.counted(&id, 1).await.number;
    for runner in [bench.runner(&id).await, bench.runner(&id).await] {
        let is_first = bench.jobs.cancel(number).await.unwrap();
        assert_eq!(is_first, bench.get(&id).await.state == JobState::Cancelling);
        runner.run().await.unwrap();
        assert_eq!(bench.get(&id).await.state, JobState::Cancelled);
    }
    assert_eq!(bench.num_computed.load(Ordering::SeqCst), 0);
}

/// Goal: of a job that is cancelled before its lines are counted, neither counts nor files speak of
/// any. Method: one that is none was found already, and then the input turns out to be none.
#[tokio::test]
async fn a_job_that_is_cancelled_before_its_lines_are_counted_has_none() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::open(dir.path(), |request, _| Some(says(request)), |_| {}).await;
    let id = bench.hand_in(format!("{{\n{}", line("a", "x")).as_bytes(), 3600).await;
    let number = bench.get(&id).await.number;
    bench.record(number, 1, true, "{}".into()).await;
    assert_eq!(bench.get(&id).await.num_failed, 0, "of none");
    assert!(bench.jobs.cancel(number).await.unwrap());
    bench.jobs.records().fail(number, json!(null)).await.unwrap();
    let job = bench.finish(&id).await;
    assert_eq!((job.state, job.num_lines, job.num_failed), (JobState::Cancelled, 0, 0));
    assert_eq!((job.output_file, job.error_file), (None, None));
}

/// Goal: an input that is gone ends its own job, with what is durable, and holds up no other.
/// Method: of two lines one is durable when the bytes go.
#[tokio::test]
async fn a_job_whose_input_is_gone_ends_with_what_is_durable() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::open(dir.path(), |request, _| Some(says(request)), |_| {}).await;
    for (name, expected) in [("a", JobState::Expired), ("b", JobState::Cancelled)] {
        let input = [line(name, "x"), line("rest", "x")].join("\n");
        let id = bench.hand_in(input.as_bytes(), 3600).await;
        let job = bench.counted(&id, 2).await;
        let text = LineId { batch: job.number, line: 1 }.answered(name, "{}".into());
        bench.record(job.number, 1, false, text).await;
        bench.jobs.files().blobs.remove(&job.input_hash).unwrap();
        if expected == JobState::Cancelled {
            assert!(bench.jobs.cancel(job.number).await.unwrap());
        }
        let job = bench.finish(&id).await;
        assert_eq!((job.state, job.num_completed), (expected, 1));
        assert_eq!(ids(&bench.lines(job.output_file.as_ref()).await), [name]);
        let error = bench.lines(job.error_file.as_ref()).await;
        assert_eq!(ids(&error), ["none"]);
        assert_eq!(error[0]["error"]["code"], "input_unreadable");
        let said = error[0]["error"]["message"].as_str().unwrap();
        assert!(said.ends_with("1 lines have none"), "{said}");
    }
    let id = bench.hand_in(line("c", "x").as_bytes(), 3600).await;
    bench.jobs.files().blobs.remove(&bench.get(&id).await.input_hash).unwrap();
    let job = bench.finish(&id).await;
    assert_eq!(job.state, JobState::Failed);
    assert_eq!(job.errors.unwrap()["data"][0]["code"], "input_unreadable");
    assert_eq!((bench.jobs.disk(), bench.num_computed.load(Ordering::SeqCst)), (Disk::Fine, 0));
}

/// Goal: an input that can't be read holds up no other job, and its own until its time is up.
/// Method: folders stand where the bytes of two jobs should, of one that has been looked at and of
/// one that hasn't.
#[tokio::test]
async fn an_input_that_cannot_be_read_is_tried_again_as_long_as_there_is_time() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::open(dir.path(), |request, _| Some(says(request)), |_| {}).await;
    let counted = bench.hand_in(line("a", "x").as_bytes(), 3600).await;
    bench.counted(&counted, 1).await;
    let unseen = bench.hand_in(line("b", "x").as_bytes(), 3600).await;
    for id in [&counted, &unseen] {
        let path = bench.jobs.files().blobs.path(&bench.get(id).await.input_hash);
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(path).unwrap();
    }
    let other = bench.hand_in(line("c", "x").as_bytes(), 3600).await;
    assert_eq!(bench.finish(&other).await.state, JobState::Completed);
    assert!(bench.get(&counted).await.state.is_open() && bench.get(&unseen).await.state.is_open());
    let late = bench.store.write(|database| {
        Box::pin(async move {
            sqlx::query("UPDATE batches SET expires_s = 0").execute(database).await?;
            Ok(())
        })
    });
    late.await.unwrap();
    let job = bench.finish(&counted).await;
    assert_eq!((job.state, job.output_file.is_none()), (JobState::Expired, true));
    assert_eq!(bench.lines(job.error_file.as_ref()).await[0]["error"]["code"], "input_unreadable");
    assert_eq!(bench.finish(&unseen).await.state, JobState::Failed);
    assert_eq!(bench.jobs.disk(), Disk::Fine);
}

/// Goal: the bytes of a job's input stay until the job is kept. Method: whoever makes it doesn't
/// wait for that.
#[tokio::test]
async fn the_names_of_blobs_are_held_until_a_job_is_kept_whoever_has_gone() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::open(dir.path(), |request, _| Some(says(request)), |_| {}).await;
    let id = bench.hand_in(b"{}", 3600).await;
    let job = BatchJob { id: "batch_another".into(), ..bench.get(&id).await };
    let names = Arc::clone(&bench.jobs.files().blobs.names);
    drop(bench.jobs.insert(job, Arc::clone(&names).lock_owned().await));
    assert!(names.try_lock().is_err());
    let _names = names.lock().await;
    assert!(bench.jobs.records().get("batch_another").await.unwrap().is_some());
}

/// Goal: a job's last results wait for no others. Method: nobody waits so long.
#[tokio::test]
async fn the_last_results_of_a_job_are_durable_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let change = |config: &mut Config| config.batch.commit_wait_ms = 3_600_000;
    let bench = Bench::open(dir.path(), |request, _| Some(says(request)), change).await;
    let input = [line("a", "x"), "{".into(), line("b", LONG)].join("\n");
    let id = bench.hand_in(input.as_bytes(), 3600).await;
    let job = bench.finish(&id).await;
    assert_eq!((job.state, job.num_completed), (JobState::Completed, 2));
}

/// Goal: a group changes each of its jobs once, by what is new. Method: the rows that SQLite has
/// changed are counted.
#[tokio::test]
async fn results_of_a_group_are_counted_once_for_each_job() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::open(dir.path(), |request, _| Some(says(request)), |_| {}).await;
    let jobs = [bench.hand_in(b"{}", 3600).await, bench.hand_in(b"{}", 3600).await];
    let (one, other) = (bench.counted(&jobs[0], 9).await, bench.counted(&jobs[1], 9).await);
    let (one, other, records) = (one.number, other.number, bench.jobs.records());
    let outcome = |batch, line, is_failed| {
        let text = "{}".to_owned();
        Outcome { batch, line, is_failed, text, num_tokens: [3, 2, 1] }
    };
    let num_changes = async || {
        let query = bench.store.write(|database| {
            Box::pin(async move {
                let query = sqlx::query_scalar("SELECT total_changes()");
                let num: i64 = query.fetch_one(database).await?;
                Ok(num)
            })
        });
        query.await.unwrap()
    };
    let before = num_changes().await;
    let lines =
        [(one, 1, false), (other, 1, true), (one, 2, false), (one, 1, true), (one, 3, true)];
    let group = lines.map(|(batch, line, is_failed)| outcome(batch, line, is_failed));
    records.record(group.into()).await.unwrap();
    // Four lines that are new, and two jobs.
    assert_eq!(num_changes().await - before, 6);
    let job = bench.get(&jobs[0]).await;
    assert_eq!((job.num_completed, job.num_failed, job.num_tokens), (2, 1, [9, 6, 3]));
    let job = bench.get(&jobs[1]).await;
    assert_eq!((job.num_completed, job.num_failed, job.num_tokens), (0, 1, [3, 2, 1]));
    records.end(one, End::Cancelled, None, None).await.unwrap();
    let before = num_changes().await;
    records.record(vec![outcome(one, 4, false)]).await.unwrap();
    assert_eq!(num_changes().await, before, "what comes too late is none");
}
