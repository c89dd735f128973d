//! The records of one answer: whoever computes it adds to them, any number of readers follow.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use protocol::RequestId;
use tokio::sync::watch;

use super::record::{self, KeptRequest, Record};
use crate::openai::{Answer, ApiError, Parsed};
use crate::request::{Resumed, Tenant};
use crate::tokenizer::Tokenizer;

/// Records that a reader takes at once.
const MAX_AT_ONCE: usize = 64;

/// A durable answer as far as it is on the disk.
#[derive(Debug)]
pub(crate) struct Log {
    kept: KeptRequest,
    parsed: Parsed,
    records: Mutex<Vec<Record>>,
    // How many there are.
    news: watch::Sender<Stand>,
}

/// How it is with an answer.
#[derive(Clone, Debug, Default)]
struct Stand {
    num_records: usize,
    has_ended: bool,
    // Why nothing is to come for now: it isn't lost, and is gone on with later.
    broken_off: Option<ApiError>,
}

/// What a reader finds.
#[derive(Debug)]
pub(crate) enum Next {
    /// Some more of it, in order.
    Records(Vec<Record>),
    /// There was no more, and won't be.
    End,
    /// Nothing is to come for now.
    BrokenOff(ApiError),
}

impl Log {
    /// Of what was asked, and what was made of it; so much was said already.
    pub(crate) fn new(kept: KeptRequest, parsed: Parsed, records: Vec<Record>) -> Self {
        let has_ended = records.last().is_some_and(Record::ends);
        let stand = Stand { num_records: records.len(), has_ended, broken_off: None };
        Self { kept, parsed, records: Mutex::new(records), news: watch::Sender::new(stand) }
    }

    pub(crate) fn id(&self) -> RequestId {
        self.kept.id
    }

    pub(crate) fn tenant(&self) -> Tenant {
        self.kept.tenant.as_str().into()
    }

    /// What was made of the body.
    pub(crate) fn parsed(&self) -> &Parsed {
        &self.parsed
    }

    /// How far the answer has come.
    pub(crate) fn so_far(&self) -> Resumed {
        record::so_far(&self.lock())
    }

    /// The answer before anything was said.
    pub(crate) fn answer(&self, model: &str, tokenizer: &Arc<Tokenizer>) -> Answer {
        let KeptRequest { style, id, created, fingerprint, .. } = &self.kept;
        let tokenizer = Arc::clone(tokenizer);
        let answer =
            Answer::new(*style, id.0, model.into(), fingerprint.clone(), &self.parsed, tokenizer);
        answer.created_at(*created)
    }

    /// Those of `records` that are news after those that there are, and the number of the first.
    pub(super) fn news(&self, records: Vec<Record>) -> (usize, Vec<Record>) {
        let known = self.lock();
        let news = records.into_iter().filter(|record| !record.is_known(&known)).collect();
        (known.len(), news)
    }

    /// They are on the disk.
    pub(super) fn add(&self, records: Vec<Record>) {
        let has_ended = records.last().is_some_and(Record::ends);
        let mut known = self.lock();
        known.extend(records);
        let stand = Stand { num_records: known.len(), has_ended, broken_off: None };
        self.news.send_replace(stand);
    }

    /// Nothing is added any more, although it hasn't ended.
    pub(crate) fn break_off(&self, cause: ApiError) {
        self.news.send_modify(|stand| stand.broken_off = Some(cause));
    }

    /// Somebody adds to it again.
    pub(super) fn go_on(&self) {
        self.news.send_modify(|stand| stand.broken_off = None);
    }

    /// What comes after the first `num` records, once there is something.
    pub(crate) async fn after(&self, num: usize) -> Next {
        let mut news = self.news.subscribe();
        loop {
            let Stand { num_records, has_ended, broken_off } = news.borrow_and_update().clone();
            if num < num_records {
                let some = self.lock().iter().skip(num).take(MAX_AT_ONCE).cloned().collect();
                return Next::Records(some);
            }
            if has_ended {
                return Next::End;
            }
            if let Some(cause) = broken_off {
                return Next::BrokenOff(cause);
            }
            // The sender is this log's own.
            let _ = news.changed().await;
        }
    }

    /// All that there is, and whether no more will come.
    pub(crate) fn records(&self) -> (Vec<Record>, bool) {
        let records = self.lock().clone();
        let has_ended = records.last().is_some_and(Record::ends);
        (records, has_ended)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Record>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
