//! What must outlive the coordinator: one SQLite file in its data directory.
//!
//! Whoever writes sends a [`deed`](Store::write) to the one task that does: deeds that came
//! together are one transaction, so that they share the wait for the disk, and each is durable when
//! its answer comes. A command of another process opens the same file meanwhile, reads and writes.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{Connection as _, SqlitePool};
use tokio::sync::{mpsc, oneshot};
use tracing::error;

use crate::stamp::Stamp;

/// Its name in the data directory.
const FILE: &str = "state.sqlite";

/// Every change to the tables, in order: a change that was released is never edited.
const MIGRATIONS: [&str; 5] = [
    include_str!("../migrations/0001_joining.sql"),
    include_str!("../migrations/0002_duties.sql"),
    include_str!("../migrations/0003_batches.sql"),
    include_str!("../migrations/0004_durable.sql"),
    include_str!("../migrations/0005_rows.sql"),
];

/// Deeds of one transaction. The next wait in the queue, which is as long.
const MAX_TOGETHER: usize = 64;

/// Connections that read at once.
const MAX_READERS: u32 = 4;

/// How long a writer waits for another process that writes.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Why what is kept can't be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// The file can't be opened, or isn't ours.
    #[error("{path}: {cause}")]
    Open { path: PathBuf, cause: sqlx::Error },
    /// A newer release has changed the tables.
    #[error(
        "{path} was written by a newer release (its tables are of number {theirs}, this release \
         knows {ours}): install that release, or choose another --data-dir"
    )]
    Newer {
        path: PathBuf,
        /// Its last migration.
        theirs: u32,
        ours: usize,
    },
    /// A deed that failed changes nothing.
    #[error("the coordinator's state can't be read or written: {0}")]
    Failed(#[from] sqlx::Error),
    /// The transaction around a deed failed.
    #[error("the coordinator's state can't be written: {0}")]
    NotWritten(String),
    /// The disk has failed to keep what was written: what it holds is not known any more, and
    /// another try could be told a lie. Nothing is taken until the coordinator starts again.
    #[error("the disk can't keep the coordinator's state ({0}): see to it and start again")]
    Broken(String),
    /// Nobody writes any more.
    #[error("the coordinator's state is written no more: it stops")]
    Ended,
}

/// The open file; clones share it. What was sent to be written is written when the last is gone.
#[derive(Clone)]
pub(crate) struct Store {
    path: Arc<Path>,
    readers: SqlitePool,
    deeds: mpsc::Sender<Deed>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").finish_non_exhaustive()
    }
}

/// Does something to the database, where there is a transaction to do it in, and keeps its answer
/// until it is told how that was written.
type Deed = Box<dyn for<'c> FnOnce(Option<&'c mut SqliteConnection>) -> Doing<'c> + Send>;

/// What a deed says when it is done, and why it failed, where it did.
type Doing<'c> = BoxFuture<'c, (Answer, Option<NotWritten>)>;

/// Tells whoever waits whether it was written, and why not.
type Answer = Box<dyn FnOnce(Result<(), NotWritten>) + Send>;

/// Why a transaction is not on the disk.
#[derive(Clone, Debug)]
enum NotWritten {
    /// Another try may do better.
    Now(String),
    /// The disk can't be relied on.
    Broken(String),
}

impl From<sqlx::Error> for NotWritten {
    fn from(cause: sqlx::Error) -> Self {
        Self::from(&cause)
    }
}

impl From<&sqlx::Error> for NotWritten {
    fn from(cause: &sqlx::Error) -> Self {
        // SQLite's numbers: a write, a flush of a file and one of its folder, a file system that
        // says that it is damaged. A disk that is only full says something else.
        const BROKEN: [&str; 4] = ["778", "1034", "1290", "8458"];
        let code = cause.as_database_error().and_then(|error| error.code());
        match code.is_some_and(|code| BROKEN.contains(&&*code)) {
            true => Self::Broken(cause.to_string()),
            false => Self::Now(cause.to_string()),
        }
    }
}

