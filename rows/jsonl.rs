//! A JSON object on each line.

use std::collections::HashMap;
use std::io::Read;

use anyhow::{Context as _, Result};
use serde_json::Value;
use serde_json::value::RawValue;

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
    match read(text) {
        Ok(Value::Object(cells)) => Ok(cells),
        Ok(_) => Err(Unreadable::new("it is JSON, but no object", text)),
        Err(cause) => Err(Unreadable::new(format!("it is no JSON: {cause}"), text)),
    }
}

/// What a JSON text says. A cell that is `-0` is the whole number that it is to everybody else: the
/// library takes it for a float, which is written as `-0.0` and makes its column one of texts.
///
/// # Errors
/// When it is no JSON.
pub(crate) fn read(text: &[u8]) -> serde_json::Result<Value> {
    let mut value = serde_json::from_slice(text)?;
    let is_minus_zero = |cell: &Value| {
        cell.as_f64().is_some_and(|number| number == 0.0 && number.is_sign_negative())
    };
    if let Value::Object(cells) = &mut value
        && cells.values().any(is_minus_zero)
    {
        // Only the text tells it from -0.0. The library reads some objects as the one that a string
        // in them says, but not here: a cell may have no text.
        let texts: HashMap<String, &RawValue> = serde_json::from_slice(text)?;
        let is_whole = |name: &str| texts.get(name).is_some_and(|text| text.get() == "-0");
        for (_, cell) in cells.iter_mut().filter(|(name, _)| is_whole(name)) {
            *cell = 0.into();
        }
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn minus_zero_is_a_whole_number_unless_it_is_written_as_another() {
        let text =
            br#"{"a": -0, "b": -0.0, "\u0061b": -0, "c": [-0], "d": "-0", "e": -0e0, "f": 0}"#;
        let cells = cells_of(text).unwrap();
        let expected = json!(
            {"a": 0, "b": -0.0, "ab": 0, "c": [-0.0], "d": "-0", "e": -0.0, "f": 0}
        );
        assert_eq!(serde_json::to_string(&cells).unwrap(), expected.to_string());
        let within = br#"{"$serde_json::private::RawValue": "{\"a\": -0}"}"#;
        assert_eq!(cells_of(within).unwrap().len(), 1, "no cell is looked for that isn't there");
        // Of two cells of one name the last counts.
        assert_eq!(cells_of(br#"{"a": -0.0, "a": -0}"#).unwrap()["a"].to_string(), "0");
    }
}
