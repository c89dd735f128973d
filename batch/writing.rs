//! The thread that writes: rows of the journal go to the sink, in the order of the input, and a
//! file tells of those that don't.

use std::fs;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use rows::row::{Cells, Column, Kind, widen};
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::address::Address;
use crate::journal::{DoneRow, JournalReader, State};
use crate::sink::{self, Wants, Whole, Writing};

/// Rows that are done with: all before this number; and whether there are no others.
pub(crate) type Settled = (u64, bool);

pub(crate) struct Writer {
    pub(crate) output: Address,
    /// The output's columns, where they are known before.
    pub(crate) layout: Option<Vec<Column>>,
    pub(crate) journal: JournalReader,
    pub(crate) settled: watch::Receiver<Settled>,
    /// What the sink has for good.
    pub(crate) kept: watch::Sender<u64>,
    pub(crate) rejects: PathBuf,
    pub(crate) writing: Writing,
    pub(crate) runtime: Handle,
}

impl Writer {
    /// Writes until all is where it is wanted; or ends before, with nobody to tell more.
    pub(crate) fn run(mut self) -> Result<()> {
        let wants = self.output.wants();
        let mut columns = self.layout.take();
        if wants == Wants::Kinds || (wants == Wants::Names && columns.is_none()) {
            // Only the last row says what all of them are.
            if self.wait_for_all().is_none() {
                return Ok(());
            }
            columns = Some(self.columns(columns.unwrap_or_default())?);
        }
        let kept = *self.kept.borrow();
        let columns = columns.unwrap_or_default();
        let mut sink = sink::open(&self.output, &columns, kept, &self.writing)?;
        let mut rejects = Rejects { path: &self.rejects.clone(), file: None };
        let mut next = 0;
        loop {
            let (before, is_all) = *self.settled.borrow_and_update();
            while next < before {
                for record in self.rows(next, before)? {
                    if self.writing.stop.is_cancelled() {
                        break;
                    }
                    next = record.row + 1;
                    if record.state != State::Answered {
                        rejects.write(&record)?;
                    } else if record.row >= kept {
                        sink.write(record.row, cells_of(&record)?)?;
                    }
                }
                if sink.kept() > kept {
                    self.kept.send_replace(sink.kept());
                }
                // All that is done is in the journal, and written by a run that goes on.
                if self.writing.stop.is_cancelled() {
                    return Ok(());
                }
            }
            if is_all {
                break;
            }
            if self.runtime.block_on(self.settled.changed()).is_err() {
                return Ok(());
            }
        }
        sink.finish()?;
        rejects.finish()
    }

    /// The number of all rows, or none when the run ends before.
    fn wait_for_all(&mut self) -> Option<u64> {
        let settled = self.runtime.block_on(self.settled.wait_for(|(_, is_all)| *is_all));
        settled.ok().map(|settled| settled.0)
    }

    fn rows(&mut self, from: u64, before: u64) -> Result<Vec<DoneRow>> {
        let rows = self.runtime.block_on(self.journal.rows(from, before))?;
        let first = rows.first().map(|record| record.row);
        ensure!(first == Some(from), "the journal has lost row {}", from + 1);
        Ok(rows)
    }

    /// The columns that rows have, in the order in which they appear.
    fn columns(&mut self, known: Vec<Column>) -> Result<Vec<Column>> {
        let names = known.into_iter().map(|column| Column::new(column.name, Kind::Null));
        let mut columns = names.collect();
        let (before, _) = *self.settled.borrow();
        let mut next = 0;
        while next < before {
            ensure!(!self.writing.stop.is_cancelled(), "the run stops");
            for record in self.rows(next, before)? {
                next = record.row + 1;
                if record.state == State::Answered {
                    widen(&mut columns, &cells_of(&record)?);
                }
            }
        }
        Ok(columns)
    }
}

fn cells_of(record: &DoneRow) -> Result<Cells> {
    serde_json::from_str(&record.text).with_context(|| format!("row {} is broken", record.row + 1))
}

/// The file that tells of rows without an answer; there is none where all have one.
struct Rejects<'a> {
    path: &'a Path,
    file: Option<Whole>,
}

impl Rejects<'_> {
    fn write(&mut self, record: &DoneRow) -> Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(Whole::create(self.path)?),
        };
        writeln!(file, "{}", record.text).context("a reject can't be written")
    }

    fn finish(self) -> Result<()> {
        match self.file {
            Some(file) => file.complete(),
            // That of an earlier run tells of none of these rows.
            None => match fs::remove_file(self.path) {
                Err(cause) if cause.kind() != ErrorKind::NotFound => {
                    let path = self.path.display();
                    Err(cause).with_context(|| format!("can't remove {path}, which is old"))
                }
                _ => Ok(()),
            },
        }
    }
}
