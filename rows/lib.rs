//! Rows of text files, read in memory that has a bound, and answers as columns of them: what
//! `autoglm batch run` and a server's jobs over rows have in common.

pub mod answers;
pub mod csv;
pub mod jsonl;
pub mod lines;
pub mod row;

use crate::row::Cells;

/// What stands in the place of one row.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// The line on which it begins.
    pub line: u64,
    /// The row, or why it is none.
    pub cells: Result<Cells, Unreadable>,
}

/// A row that can't be read. Reading goes on behind it.
#[derive(Clone, Debug, PartialEq)]
pub struct Unreadable {
    /// What is wrong with the row, and what would be right.
    pub why: String,
    /// What stands there, or how it begins.
    pub text: String,
}

impl Unreadable {
    /// Longer texts are told by their beginning.
    const MAX_BYTES: usize = 4096;

    /// One of these bytes.
    pub fn new(why: impl Into<String>, text: &[u8]) -> Self {
        let text = String::from_utf8_lossy(&text[..text.len().min(Self::MAX_BYTES)]).into_owned();
        Self { why: why.into(), text }
    }
}
