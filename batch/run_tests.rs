//! Whole runs, with a stub that answers.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use proptest::prelude::*;
use rows::answers::{Answers, answer_columns};
use serde_json::{Value, json};

use crate::answerer::{Answerer, Failed};
use crate::journal::{Begin, Counts};
use crate::progress::Progress;
use crate::run::{Job, run};
use crate::template::Request;
use crate::testing::{Stub, Trial, interrupted, serve, sqlite};

fn path(folder: &Path, name: &str) -> String {
    folder.join(name).display().to_string()
}

fn numbers(num: u32) -> String {
    let mut text = String::from("id,text\n");
    for number in 0..num {
        writeln!(text, "{number},\"word {number}, é\"").unwrap();
    }
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_are_cleaned_asked_and_written_in_order_and_rejects_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (path(dir.path(), "in.csv"), path(dir.path(), "out.csv"));
    let text = "id,text\n1, one \n2\n3,three\n4,one\n5,please refuse\n6,\n7,seven\n";
    std::fs::write(&input, text).unwrap();
    let mut trial = Trial::new(dir.path(), &input, &output);
    trial.template = Some("say {{ text }}");
    trial.clean = "columns = ['text']\ntrim = true\ndrop_empty = true\nduplicates = 'exact'";
    let counts = trial.run(Stub::new(u64::MAX)).await.unwrap();
    assert_eq!(counts, Counts { answered: 3, failed: 1, dropped: 2, unreadable: 1 });
    let written = std::fs::read_to_string(&output).unwrap();
    let expected = "id,text,answer\n1,one,SAY ONE\n3,three,SAY THREE\n7,seven,SAY SEVEN\n";
    assert_eq!(written, expected);
    let told: Vec<_> = trial
        .rejects()
        .iter()
        .map(|it| format!("{} {} {}: {}", it["row"], it["line"], it["state"], it["why"]))
        .collect();
    let expected = [
        r#"2 3 "unreadable": "it has 1 fields, the header has 2""#,
        r#"4 5 "dropped": "it is the same as row 1""#,
        r#"5 6 "failed": "the server answers 400: no""#,
        r#"6 7 "dropped": "it is empty""#,
    ];
    assert_eq!(told, expected);
    // Input, output and rejects: nothing else is left.
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3);
    // Where all rows have answers nothing tells of others, not even of those before.
    std::fs::write(&input, "id,text\n1,one\n").unwrap();
    trial.run(Stub::new(9)).await.unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
}

