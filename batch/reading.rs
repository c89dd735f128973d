//! The thread that reads: rows of a source, cleaned, a few at a time.

use std::collections::HashSet;
use std::sync::Arc;

use anyhow::Result;
use rows::row::{Cells, memory_of, text_of};
use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc};

use crate::clean::{Cleaner, Seen};
use crate::journal::State;
use crate::progress::Progress;
use crate::source::{Position, Source};

/// Rows and bytes that are handed over at once, at most.
pub(crate) const ROWS_TOGETHER: usize = 128;
const BYTES_TOGETHER: usize = 1 << 20;

/// A row, and from where the next is read.
pub(crate) struct Work {
    pub(crate) row: u64,
    pub(crate) line: u64,
    pub(crate) after: Position,
    pub(crate) what: What,
}

/// What is to be done with it.
pub(crate) enum What {
    /// It is to be answered.
    Ask(Cells),
    /// It is done with: a line says how.
    Done(State, String),
    /// An earlier run has done it.
    Already,
}

/// Reads rows for whoever asks.
pub(crate) struct Reader {
    pub(crate) source: Box<dyn Source>,
    pub(crate) cleaner: Option<Cleaner>,
    /// The column of ids, and which ones were there.
    pub(crate) ids: Option<(String, Seen)>,
    /// Rows that an earlier run has done.
    pub(crate) done: HashSet<u64>,
    pub(crate) next: u64,
    /// How far reading may be ahead of what is done, and how many rows are handed over at once.
    pub(crate) ahead: Arc<Semaphore>,
    pub(crate) together: usize,
    pub(crate) rows: mpsc::Sender<Vec<Work>>,
    pub(crate) progress: Arc<Progress>,
    pub(crate) runtime: Handle,
}

impl Reader {
    /// Reads until there is nothing more, or nobody who wants it.
    pub(crate) fn run(mut self) -> Result<()> {
        let (mut together, mut num_bytes) = (Vec::new(), 0);
        loop {
            let read = match self.source.next() {
                Ok(Some(item)) => {
                    let cells = item.cells.as_ref();
                    num_bytes += cells.map_or(0, |it| it.values().map(memory_of).sum::<usize>());
                    let (row, line, after) = (self.next, item.line, item.after);
                    let what = self.sort(row, line, item.cells)?;
                    self.next += 1;
                    together.push(Work { row, line, after, what });
                    if together.len() < self.together && num_bytes < BYTES_TOGETHER {
                        continue;
                    }
                    Ok(true)
                }
                Ok(None) => Ok(false),
                Err(cause) => Err(cause),
            };
            num_bytes = 0;
            // What is handed over may be committed: what was seen in it must be, first.
            if let Some(cleaner) = &mut self.cleaner {
                cleaner.keep()?;
            }
            if let Some((_, ids)) = &mut self.ids {
                ids.keep()?;
            }
            if let Some(share) = self.source.share() {
                self.progress.set_share(share);
            }
            let rows = std::mem::take(&mut together);
            if !self.hand_over(rows) {
                return Ok(());
            }
            // What was read before an error is done with, too.
            if !read? {
                return Ok(());
            }
        }
    }

    /// Whether somebody took them.
    fn hand_over(&self, rows: Vec<Work>) -> bool {
        if rows.is_empty() {
            return true;
        }
        let num = u32::try_from(rows.len()).expect("they are few");
        let room = self.runtime.block_on(self.ahead.acquire_many(num));
        let Ok(room) = room else { return false };
        // It is given back when the rows are done.
        room.forget();
        self.rows.blocking_send(rows).is_ok()
    }

    fn sort(
        &mut self,
        row: u64,
        line: u64,
        cells: Result<Cells, rows::Unreadable>,
    ) -> Result<What> {
        let what = match cells {
            Err(bad) => {
                let more = json!({"text": bad.text});
                What::Done(State::Unreadable, told(row, line, State::Unreadable, &bad.why, more))
            }
            Ok(mut cells) => match self.refuse(row, &mut cells)? {
                Some((state, why)) => {
                    What::Done(state, told(row, line, state, &why, json!({"cells": cells})))
                }
                None => What::Ask(cells),
            },
        };
        // What was seen in it was looked at all the same.
        if self.done.remove(&row) {
            return Ok(What::Already);
        }
        Ok(what)
    }

    fn refuse(&mut self, row: u64, cells: &mut Cells) -> Result<Option<(State, String)>> {
        if let Some(cleaner) = &mut self.cleaner
            && let Some(why) = cleaner.clean(row, cells)?
        {
            return Ok(Some((State::Dropped, why)));
        }
        let Some((column, ids)) = &mut self.ids else { return Ok(None) };
        let id = cells.get(column).map(text_of).unwrap_or_default();
        if id.is_empty() {
            return Ok(Some((State::Failed, format!("it has no id: {column:?} is empty"))));
        }
        let first = ids.exact(row, &format!("id\0{id}"))?;
        Ok(first.map(|first| {
            (State::Failed, format!("its id {id:?} is that of row {}, too", first + 1))
        }))
    }
}

/// The line that tells what became of a row.
pub(crate) fn told(row: u64, line: u64, state: State, why: &str, more: Value) -> String {
    let state = match state {
        State::Answered => "answered",
        State::Failed => "failed",
        State::Dropped => "dropped",
        State::Unreadable => "unreadable",
    };
    let mut told = json!({"row": row + 1, "state": state, "why": why});
    let fields = told.as_object_mut().expect("it is one");
    if line > 0 {
        fields.insert("line".into(), line.into());
    }
    if let Value::Object(more) = more {
        fields.extend(more);
    }
    told.to_string()
}
