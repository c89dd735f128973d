//! Answers that outlive the coordinator, for requests that ask for it (`durable: true`).
//!
//! What was asked is on the disk before it waits, and what is said before its client hears it: so
//! any client can come back for what follows the last that it heard, and a coordinator that has
//! started again goes on where the last one was. Records are written by the tasks of their
//! requests, through the one writer of the store: the step loop knows nothing of it. What has ended
//! is kept until it was read or is too old.

mod log;
mod record;
mod rows;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use jiff::Timestamp;
use protocol::{RequestId, config};
use sqlx::sqlite::SqliteConnection;
use tracing::{info, warn};
use transport::ticks;

pub(crate) use self::log::{Log, Next};
pub(crate) use self::record::{KeptRequest, Record};
use self::rows::{Done, Row};
use crate::completion::Completions;
use crate::openai::{ApiError, Parsed};
use crate::sequence::Sequence;
use crate::store::{Store, StoreError};

/// Between two looks for what is kept no longer.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// All durable answers; clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Durables(Option<Arc<Shared>>);

#[derive(Debug)]
struct Shared {
    store: Store,
    config: config::Durable,
    entries: Mutex<HashMap<RequestId, Entry>>,
}

#[derive(Debug, Default)]
struct Entry {
    // While anybody writes or reads it.
    log: Weak<Log>,
    ended_ms: Option<i64>,
    read_ms: Option<i64>,
}

impl Entry {
    /// One that nobody writes any more, although it has not ended, takes up no place for ever: it
    /// is kept as long as if it ended now.
    fn look(&mut self, now_ms: i64) {
        if self.ended_ms.is_none() && self.log.strong_count() == 0 {
            self.ended_ms = Some(now_ms);
        }
    }

    /// Whether it is kept no longer.
    fn is_over(&self, config: &config::Durable, now_ms: i64) -> bool {
        let is_past = |since: Option<i64>, max: u64| {
            since.is_some_and(|since| now_ms.saturating_sub(since) >= max as i64)
        };
        let is_read = self.ended_ms.is_some() && is_past(self.read_ms, config.keep_read_ms);
        is_read || is_past(self.ended_ms, config.keep_ms)
    }
}

impl Durables {
    /// Those of `store`, which a coordinator before may have left.
    ///
    /// # Errors
    /// When they can't be read.
    pub(crate) async fn open(store: Store, config: config::Durable) -> Result<Self, StoreError> {
        let rows = rows::all(store.reader()).await?;
        let entry = |Row { id, ended_ms, read_ms, .. }: &Row| {
            (*id, Entry { log: Weak::new(), ended_ms: *ended_ms, read_ms: *read_ms })
        };
        let entries = Mutex::new(rows.iter().map(entry).collect());
        Ok(Self(Some(Arc::new(Shared { store, config, entries }))))
    }

    /// Keeps what is asked. It is on the disk when this returns.
    ///
    /// # Errors
    /// When there is no place for it, or it can't be written.
    pub(crate) async fn begin(
        &self,
        kept: KeptRequest,
        parsed: Parsed,
    ) -> Result<Arc<Log>, ApiError> {
        let max = self.0.as_ref().map_or(0, |shared| shared.config.max_requests);
        let Some(shared) = self.0.as_ref().filter(|_| max > 0) else {
            let message = "durable: answers aren't kept by this server (durable.max_requests = 0)";
            return Err(ApiError::invalid("durable", message).code("unsupported_parameter"));
        };
        let (id, asked) = (kept.id, kept.write());
        let log = Arc::new(Log::new(kept, parsed, Vec::new()));
        {
            let mut entries = shared.entries();
            if entries.len() >= max as usize {
                let message = format!(
                    "{max} durable answers are kept already (durable.max_requests): read one to \
                     its end, or try again later"
                );
                return Err(ApiError::unavailable(message, "too_many_durable"));
            }
            let entry = Entry { log: Arc::downgrade(&log), ..Entry::default() };
            entries.insert(id, entry);
        }
        if let Err(cause) = shared.write(move |database| rows::begin(database, id, asked)).await {
            shared.entries().remove(&id);
            return Err(unwritten(&cause));
        }
        Ok(log)
    }