/// Goal: wherever a run ends, one that goes on ends as if nothing had been. Method: a server that
/// is gone after so many answers, again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_in_pieces_ends_as_one_that_was_never_interrupted() {
    let dir = tempfile::tempdir().unwrap();
    let input = path(dir.path(), "in.csv");
    std::fs::write(&input, numbers(700) + "7,twice\n1\n").unwrap();
    let mut outputs = Vec::new();
    for (num_answers, name) in
        [(u64::MAX, "whole.csv"), (1, "ones.csv"), (150, "some.csv"), (u64::MAX, "again.csv")]
    {
        // One answer at a time is only tried for a while.
        let output = path(dir.path(), name);
        let mut trial = Trial::new(dir.path(), &input, &output);
        trial.template = Some("{{ text }}");
        trial.id = Some("id");
        trial.clean = "duplicates = 'near'\nnear_threshold = 1.0";
        if num_answers == 1 {
            for _ in 0..40 {
                let said = trial.run(Stub::new(1)).await.unwrap_err().to_string();
                assert!(said.contains("gone"), "{said}");
                assert!(!Path::new(&output).exists(), "it is there only when it is whole");
                assert!(!Path::new(&(output.clone() + ".part")).exists(), "nor is a part of it");
            }
        }
        let counts = trial.run_in_pieces(num_answers.max(100)).await;
        assert_eq!(counts, Counts { answered: 700, failed: 1, dropped: 0, unreadable: 1 });
        let why = trial.rejects()[0]["why"].as_str().unwrap().to_owned();
        assert_eq!(why, "its id \"7\" is that of row 8, too");
        outputs.push(std::fs::read_to_string(&output).unwrap());
    }
    assert!(outputs.iter().all(|output| *output == outputs[0]));
    assert_eq!(outputs[0].lines().count(), 701);
    assert_eq!(outputs[0].lines().nth(700).unwrap(), "699,\"word 699, é\",\"WORD 699, É\"");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_done_is_not_asked_again_and_two_at_once_are_one_too_many() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (path(dir.path(), "in.csv"), path(dir.path(), "out.jsonl"));
    std::fs::write(&input, numbers(300)).unwrap();
    let mut trial = Trial::new(dir.path(), &input, &output);
    trial.template = Some("{{ text }}");
    trial.run(Stub::new(200)).await.unwrap_err();
    let rest = Stub::new(u64::MAX);
    // The first holds the journal while the second looks.
    let (one, two) = tokio::join!(trial.run(rest.clone()), trial.run(rest.clone()));
    let ended = [one.is_ok(), two.is_ok()];
    let said = one.or(two.map_err(|cause| cause.context("both"))).map(|_| String::new());
    assert!(said.is_ok() || ended.contains(&true), "{said:?}");
    // What was answered and committed before wasn't asked again, but for what was under way.
    assert!(rest.asked.load(SeqCst) <= 100 + 16 + 256, "{}", rest.asked.load(SeqCst));
    let text = std::fs::read_to_string(&output).unwrap();
    assert_eq!(text.lines().count(), 300);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_that_holds_the_journal_is_an_error_and_so_is_an_unfinished_run() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (path(dir.path(), "in.csv"), path(dir.path(), "out.jsonl"));
    std::fs::write(&input, numbers(10)).unwrap();
    let trial = Trial::new(dir.path(), &input, &output);
    let lock = std::fs::File::create(dir.path().join("journal.lock")).unwrap();
    lock.try_lock().unwrap();
    let said = trial.run(Stub::new(9)).await.unwrap_err().to_string();
    assert!(said.contains("another process runs this batch"), "{said}");
    drop(lock);
    let mut trial = Trial::new(dir.path(), &input, &output);
    trial.template = Some("{{ text }}");
    trial.run(Stub::new(5)).await.unwrap_err();
    let anew = run(
        trial.job(Begin::Anew),
        Stub::new(9),
        Arc::new(Progress::default()),
        std::future::pending(),
    );
    let said = anew.await.unwrap_err().to_string();
    assert!(said.contains("unfinished run"), "{said}");
    let stopped =
        run(trial.job(Begin::Resume), Stub::new(0), Arc::new(Progress::default()), async {
            interrupted()
        });
    stopped.await.unwrap_err();
    trial.run(Stub::new(99)).await.unwrap();
}

/// Goal: who looked while another was about to end a run doesn't begin it again. Method: an output
/// that is there when the journal is opened.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_another_has_just_ended_is_not_begun_again() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (path(dir.path(), "in.csv"), path(dir.path(), "out.csv"));
    std::fs::write(&input, numbers(300)).unwrap();
    let mut trial = Trial::new(dir.path(), &input, &output);
    trial.template = Some("{{ text }}");
    let again = |stub: Arc<Stub>| {
        let job = Job { ended: vec![output.clone().into()], ..trial.job(Begin::Resume) };
        run(job, stub, Arc::new(Progress::default()), std::future::pending())
    };
    again(Stub::new(200)).await.unwrap_err();
    // An unfinished run is gone on with, whatever is there.
    std::fs::write(&output, "old").unwrap();
    assert_eq!(again(Stub::new(u64::MAX)).await.unwrap().answered, 300);
    let said = again(Stub::new(u64::MAX)).await.unwrap_err().to_string();
    assert!(said.contains("another process has just ended this run"), "{said}");
    assert_eq!(std::fs::read_to_string(&output).unwrap().lines().count(), 301);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
}

/// Is gone once it is asked for a slow row, and has answered all others until then.
struct Slow;

impl Answerer for Slow {
    fn answer<'a>(&'a self, request: &'a Request) -> BoxFuture<'a, Result<Value, Failed>> {
        Box::pin(async move {
            if request.body["messages"][0]["content"] == "slow" {
                tokio::time::sleep(Duration::from_secs(1)).await;
                return Err(Failed::Server("the server is gone".into()));
            }
            let stub = Stub::new(1);
            stub.answer(request).await
        })
    }
}

/// Goal: a row is known by its number only where no other can have that number now. Method: a file
/// that comes to a directory before those that were answered out of their order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_that_gets_a_file_while_a_run_rests_is_read_once() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (path(dir.path(), "texts"), path(dir.path(), "out.jsonl"));
    let write = |name: &str| std::fs::write(dir.path().join("texts").join(name), name).unwrap();
    std::fs::create_dir(&input).unwrap();
    ["slow", "v", "w"].into_iter().for_each(write);
    let mut trial = Trial::new(dir.path(), &input, &output);
    trial.template = Some("{{ text }}");
    trial.clean = "columns = ['text']\nduplicates = 'near'";
    trial.columns = Some(vec!["file".into()]);
    let said = trial.run(Arc::new(Slow)).await.unwrap_err().to_string();
    assert!(said.contains("gone"), "{said}");
    write("u");
    let counts = trial.run(Stub::new(u64::MAX)).await.unwrap();
    assert_eq!(counts, Counts { answered: 4, ..Counts::default() });
    let written = std::fs::read_to_string(&output).unwrap();
    let expected = [("slow", "SLOW"), ("u", "U"), ("v", "V"), ("w", "W")];
    let expected =
        expected.map(|(file, answer)| json!({"file": file, "answer": answer}).to_string() + "\n");
    assert_eq!(written, expected.concat());
}