impl Store {
    /// Opens the file in a data directory, makes it where there is none, and brings its tables up
    /// to what this release knows.
    ///
    /// # Errors
    /// When it can't be, or a newer release has written it.
    pub(crate) async fn open(data_dir: &Path) -> Result<Self, StoreError> {
        let path = data_dir.join(FILE);
        let failed = |cause| StoreError::Open { path: path.clone(), cause };
        let options = SqliteConnectOptions::new()
            .filename(&path)
            .create_if_missing(true)
            .foreign_keys(true)
            // What clients asked and were told is gone when it is deleted.
            .pragma("secure_delete", "ON")
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY_TIMEOUT);
        let mut writer = SqliteConnection::connect_with(&options).await.map_err(failed)?;
        private(&path).map_err(|cause| failed(cause.into()))?;
        let num_done = migrate(&mut writer).await.map_err(failed)?;
        if num_done as usize > MIGRATIONS.len() {
            let ours = MIGRATIONS.len();
            return Err(StoreError::Newer { path, theirs: num_done, ours });
        }
        let readers = SqlitePoolOptions::new()
            .max_connections(MAX_READERS)
            // A file is there or not: asking for it twice tells nothing.
            .test_before_acquire(false)
            .connect_lazy_with(options.clone().create_if_missing(false).read_only(true));
        let (deeds, queue) = mpsc::channel(MAX_TOGETHER);
        tokio::spawn(write(options, writer, queue));
        Ok(Self { path: path.into(), readers, deeds })
    }

    /// Changes something: all of what `deed` does is on the disk when this returns, or nothing of
    /// it is.
    ///
    /// # Errors
    /// When the deed fails, or can't be written.
    pub(crate) async fn write<T, F>(&self, deed: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<T, sqlx::Error>>
            + Send
            + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let deed: Deed = Box::new(move |database| {
            Box::pin(async move {
                let done = match database {
                    Some(database) => Some(within(database, deed).await),
                    None => None,
                };
                let failed =
                    done.as_ref().and_then(|done| done.as_ref().err()).map(NotWritten::from);
                let answer: Answer = Box::new(move |written| {
                    let written = match (written, done) {
                        (Ok(()), Some(done)) => done.map_err(StoreError::Failed),
                        (Err(NotWritten::Broken(cause)), _) => Err(StoreError::Broken(cause)),
                        // A full disk ends the transaction in the middle: the rest fails for
                        // that only.
                        (Err(_), Some(Err(own))) => Err(StoreError::Failed(own)),
                        (Err(NotWritten::Now(cause)), _) => Err(StoreError::NotWritten(cause)),
                        (Ok(()), None) => Err(StoreError::Ended),
                    };
                    // Whoever asked may have gone.
                    let _ = answer.send(written);
                });
                (answer, failed)
            })
        });
        self.deeds.send(deed).await.map_err(|_| StoreError::Ended)?;
        answered.await.map_err(|_| StoreError::Ended)?
    }

    /// For queries that change nothing.
    pub(crate) fn reader(&self) -> &SqlitePool {
        &self.readers
    }

    /// What differs once anybody has written, this process or another; none when that can't be
    /// told.
    pub(crate) async fn stamp(&self) -> Option<[Option<Stamp>; 2]> {
        let path = Arc::clone(&self.path);
        // What is written goes to the log first, which is its file with a longer name.
        let stamps = move || {
            let mut log = path.as_os_str().to_owned();
            log.push("-wal");
            [&*path, Path::new(&log)].map(Stamp::of)
        };
        // A file system that hangs holds up nobody else.
        tokio::task::spawn_blocking(stamps).await.ok()
    }

    /// Resolves when nobody writes any more, which no deed brings about.
    pub(crate) async fn ended(&self) {
        self.deeds.closed().await;
    }

    /// What is known by this name.
    ///
    /// # Errors
    /// When it can't be read.
    pub(crate) async fn fact(&self, name: &str) -> Result<Option<String>, StoreError> {
        let query = sqlx::query_scalar("SELECT value FROM facts WHERE name = ?").bind(name);
        Ok(query.fetch_optional(&self.readers).await?)
    }

    /// Keeps `value` by this name, in place of what was known.
    ///
    /// # Errors
    /// When it can't be written.
    pub(crate) async fn set_fact(
        &self,
        name: &'static str,
        value: String,
    ) -> Result<(), StoreError> {
        self.write(move |database| {
            Box::pin(async move {
                let insert = sqlx::query("INSERT OR REPLACE INTO facts VALUES (?, ?)");
                insert.bind(name).bind(value).execute(database).await?;
                Ok(())
            })
        })
        .await
    }
}

/// One deed's part of the transaction: undone alone where it fails.
async fn within<T, F>(database: &mut SqliteConnection, deed: F) -> Result<T, sqlx::Error>
where
    F: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<T, sqlx::Error>>,
{
    let mut part = database.begin().await?;
    let done = deed(&mut part).await?;
    part.commit().await?;
    Ok(done)
}