    /// These are heard next: once they are on the disk whoever reads the log hears them.
    ///
    /// # Errors
    /// When they can't be written.
    pub(crate) async fn add(&self, log: &Log, records: Vec<Record>) -> Result<(), ApiError> {
        let Some(shared) = &self.0 else { return Ok(()) };
        let (number, records) = log.news(records);
        if records.is_empty() {
            return Ok(());
        }
        let ended_ms = records.last().is_some_and(Record::ends).then(now_ms);
        let (id, written) = (log.id(), record::write(&records));
        shared
            .write(move |database| rows::add(database, id, (number, written), ended_ms))
            .await
            .map_err(|cause| unwritten(&cause))?;
        if let (Some(_), Some(entry)) = (ended_ms, shared.entries().get_mut(&id)) {
            entry.ended_ms = ended_ms;
        }
        log.add(records);
        Ok(())
    }

    /// It isn't computed after all.
    pub(crate) async fn forget(&self, id: RequestId) {
        let Some(shared) = &self.0 else { return };
        shared.entries().remove(&id);
        shared.forget(vec![id]).await;
    }

    /// The log of this request, if it is kept.
    ///
    /// # Errors
    /// When it can't be read.
    pub(crate) async fn find(
        &self,
        id: RequestId,
        completions: &Arc<Completions>,
    ) -> Result<Option<Arc<Log>>, ApiError> {
        let Some(shared) = &self.0 else { return Ok(None) };
        match shared.entries().get(&id).map(|entry| entry.log.upgrade()) {
            None => return Ok(None),
            Some(Some(log)) => return Ok(Some(log)),
            Some(None) => {}
        }
        let Some(log) = shared.read(id, completions).await? else { return Ok(None) };
        let log = Arc::new(log);
        let mut entries = shared.entries();
        let Some(entry) = entries.get_mut(&id) else { return Ok(None) };
        // Somebody else may have been faster.
        if let Some(known) = entry.log.upgrade() {
            return Ok(Some(known));
        }
        entry.log = Arc::downgrade(&log);
        Ok(Some(log))
    }

    /// Somebody has read it to its end: it is kept for a little longer only.
    pub(crate) async fn was_read(&self, id: RequestId) {
        let Some(shared) = &self.0 else { return };
        let now_ms = now_ms();
        match shared.entries().get_mut(&id) {
            Some(entry) if entry.read_ms.is_none() => entry.read_ms = Some(now_ms),
            _ => return,
        }
        let written = shared.write(move |database| rows::was_read(database, id, now_ms)).await;
        if let Err(cause) = written {
            warn!(request = %id, %cause, "a durable answer that was read is kept longer");
        }
    }

    /// Goes on with those that had not ended when the last coordinator did.
    ///
    /// # Errors
    /// When the disk can't be read.
    pub(crate) async fn resume(&self, completions: &Arc<Completions>) -> Result<(), StoreError> {
        let Some(shared) = &self.0 else { return Ok(()) };
        let mut num_resumed = 0;
        for Row { id, format, ended_ms, .. } in rows::all(shared.store.reader()).await? {
            if ended_ms.is_some() {
                continue;
            }
            let resumed = match format == rows::FORMAT {
                true => self.resume_one(id, completions).await,
                false => Err("another release has written it".to_owned()),
            };
            match resumed {
                Ok(()) => num_resumed += 1,
                Err(cause) => {
                    warn!(request = %id, cause, "a durable answer can't be gone on with");
                    self.forget(id).await;
                }
            }
        }
        if num_resumed > 0 {
            info!(num_resumed, "answers that an earlier start began are gone on with");
        }
        Ok(())
    }