/// Goal: nothing is asked where every row would fail for the same reason.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn columns_that_the_input_lacks_or_has_already_are_named_before_anything_is_asked() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (path(dir.path(), "in.csv"), path(dir.path(), "out.csv"));
    std::fs::write(&input, numbers(3)).unwrap();
    let trial =
        || Trial { template: Some("{{ text }}"), ..Trial::new(dir.path(), &input, &output) };
    let taken = Answers::Text("text".into());
    let clean_typo = "columns = ['id', 'txt']";
    let label_text = "label = [{ column = 'text', question = '{{ text }}', values = ['word'] }]";
    let tone_twice = "label = [{ column = 'tone', question = '{{ text }}', values = ['word'] },
        { column = 'tone', question = '{{ id }}', values = ['word'] }]";
    for (trial, expected) in [
        (Trial { id: Some("no"), ..trial() }, "--id names a column \"no\", the input has id, text"),
        (Trial { columns: Some(vec!["id".into(), "x".into()]), ..trial() }, "--columns names a"),
        (Trial { map: vec!["user=txt".into()], ..trial() }, "--map names a column \"txt\""),
        (Trial { clean: clean_typo, ..trial() }, "--clean names a column \"txt\""),
        (Trial { answers: taken.clone(), ..trial() }, "\"text\" already: --answer-column"),
        (Trial { clean: label_text, ..trial() }, "\"text\" already: give the label's column"),
        (Trial { clean: tone_twice, ..trial() }, "\"tone\" already: give the label's column"),
    ] {
        let stub = Stub::new(u64::MAX);
        let said = trial.run(stub.clone()).await.unwrap_err().to_string();
        assert!(said.contains(expected), "{said}");
        assert_eq!(stub.asked.load(SeqCst), 0);
    }
    // A column that isn't kept is in nobody's way, and one that is labelled may be asked for.
    let kept = Some(vec!["id".to_owned()]);
    Trial { answers: taken, columns: kept, ..trial() }.run(Stub::new(9)).await.unwrap();
    let written = std::fs::read_to_string(&output).unwrap();
    assert!(written.starts_with("id,text\n0,\"WORD 0, É\"\n"), "{written}");
    let clean = "label = [{ column = 'tone', question = '{{ text }}', values = ['word'] }]";
    let labelled = Trial { clean, map: vec!["user=tone".into()], ..trial() };
    assert_eq!(labelled.run(Stub::new(99)).await.unwrap().answered, 3);
    // Of lines that each name their own columns only those fail that have it.
    let lines = path(dir.path(), "in.jsonl");
    std::fs::write(&lines, "{\"text\": \"word\", \"tone\": 1}\n{\"text\": \"word\"}\n").unwrap();
    let counts = Trial { clean, input: lines, ..trial() }.run(Stub::new(99)).await.unwrap();
    assert_eq!((counts.answered, counts.failed), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn minus_zero_goes_through_as_the_whole_number_that_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (path(dir.path(), "in.jsonl"), path(dir.path(), "out.csv"));
    std::fs::write(&input, "{\"n\": -0, \"text\": \"{\\\"A\\\": -0}\"}\n").unwrap();
    let mut trial = Trial::new(dir.path(), &input, &output);
    trial.template = Some("{{ text }}");
    trial.answers = answer_columns(&["A".into()]).unwrap();
    trial.run(Stub::new(9)).await.unwrap();
    let written = std::fs::read_to_string(&output).unwrap();
    assert_eq!(written, "n,text,A\n0,\"{\"\"A\"\": -0}\",0\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_are_json_become_columns_and_others_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (path(dir.path(), "in.jsonl"), path(dir.path(), "out.csv"));
    let rows = [
        json!({"n": 1, "text": "```json\n{\"A\": \"x\", \"B\": [1]}\n```"}),
        json!({"n": 2, "text": "no json"}),
        json!({"n": 3, "text": "{\"B\": 2}", "more": true}),
    ];
    let lines: Vec<_> = rows.iter().map(Value::to_string).collect();
    std::fs::write(&input, lines.join("\n")).unwrap();
    let mut trial = Trial::new(dir.path(), &input, &output);
    trial.template = Some("{{ text }}");
    trial.answers = answer_columns(&["A".into(), "B".into()]).unwrap();
    let counts = trial.run(Stub::new(9)).await.unwrap();
    assert_eq!((counts.answered, counts.failed), (2, 1));
    let written = std::fs::read_to_string(&output).unwrap();
    // The columns of all rows, in the order in which they appear.
    assert!(written.starts_with("n,text,A,B,more\n1,"), "{written}");
    assert!(written.contains(",X,[1],\n3,") && written.ends_with(",,2,true\n"), "{written}");
    let why = trial.rejects()[0]["why"].as_str().unwrap().to_owned();
    assert!(why.starts_with("the answer is no JSON"), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_model_labels_rows_and_those_of_other_labels_are_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (path(dir.path(), "in.csv"), path(dir.path(), "out.jsonl"));
    std::fs::write(&input, "text\nthis is good\nthis is bad\n").unwrap();
    let mut trial = Trial::new(dir.path(), &input, &output);
    trial.clean = "label = [{ column = 'tone', question = '{{ text }}', values = ['good', 'bad'],
        keep = ['good'] }]";
    trial.columns = Some(vec!["text".into(), "tone".into()]);
    // The stub says the question, in which the values stand behind the text.
    trial.run(Stub::new(9)).await.unwrap();
    let written = std::fs::read_to_string(&output).unwrap();
    assert_eq!(written, "{\"text\":\"this is good\",\"tone\":\"good\"}\n");
    assert_eq!(trial.rejects()[0]["why"], "the model labels it tone: bad");
}

