//! The files of a job, made of its durable lines, in the order of its input.

use std::io::{self, BufWriter, Write};

use tracing::{info, warn};

use super::blobs::Unfinished;
use super::files::{KeepError, Purpose, StoredFile, finish};
use super::job::End;
use super::journal::Trouble;
use super::line::LineId;
use super::reading::{Entries, Entry, UNREADABLE};
use super::records::{BatchJob, JobState};
use super::runner::{Runner, Stopped};
use super::{new_id, now_s};

/// Lines that are taken from the store at once.
const PAGE: u32 = 256;

/// Why a job's files aren't made now.
enum NotMade {
    /// Its input can't be read: its own trouble, which says nothing of the disk.
    Input(io::Error),
    /// They can't be kept.
    Files(KeepError),
}

impl<E: Into<KeepError>> From<E> for NotMade {
    fn from(cause: E) -> Self {
        Self::Files(cause.into())
    }
}

impl Runner {
    /// Makes the files of a job and ends it: all at once, or it is done again.
    pub(super) async fn finish(&self) -> Result<(), Stopped> {
        let id = &self.record.id;
        let Some(record) = self.inner.records.get(id).await? else { return Ok(()) };
        if !record.state.is_open() {
            return Ok(());
        }
        let num_done = record.num_completed + record.num_failed;
        let end = match record.state {
            JobState::Cancelling => End::Cancelled,
            _ if num_done == record.num_lines => End::Completed,
            _ => End::Expired,
        };
        let mut lost: Option<String> = None;
        loop {
            let made = match self.make(&record, end, lost.clone()).await {
                Err(NotMade::Input(cause)) if self.gives_up(&cause) => {
                    warn!(batch = id, %cause, "a batch job ends without its input");
                    let num_left = record.num_lines - num_done;
                    lost = Some(format!(
                        "the input can't be read any more ({cause}): here are answers only, and \
                         {num_left} lines have none"
                    ));
                    continue;
                }
                Err(NotMade::Input(cause)) => return Err(cause.into()),
                Err(NotMade::Files(cause)) => Err(cause),
                Ok(()) => Ok(()),
            };
            if self.inner.journal.settle(made).await?.is_some() {
                break;
            }
        }
        info!(batch = id, end = JobState::from(end).name(), num_done, "a batch job has ended");
        // Whoever deleted the input meanwhile wanted its bytes gone; if they can't go now, they do
        // at the next start.
        let _ = self.inner.files.sweep(&record.input_hash).await;
        Ok(())
    }

    /// Makes the files, of durable lines only where it is said that the input is `lost`.
    async fn make(&self, record: &BatchJob, end: End, lost: Option<String>) -> Result<(), NotMade> {
        if record.num_lines == 0 {
            // It was cancelled before its lines were counted: it has none, and no files of them.
            self.inner.records.end(record.number, end, None, None).await?;
            return Ok(());
        }
        let files = &self.inner.files;
        let is_whole = end == End::Completed && record.rows.is_none();
        let input = match is_whole || lost.is_some() {
            true => None,
            false => Some(
                Entries::open(&self.inner, record).map_err(|cause| NotMade::Input(cause.into()))?,
            ),
        };
        let mut making = Making {
            output: BufWriter::new(files.blobs.begin()?),
            error: BufWriter::new(files.blobs.begin()?),
            input,
            lost,
            is_over_rows: record.rows.is_some(),
            batch: record.number,
            end,
            last: 0,
            has_header: false,
        };
        loop {
            let after = making.last;
            let page = self.inner.records.outcomes(record.number, after, PAGE).await?;
            let is_last = page.len() < PAGE as usize;
            let written = tokio::task::spawn_blocking(move || {
                making.page(page)?;
                if is_last {
                    making.rest()?;
                }
                Ok::<_, NotMade>(making)
            });
            let written = written.await.map_err(|cause| match cause.try_into_panic() {
                // Of this job, which stops for now; the disk is as it was.
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(cause) => io::Error::other(cause),
            });
            making = written??;
            if is_last {
                break;
            }
        }
        // Rows are written as they were read; errors are OpenAI's lines always.
        let format = match (&record.rows, &making.lost) {
            (Some(rows), None) => rows["format"].as_str().unwrap_or("jsonl"),
            _ => "jsonl",
        };
        let _names = files.blobs.names.lock().await;
        let output = self.keep(record, &format!("output.{format}"), making.output).await?;
        let error = self.keep(record, "error.jsonl", making.error).await?;
        self.inner.records.end(record.number, end, output, error).await?;
        Ok(())
    }

