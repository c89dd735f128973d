//! Comma-separated values (RFC 4180) under a header. Read here, not by a library, since a quote
//! that nobody closes must cost neither all rows behind it nor all memory.

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::{Input, Item, Position, Source, Unreadable, share_of};
use crate::lines::{Line, Lines};
use crate::row::{Column, Kind};

pub(super) struct Csv {
    lines: Lines<Input>,
    total: Option<u64>,
    max_bytes: usize,
    header: Vec<String>,
    rows: u64,
    /// The record so far, and its newest line.
    raw: Vec<u8>,
    line: Vec<u8>,
    fields: Fields,
}

impl Csv {
    pub(super) fn open(
        input: Input,
        total: Option<u64>,
        at: &Position,
        max_bytes: usize,
    ) -> Result<Self> {
        let lines = Lines::new(input, max_bytes, 0, 0);
        let mut csv = Self {
            lines,
            total,
            max_bytes,
            header: Vec::new(),
            rows: 0,
            raw: Vec::new(),
            line: Vec::new(),
            fields: Fields::default(),
        };
        let header = csv.record()?.context("the file is empty: it has no header")?;
        if let Err(bad) = header {
            bail!("the header can't be read: {}", bad.why);
        }
        csv.header = csv.fields.texts().context("the header is no UTF-8")?;
        for (index, name) in csv.header.iter().enumerate() {
            ensure!(
                !csv.header[..index].contains(name),
                "two columns are called {name:?}: each needs a name of its own"
            );
        }
        if at.rows > 0 {
            csv.lines.pass_to(at.bytes, at.lines).context("can't go on reading records")?;
            csv.rows = at.rows;
        }
        Ok(csv)
    }

    /// Reads a record into `fields`, the line on which it begins; none at the end. One that is
    /// broken costs its first line only: the others are read again, as lines of their own.
    fn record(&mut self) -> Result<Option<Result<u64, Unreadable>>> {
        self.raw.clear();
        self.fields.clear();
        let first = loop {
            self.line.clear();
            match self.lines.read(&mut self.line).context("can't read on")? {
                Line::End => return Ok(None),
                Line::Whole if matches!(&self.line[..], b"\n" | b"\r\n") => {}
                how => break how,
            }
        };
        let (first_number, first_bytes) = (self.lines.lines, self.line.len());
        let mut how = first;
        loop {
            if how == Line::TooLong {
                // What was passed over isn't there any more: all of it is one row that is none.
                let last = self.lines.lines;
                let why = format!(
                    "lines {first_number} to {last} are longer than {} bytes",
                    self.max_bytes
                );
                self.raw.extend_from_slice(&self.line);
                return Ok(Some(Err(Unreadable::new(why, &self.raw))));
            }
            let fits = how == Line::Whole && self.raw.len() + self.line.len() <= self.max_bytes;
            self.raw.extend_from_slice(&self.line);
            let broken = if fits {
                self.fields.feed(&self.line).err()
            } else {
                Some("a quote is opened, and not closed before the file or the longest row ends")
            };
            if let Some(why) = broken {
                let rest = &self.raw[first_bytes..];
                self.lines.take_back(rest, self.lines.lines - first_number);
                return Ok(Some(Err(Unreadable::new(why, &self.raw[..first_bytes]))));
            }
            if !self.fields.is_open() {
                return Ok(Some(Ok(first_number)));
            }
            self.line.clear();
            how = self.lines.read(&mut self.line).context("can't read on")?;
        }
    }
}

impl Source for Csv {
    fn columns(&self) -> Option<Vec<Column>> {
        Some(self.header.iter().map(|name| Column::new(name.clone(), Kind::Text)).collect())
    }

    fn next(&mut self) -> Result<Option<Item>> {
        let Some(record) = self.record()? else { return Ok(None) };
        self.rows += 1;
        let mut line = self.lines.lines;
        let cells = record.and_then(|first| {
            line = first;
            let (num, expected) = (self.fields.len(), self.header.len());
            if num != expected {
                let why = format!("it has {num} fields, the header has {expected}");
                return Err(Unreadable::new(why, &self.raw));
            }
            let texts = self.fields.texts();
            let texts = texts.ok_or_else(|| Unreadable::new("it is no UTF-8", &self.raw))?;
            let texts = texts.into_iter().map(Value::String);
            Ok(self.header.iter().cloned().zip(texts).collect())
        });
        let (bytes, lines) = (self.lines.bytes, self.lines.lines);
        let after = Position { rows: self.rows, bytes, lines, mark: String::new() };
        Ok(Some(Item { cells, line, after }))
    }

    fn share(&self) -> Option<f64> {
        share_of(self.lines.bytes, self.total)
    }
}

/// The fields of a record, as its lines come.
#[derive(Default)]
struct Fields {
    text: Vec<u8>,
    /// Where each field ends in it.
    ends: Vec<usize>,
    state: State,
}

#[derive(Clone, Copy, Default, PartialEq)]
enum State {
    #[default]
    Start,
    Plain,
    Quoted,
    /// Behind a quote in a quoted field: its end, or the first of two.
    Quote,
}

impl Fields {
    fn clear(&mut self) {
        self.text.clear();
        self.ends.clear();
        self.state = State::Start;
    }

