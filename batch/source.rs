//! Where rows come from: one after the other, each with the place from which reading goes on.

mod csv;
mod database;
mod folder;
mod json;
mod jsonl;
mod parquet;

use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom};
use std::path::Path;

use anyhow::{Context as _, Result};
use rows::row::{Cells, Column};
use rows::{Record, Unreadable};
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;

use crate::address::{Address, Format};
use crate::object::{ObjectReader, Objects};

/// How far a source was read. What it doesn't count stays zero.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Position {
    /// Rows, those that can't be read included.
    pub rows: u64,
    /// From where a file is read on.
    #[serde(default)]
    pub bytes: u64,
    /// Lines that were read: messages count from them.
    #[serde(default)]
    pub lines: u64,
    /// The newest file of a directory; a digest of all rows of a query.
    #[serde(default)]
    pub mark: String,
}

/// What stands in the place of one row.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Item {
    /// The row, or why it is none.
    pub cells: Result<Cells, Unreadable>,
    /// The line on which it begins, if the source has lines.
    pub line: u64,
    /// From where the next is read.
    pub after: Position,
}

impl Item {
    /// A row of a text file, of which so much was read with it.
    fn of_text(record: Record, rows: u64, (bytes, lines): (u64, u64)) -> Self {
        let after = Position { rows, bytes, lines, mark: String::new() };
        Self { cells: record.cells, line: record.line, after }
    }
}

/// Reads rows. It may wait for a disk or a network, so it has a thread of its own.
pub(crate) trait Source: Send {
    /// The columns, if they are known before the last row is read.
    fn columns(&self) -> Option<Vec<Column>> {
        None
    }

    /// The next row; none behind the last.
    ///
    /// # Errors
    /// When nothing more can be read. What was read before stays true.
    fn next(&mut self) -> Result<Option<Item>>;

    /// What share of it was read, if that can be told.
    fn share(&self) -> Option<f64> {
        None
    }
}

/// What sources are opened with.
#[derive(Clone, Debug)]
pub struct Reading {
    /// A row that takes more bytes is passed over.
    pub max_row_bytes: usize,
    /// Runs what waits for a network.
    pub runtime: Handle,
    /// Which S3-compatible store, and how it is asked.
    pub objects: Objects,
}

/// Opens a source where an earlier run was.
///
/// # Errors
/// When it isn't there, or can't be read.
pub(crate) fn open(address: &Address, at: &Position, reading: &Reading) -> Result<Box<dyn Source>> {
    let (input, format) = match address {
        Address::Folder(path) => return Ok(Box::new(folder::Folder::open(path, at, reading))),
        Address::Database { dialect, url, what } => {
            let source = database::Query::open(*dialect, url, what, at, reading)?;
            return Ok(Box::new(source));
        }
        Address::File(path, Format::Parquet) => {
            let file = open_file(path)?;
            return Ok(Box::new(parquet::Parquet::open(file, at)?));
        }
        Address::Object { bucket, key, format: Format::Parquet } => {
            let object = reading.objects.object(bucket, key)?;
            return Ok(Box::new(parquet::Parquet::open(object, at)?));
        }
        Address::File(path, format) => (Input::File(open_file(path)?), *format),
        Address::Stdin(format) => (Input::Stdin(io::stdin()), *format),
        Address::Object { bucket, key, format } => {
            (Input::Object(reading.objects.object(bucket, key)?.reader()), *format)
        }
        Address::Http(_) => anyhow::bail!("rows aren't read from a web server"),
    };
    of_bytes(input, format, at, reading)
}

fn of_bytes(
    input: Input,
    format: Format,
    at: &Position,
    reading: &Reading,
) -> Result<Box<dyn Source>> {
    let total = input.len();
    let max = reading.max_row_bytes;
    Ok(match format {
        Format::Jsonl => Box::new(jsonl::Jsonl::open(input, total, at, max)?),
        Format::Csv => Box::new(csv::Csv::open(input, total, at, max)?),
        Format::Json => Box::new(json::Array::open(input, total, at, max)?),
        Format::Parquet => anyhow::bail!("a Parquet file is read from its end"),
    })
}

