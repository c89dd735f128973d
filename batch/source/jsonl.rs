//! A JSON object on each line.

use anyhow::{Context as _, Result};

use super::{Input, Item, Position, Source, Unreadable, cells_of, share_of};
use crate::lines::{Line, Lines, without_end};

pub(super) struct Jsonl {
    lines: Lines<Input>,
    total: Option<u64>,
    max_bytes: usize,
    rows: u64,
    buffer: Vec<u8>,
}

impl Jsonl {
    pub(super) fn open(
        mut input: Input,
        total: Option<u64>,
        at: &Position,
        max_bytes: usize,
    ) -> Result<Self> {
        input.skip(at.bytes).context("can't go on reading lines")?;
        let lines = Lines::new(input, max_bytes, at.bytes, at.lines);
        Ok(Self { lines, total, max_bytes, rows: at.rows, buffer: Vec::new() })
    }
}

impl Source for Jsonl {
    fn next(&mut self) -> Result<Option<Item>> {
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
            self.rows += 1;
            let (bytes, line) = (self.lines.bytes, self.lines.lines);
            let after = Position { rows: self.rows, bytes, lines: line, mark: String::new() };
            return Ok(Some(Item { cells, line, after }));
        }
    }

    fn share(&self) -> Option<f64> {
        share_of(self.lines.bytes, self.total)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{bytes, read_all, said};
    use super::*;

    #[test]
    fn a_line_that_is_no_row_is_told_by_its_number_and_reading_goes_on() {
        let mut text = b"\xef\xbb\xbf{\"a\": 1}\r\n\n{\"a\": \n[3]\n{\"a\": \"".to_vec();
        text.extend([b'x'; 2000]);
        text.extend(b"\"}\n{\"a\": \"\xff\"}\n{\"a\": 2}");
        let items =
            read_all(|at| Box::new(Jsonl::open(bytes(&text), None, at, 1000).unwrap()) as _);
        let said: Vec<_> = items.iter().map(said).collect();
        assert_eq!(said.len(), 6, "{said:?}");
        assert_eq!(said[0], r#"{"a":1}"#);
        assert!(said[1].starts_with("3: it is no JSON"), "{said:?}");
        assert_eq!(said[2], "4: it is JSON, but no object");
        assert_eq!(said[3], "5: the line is longer than 1000 bytes");
        assert!(said[4].starts_with("6: it is no JSON"), "{said:?}");
        assert_eq!(said[5], r#"{"a":2}"#);
    }
}