    fn is_open(&self) -> bool {
        self.state == State::Quoted
    }

    fn len(&self) -> usize {
        self.ends.len()
    }

    fn texts(&self) -> Option<Vec<String>> {
        let mut start = 0;
        let fields = self.ends.iter().map(|&end| {
            let field = &self.text[start..end];
            start = end;
            String::from_utf8(field.to_vec()).ok()
        });
        fields.collect()
    }

    /// Takes one line, with what ends it: the end of the record unless a quote is open.
    fn feed(&mut self, line: &[u8]) -> Result<(), &'static str> {
        let inner = crate::lines::without_end(line);
        for byte in inner {
            match (self.state, byte) {
                (State::Start, b'"') => self.state = State::Quoted,
                (State::Start | State::Plain | State::Quote, b',') => {
                    self.ends.push(self.text.len());
                    self.state = State::Start;
                }
                (State::Quoted, b'"') => self.state = State::Quote,
                (State::Quote, b'"') => {
                    self.text.push(b'"');
                    self.state = State::Quoted;
                }
                (State::Quote, _) => {
                    return Err("something stands behind a closing quote: a quote in a quoted \
                                field is written twice");
                }
                (State::Quoted, byte) => self.text.push(*byte),
                (State::Start | State::Plain, byte) => {
                    self.text.push(*byte);
                    self.state = State::Plain;
                }
            }
        }
        if self.state == State::Quoted {
            self.text.extend_from_slice(&line[inner.len()..]);
        } else {
            self.ends.push(self.text.len());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{bytes, read_all, said};
    use super::*;

    fn read(text: &[u8], max_bytes: usize) -> Vec<Item> {
        read_all(|at| Box::new(Csv::open(bytes(text), None, at, max_bytes).unwrap()) as _)
    }

    #[test]
    fn a_broken_record_costs_its_line_and_is_told_by_number() {
        let text = [
            &b"\xef\xbb\xbfa,b\r\n1,\"x\r\ny\"\r\n2\r\n3,4,5\n\n6,\"u\"v\n"[..],
            b"7,\"open\n8,9\n\xff,1\n\"\",\n",
        ];
        let text = &text.concat();
        let said: Vec<_> = read(text, 1000).iter().map(said).collect();
        assert_eq!(said[0], r#"{"a":"1","b":"x\r\ny"}"#);
        assert_eq!(said[1], "4: it has 1 fields, the header has 2");
        assert_eq!(said[2], "5: it has 3 fields, the header has 2");
        assert!(said[3].starts_with("7: something stands behind a closing quote"), "{said:?}");
        // The quote of line 8 would take all that follows.
        assert!(said[4].starts_with("8: "), "{said:?}");
        assert_eq!(said[5], r#"{"a":"8","b":"9"}"#);
        assert_eq!(said[6], "10: it is no UTF-8");
        assert_eq!(said[7], r#"{"a":"","b":""}"#);
        assert_eq!(said.len(), 8);
    }

    #[test]
    fn a_quote_that_nobody_closes_takes_no_more_than_the_bound() {
        let mut text = b"a\n\"open\n".to_vec();
        for number in 0..10_000 {
            text.extend(format!("{number}\n").bytes());
        }
        let said: Vec<_> = read_from_start(&text, 1000).iter().map(said).collect();
        assert!(said[0].starts_with("2: a quote is opened, and not closed"), "{}", said[0]);
        assert_eq!(said.len(), 10_001, "nothing but its line is lost");
        assert_eq!(said.last().unwrap(), r#"{"a":"9999"}"#);
    }

    fn read_from_start(text: &[u8], max_bytes: usize) -> Vec<Item> {
        let mut csv = Csv::open(bytes(text), None, &Position::default(), max_bytes).unwrap();
        std::iter::from_fn(|| csv.next().unwrap()).collect()
    }

    #[test]
    fn a_header_that_can_not_be_is_refused() {
        for (text, word) in [(&b""[..], "no header"), (b"a,b,a\n1,2,3\n", "two columns")] {
            let opened = Csv::open(bytes(text), None, &Position::default(), 100);
            let said = opened.err().unwrap().to_string();
            assert!(said.contains(word), "{said}");
        }
    }

    proptest! {
        /// Whatever a writer of this format writes is read as it was.
        #[test]
        fn what_the_library_writes_is_read(
            rows in prop::collection::vec(prop::collection::vec("[a,\"\r\n é]{0,6}", 3), 1..8),
        ) {
            let mut writer = ::csv::Writer::from_writer(Vec::new());
            writer.write_record(["x", "y", "z"]).unwrap();
            for row in &rows {
                writer.write_record(row).unwrap();
            }
            let text = writer.into_inner().unwrap();
            let read: Vec<Vec<String>> = read(&text, 1 << 16)
                .into_iter()
                .map(|item| {
                    let cells = item.cells.unwrap();
                    cells.values().map(|cell| cell.as_str().unwrap().to_owned()).collect()
                })
                .collect();
            prop_assert_eq!(read, rows);
        }

        #[test]
        fn no_bytes_break_the_reader(text in prop::collection::vec(any::<u8>(), 0..300)) {
            let text = [b"a,b\n", &text[..]].concat();
            for item in read_from_start(&text, 64) {
                drop(item);
            }
        }
    }
}