/// Goal: a table has each row once, whatever happens between it and the journal. Method: a run in
/// pieces into a table that has some of the rows before.
#[test]
fn a_table_has_each_row_once() {
    let (runtime, _) = crate::testing::reading();
    let dir = tempfile::tempdir().unwrap();
    let database = path(dir.path(), "a.db");
    let rows = "CREATE TABLE t (id INTEGER PRIMARY KEY, x REAL, text TEXT, answer TEXT);
        WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1200)
        INSERT INTO t SELECT i, i / 2.0, 'row ' || i, NULL FROM n;
        CREATE TABLE answers AS SELECT * FROM t WHERE id % 100 = 0;
        CREATE UNIQUE INDEX by_id ON answers (id);
        UPDATE answers SET text = 'old'";
    sqlite(&runtime, &database, rows);
    let query = format!("sqlite:{database}?query=SELECT id, x, text FROM t ORDER BY id");
    let table = format!("sqlite:{database}?table=answers");
    let mut trial = Trial::new(dir.path(), &query, &table);
    trial.template = Some("{{ text }}");
    trial.id = Some("id");
    let counts = runtime.block_on(trial.run_in_pieces(500));
    assert_eq!(counts.answered, 1200);
    // And back, as typed columns of a file.
    let query = format!("sqlite:{database}?query=SELECT * FROM answers ORDER BY id");
    let back = path(dir.path(), "back.parquet");
    runtime.block_on(Trial::new(dir.path(), &query, &back).run(Stub::new(0))).unwrap();
    let lines = path(dir.path(), "back.jsonl");
    runtime.block_on(Trial::new(dir.path(), &back, &lines).run(Stub::new(0))).unwrap();
    let text = std::fs::read_to_string(&lines).unwrap();
    assert_eq!(text.lines().count(), 1200);
    let expected = "{\"id\":100,\"x\":50.0,\"text\":\"row 100\",\"answer\":\"ROW 100\"}";
    assert_eq!(text.lines().nth(99).unwrap(), expected);
    // A table that can't take rows, or wouldn't find them again, is refused with what it needs.
    sqlite(&runtime, &database, "CREATE TABLE loose (id, x, text, answer); CREATE TABLE few (id)");
    for table in ["loose", "few"] {
        let output = format!("sqlite:{database}?table={table}");
        let folder = tempfile::tempdir().unwrap();
        let refused = Trial::new(folder.path(), &query, &output);
        let refused = Trial { id: Some("id"), ..refused };
        let said = format!("{:#}", runtime.block_on(refused.run(Stub::new(0))).unwrap_err());
        assert!(said.contains("its primary key or have a unique index"), "{said}");
    }
    let said = Trial { id: None, ..trial };
    let said = runtime.block_on(said.run(Stub::new(u64::MAX))).unwrap_err().to_string();
    assert!(said.contains("--id"), "{said}");
}

