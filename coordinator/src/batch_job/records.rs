//! What is known of each job, whatever becomes of the process.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{QueryBuilder, Row as _, Sqlite};

use super::files::{self, StoredFile};
use super::job::{End, Numbers};
use super::{Page, now_s};
use crate::store::{Store, StoreError};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum JobState {
    /// Its lines are looked at, or it waits for its turn.
    Validating,
    /// Its input isn't one.
    Failed,
    /// Its lines are computed.
    InProgress,
    /// Its files are made.
    Finalizing,
    /// Every line is answered.
    Completed,
    /// Its time was up before.
    Expired,
    /// Its files are made of what there is.
    Cancelling,
    /// Nobody wanted it any more.
    Cancelled,
}

impl JobState {
    const ALL: [Self; 8] = [
        Self::Validating,
        Self::Failed,
        Self::InProgress,
        Self::Finalizing,
        Self::Completed,
        Self::Expired,
        Self::Cancelling,
        Self::Cancelled,
    ];

    /// OpenAI's word for it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Validating => "validating",
            Self::Failed => "failed",
            Self::InProgress => "in_progress",
            Self::Finalizing => "finalizing",
            Self::Completed => "completed",
            Self::Expired => "expired",
            Self::Cancelling => "cancelling",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether something is still to be done.
    pub(crate) fn is_open(self) -> bool {
        matches!(self, Self::Validating | Self::InProgress | Self::Finalizing | Self::Cancelling)
    }

    /// The column that holds since when.
    fn column(self) -> Option<&'static str> {
        match self {
            Self::Validating => None,
            Self::Failed => Some("failed_s"),
            Self::InProgress => Some("in_progress_s"),
            Self::Finalizing => Some("finalizing_s"),
            Self::Completed => Some("completed_s"),
            Self::Expired => Some("expired_s"),
            Self::Cancelling => Some("cancelling_s"),
            Self::Cancelled => Some("cancelled_s"),
        }
    }
}

impl From<End> for JobState {
    fn from(end: End) -> Self {
        match end {
            End::Completed => Self::Completed,
            End::Expired => Self::Expired,
            End::Cancelled => Self::Cancelled,
        }
    }
}

/// A file of requests, and how far its answers are.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct BatchJob {
    /// Counted from 1 on.
    pub number: i64,
    /// Its name in the API.
    pub id: String,
    pub tenant: String,
    pub key_name: Option<String>,
    /// The route that its lines name.
    pub endpoint: String,
    pub input_file: String,
    /// Under which their bytes are found.
    pub input_hash: String,
    /// How its rows become lines; none where they are lines already.
    pub rows: Option<Value>,
    /// How long it may take, as it was said.
    pub completion_window: String,
    /// What whoever made it keeps with it.
    pub metadata: Option<Map<String, Value>>,
    /// Seconds that its files are kept.
    pub output_expires_s: Option<i64>,
    pub state: JobState,
    /// Why it has failed.
    pub errors: Option<Value>,
    /// Answers.
    pub output_file: Option<String>,
    /// Lines without one.
    pub error_file: Option<String>,
    /// Its lines, once they are counted.
    pub num_lines: i64,
    /// Those that are answered.
    pub num_completed: i64,
    /// Those that can't be; none before they are counted.
    pub num_failed: i64,
    /// Tokens of prompts, those of them that need not be computed, tokens of answers.
    pub num_tokens: [i64; 3],
    /// Seconds since 1970.
    pub created_s: i64,
    pub expires_s: i64,
    /// When it came to each state that it came to.
    pub since_s: Vec<(JobState, i64)>,
}

impl BatchJob {
    pub(crate) fn since(&self, state: JobState) -> Option<i64> {
        self.since_s.iter().find(|(it, _)| *it == state).map(|(_, at)| *at)
    }

