//! The lines of a job, read from its input: all of them once, to see what they are, then those that
//! are to be computed, a window after the other.

use std::collections::HashSet;
use std::fs::File;
use std::io;

use rows::row::Cells;
use serde_json::{Value, json};

use super::Inner;
use super::input::{Lines, RawLine};
use super::job::{Line, Numbers};
use super::line::{Asks, LineId, Wrong};
use super::records::{BatchJob, Outcome};
use super::row_plan::{RowFormat, RowPlan};
use super::runner::Cancel;
use super::window;

pub(super) enum Found {
    /// Lines, and how many of them are no requests.
    Lines { num: u32, num_wrong: u32 },
    /// It is an input no job can have; why, as OpenAI says it.
    Nothing(Value),
    /// Nobody wants to know.
    Cancelled,
}

/// What is said of an input that can't be read, and won't be.
pub(super) const UNREADABLE: &str = "input_unreadable";

impl Found {
    pub(super) fn unreadable(cause: &io::Error) -> Self {
        let message = format!("the input can't be read any more ({cause}); hand it in again");
        Self::Nothing(problem(UNREADABLE, &message, None))
    }
}

/// What stands in one line of a job's input, or in the lines of one row.
pub(super) struct Entry {
    /// The first of these lines, from 1 on.
    pub(super) number: u32,
    pub(super) asks: Result<Asks, Wrong>,
    /// The row, where there is one.
    pub(super) cells: Cells,
}

/// A job's input, from its first line on.
pub(super) struct Entries {
    form: Form,
    endpoint: String,
    max_line_bytes: u32,
}

enum Form {
    Lines(Lines<File>),
    Csv(Box<(RowPlan, rows::csv::Records<File>)>),
    Jsonl(Box<(RowPlan, rows::jsonl::Records<File>)>),
}

/// Why an input has no entries.
pub(super) enum Unusable {
    /// It can't be read now.
    Input(io::Error),
    /// It is none; why, as OpenAI says it.
    Nothing(Value),
}

impl From<io::Error> for Unusable {
    fn from(cause: io::Error) -> Self {
        Self::Input(cause)
    }
}

impl From<Unusable> for io::Error {
    fn from(cause: Unusable) -> Self {
        match cause {
            Unusable::Input(cause) => cause,
            Unusable::Nothing(problem) => Self::other(problem["message"].to_string()),
        }
    }
}

impl Entries {
    pub(super) fn open(inner: &Inner, job: &BatchJob) -> Result<Self, Unusable> {
        let file = inner.files.blobs.read(&job.input_hash)?;
        let max_line_bytes = inner.config.max_line_bytes;
        let max_bytes = max_line_bytes as usize;
        let form = match &job.rows {
            None => Form::Lines(Lines::new(file, max_bytes)),
            Some(rows) => {
                let plan = RowPlan::parse(rows).map_err(|cause| {
                    Unusable::Nothing(problem("invalid_rows", &cause.message, None))
                })?;
                match plan.format {
                    RowFormat::Csv => {
                        let records =
                            rows::csv::Records::open(file, max_bytes).map_err(unusable)?;
                        if let Some(why) = plan.problem(records.header()) {
                            return Err(Unusable::Nothing(problem("invalid_rows", &why, Some(1))));
                        }
                        Form::Csv(Box::new((plan, records)))
                    }
                    RowFormat::Jsonl => {
                        let records = rows::jsonl::Records::new(file, max_bytes, 0, 0);
                        Form::Jsonl(Box::new((plan, records)))
                    }
                }
            }
        };
        Ok(Self { form, endpoint: job.endpoint.clone(), max_line_bytes })
    }

    /// The next one; none at the end. Empty lines are none.
    pub(super) fn next_entry(&mut self) -> io::Result<Option<Entry>> {
        let (plan, record) = match &mut self.form {
            Form::Lines(lines) => {
                let Some(line) = lines.next_line()? else { return Ok(None) };
                let asks = asks(&line, &self.endpoint, self.max_line_bytes);
                return Ok(Some(Entry { number: line.number, asks, cells: Cells::new() }));
            }
            Form::Csv(form) => (&form.0, form.1.next_row()),
            Form::Jsonl(form) => (&form.0, form.1.next_row()),
        };
        let Some(record) = record.map_err(|cause| io::Error::from(unusable(cause)))? else {
            return Ok(None);
        };
        let number = u32::try_from(record.line).unwrap_or(u32::MAX);
        let (asks, cells) = match record.cells {
            Ok(cells) => (plan.asks(&cells, number, self.max_line_bytes as usize), cells),
            Err(bad) => (Err(RowPlan::unreadable(number, bad.why)), Cells::new()),
        };
        Ok(Some(Entry { number, asks, cells }))
    }

    /// How its rows are written with their answers, and the columns that all of them have; none
    /// where they are lines.
    pub(super) fn rows(&self) -> Option<(&RowPlan, &[String])> {
        match &self.form {
            Form::Lines(_) => None,
            Form::Csv(form) => Some((&form.0, form.1.header())),
            Form::Jsonl(form) => Some((&form.0, &[])),
        }
    }
}

/// What a reader of rows says: that it can't read on, or that these are none.
fn unusable(cause: anyhow::Error) -> Unusable {
    match cause.downcast::<io::Error>() {
        Ok(cause) => Unusable::Input(cause),
        Err(cause) => Unusable::Nothing(problem("invalid_rows", &format!("{cause:#}"), Some(1))),
    }
}

