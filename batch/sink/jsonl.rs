//! A JSON object on each line.

use std::io::Write as _;

use anyhow::{Context as _, Result};
use rows::row::Cells;

use super::{Sink, Target};

pub(super) struct Jsonl(Target);

impl Jsonl {
    pub(super) fn new(target: Target) -> Self {
        Self(target)
    }
}

impl Sink for Jsonl {
    fn write(&mut self, _row: u64, cells: Cells) -> Result<()> {
        let mut line = serde_json::to_vec(&cells)?;
        line.push(b'\n');
        self.0.write_all(&line).context("a line can't be written")
    }

    fn finish(self: Box<Self>) -> Result<()> {
        self.0.complete()
    }
}