    fn of(row: &SqliteRow) -> Result<Self, sqlx::Error> {
        let state: String = row.try_get("status")?;
        let json = |name: &str| -> Result<Option<Value>, sqlx::Error> {
            let text: Option<String> = row.try_get(name)?;
            Ok(text.and_then(|text| serde_json::from_str(&text).ok()))
        };
        let mut since_s = Vec::new();
        for state in JobState::ALL {
            let Some(column) = state.column() else { continue };
            since_s.extend(row.try_get::<Option<i64>, _>(column)?.map(|at| (state, at)));
        }
        Ok(Self {
            number: row.try_get("number")?,
            id: row.try_get("id")?,
            tenant: row.try_get("tenant")?,
            key_name: row.try_get("key_name")?,
            endpoint: row.try_get("endpoint")?,
            input_file: row.try_get("input_file")?,
            input_hash: row.try_get("input_hash")?,
            rows: json("rows")?,
            completion_window: row.try_get("completion_window")?,
            metadata: json("metadata")?.and_then(|it| it.as_object().cloned()),
            output_expires_s: row.try_get("output_expires_s")?,
            state: JobState::ALL
                .into_iter()
                .find(|it| it.name() == state)
                .unwrap_or(JobState::Failed),
            errors: json("errors")?,
            output_file: row.try_get("output_file")?,
            error_file: row.try_get("error_file")?,
            num_lines: row.try_get("num_lines")?,
            num_completed: row.try_get("num_completed")?,
            num_failed: row.try_get::<i64, _>("num_failed")?.min(row.try_get("num_lines")?),
            num_tokens: [
                row.try_get("num_prompt_tokens")?,
                row.try_get("num_cached_tokens")?,
                row.try_get("num_generated_tokens")?,
            ],
            created_s: row.try_get("created_s")?,
            expires_s: row.try_get("expires_s")?,
            since_s,
        })
    }
}

/// A line that is durable, or is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub batch: i64,
    pub line: u32,
    pub is_failed: bool,
    pub text: String,
    /// Tokens of its prompt, those of them that need not be computed, tokens of its answer.
    pub num_tokens: [i64; 3],
}

/// The jobs in the store; clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Records {
    store: Store,
}

/// Those of which something is to be done.
const OPEN: &str = "status IN ('validating', 'in_progress', 'finalizing', 'cancelling')";

impl Records {
    pub(crate) fn new(store: Store) -> Self {
        Self { store }
    }

