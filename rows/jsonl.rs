//! A JSON object on each line.

use std::io::Read;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::lines::{Line, Lines, without_end};
use crate::row::Cells;
use crate::{Record, Unreadable};

/// Reads rows.
pub struct Records<R> {
    lines: Lines<R>,
    max_bytes: usize,
    buffer: Vec<u8>,
}

impl<R: Read> Records<R> {
    /// Reads on where so many bytes and lines were read; of a row no more than `max_bytes`.
    pub fn new(input: R, max_bytes: usize, bytes: u64, lines: u64) -> Self {
        Self { lines: Lines::new(input, max_bytes, bytes, lines), max_bytes, buffer: Vec::new() }
    }

    /// The next row; none behind the last. Empty lines are none.
    ///
    /// # Errors
    /// When nothing more can be read.
    pub fn next_row(&mut self) -> Result<Option<Record>> {
        loop {
            self.buffer.clear();
            let how = self.lines.read(&mut self.buffer).context("can't read on")?;
            if how == Line::End {
                return Ok(None);
            }
            let text = without_end(&self.buffer);
            if text.iter().all(u8::is_ascii_whitespace) && how == Line::Whole {
                continue;
            }
            let cells = if how == Line::TooLong {
                let why = format!("the line is longer than {} bytes", self.max_bytes);
                Err(Unreadable::new(why, text))
            } else {
                cells_of(text)
            };
            return Ok(Some(Record { line: self.lines.lines, cells }));
        }
    }

    /// Bytes and lines before the next row.
    pub fn position(&self) -> (u64, u64) {
        (self.lines.bytes, self.lines.lines)
    }
}

/// A row of a JSON text: an object.
///
/// # Errors
/// When it is something else.
pub fn cells_of(text: &[u8]) -> Result<Cells, Unreadable> {
    match serde_json::from_slice::<Value>(text) {
        Ok(Value::Object(cells)) => Ok(cells),
        Ok(_) => Err(Unreadable::new("it is JSON, but no object", text)),
        Err(cause) => Err(Unreadable::new(format!("it is no JSON: {cause}"), text)),
    }
}
