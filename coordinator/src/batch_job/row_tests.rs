//! Jobs over rows.

use std::sync::atomic::Ordering;

use serde_json::{Value, json};

use super::records::JobState;
use super::row_plan::complete;
use super::testing::{Bench, Rule, ids, says};
use super::*;
use crate::openai::Style;
use crate::request::Event;

fn rows(said: Value, filename: &str) -> Option<Value> {
    Some(complete(said, filename, Style::Completion, "m").unwrap())
}

async fn open(dir: &Path, rule: Rule) -> Bench {
    Bench::open(dir, rule, |config| config.batch.max_line_bytes = 200).await
}

#[tokio::test]
async fn rows_of_a_csv_file_come_out_with_their_answers_and_what_is_none_is_told_by_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let bench = open(dir.path(), |request, _| Some(says(request))).await;
    let long = "x".repeat(120);
    let input =
        format!("\u{feff}id,text\r\n1,\"a, \"\"b\"\"\r\nc\"\r\n2\r\n\r\n3,{long}\n4,\"open\n5,é\n");
    let plan = rows(json!({"template": "{{ text }} {{text}}"}), "in.CSV");
    let id = bench.hand_in_rows(input.as_bytes(), 3600, plan.clone()).await;
    let job = bench.finish(&id).await;
    assert_eq!((job.state, job.num_lines, job.num_completed), (JobState::Completed, 5, 2));
    let output = bench.text(job.output_file.as_ref()).await;
    let lines: Vec<_> = output.split('\n').collect();
    assert_eq!(lines[0], "id,text,answer");
    assert!(lines[1] == "1,\"a, \"\"b\"\"\r" && lines[2].starts_with("c\","), "{output}");
    assert!(lines[3].starts_with("5,é,") && lines[4].is_empty(), "{output}");
    let file = bench.jobs.files().get(job.output_file.as_ref().unwrap()).await.unwrap().unwrap();
    assert_eq!(file.filename, format!("{id}_output.csv"));
    let error = bench.lines(job.error_file.as_ref()).await;
    let said: Vec<_> =
        error.iter().map(|line| (&line["custom_id"], &line["error"]["line"])).collect();
    let expected = [("line-4", 4), ("line-6", 6), ("line-7", 7)];
    assert_eq!(
        said,
        expected
            .map(|(id, line)| (json!(id), json!(line)))
            .iter()
            .map(|(id, line)| (id, line))
            .collect::<Vec<_>>()
    );
    for (line, why) in
        error.iter().zip(["1 fields, the header has 2", "longer than a line", "quote"])
    {
        assert_eq!(line["error"]["code"], "invalid_row");
        assert!(line["error"]["message"].as_str().unwrap().contains(why), "{line}");
    }
    // Answered alike whenever it is asked.
    let again = bench.hand_in_rows(input.as_bytes(), 3600, plan).await;
    let again = bench.finish(&again).await;
    assert_eq!(bench.text(again.output_file.as_ref()).await, output);
}