    /// A new job: it is durable when this returns.
    ///
    /// # Errors
    /// When it can't be kept.
    pub(crate) async fn insert(&self, job: BatchJob) -> Result<(), StoreError> {
        self.store
            .write(move |database| {
                Box::pin(async move {
                    sqlx::query(
                        "INSERT INTO batches (id, tenant, key_name, endpoint, input_file,
                         input_hash, rows, completion_window, metadata, output_expires_s, status,
                         created_s, expires_s) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    )
                    .bind(job.id)
                    .bind(job.tenant)
                    .bind(job.key_name)
                    .bind(job.endpoint)
                    .bind(job.input_file)
                    .bind(job.input_hash)
                    .bind(job.rows.map(|it| it.to_string()))
                    .bind(job.completion_window)
                    .bind(job.metadata.map(|it| Value::Object(it).to_string()))
                    .bind(job.output_expires_s)
                    .bind(job.state.name())
                    .bind(job.created_s)
                    .bind(job.expires_s)
                    .execute(database)
                    .await?;
                    Ok(())
                })
            })
            .await
    }

    /// The job of this name.
    ///
    /// # Errors
    /// When it can't be read.
    pub(crate) async fn get(&self, id: &str) -> Result<Option<BatchJob>, StoreError> {
        let query = sqlx::query("SELECT * FROM batches WHERE id = ?").bind(id);
        let row = query.fetch_optional(self.store.reader()).await?;
        Ok(row.as_ref().map(BatchJob::of).transpose()?)
    }

    /// Those of a tenant, or all; the newest first, unless the page says otherwise.
    ///
    /// # Errors
    /// When they can't be read.
    pub(crate) async fn list(
        &self,
        tenant: Option<&str>,
        page: &Page,
    ) -> Result<Vec<BatchJob>, StoreError> {
        let mut query = QueryBuilder::<Sqlite>::new("SELECT * FROM batches WHERE 1");
        if let Some(tenant) = tenant {
            query.push(" AND tenant = ").push_bind(tenant);
        }
        page.push(&mut query, "batches");
        let rows = query.build().fetch_all(self.store.reader()).await?;
        Ok(rows.iter().map(BatchJob::of).collect::<Result<_, _>>()?)
    }

    /// Those of which something is to be done, oldest first.
    ///
    /// # Errors
    /// When they can't be read.
    pub(crate) async fn open(&self) -> Result<Vec<BatchJob>, StoreError> {
        let mut query = QueryBuilder::<Sqlite>::new("SELECT * FROM batches WHERE ");
        query.push(OPEN).push(" ORDER BY number");
        let rows = query.build().fetch_all(self.store.reader()).await?;
        Ok(rows.iter().map(BatchJob::of).collect::<Result<_, _>>()?)
    }

    /// Jobs of a tenant of which something is to be done.
    ///
    /// # Errors
    /// When they can't be counted.
    pub(crate) async fn num_open(&self, tenant: &str) -> Result<u32, StoreError> {
        let mut query = QueryBuilder::<Sqlite>::new("SELECT count(*) FROM batches WHERE ");
        query.push(OPEN).push(" AND tenant = ").push_bind(tenant);
        Ok(query.build_query_scalar().fetch_one(self.store.reader()).await?)
    }

    /// A job has come to a state, unless it is at its end or in another than `from`. Whether it
    /// has.
    ///
    /// # Errors
    /// When it can't be written.
    pub(crate) async fn advance(
        &self,
        number: i64,
        from: &'static [JobState],
        to: JobState,
        num_lines: Option<u32>,
    ) -> Result<bool, StoreError> {
        self.store
            .write(move |database| {
                Box::pin(async move {
                    let mut query = set(to);
                    if let Some(num_lines) = num_lines {
                        query.push(", num_lines = ").push_bind(num_lines);
                    }
                    query.push(" WHERE number = ").push_bind(number).push(" AND status IN (");
                    let mut names = query.separated(", ");
                    for state in from {
                        names.push_bind(state.name());
                    }
                    query.push(")");
                    Ok(query.build().execute(database).await?.rows_affected() > 0)
                })
            })
            .await
    }

    /// A job whose input is none has failed, unless somebody has cancelled it meanwhile.
    ///
    /// # Errors
    /// When it can't be written.
    pub(crate) async fn fail(&self, number: i64, errors: Value) -> Result<(), StoreError> {
        self.store
            .write(move |database| {
                Box::pin(async move {
                    let mut query = set(JobState::Failed);
                    query.push(", num_failed = 0, errors = ").push_bind(errors.to_string());
                    query.push(" WHERE number = ").push_bind(number).push(" AND status = ");
                    query.push_bind(JobState::Validating.name());
                    if query.build().execute(&mut *database).await?.rows_affected() == 0 {
                        return Ok(());
                    }
                    delete_outcomes(database, number).await
                })
            })
            .await
    }

    /// A job is at its end: its files are known, and its lines are in them only. All of it is on
    /// the disk when this returns, or nothing.
    ///
    /// # Errors
    /// When it can't be written.
    pub(crate) async fn end(
        &self,
        number: i64,
        end: End,
        output: Option<StoredFile>,
        error: Option<StoredFile>,
    ) -> Result<(), StoreError> {
        self.store
            .write(move |database| {
                Box::pin(async move {
                    let mut query = set(end.into());
                    // Where nobody has counted its lines none of them has failed.
                    query.push(", num_failed = min(num_failed, num_lines)");
                    let files = [("output_file", &output), ("error_file", &error)];
                    for (column, file) in files {
                        if let Some(file) = file {
                            query.push(", ").push(column).push(" = ").push_bind(file.id.clone());
                        }
                    }
                    query.push(" WHERE number = ").push_bind(number).push(" AND ").push(OPEN);
                    // Whoever comes second has made its files in vain.
                    if query.build().execute(&mut *database).await?.rows_affected() == 0 {
                        return Ok(());
                    }
                    for file in files.into_iter().filter_map(|(_, file)| file.as_ref()) {
                        files::insert(database, file).await?;
                    }
                    delete_outcomes(database, number).await
                })
            })
            .await
    }

    /// Lines become durable together, and count from then on. One that is durable already stays as
    /// it is.
    ///
    /// # Errors
    /// When they can't be written: then none is.
    pub(crate) async fn record(&self, outcomes: Vec<Outcome>) -> Result<(), StoreError> {
        self.store
            .write(move |database| {
                Box::pin(async move {
                    let mut counts = BTreeMap::<i64, [i64; 5]>::new();
                    for outcome in outcomes {
                        let Outcome { batch, is_failed, num_tokens: [a, b, c], .. } = outcome;
                        if insert(database, outcome).await? {
                            let more = [i64::from(!is_failed), i64::from(is_failed), a, b, c];
                            let counts = counts.entry(batch).or_default();
                            counts.iter_mut().zip(more).for_each(|(num, more)| *num += more);
                        }
                    }
                    for (batch, more) in counts {
                        count(database, batch, more).await?;
                    }
                    Ok(())
                })
            })
            .await
    }

    /// The lines of a job that are durable.
    ///
    /// # Errors
    /// When they can't be read.
    pub(crate) async fn done(&self, number: i64) -> Result<Numbers, StoreError> {
        let query = sqlx::query_scalar("SELECT id FROM results WHERE id BETWEEN ? AND ?");
        let ids: Vec<i64> = query
            .bind(result_id(number, 0))
            .bind(result_id(number, u32::MAX))
            .fetch_all(self.store.reader())
            .await?;
        let mut done = Numbers::default();
        // The lower half is the line's number.
        ids.into_iter().for_each(|id| done.insert(id as u32));
        Ok(done)
    }

    /// Durable lines of a job behind this one, in order, at most `limit`: number, whether it goes
    /// to the file of errors, text.
    ///
    /// # Errors
    /// When they can't be read.
    pub(crate) async fn outcomes(
        &self,
        number: i64,
        after: u32,
        limit: u32,
    ) -> Result<Vec<(u32, bool, String)>, StoreError> {
        let query = sqlx::query_as(
            "SELECT id, is_failed, text FROM results WHERE id > ? AND id <= ? ORDER BY id LIMIT ?",
        );
        let rows: Vec<(i64, bool, String)> = query
            .bind(result_id(number, after))
            .bind(result_id(number, u32::MAX))
            .bind(limit)
            .fetch_all(self.store.reader())
            .await?;
        Ok(rows.into_iter().map(|(id, failed, text)| (id as u32, failed, text)).collect())
    }
}