async fn write(
    options: SqliteConnectOptions,
    writer: SqliteConnection,
    mut queue: mpsc::Receiver<Deed>,
) {
    let mut writer = Some(writer);
    let mut deeds = Vec::new();
    let mut broken = None;
    while queue.recv_many(&mut deeds, MAX_TOGETHER).await > 0 {
        let mut answers = Vec::new();
        let opened = match (&broken, writer.take()) {
            (Some(cause), _) => Err(NotWritten::Broken(String::clone(cause))),
            (None, Some(writer)) => Ok(writer),
            (None, None) => SqliteConnection::connect_with(&options).await.map_err(Into::into),
        };
        let written = match opened {
            Ok(mut connection) => {
                let written = together(&mut connection, deeds.drain(..), &mut answers).await;
                // SQLite ends some transactions that fail by itself, of which this connection
                // would know nothing: the next begins with another.
                writer = Some(connection).filter(|_| written.is_ok());
                written
            }
            Err(cause) => refused(cause, deeds.drain(..), &mut answers).await,
        };
        if let (Err(NotWritten::Broken(cause)), None) = (&written, &broken) {
            error!(cause, "the disk can't keep the coordinator's state: nothing more is written");
            broken = Some(cause.clone());
        }
        for answer in answers {
            answer(written.clone());
        }
    }
    // Of no consequence: what is written is on the disk.
    if let Some(writer) = writer {
        let _ = writer.close().await;
    }
}

async fn together(
    writer: &mut SqliteConnection,
    deeds: impl Iterator<Item = Deed>,
    answers: &mut Vec<Answer>,
) -> Result<(), NotWritten> {
    // It will write: waiting for another process's turn comes first, not in the middle.
    let mut transaction = match writer.begin_with("BEGIN IMMEDIATE").await {
        Ok(transaction) => transaction,
        Err(cause) => return refused(cause.into(), deeds, answers).await,
    };
    let mut ended = None;
    for deed in deeds {
        let there = ended.is_none().then_some(&mut *transaction);
        let (answer, failed) = deed(there).await;
        answers.push(answer);
        // A full disk ends the transaction of all of them, not its deed alone: whatever came next
        // would be written although all are told that nothing is.
        if let Some(cause) = failed
            && is_over(&mut transaction).await
        {
            ended = Some(cause);
        }
    }
    match ended {
        None => Ok(transaction.commit().await?),
        Some(cause) => Err(cause),
    }
}

/// Whether a transaction has ended by itself: only then there may be another.
fn is_over(transaction: &mut SqliteConnection) -> BoxFuture<'_, bool> {
    Box::pin(async move { sqlx::raw_sql("BEGIN").execute(transaction).await.is_ok() })
}

/// None of them is done.
async fn refused(
    cause: NotWritten,
    deeds: impl Iterator<Item = Deed>,
    answers: &mut Vec<Answer>,
) -> Result<(), NotWritten> {
    for deed in deeds {
        answers.push(deed(None).await.0);
    }
    Err(cause)
}

/// Migrations that are done after those of ours that were missing.
async fn migrate(database: &mut SqliteConnection) -> Result<u32, sqlx::Error> {
    let mut transaction = database.begin_with("BEGIN IMMEDIATE").await?;
    sqlx::raw_sql("CREATE TABLE IF NOT EXISTS migrations (number INTEGER PRIMARY KEY) STRICT")
        .execute(&mut *transaction)
        .await?;
    let done = sqlx::query_scalar("SELECT coalesce(max(number), 0) FROM migrations");
    let mut num_done: u32 = done.fetch_one(&mut *transaction).await?;
    for migration in MIGRATIONS.into_iter().skip(num_done as usize) {
        sqlx::raw_sql(migration).execute(&mut *transaction).await?;
        num_done += 1;
        let note = sqlx::query("INSERT INTO migrations VALUES (?)").bind(num_done);
        note.execute(&mut *transaction).await?;
    }
    transaction.commit().await?;
    Ok(num_done)
}