/// Goal: answers that were to be JSON are columns, and one that is none is an error of its row.
#[tokio::test]
async fn rows_of_json_lines_get_the_columns_of_their_schema() {
    let dir = tempfile::tempdir().unwrap();
    let rule: Rule = |request, _| {
        let mut said = says(request);
        if let Event::Token { text, .. } = &mut said[1] {
            *text = if request.prompt.len() > 30 { "{\"age\": 7}".into() } else { "seven".into() };
        }
        Some(said)
    };
    let bench = open(dir.path(), rule).await;
    let input = [
        "{\"n\": 1, \"t\": \"a text that is long enough for it, word by word\"}",
        "[1]",
        "{\"n\": 2, \"t\": \"x\"}",
        "{\"n\": 3}",
    ];
    let schema = json!({"type": "object", "properties": {"age": {"type": "integer"}}});
    let template = json!({
        "prompt": "{{ n }}: {{ t }}",
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
    });
    // The schema says which columns there are; the stand-in for a scheduler keeps to none.
    let mut plan = rows(json!({"template": template}), "in.jsonl").unwrap();
    plan["answer_columns"] = json!(["age"]);
    plan["template"].as_object_mut().unwrap().remove("response_format");
    let id = bench.hand_in_rows(input.join("\n").as_bytes(), 3600, Some(plan)).await;
    let job = bench.finish(&id).await;
    assert_eq!((job.state, job.num_completed, job.num_failed), (JobState::Completed, 1, 3));
    let output = bench.text(job.output_file.as_ref()).await;
    let text = "a text that is long enough for it, word by word";
    assert_eq!(output, json!({"n": 1, "t": text, "age": 7}).to_string() + "\n");
    let error = bench.lines(job.error_file.as_ref()).await;
    let said: Vec<_> = error.iter().map(|line| line["error"]["code"].as_str().unwrap()).collect();
    assert_eq!(said, ["invalid_row", "invalid_answer", "invalid_row"]);
    assert!(error[2]["error"]["message"].as_str().unwrap().contains("no column \"t\""));
}

#[tokio::test]
async fn a_job_over_rows_that_is_cut_off_goes_on_and_one_that_is_cancelled_names_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    // The third is never answered.
    let rule: Rule = |request, number| (number != 2).then(|| says(request));
    let bench = open(dir.path(), rule).await;
    let input = "text\na\nb\nc\nd\n";
    let plan = rows(json!({"template": "Say {{ text }}", "answer_column": "said"}), "in.csv");
    let id = bench.hand_in_rows(input.as_bytes(), 3600, plan).await;
    let running = tokio::spawn(bench.jobs.clone().run());
    while bench.get(&id).await.num_completed < 3 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    running.abort();
    let _ = running.await;
    let computed = bench.num_computed.load(Ordering::SeqCst);
    // Another process goes on, and computes nothing again that is durable.
    let bench = open(dir.path(), rule).await;
    let id_again = bench.hand_in_rows(input.as_bytes(), 3600, bench.get(&id).await.rows).await;
    let job = bench.finish(&id).await;
    assert_eq!((job.state, job.num_completed), (JobState::Completed, 4));
    let output = bench.text(job.output_file.as_ref()).await;
    let texts: Vec<_> = output.lines().map(|line| line.split(',').next().unwrap()).collect();
    assert_eq!(texts, ["text", "a", "b", "c", "d"]);
    assert_eq!(computed, 4);
    let number = bench.get(&id_again).await.number;
    assert!(bench.jobs.cancel(number).await.unwrap());
    let job = bench.finish(&id_again).await;
    assert_eq!(job.state, JobState::Cancelled);
    let error = bench.lines(job.error_file.as_ref()).await;
    assert_eq!(error[0]["error"]["code"], "batch_cancelled");
    assert_eq!(error.len() + job.num_completed as usize, 4);
}

/// Goal: answers outlast the rows that they are of. Method: the only row is answered when the bytes
/// of the input go.
#[tokio::test]
async fn answers_whose_rows_are_gone_are_called_by_the_lines_of_these() {
    let dir = tempfile::tempdir().unwrap();
    let bench = open(dir.path(), |request, _| Some(says(request))).await;
    let plan = rows(json!({"template": "{{ text }}"}), "in.csv");
    let id = bench.hand_in_rows(b"text\na\n", 3600, plan).await;
    let job = bench.counted(&id, 1).await;
    bench.record(job.number, 2, false, json!({"answer": "b"}).to_string()).await;
    bench.jobs.files().blobs.remove(&job.input_hash).unwrap();
    let job = bench.finish(&id).await;
    assert_eq!((job.state, job.num_completed), (JobState::Completed, 1));
    let output = bench.lines(job.output_file.as_ref()).await;
    assert_eq!(ids(&output), ["line-2"]);
    assert_eq!(output[0]["response"]["body"], json!({"answer": "b"}));
    let file = bench.jobs.files().get(job.output_file.as_ref().unwrap()).await.unwrap().unwrap();
    assert_eq!(file.filename, format!("{id}_output.jsonl"));
}

