//! Comma-separated values under a header.

use anyhow::{Context as _, Result, anyhow, bail};

use super::{Sink, Target};
use crate::row::{Cells, Column, check_known, text_of};

pub(super) struct Csv {
    writer: ::csv::Writer<Target>,
    columns: Vec<Column>,
}

impl Csv {
    pub(super) fn open(target: Target, columns: &[Column]) -> Result<Self> {
        let mut writer = ::csv::Writer::from_writer(target);
        if !columns.is_empty() {
            writer.write_record(columns.iter().map(|it| &it.name))?;
        }
        Ok(Self { writer, columns: columns.to_vec() })
    }
}

impl Sink for Csv {
    fn write(&mut self, row: u64, cells: Cells) -> Result<()> {
        if let Err(name) = check_known(&self.columns, &cells) {
            bail!("row {} has a column {name:?}, which the header has not", row + 1);
        }
        for column in &self.columns {
            let text = cells.get(&column.name).map(text_of).unwrap_or_default();
            self.writer.write_field(text.as_bytes()).context("a record can't be written")?;
        }
        self.writer.write_record(None::<&[u8]>).context("a record can't be written")
    }

    fn finish(self: Box<Self>) -> Result<()> {
        let target = self.writer.into_inner().map_err(|cause| anyhow!("{}", cause.error()))?;
        target.complete()
    }
}