fn asks(line: &RawLine, endpoint: &str, max_bytes: u32) -> Result<Asks, Wrong> {
    match &line.bytes {
        Some(bytes) => Asks::parse(bytes, endpoint),
        None => Err(Wrong {
            custom_id: None,
            code: "line_too_long",
            message: format!("the line has more than {max_bytes} bytes (batch.max_line_bytes)"),
            param: None,
        }),
    }
}

/// Looks at all lines: those that are no requests are handed to `note`.
pub(super) fn look(
    inner: &Inner,
    job: &BatchJob,
    cancel: &Cancel,
    mut note: impl FnMut(Outcome),
) -> io::Result<Found> {
    let max = inner.config.max_lines;
    let (mut num, mut num_wrong) = (0, 0);
    let mut ids = HashSet::new();
    let mut entries = match Entries::open(inner, job) {
        Ok(entries) => entries,
        Err(Unusable::Nothing(problem)) => return Ok(Found::Nothing(problem)),
        Err(Unusable::Input(cause)) => return Err(cause),
    };
    while let Some(entry) = entries.next_entry()? {
        if cancel.is_cancelled() {
            return Ok(Found::Cancelled);
        }
        num += 1;
        if num > max {
            let message = format!(
                "the input has more than {max} lines (batch.max_lines); hand it in in parts"
            );
            return Ok(Found::Nothing(problem("too_many_lines", &message, Some(entry.number))));
        }
        let wrong = match entry.asks {
            Ok(asks) if ids.insert(*blake3::hash(asks.custom_id.as_bytes()).as_bytes()) => continue,
            Ok(asks) => Wrong {
                custom_id: Some(asks.custom_id),
                code: "duplicate_custom_id",
                message: "custom_id is that of a line before; give each its own".into(),
                param: Some("custom_id"),
            },
            Err(wrong) => wrong,
        };
        num_wrong += 1;
        note(outcome(job.number, entry.number, &wrong));
    }
    if num == 0 {
        let message = "the input has no lines; give it one request a line";
        return Ok(Found::Nothing(problem("empty_file", message, None)));
    }
    Ok(Found::Lines { num, num_wrong })
}

/// What is to be durable of a line that is no request.
fn outcome(batch: i64, line: u32, wrong: &Wrong) -> Outcome {
    let text = LineId { batch, line }.wrong(wrong);
    Outcome { batch, line, is_failed: true, text, num_tokens: [0; 3] }
}

fn problem(code: &str, message: &str, line: Option<u32>) -> Value {
    json!({"code": code, "message": message, "param": null, "line": line})
}

/// Lines that are read at once.
pub(super) struct Window {
    /// In the order in which they are best computed.
    pub(super) lines: Vec<Line>,
    /// Those that are no requests any more: they were counted by another release, or under another
    /// configuration.
    pub(super) wrong: Vec<Outcome>,
    pub(super) is_last: bool,
}

pub(super) struct WindowSource {
    batch: i64,
    entries: Entries,
    done: Numbers,
    max_lines: usize,
    max_bytes: usize,
}

impl WindowSource {
    /// At the beginning of a job's input; lines that are `done` are passed over.
    pub(super) fn open(inner: &Inner, job: &BatchJob, done: Numbers) -> io::Result<Self> {
        Ok(Self {
            batch: job.number,
            entries: Entries::open(inner, job)?,
            done,
            max_lines: inner.config.window_lines as usize,
            max_bytes: inner.config.window_bytes as usize,
        })
    }

    /// The next lines.
    pub(super) fn window(mut self) -> io::Result<(Self, Window)> {
        let (mut read, mut wrong, mut num_bytes, mut is_last) = (Vec::new(), Vec::new(), 0, false);
        while read.len() + wrong.len() < self.max_lines && num_bytes < self.max_bytes {
            let Some(Entry { number, asks, .. }) = self.entries.next_entry()? else {
                is_last = true;
                break;
            };
            if self.done.contains(number) {
                continue;
            }
            match asks {
                Ok(asks) => {
                    num_bytes += asks.body.len();
                    read.push(Some(Line { number, asks, num_tries: 0 }));
                }
                Err(cause) => wrong.push(outcome(self.batch, number, &cause)),
            }
        }
        let order = window::order(read.iter().flatten().map(|line| line.asks.body.as_str()));
        let lines = order.into_iter().filter_map(|at| read[at].take()).collect();
        Ok((self, Window { lines, wrong, is_last }))
    }
}

#[cfg(test)]
mod tests {
    use protocol::config::Config;

    use super::super::records::JobState;
    use super::super::testing::{Bench, line, says};

    /// Goal: a line that isn't a request any more holds up its job no longer than others. Method:
    /// the lines were counted when they might be longer.
    #[tokio::test]
    async fn a_line_that_was_a_request_when_it_was_counted_is_told_what_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let change = |config: &mut Config| config.batch.max_line_bytes = 200;
        let bench = Bench::open(dir.path(), |request, _| Some(says(request)), change).await;
        let input = [line("a", "x"), line("b", &"x".repeat(200))].join("\n");
        let id = bench.hand_in(input.as_bytes(), 3600).await;
        bench.counted(&id, 2).await;
        let job = bench.finish(&id).await;
        assert_eq!((job.state, job.num_completed, job.num_failed), (JobState::Completed, 1, 1));
        let error = bench.lines(job.error_file.as_ref()).await;
        assert_eq!(error[0]["error"]["code"], "line_too_long");
    }
}