    /// A file whose bytes are on the disk; none where it has none.
    async fn keep(
        &self,
        record: &BatchJob,
        name: &str,
        bytes: BufWriter<Unfinished>,
    ) -> Result<Option<StoredFile>, KeepError> {
        let bytes = bytes.into_inner().map_err(|cause| cause.into_error())?;
        let num_bytes = bytes.num_bytes();
        if num_bytes == 0 {
            return Ok(None);
        }
        let created_s = now_s();
        Ok(Some(StoredFile {
            id: new_id("file-")?,
            tenant: record.tenant.clone(),
            purpose: Purpose::BatchOutput,
            filename: format!("{}_{name}", record.id),
            num_bytes,
            hash: finish(bytes).await?,
            created_s,
            expires_s: record.output_expires_s.map(|seconds| created_s + seconds),
        }))
    }
}

struct Making {
    output: BufWriter<Unfinished>,
    error: BufWriter<Unfinished>,
    // Where some lines have no outcome, or are rows.
    input: Option<Entries>,
    // Where it can't be read any more: what is said of that.
    lost: Option<String>,
    is_over_rows: bool,
    batch: i64,
    end: End,
    last: u32,
    // Of the output.
    has_header: bool,
}

impl Making {
    fn page(&mut self, page: Vec<(u32, bool, String)>) -> Result<(), NotMade> {
        for (number, is_failed, text) in page {
            let entry = self.unanswered(number)?;
            let rows = self.input.as_ref().and_then(Entries::rows);
            match (rows, entry) {
                (Some((plan, columns)), Some(entry)) if !is_failed => {
                    if !self.has_header {
                        plan.write_header(&mut self.output, columns)?;
                        self.has_header = true;
                    }
                    plan.write(&mut self.output, entry.cells, &text)?;
                }
                _ => {
                    // An answer whose row can't be read is called by the row's line.
                    let text = match self.is_over_rows && !is_failed {
                        true => {
                            let place = LineId { batch: self.batch, line: number };
                            place.answered(&format!("line-{number}"), text)
                        }
                        false => text,
                    };
                    let file = if is_failed { &mut self.error } else { &mut self.output };
                    file.write_all(text.as_bytes())?;
                    file.write_all(b"\n")?;
                }
            }
            self.last = number;
        }
        Ok(())
    }

    fn rest(&mut self) -> Result<(), NotMade> {
        self.unanswered(u32::MAX)?;
        if let Some(message) = &self.lost {
            // It is of no line.
            let text = LineId { batch: self.batch, line: 0 }.ended(None, UNREADABLE, message);
            self.error.write_all(text.as_bytes())?;
            self.error.write_all(b"\n")?;
        }
        self.output.flush()?;
        self.error.flush()?;
        Ok(())
    }

    /// Lines before this one that the job's end came before; what stands in this one, where that
    /// is known.
    fn unanswered(&mut self, before: u32) -> Result<Option<Entry>, NotMade> {
        let (code, message) = match self.end {
            End::Cancelled => ("batch_cancelled", "the batch was cancelled before this line"),
            _ => ("batch_expired", "this line was not computed before the batch expired"),
        };
        while let Some(input) = &mut self.input {
            let Some(entry) = input.next_entry().map_err(NotMade::Input)? else { break };
            if entry.number >= before {
                return Ok(Some(entry));
            }
            let custom_id = match entry.asks {
                Ok(asks) => Some(asks.custom_id),
                Err(wrong) => wrong.custom_id,
            };
            let place = LineId { batch: self.batch, line: entry.number };
            self.error.write_all(place.ended(custom_id.as_deref(), code, message).as_bytes())?;
            self.error.write_all(b"\n")?;
        }
        Ok(None)
    }
}

impl Trouble for KeepError {
    fn is_final(&self) -> bool {
        match self {
            // The disk has failed to do what it was asked: EIO.
            Self::Bytes(cause) => cause.raw_os_error() == Some(5),
            Self::Store(cause) => cause.is_final(),
        }
    }
}