    async fn resume_one(
        &self,
        id: RequestId,
        completions: &Arc<Completions>,
    ) -> Result<(), String> {
        let log = self.find(id, completions).await.map_err(|cause| cause.to_string())?;
        let log = log.ok_or("it is gone")?;
        let [request] = log.parsed().requests.as_slice() else {
            return Err("it is no single request".into());
        };
        let resumed = log.so_far();
        let last = if request.model != completions.model.id {
            let message = "another model is served since the server has started again";
            Some(Record::failed(&ApiError::internal(message).code("model_changed")))
        } else {
            // Its end may not have come to the disk.
            let ending = Sequence::ending(request.clone(), &resumed.tokens);
            ending.map(|(reason, text)| Record::finished(reason, text))
        };
        if let Some(last) = last {
            return self.add(&log, vec![last]).await.map_err(|cause| cause.to_string());
        }
        let max = self.0.as_ref().map_or(0, |shared| shared.config.max_resume_wait_ms);
        let completion = completions.resume(Arc::clone(&log), resumed);
        log.go_on();
        let patience = Some(Duration::from_millis(max));
        tokio::spawn(completion.record(self.clone(), patience, ()));
        Ok(())
    }

    /// Drops what is kept no longer, as long as the process lives.
    pub(crate) async fn tidy(self) {
        let Some(shared) = self.0 else { return };
        loop {
            ticks::pass(LOOK_EVERY).await;
            shared.drop_old(now_ms()).await;
        }
    }
}

impl Shared {
    fn entries(&self) -> MutexGuard<'_, HashMap<RequestId, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn write(
        &self,
        deed: impl for<'c> FnOnce(&'c mut SqliteConnection) -> Done<'c> + Send + 'static,
    ) -> Result<(), StoreError> {
        self.store.write(deed).await
    }

    async fn forget(&self, ids: Vec<RequestId>) {
        if let Err(cause) = self.write(move |database| rows::forget(database, ids)).await {
            warn!(%cause, "durable answers that are over stay on the disk until the next start");
        }
    }

    async fn drop_old(&self, now_ms: i64) {
        let is_over = |entry: &Entry| entry.is_over(&self.config, now_ms);
        let old: Vec<_> = {
            let mut entries = self.entries();
            entries.values_mut().for_each(|entry| entry.look(now_ms));
            let old = entries.iter().filter(|(_, entry)| is_over(entry)).map(|(id, _)| *id);
            let old = old.collect();
            entries.retain(|_, entry| !is_over(entry));
            old
        };
        if !old.is_empty() {
            self.forget(old).await;
        }
    }

    async fn read(
        &self,
        id: RequestId,
        completions: &Arc<Completions>,
    ) -> Result<Option<Log>, ApiError> {
        let unread = |cause: String| {
            ApiError::internal(format!("the durable answer can't be read: {cause}"))
        };
        let row = rows::read(self.store.reader(), id).await;
        let Some((asked, parts)) = row.map_err(|cause| unread(cause.to_string()))? else {
            return Ok(None);
        };
        let kept = KeptRequest::read(&asked).map_err(|cause| unread(cause.to_string()))?;
        let mut records = Vec::new();
        for part in parts {
            records.extend(record::read(&part).map_err(|cause| unread(cause.to_string()))?);
        }
        let mut parsed = completions.parse_again(&kept).await?;
        kept.restore(&mut parsed);
        let left = kept.deadline_ms.map(|deadline| deadline.saturating_sub(now_ms()).max(0));
        let deadline = left.map(|left| std::time::Instant::now() + millis(left));
        parsed.requests.iter_mut().for_each(|request| request.deadline = deadline);
        let log = Log::new(kept, parsed, records);
        // Whoever wrote it has gone: what it hasn't, nobody waits for.
        log.break_off(resting());
        Ok(Some(log))
    }
}

/// Of an answer that nobody goes on with for now.
fn resting() -> ApiError {
    let message = "the answer was broken off, and is gone on with when the server starts again: \
                   come back then, or ask anew";
    ApiError::unavailable(message, "durable_unavailable")
}

fn unwritten(cause: &StoreError) -> ApiError {
    let message = format!("the durable answer can't be kept: {cause}");
    ApiError::unavailable(message, "durable_unavailable")
}

fn millis(number: i64) -> Duration {
    Duration::from_millis(number.unsigned_abs())
}

/// What the clock says, in milliseconds since 1970.
pub(crate) fn now_ms() -> i64 {
    Timestamp::now().as_millisecond()
}
