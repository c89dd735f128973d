//! The lines of a job, read from its input: all of them once, to see what they are, then those that
//! are to be computed, a window after the other.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufReader};

use serde_json::{Value, json};

use super::Inner;
use super::input::{Lines, RawLine};
use super::job::{Line, Numbers};
use super::line::{Asks, Place, Wrong};
use super::records::{BatchJob, Outcome};
use super::runner::Cancel;
use super::window;

/// Bytes that are read of a file at once.
const BUFFER_BYTES: usize = 256 << 10;

/// What an input is.
pub(super) enum Found {
    /// Lines, and how many of them are no requests.
    Lines {
        /// All of them.
        num: u32,
        /// Those.
        num_wrong: u32,
    },
    /// It is an input no job can have; why, as OpenAI says it.
    Nothing(Value),
    /// Nobody wants to know.
    Cancelled,
}

/// The lines of a job's input.
pub(super) fn lines(inner: &Inner, job: &BatchJob) -> io::Result<Lines<BufReader<File>>> {
    let file = inner.files.blobs.read(&job.input_hash)?;
    let max_bytes = inner.config.max_line_bytes as usize;
    Ok(Lines::new(BufReader::with_capacity(BUFFER_BYTES, file), max_bytes))
}

/// What a line asks.
pub(super) fn asks(line: &RawLine, endpoint: &str, max_bytes: u32) -> Result<Asks, Wrong> {
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
    let (max, max_bytes) = (inner.config.max_lines, inner.config.max_line_bytes);
    let (mut num, mut num_wrong) = (0, 0);
    let mut ids = HashSet::new();
    let mut lines = lines(inner, job)?;
    while let Some(line) = lines.next_line()? {
        if cancel.is_cancelled() {
            return Ok(Found::Cancelled);
        }
        num += 1;
        if num > max {
            let message = format!(
                "the input has more than {max} lines (batch.max_lines); hand it in in parts"
            );
            return Ok(Found::Nothing(problem("too_many_lines", &message, Some(line.number))));
        }
        let wrong = match asks(&line, &job.endpoint, max_bytes) {
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
        let place = Place { batch: job.number, line: line.number };
        let text = place.wrong(&wrong);
        let (batch, line) = (job.number, line.number);
        note(Outcome { batch, line, is_failed: true, text, num_tokens: [0; 3] });
    }
    if num == 0 {
        let message = "the input has no lines; give it one request a line";
        return Ok(Found::Nothing(problem("empty_file", message, None)));
    }
    Ok(Found::Lines { num, num_wrong })
}

fn problem(code: &str, message: &str, line: Option<u32>) -> Value {
    json!({"code": code, "message": message, "param": null, "line": line})
}

/// Where windows come from.
pub(super) struct Source {
    lines: Lines<BufReader<File>>,
    done: Numbers,
    endpoint: String,
    max_lines: usize,
    max_bytes: usize,
    max_line_bytes: u32,
}

impl Source {
    /// At the beginning of a job's input; lines that are `done` are passed over.
    pub(super) fn open(inner: &Inner, job: &BatchJob, done: Numbers) -> io::Result<Self> {
        Ok(Self {
            lines: lines(inner, job)?,
            done,
            endpoint: job.endpoint.clone(),
            max_lines: inner.config.window_lines as usize,
            max_bytes: inner.config.window_bytes as usize,
            max_line_bytes: inner.config.max_line_bytes,
        })
    }

    /// The next lines, in the order in which they are best computed, and whether they are the last.
    pub(super) fn window(mut self) -> io::Result<(Self, Vec<Line>, bool)> {
        let (mut read, mut num_bytes, mut is_last) = (Vec::new(), 0, false);
        while read.len() < self.max_lines && num_bytes < self.max_bytes {
            let Some(line) = self.lines.next_line()? else {
                is_last = true;
                break;
            };
            if self.done.contains(line.number) {
                continue;
            }
            // Those that are no requests are durable as what they are.
            let Ok(asks) = asks(&line, &self.endpoint, self.max_line_bytes) else { continue };
            num_bytes += asks.body.len();
            read.push(Some(Line { number: line.number, asks, num_tries: 0 }));
        }
        let order = window::order(read.iter().flatten().map(|line| line.asks.body.as_str()));
        let lines = order.into_iter().filter_map(|at| read[at].take()).collect();
        Ok((self, lines, is_last))
    }
}