/// The beginning of a change to a state.
fn set(state: JobState) -> QueryBuilder<Sqlite> {
    let mut query = QueryBuilder::new("UPDATE batches SET status = ");
    query.push_bind(state.name());
    if let Some(column) = state.column() {
        query.push(", ").push(column).push(" = ").push_bind(now_s());
    }
    query
}

fn result_id(batch: i64, line: u32) -> i64 {
    batch << 32 | i64::from(line)
}

/// Writes a line down, unless it is durable already. Whether it was written.
async fn insert(database: &mut SqliteConnection, outcome: Outcome) -> Result<bool, sqlx::Error> {
    let Outcome { batch, line, is_failed, text, .. } = outcome;
    // A job that has ended has its files, and forgets its results: one that comes late is none.
    let mut insert = QueryBuilder::new("INSERT OR IGNORE INTO results SELECT ");
    let mut values = insert.separated(", ");
    values.push_bind(result_id(batch, line)).push_bind(is_failed).push_bind(text);
    insert.push(" FROM batches WHERE number = ").push_bind(batch).push(" AND ").push(OPEN);
    Ok(insert.build().execute(database).await?.rows_affected() > 0)
}

/// So many more lines of a job are answered, and have failed; their tokens.
async fn count(
    database: &mut SqliteConnection,
    batch: i64,
    more: [i64; 5],
) -> Result<(), sqlx::Error> {
    let mut query = sqlx::query(
        "UPDATE batches SET num_completed = num_completed + ?, num_failed = num_failed + ?,
         num_prompt_tokens = num_prompt_tokens + ?, num_cached_tokens = num_cached_tokens + ?,
         num_generated_tokens = num_generated_tokens + ? WHERE number = ?",
    );
    for num in more {
        query = query.bind(num);
    }
    query.bind(batch).execute(database).await?;
    Ok(())
}

async fn delete_outcomes(database: &mut SqliteConnection, number: i64) -> Result<(), sqlx::Error> {
    sqlx::query("DELETE FROM results WHERE id BETWEEN ? AND ?")
        .bind(result_id(number, 0))
        .bind(result_id(number, u32::MAX))
        .execute(database)
        .await?;
    Ok(())
}
