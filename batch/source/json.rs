//! One JSON array of objects, as long as it likes: its elements are found by their brackets, and
//! only one at a time is in memory.

use std::io::{BufRead as _, BufReader};

use anyhow::{Context as _, Result, bail, ensure};
use rows::Unreadable;
use rows::jsonl::cells_of;

use super::{Input, Item, Position, Source, share_of};

pub(super) struct Array {
    input: BufReader<Input>,
    total: Option<u64>,
    max_bytes: usize,
    rows: u64,
    bytes: u64,
    ended: bool,
    element: Vec<u8>,
}

impl Array {
    pub(super) fn open(
        mut input: Input,
        total: Option<u64>,
        at: &Position,
        max_bytes: usize,
    ) -> Result<Self> {
        input.skip(at.bytes).context("can't go on reading the array")?;
        let input = BufReader::with_capacity(1 << 16, input);
        let (rows, bytes, element) = (at.rows, at.bytes, Vec::new());
        let mut array = Self { input, total, max_bytes, rows, bytes, ended: false, element };
        if at.rows == 0 {
            let mut first = array.after_space()?;
            for mark in [0xef, 0xbb, 0xbf] {
                if first == Some(mark) {
                    array.take();
                    first = array.after_space()?;
                }
            }
            ensure!(
                first == Some(b'['),
                "it is no JSON array: a .json file holds one array of objects; a file with an \
                 object on each line ends in .jsonl"
            );
            array.take();
        }
        Ok(array)
    }

    /// The next byte, which stays.
    fn peek(&mut self) -> Result<Option<u8>> {
        Ok(self.input.fill_buf().context("can't read on")?.first().copied())
    }

    fn take(&mut self) {
        self.input.consume(1);
        self.bytes += 1;
    }

    fn after_space(&mut self) -> Result<Option<u8>> {
        loop {
            match self.peek()? {
                Some(byte) if byte.is_ascii_whitespace() => self.take(),
                byte => return Ok(byte),
            }
        }
    }

    /// Reads what stands before the next comma or the last bracket; whether it was too long.
    fn read_element(&mut self) -> Result<bool> {
        self.element.clear();
        let (mut depth, mut in_text, mut escaped, mut too_long) = (0_u64, false, false, false);
        loop {
            let buffer = self.input.fill_buf().context("can't read on")?;
            if buffer.is_empty() {
                bail!("it ends in the middle of the array, after {} bytes", self.bytes);
            }
            let mut num = 0;
            let mut ended = false;
            for byte in buffer {
                if in_text {
                    match byte {
                        _ if escaped => escaped = false,
                        b'\\' => escaped = true,
                        b'"' => in_text = false,
                        _ => {}
                    }
                } else {
                    match byte {
                        b'"' => in_text = true,
                        b'[' | b'{' => depth += 1,
                        b',' | b']' if depth == 0 => {
                            ended = true;
                            break;
                        }
                        b']' | b'}' => depth = depth.saturating_sub(1),
                        _ => {}
                    }
                }
                num += 1;
            }
            let room = self.max_bytes.saturating_sub(self.element.len());
            too_long |= num > room;
            self.element.extend_from_slice(&buffer[..num.min(room)]);
            self.input.consume(num);
            self.bytes += num as u64;
            if ended {
                return Ok(too_long);
            }
        }
    }
}

impl Source for Array {
    fn next(&mut self) -> Result<Option<Item>> {
        if self.ended {
            return Ok(None);
        }
        match self.after_space()? {
            Some(b']') => {
                self.take();
                self.ended = true;
                if let Some(byte) = self.after_space()? {
                    let byte = char::from(byte);
                    bail!("something stands behind the array, which ends before {byte:?}");
                }
                return Ok(None);
            }
            Some(b',') if self.rows > 0 => {
                self.take();
                self.after_space()?;
            }
            _ => {}
        }
        let too_long = self.read_element()?;
        self.rows += 1;
        let cells = if too_long {
            let why = format!("the element is longer than {} bytes", self.max_bytes);
            Err(Unreadable::new(why, &self.element))
        } else {
            cells_of(&self.element)
        };
        let after = Position { rows: self.rows, bytes: self.bytes, ..Position::default() };
        Ok(Some(Item { cells, line: 0, after }))
    }

    fn share(&self) -> Option<f64> {
        share_of(self.bytes, self.total)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{bytes, read_all, said};
    use super::*;

    fn open(text: &[u8]) -> Result<Array> {
        Array::open(bytes(text), None, &Position::default(), 100)
    }

    #[test]
    fn elements_are_found_by_their_brackets_and_a_bad_one_costs_itself_only() {
        let long = "x".repeat(500);
        let text = format!(
            "\u{feff} [ {{\"a\": \"],}}\\\"\"}} ,{{\"a\":[1,{{}}]}}, 7,\n{{\"a\": }}, \
             {{\"a\":\"{long}\"}}, {{\"a\":3}} ] "
        );
        let items = read_all(|at| {
            Box::new(Array::open(bytes(text.as_bytes()), None, at, 100).unwrap()) as _
        });
        let said: Vec<_> = items.iter().map(said).collect();
        assert_eq!(said[0], r#"{"a":"],}\""}"#);
        assert_eq!(said[1], r#"{"a":[1,{}]}"#);
        assert!(said[2].contains("no object"), "{said:?}");
        assert!(said[3].contains("no JSON"), "{said:?}");
        assert!(said[4].contains("longer than 100 bytes"), "{said:?}");
        assert_eq!(said[5], r#"{"a":3}"#);
        assert_eq!(said.len(), 6);
        assert!(open(b"[]").unwrap().next().unwrap().is_none());
    }

    #[test]
    fn an_array_that_breaks_off_is_an_error_after_what_was_whole() {
        let mut array = open(b"[{\"a\":1}, {\"a\"").unwrap();
        assert!(array.next().unwrap().unwrap().cells.is_ok());
        let said = array.next().unwrap_err().to_string();
        assert!(said.contains("ends in the middle"), "{said}");
        let said = open(b"{\"a\": 1}").err().unwrap().to_string();
        assert!(said.contains(".jsonl"), "{said}");
    }
}
