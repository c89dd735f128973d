//! A JSON object on each line.

use anyhow::{Context as _, Result};
use rows::jsonl::Records;

use super::{Input, Item, Position, Source, share_of};

pub(super) struct Jsonl {
    records: Records<Input>,
    total: Option<u64>,
    rows: u64,
}

impl Jsonl {
    pub(super) fn open(
        mut input: Input,
        total: Option<u64>,
        at: &Position,
        max_bytes: usize,
    ) -> Result<Self> {
        input.skip(at.bytes).context("can't go on reading lines")?;
        let records = Records::new(input, max_bytes, at.bytes, at.lines);
        Ok(Self { records, total, rows: at.rows })
    }
}

impl Source for Jsonl {
    fn next(&mut self) -> Result<Option<Item>> {
        let Some(record) = self.records.next_row()? else { return Ok(None) };
        self.rows += 1;
        Ok(Some(Item::of_text(record, self.rows, self.records.position())))
    }

    fn share(&self) -> Option<f64> {
        share_of(self.records.position().0, self.total)
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