fn open_file(path: &Path) -> Result<File> {
    File::open(path).with_context(|| format!("can't read {}", path.display()))
}

/// Bytes that are read from the first to the last.
pub(crate) enum Input {
    File(File),
    Stdin(io::Stdin),
    Object(ObjectReader),
    #[cfg(test)]
    Bytes(io::Cursor<Vec<u8>>),
}

impl Input {
    /// Passes over what was read before.
    fn skip(&mut self, num: u64) -> io::Result<()> {
        if num == 0 {
            // A pipe that has a name is read from its start, and can't be sought in.
            return Ok(());
        }
        match self {
            Self::File(file) => file.seek(SeekFrom::Current(num.cast_signed())).map(drop),
            Self::Object(object) => {
                object.skip(num);
                Ok(())
            }
            #[cfg(test)]
            Self::Bytes(bytes) => bytes.seek(SeekFrom::Current(num.cast_signed())).map(drop),
            Self::Stdin(stdin) => {
                let passed = io::copy(&mut stdin.lock().take(num), &mut io::sink())?;
                if passed < num {
                    let said = format!("it ends after {passed} bytes, an earlier run read {num}");
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, said));
                }
                Ok(())
            }
        }
    }

    fn len(&self) -> Option<u64> {
        match self {
            Self::File(file) => file.metadata().ok().filter(|it| it.is_file()).map(|it| it.len()),
            Self::Object(object) => Some(object.len()),
            Self::Stdin(_) => None,
            #[cfg(test)]
            Self::Bytes(bytes) => Some(bytes.get_ref().len() as u64),
        }
    }
}

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::File(file) => file.read(buffer),
            Self::Stdin(stdin) => stdin.read(buffer),
            Self::Object(object) => object.read(buffer),
            #[cfg(test)]
            Self::Bytes(bytes) => bytes.read(buffer),
        }
    }
}

/// What was read of what is there.
fn share_of(bytes: u64, total: Option<u64>) -> Option<f64> {
    let total = total.filter(|total| *total > 0)?;
    Some((bytes as f64 / total as f64).min(1.0))
}

#[cfg(test)]
mod testing {
    use super::*;

    /// What an item is, in short: its first cell's text, or why it is none.
    pub(super) fn said(item: &Item) -> String {
        match &item.cells {
            Ok(cells) => serde_json::to_string(cells).unwrap(),
            Err(bad) => format!("{}: {}", item.line, bad.why),
        }
    }

    /// Reads all, and again from each position: what follows must be the same.
    pub(super) fn read_all(open: impl Fn(&Position) -> Box<dyn Source>) -> Vec<Item> {
        let read = |from: &Position| {
            let (mut source, mut items) = (open(from), Vec::new());
            while let Some(item) = source.next().unwrap() {
                items.push(item);
            }
            assert!(source.next().unwrap().is_none(), "it ends once");
            items
        };
        let items = read(&Position::default());
        for (index, item) in items.iter().enumerate() {
            assert_eq!(item.after.rows, index as u64 + 1);
            assert!(read(&item.after) == items[index + 1..], "resumed after row {index}");
        }
        items
    }

    pub(super) fn bytes(text: &[u8]) -> Input {
        Input::Bytes(io::Cursor::new(text.to_vec()))
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::io::Write as _;
    use std::os::fd::OwnedFd;

    use super::*;
    use crate::testing::reading;

    #[test]
    fn what_can_not_be_sought_in_is_read_from_its_start() {
        let (_runtime, reading) = reading();
        for (format, text) in [(Format::Jsonl, "{\"a\":1}\n"), (Format::Json, "[{\"a\":1}]")] {
            let (pipe, mut writer) = io::pipe().unwrap();
            writer.write_all(text.as_bytes()).unwrap();
            drop(writer);
            let input = Input::File(OwnedFd::from(pipe).into());
            let mut source = of_bytes(input, format, &Position::default(), &reading).unwrap();
            assert_eq!(testing::said(&source.next().unwrap().unwrap()), r#"{"a":1}"#);
        }
    }
}