/// What a server of rows got: bodies by their idempotency keys.
type Got = Arc<Mutex<BTreeMap<String, Vec<String>>>>;

/// A server that takes rows, and fails at two of three requests: at one of these it has taken them.
async fn failing_server(got: Got) -> String {
    let mut num = 0;
    let url = serve(move |head, body| {
        num += 1;
        if num % 3 != 1 {
            let key = head.headers["idempotency-key"].to_str().unwrap().to_owned();
            let body = String::from_utf8(body.to_vec()).unwrap();
            got.lock().unwrap().entry(key).or_default().push(body);
        }
        (if num % 3 == 0 { 200 } else { 500 }, String::new())
    });
    url.await + "/rows"
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_fails_gets_each_row_under_one_key() {
    let dir = tempfile::tempdir().unwrap();
    let input = path(dir.path(), "in.csv");
    std::fs::write(&input, numbers(30)).unwrap();
    let got = Got::default();
    let url = failing_server(got.clone()).await;
    let mut trial = Trial::new(dir.path(), &input, &url);
    trial.template = Some("{{ text }}");
    trial.rows_together = 7;
    trial.run_in_pieces(20).await;
    let got = got.lock().unwrap();
    assert_eq!(got.len(), 5, "five requests of seven rows at most: {:?}", got.keys());
    let mut ids = Vec::new();
    for bodies in got.values() {
        assert!(bodies.iter().all(|body| *body == bodies[0]), "a key means one thing: {bodies:?}");
        ids.extend(bodies[0].lines().map(|line| {
            let row: Value = serde_json::from_str(line).unwrap();
            row["id"].as_str().unwrap().parse::<u32>().unwrap()
        }));
    }
    ids.sort_unstable();
    assert_eq!(ids, (0..30).collect::<Vec<_>>());
}

/// Goal: who interrupts a run needn't wait for a server that is out of order, which gets its rows
/// when the run goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_is_interrupted_waits_for_no_server() {
    let dir = tempfile::tempdir().unwrap();
    let input = path(dir.path(), "in.csv");
    std::fs::write(&input, numbers(30)).unwrap();
    let (is_up, num_taken) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (up, taken) = (is_up.clone(), num_taken.clone());
    let url = serve(move |_, _| {
        if !up.load(SeqCst) {
            return (503, String::new());
        }
        taken.fetch_add(1, SeqCst);
        (200, String::new())
    });
    let url = url.await;
    let mut trial = Trial::new(dir.path(), &input, &url);
    trial.template = Some("{{ text }}");
    let (job, progress) = (trial.job(Begin::Resume), Arc::new(Progress::default()));
    let stopped = run(job, Stub::new(u64::MAX), progress, async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        interrupted()
    });
    let stopped = tokio::time::timeout(Duration::from_secs(60), stopped).await.expect("it ends");
    assert_eq!(stopped.unwrap_err().to_string(), "interrupted");
    is_up.store(true, SeqCst);
    assert_eq!(trial.run(Stub::new(u64::MAX)).await.unwrap().answered, 30);
    assert_eq!(num_taken.load(SeqCst), 30);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn rows_go_through_every_format_and_come_back(
        rows in prop::collection::vec(
            (
                any::<Option<bool>>(),
                any::<Option<i64>>(),
                prop::option::of(-1e9..1e9),
                "[a,\"\r\n é\\\\]{0,8}",
            ),
            1..20,
        ),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let name = |end: &str| path(dir.path(), &format!("rows{end}"));
        let lines: Vec<_> = rows
            .iter()
            .map(|(b, i, f, t)| {
                json!({"b": b, "i": i, "f": f, "t,\"": t}).to_string() + "\n"
            })
            .collect();
        std::fs::write(name(".jsonl"), lines.concat()).unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        for (from, to) in [
            (".jsonl", ".parquet"), (".parquet", ".2.jsonl"), (".jsonl", ".csv"),
            (".csv", ".3.jsonl"), (".3.jsonl", ".2.csv"), (".csv", ".2.parquet"),
            (".2.parquet", ".3.csv"),
        ] {
            let trial = Trial::new(dir.path(), &name(from), &name(to));
            let counts = runtime.block_on(trial.run(Stub::new(0))).unwrap();
            prop_assert_eq!(counts.answered as usize, rows.len());
        }
        let read = |end: &str| std::fs::read_to_string(name(end)).unwrap();
        prop_assert_eq!(read(".2.jsonl"), lines.concat());
        prop_assert_eq!(read(".2.csv"), read(".csv"));
        prop_assert_eq!(read(".3.csv"), read(".csv"));
    }
}