/// For nobody else's eyes; the files that SQLite puts beside it are as it is.
fn private(path: &Path) -> std::io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn add(store: &Store, name: &'static str) -> Result<(), StoreError> {
        store
            .write(move |database| {
                Box::pin(async move {
                    let insert = sqlx::query("INSERT INTO facts VALUES (?, 'here')").bind(name);
                    insert.execute(database).await?;
                    Ok(())
                })
            })
            .await
    }

    #[tokio::test]
    async fn what_is_written_outlives_the_process_and_is_for_its_user_only() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).await.unwrap();
        assert_eq!(store.fact("a").await.unwrap(), None);
        store.set_fact("a", "first".into()).await.unwrap();
        store.set_fact("a", "second".into()).await.unwrap();
        // As a command of another process does it, while the coordinator runs.
        let other = Store::open(dir.path()).await.unwrap();
        assert_eq!(other.fact("a").await.unwrap().as_deref(), Some("second"));
        let seen = store.stamp().await.unwrap();
        assert_eq!(store.stamp().await, Some(seen), "reading changes nothing");
        other.set_fact("b", "theirs".into()).await.unwrap();
        assert_ne!(store.stamp().await.unwrap(), seen);
        assert_eq!(store.fact("b").await.unwrap().as_deref(), Some("theirs"));
        drop((store, other));
        let store = Store::open(dir.path()).await.unwrap();
        assert_eq!(store.fact("a").await.unwrap().as_deref(), Some("second"));
        #[cfg(unix)]
        for file in std::fs::read_dir(dir.path()).unwrap() {
            use std::os::unix::fs::PermissionsExt as _;
            let file = file.unwrap();
            let mode = file.metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o077, 0, "{:?}", file.file_name());
        }
    }

    /// Goal: deeds share a transaction, not their failures. Method: many at once, each name twice:
    /// one of each pair fails, and all others are there.
    #[tokio::test]
    async fn a_deed_that_fails_undoes_nobody_elses() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).await.unwrap();
        let names: Vec<&'static str> = (0..100).map(|n| &*format!("{n}").leak()).collect();
        let twice = names.iter().chain(&names).map(|name| add(&store, name));
        let answers = futures::future::join_all(twice).await;
        assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), names.len());
        let count = sqlx::query_scalar("SELECT count(*) FROM facts");
        let count: u32 = count.fetch_one(store.reader()).await.unwrap();
        assert_eq!(count as usize, names.len());
        // A deed that has done half of its work leaves none of it.
        let half = store.write(|database| {
            Box::pin(async move {
                let insert = "INSERT INTO facts VALUES ('half', '')";
                sqlx::raw_sql(insert).execute(&mut *database).await?;
                sqlx::raw_sql(insert).execute(database).await?;
                Ok(())
            })
        });
        half.await.unwrap_err();
        assert_eq!(store.fact("half").await.unwrap(), None);
        assert_eq!(store.fact("7").await.unwrap().as_deref(), Some("here"));
    }

    /// Goal: what a full disk ends in the middle is nobody's, as everybody is told. Method: the
    /// connection may have no more pages, and the second of three deeds needs some.
    #[tokio::test]
    async fn a_full_disk_undoes_all_that_share_a_transaction() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).await.unwrap();
        let run = |sql: &'static str| {
            store.write(move |database| {
                Box::pin(async move {
                    sqlx::raw_sql(sql).execute(database).await?;
                    Ok(())
                })
            })
        };
        run("PRAGMA max_page_count = 1").await.unwrap();
        let large = run("INSERT INTO facts VALUES ('large', hex(zeroblob(50000)))");
        let (before, after) = (add(&store, "before"), add(&store, "after"));
        let told = futures::future::join3(before, large, after).await;
        assert!(told.0.is_err() && told.1.is_err() && told.2.is_err(), "{told:?}");
        for name in ["before", "large", "after"] {
            assert_eq!(store.fact(name).await.unwrap(), None, "{name}");
        }
        add(&store, "next").await.unwrap();
    }

    #[tokio::test]
    async fn a_file_of_a_newer_release_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).await.unwrap();
        let newer = store.write(|database| {
            Box::pin(async move {
                sqlx::raw_sql("INSERT INTO migrations VALUES (999)").execute(database).await?;
                Ok(())
            })
        });
        newer.await.unwrap();
        let said = Store::open(dir.path()).await.unwrap_err().to_string();
        assert!(said.contains("newer release") && said.contains("999"), "{said}");
        std::fs::write(dir.path().join("state.sqlite"), [7; 8192]).unwrap();
        let said = Store::open(dir.path()).await.unwrap_err().to_string();
        assert!(said.contains("state.sqlite"), "{said}");
    }
}
