//! Comma-separated values under a header.

use anyhow::Result;
use rows::csv::Records;
use rows::row::{Column, Kind};

use super::{Input, Item, Position, Source, share_of};

pub(super) struct Csv {
    records: Records<Input>,
    total: Option<u64>,
    rows: u64,
}

impl Csv {
    pub(super) fn open(
        input: Input,
        total: Option<u64>,
        at: &Position,
        max_bytes: usize,
    ) -> Result<Self> {
        let mut records = Records::open(input, max_bytes)?;
        if at.rows > 0 {
            records.pass_to(at.bytes, at.lines)?;
        }
        Ok(Self { records, total, rows: at.rows })
    }
}

impl Source for Csv {
    fn columns(&self) -> Option<Vec<Column>> {
        let names = self.records.header().iter();
        Some(names.map(|name| Column::new(name.clone(), Kind::Text)).collect())
    }

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
    fn reading_goes_on_behind_every_row() {
        let text = b"a,b\r\n1,\"x\r\ny\"\r\n2\r\n3,\"open\n8,9\n";
        let items = read_all(|at| Box::new(Csv::open(bytes(text), None, at, 99).unwrap()) as _);
        let said: Vec<_> = items.iter().map(said).collect();
        assert_eq!(said[0], r#"{"a":"1","b":"x\r\ny"}"#);
        assert_eq!(said[1], "4: it has 1 fields, the header has 2");
        assert!(said[2].starts_with("5: a quote is opened"), "{said:?}");
        assert_eq!((&said[3][..], said.len()), (r#"{"a":"8","b":"9"}"#, 4));
    }
}
