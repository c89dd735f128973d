//! Comma-separated values (RFC 4180) under a header. Read here, not by a library, since a quote
//! that nobody closes must cost neither all rows behind it nor all memory.

use std::io::{self, Read, Write};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::lines::{Line, Lines};
use crate::{Record, Unreadable};

/// Reads rows.
pub struct Records<R> {
    lines: Lines<R>,
    max_bytes: usize,
    header: Vec<String>,
    /// The record so far, and its newest line.
    raw: Vec<u8>,
    line: Vec<u8>,
    fields: Fields,
}

impl<R: Read> Records<R> {
    /// Reads the header; of a row no more than `max_bytes`.
    ///
    /// # Errors
    /// When there is none, or none that names each column once.
    pub fn open(input: R, max_bytes: usize) -> Result<Self> {
        let mut this = Self {
            lines: Lines::new(input, max_bytes, 0, 0),
            max_bytes,
            header: Vec::new(),
            raw: Vec::new(),
            line: Vec::new(),
            fields: Fields::default(),
        };
        let header = this.record()?.context("the file is empty: it has no header")?;
        if let Err(bad) = header {
            bail!("the header can't be read: {}", bad.why);
        }
        let is_last = !this.raw.ends_with(b"\n");
        ensure!(
            !(is_last && crate::lines::without_end(&this.raw).contains(&b'\r')),
            "its lines end in carriage returns alone: save it with line feeds (\\n)"
        );
        this.header = this.fields.texts().context("the header is no UTF-8")?;
        for (index, name) in this.header.iter().enumerate() {
            ensure!(
                !this.header[..index].contains(name),
                "two columns are called {name:?}: each needs a name of its own"
            );
        }
        Ok(this)
    }

    /// Goes on where so many bytes and lines were read.
    ///
    /// # Errors
    /// When there aren't so many.
    pub fn pass_to(&mut self, bytes: u64, lines: u64) -> Result<()> {
        self.lines.pass_to(bytes, lines).context("can't go on reading records")
    }

    /// The columns' names.
    pub fn header(&self) -> &[String] {
        &self.header
    }

    /// Bytes and lines before the next row.
    pub fn position(&self) -> (u64, u64) {
        (self.lines.bytes, self.lines.lines)
    }

    /// The next row, all of it texts; none behind the last.
    ///
    /// # Errors
    /// When nothing more can be read.
    pub fn next_row(&mut self) -> Result<Option<Record>> {
        let Some(record) = self.record()? else { return Ok(None) };
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
        Ok(Some(Record { line, cells }))
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

/// The fields of a record, as its lines come.
#[derive(Default)]
struct Fields {
    text: Vec<u8>,
    /// In bytes of `text`.
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

/// Writes a record: a field that must be is quoted.
///
/// # Errors
/// When it can't be written.
pub fn write<T: AsRef<str>>(
    out: &mut impl Write,
    fields: impl IntoIterator<Item = T>,
) -> io::Result<()> {
    let (mut num, mut is_empty) = (0, false);
    for field in fields {
        let field = field.as_ref();
        if num > 0 {
            out.write_all(b",")?;
        }
        if field.contains(['"', ',', '\r', '\n']) {
            write!(out, "\"{}\"", field.replace('"', "\"\""))?;
        } else {
            out.write_all(field.as_bytes())?;
        }
        (num, is_empty) = (num + 1, field.is_empty());
    }
    // An empty line would be none.
    out.write_all(if num == 1 && is_empty { b"\"\"\n" } else { b"\n" })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &[u8], max_bytes: usize) -> Vec<Record> {
        let mut records = Records::open(text, max_bytes).unwrap();
        let mut read = Vec::new();
        while let Some(record) = records.next_row().unwrap() {
            let (bytes, lines) = records.position();
            let mut again = Records::open(text, max_bytes).unwrap();
            again.pass_to(bytes, lines).unwrap();
            read.push((record, again.next_row().unwrap()));
        }
        // Whoever goes on behind a row reads the one that follows.
        for (index, (_, again)) in read.iter().enumerate() {
            assert_eq!(*again, read.get(index + 1).map(|(record, _)| record.clone()));
        }
        read.into_iter().map(|(record, _)| record).collect()
    }

    fn said(record: &Record) -> String {
        match &record.cells {
            Ok(cells) => serde_json::to_string(cells).unwrap(),
            Err(bad) => format!("{}: {}", record.line, bad.why),
        }
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
        let mut records = Records::open(&text[..], 1000).unwrap();
        let read = std::iter::from_fn(|| records.next_row().unwrap());
        let said: Vec<_> = read.map(|record| said(&record)).collect();
        assert!(said[0].starts_with("2: a quote is opened, and not closed"), "{}", said[0]);
        assert_eq!(said.len(), 10_001, "nothing but its line is lost");
        assert_eq!(said.last().unwrap(), r#"{"a":"9999"}"#);
    }

    #[test]
    fn a_header_that_can_not_be_is_refused() {
        for (text, word) in [
            (&b""[..], "no header"),
            (b"a,b,a\n1,2,3\n", "two columns"),
            (b"a,b\r1,2\r", "carriage returns alone"),
        ] {
            let opened = Records::open(text, 100);
            let said = opened.err().unwrap().to_string();
            assert!(said.contains(word), "{said}");
        }
        assert_eq!(Records::open(&b"a,b\r"[..], 100).unwrap().header(), ["a", "b"]);
    }

    proptest! {
        /// Whatever another writer of this format writes is read as it was, and written alike.
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
            let mut ours = b"x,y,z\n".to_vec();
            rows.iter().for_each(|row| write(&mut ours, row).unwrap());
            prop_assert_eq!(&ours, &text);
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
        fn a_column_alone_is_read_as_written(rows in prop::collection::vec("[a,\"\n]{0,3}", 1..6)) {
            let mut ours = b"x\n".to_vec();
            rows.iter().for_each(|row| write(&mut ours, [row]).unwrap());
            let cells = read(&ours, 1 << 16).into_iter().map(|it| it.cells.unwrap()["x"].clone());
            prop_assert_eq!(cells.collect::<Vec<_>>(), rows);
        }

        #[test]
        fn no_bytes_break_the_reader(text in prop::collection::vec(any::<u8>(), 0..300)) {
            let text = [b"a,b\n", &text[..]].concat();
            let mut records = Records::open(&text[..], 64).unwrap();
            while records.next_row().unwrap().is_some() {}
        }
    }
}