#[tokio::test]
async fn rows_that_are_none_fail_their_job_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let bench = open(dir.path(), |request, _| Some(says(request))).await;
    for (input, why) in [
        ("", "no header"),
        ("text,text\na,b\n", "two columns"),
        ("other\na\n", "names \"text\""),
        ("text,answer\na,b\n", "\"answer\" is a column of the file already"),
        ("\u{fffd}\n", "names \"text\""),
    ] {
        let plan = rows(json!({"template": "{{ text }}"}), "in.csv");
        let id = bench.hand_in_rows(input.as_bytes(), 3600, plan).await;
        let job = bench.finish(&id).await;
        assert_eq!((job.state, job.num_completed), (JobState::Failed, 0), "{input}");
        let errors = job.errors.unwrap();
        assert!(errors["data"][0]["message"].as_str().unwrap().contains(why), "{errors}");
    }
    // Cancelled before anybody looks at it, it is at its end all the same.
    let plan = rows(json!({"template": "{{ text }}"}), "in.csv");
    let id = bench.hand_in_rows(b"", 3600, plan).await;
    assert!(bench.jobs.cancel(bench.get(&id).await.number).await.unwrap());
    assert_eq!(bench.finish(&id).await.state, JobState::Cancelled);
}

#[test]
fn a_template_has_columns_in_it_and_nothing_that_could_cost_more() {
    let refused =
        |said: Value, filename: &str| complete(said, filename, Style::Chat, "m").unwrap_err();
    for (said, filename, param, why) in [
        (json!("{{ a }}"), "a.csv", "rows", "must be an object"),
        (json!({"template": "{{ a }}"}), "a.txt", "rows.format", "say rows.format"),
        (json!({"template": "{{ a }}", "format": "xls"}), "a.csv", "rows.format", "csv or jsonl"),
        (json!({}), "a.csv", "rows.template", "what the user says"),
        (json!({"template": 5}), "a.csv", "rows.template", "what the user says"),
        (json!({"template": "no column"}), "a.csv", "rows.template", "names no column"),
        (json!({"template": "{{ a"}), "a.csv", "rows.template", "not closed"),
        (json!({"template": "{{ }}"}), "a.csv", "rows.template", "names no column"),
        (json!({"template": "{% for x in a %}"}), "a.csv", "rows.template", "no statements"),
        (
            json!({"template": {"prompt": "{{ a }}", "stream": true}}),
            "a.csv",
            "rows.template",
            "stream",
        ),
        (
            json!({"template": "{{ a }}", "answer_column": 1}),
            "a.csv",
            "rows.answer_column",
            "a name",
        ),
        (
            json!({"template": "{{ a }}", "answer_columns": ["a", "a"]}),
            "a.csv",
            "rows.answer_columns",
            "twice",
        ),
        (
            json!({"template": "{{ a }}", "answer_column": "x", "answer_columns": ["y"]}),
            "a.csv",
            "rows.answer_column",
            "one of the two",
        ),
        (json!({"template": "{{ a }}", "wibble": 1}), "a.csv", "rows", "unknown field rows.wibble"),
    ] {
        let error = refused(said.clone(), filename);
        assert_eq!(error.param.as_deref(), Some(param), "{said}: {error}");
        assert!(error.message.contains(why), "{said}: {error}");
    }
    let kept = complete(json!({"template": "Say {{ a }}"}), "a.jsonl", Style::Chat, "m").unwrap();
    let messages = json!([{"role": "user", "content": "Say {{ a }}"}]);
    let template = json!({"messages": messages, "model": "m"});
    assert_eq!(kept, json!({"template": template, "format": "jsonl"}));
}
