//! Comma-separated values under a header.

use anyhow::{Context as _, Result, bail};
use rows::csv::write;
use rows::row::{Cells, Column, check_known, text_of};

use super::{Sink, Target};

pub(super) struct Csv {
    target: Target,
    columns: Vec<Column>,
}

impl Csv {
    pub(super) fn open(mut target: Target, columns: &[Column]) -> Result<Self> {
        if !columns.is_empty() {
            write(&mut target, columns.iter().map(|it| &it.name))?;
        }
        Ok(Self { target, columns: columns.to_vec() })
    }
}

impl Sink for Csv {
    fn write(&mut self, row: u64, cells: Cells) -> Result<()> {
        if let Err(name) = check_known(&self.columns, &cells) {
            bail!("row {} has a column {name:?}, which the header has not", row + 1);
        }
        let texts = self.columns.iter();
        let texts = texts.map(|it| cells.get(&it.name).map(text_of).unwrap_or_default());
        write(&mut self.target, texts).context("a record can't be written")
    }

    fn finish(self: Box<Self>) -> Result<()> {
        self.target.complete()
    }
}
