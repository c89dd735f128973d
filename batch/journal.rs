//! What a run has done, in a file of SQLite beside its output: every row that was answered, failed
//! or dropped, before it counts. A run that is resumed goes on from there, and writes its output
//! from there.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use futures::StreamExt as _;
use serde::{Deserialize, Serialize};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions as _, Connection as _, QueryBuilder, Row as _, Sqlite};

use crate::sink::beside;
use crate::source::Position;

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS rows (row INTEGER PRIMARY KEY, state INTEGER NOT NULL,
        text TEXT NOT NULL);
";

/// Rows and bytes that are read at once.
const MAX_ROWS_READ: u32 = 1024;
const MAX_BYTES_READ: usize = 4 << 20;

/// What became of a row.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum State {
    /// It goes to the output.
    Answered = 0,
    /// It has no answer.
    Failed = 1,
    /// Cleaning dropped it.
    Dropped = 2,
    /// It couldn't be read.
    Unreadable = 3,
}

impl State {
    const ALL: [Self; 4] = [Self::Answered, Self::Failed, Self::Dropped, Self::Unreadable];
}

/// A row that is done with.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct DoneRow {
    /// Its number.
    pub row: u64,
    /// What became of it.
    pub state: State,
    /// Its cells as JSON; or else a line that says what became of it.
    pub text: String,
}

/// What a run is: one that goes on must be the same.
pub type Purpose = BTreeMap<String, String>;

/// How many rows ended how.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Counts {
    /// They go to the output.
    pub answered: u64,
    /// They have no answer.
    pub failed: u64,
    /// Cleaning dropped them.
    pub dropped: u64,
    /// They couldn't be read.
    pub unreadable: u64,
}

impl Counts {
    /// One more.
    pub(crate) fn add(&mut self, state: State, num: u64) {
        match state {
            State::Answered => self.answered += num,
            State::Failed => self.failed += num,
            State::Dropped => self.dropped += num,
            State::Unreadable => self.unreadable += num,
        }
    }

    /// Rows that have ended, however.
    pub fn total(&self) -> u64 {
        self.answered + self.failed + self.dropped + self.unreadable
    }
}

/// The open file, which no other process has.
#[derive(Debug)]
pub(crate) struct Journal {
    database: SqliteConnection,
    path: PathBuf,
    /// Held until the end.
    lock: File,
}

/// Where a run goes on.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Resumed {
    /// All rows before it are done with.
    pub position: Position,
    /// Rows behind it that are done with.
    pub done: Vec<u64>,
    /// What the sink has for good.
    pub kept: u64,
    /// How rows ended.
    pub counts: Counts,
    /// The name of the run.
    pub job: String,
    /// Whether there was none to go on with.
    pub is_new: bool,
}

/// Whether an earlier run is gone on with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Begin {
    /// There is none.
    Anew,
    /// If there is one.
    Resume,
}

impl Journal {
    /// Opens it, or makes it.
    ///
    /// # Errors
    /// When another process has it; when there is an unfinished run that isn't to be gone on with,
    /// or one of another purpose.
    pub(crate) async fn open(
        path: &Path,
        purpose: &Purpose,
        begin: Begin,
    ) -> Result<(Self, Resumed)> {
        let lock = lock(path)?;
        let exists = path.exists();
        ensure!(
            begin == Begin::Resume || !exists,
            "{} holds an unfinished run: --resume goes on with it; delete the file to begin anew",
            path.display()
        );
        if !exists {
            // What an earlier run saw, whose journal somebody deleted, says nothing of this one's.
            remove_rest(path);
        }
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full);
        let named = || format!("can't use {}", path.display());
        let mut database = options.connect().await.with_context(named)?;
        sqlx::raw_sql(TABLES).execute(&mut database).await.with_context(named)?;
        let path = path.to_owned();
        let mut journal = Self { database, path, lock };
        let resumed = journal.resumed(purpose).await?;
        Ok((journal, resumed))
    }

    async fn fact(&mut self, name: &str) -> Result<Option<String>> {
        let query = sqlx::query_scalar("SELECT value FROM facts WHERE name = ?");
        Ok(query.bind(name).fetch_optional(&mut self.database).await?)
    }

    async fn set_fact(&mut self, name: &str, value: &str) -> Result<()> {
        let insert = sqlx::query("INSERT OR REPLACE INTO facts VALUES (?, ?)");
        insert.bind(name).bind(value).execute(&mut self.database).await?;
        Ok(())
    }

    /// Where the run goes on, if it is of this purpose.
    ///
    /// # Errors
    /// When it isn't, or that can't be read.
    pub(crate) async fn resumed(&mut self, purpose: &Purpose) -> Result<Resumed> {
        let Some(known) = self.fact("purpose").await? else {
            let mut bytes = [0; 16];
            File::open("/dev/urandom")
                .and_then(|mut file| std::io::Read::read_exact(&mut file, &mut bytes))
                .context("no random numbers")?;
            let job = format!("{:032x}", u128::from_le_bytes(bytes));
            self.set_fact("job", &job).await?;
            self.set_fact("purpose", &serde_json::to_string(purpose)?).await?;
            return Ok(Resumed { job, is_new: true, ..Resumed::default() });
        };
        let known: Purpose = serde_json::from_str(&known)?;
        for name in known.keys().chain(purpose.keys()) {
            if known.get(name) != purpose.get(name) {
                bail!(
                    "the unfinished run in {} had another {name}: go on with the same, or delete \
                     the file to begin anew",
                    self.path.display()
                );
            }
        }
        let position = match self.fact("position").await? {
            Some(position) => serde_json::from_str(&position)?,
            None => Position::default(),
        };
        let kept = self.fact("kept").await?.map_or(Ok(0), |kept| kept.parse())?;
        let done = sqlx::query_scalar("SELECT row FROM rows WHERE row >= ? ORDER BY row");
        let done: Vec<i64> =
            done.bind(position.rows.cast_signed()).fetch_all(&mut self.database).await?;
        let mut counts = Counts::default();
        for state in State::ALL {
            let query = sqlx::query_scalar("SELECT count(*) FROM rows WHERE state = ?");
            let num: i64 = query.bind(state as i64).fetch_one(&mut self.database).await?;
            counts.add(state, num.cast_unsigned());
        }
        let job = self.fact("job").await?.context("the run has no name")?;
        let done = done.into_iter().map(i64::cast_unsigned).collect();
        Ok(Resumed { position, done, kept, counts, job, is_new: false })
    }

    /// Writes rows, and until where all are done with. They are on the disk when this returns.
    ///
    /// # Errors
    /// When they aren't.
    pub(crate) async fn commit(
        &mut self,
        rows: &[DoneRow],
        position: Option<&Position>,
    ) -> Result<()> {
        let mut transaction = self.database.begin().await?;
        if !rows.is_empty() {
            let mut insert = QueryBuilder::<Sqlite>::new("INSERT INTO rows ");
            insert.push_values(rows, |mut values, record| {
                values.push_bind(record.row.cast_signed());
                values.push_bind(record.state as i64).push_bind(&record.text);
            });
            insert.build().execute(&mut *transaction).await?;
        }
        if let Some(position) = position {
            let insert = sqlx::query("INSERT OR REPLACE INTO facts VALUES ('position', ?)");
            insert.bind(serde_json::to_string(position)?).execute(&mut *transaction).await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    /// Forgets all rows from this one on: they are done again.
    ///
    /// # Errors
    /// When that can't be written.
    pub(crate) async fn forget_from(&mut self, row: u64) -> Result<()> {
        let delete = sqlx::query("DELETE FROM rows WHERE row >= ?").bind(row.cast_signed());
        delete.execute(&mut self.database).await?;
        Ok(())
    }

    /// Remembers what the sink has for good.
    ///
    /// # Errors
    /// When that can't be written.
    pub(crate) async fn keep(&mut self, kept: u64) -> Result<()> {
        self.set_fact("kept", &kept.to_string()).await
    }

    /// Its rows, for whoever writes them elsewhere.
    ///
    /// # Errors
    /// When the file can't be read.
    pub(crate) async fn reader(&self) -> Result<JournalReader> {
        let options = SqliteConnectOptions::new().filename(&self.path).read_only(true);
        Ok(JournalReader(options.connect().await?))
    }

    /// The run is over: nothing is left of its journal, but for an empty file that says so where
    /// nothing else does.
    ///
    /// # Errors
    /// When it can't be removed.
    pub(crate) async fn remove(self, mark: bool) -> Result<()> {
        if mark {
            File::create(done(&self.path))?.sync_all()?;
        }
        self.database.close().await?;
        fs::remove_file(&self.path)?;
        remove_rest(&self.path);
        let _ = fs::remove_file(beside(&self.path, ".lock"));
        drop(self.lock);
        Ok(())
    }
}

/// Removes what lies beside a journal that is gone.
fn remove_rest(path: &Path) {
    for name in ["", ".seen", ".seen-ids"] {
        for end in ["", "-wal", "-shm"] {
            let _ = fs::remove_file(beside(path, &format!("{name}{end}")));
        }
    }
}

/// The file that says that a run has ended of which nothing else tells.
pub(crate) fn done(journal: &Path) -> PathBuf {
    beside(journal, ".done")
}

/// No other process may write this journal, or the output beside it.
fn lock(path: &Path) -> Result<File> {
    let name = beside(path, ".lock");
    loop {
        let file =
            File::create(&name).with_context(|| format!("can't write {}", name.display()))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                bail!("another process runs this batch: it holds {}", name.display())
            }
            Err(TryLockError::Error(cause)) => {
                return Err(cause).with_context(|| format!("can't lock {}", name.display()));
            }
        }
        // Who held it before may have removed it just now: then this is a lock of no name.
        if same_file(&file, &name) {
            return Ok(file);
        }
    }
}

#[cfg(unix)]
fn same_file(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    match (file.metadata(), fs::metadata(path)) {
        (Ok(one), Ok(two)) => (one.dev(), one.ino()) == (two.dev(), two.ino()),
        _ => false,
    }
}

#[cfg(not(unix))]
fn same_file(_file: &File, path: &Path) -> bool {
    path.exists()
}

/// Reads rows while others are written.
#[derive(Debug)]
pub(crate) struct JournalReader(SqliteConnection);

impl JournalReader {
    /// Rows from one number to before another, in order, as many as a bound in bytes lets through:
    /// one at least, where there is one.
    ///
    /// # Errors
    /// When they can't be read.
    pub(crate) async fn rows(&mut self, from: u64, before: u64) -> Result<Vec<DoneRow>> {
        let query =
            "SELECT row, state, text FROM rows WHERE row >= ? AND row < ? ORDER BY row LIMIT ?";
        let query = sqlx::query(query).bind(from.cast_signed()).bind(before.cast_signed());
        let mut rows = query.bind(MAX_ROWS_READ).fetch(&mut self.0);
        let (mut records, mut num_bytes) = (Vec::new(), 0);
        while let Some(row) = rows.next().await.transpose()? {
            let state = usize::try_from(row.try_get::<i64, _>(1)?)?;
            let state = *State::ALL.get(state).context("the journal is of a newer release")?;
            let text: String = row.try_get(2)?;
            num_bytes += text.len();
            let number = row.try_get::<i64, _>(0)?.cast_unsigned();
            records.push(DoneRow { row: number, state, text });
            if num_bytes > MAX_BYTES_READ {
                break;
            }
        }
        Ok(records)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(row: u64, state: State) -> DoneRow {
        DoneRow { row, state, text: format!("{{\"row\":{row}}}") }
    }

    fn purpose(model: &str) -> Purpose {
        Purpose::from([("model".into(), model.into())])
    }

    #[tokio::test]
    async fn a_run_goes_on_where_it_was_and_only_one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.csv.journal");
        let (mut journal, first) = Journal::open(&path, &purpose("a"), Begin::Anew).await.unwrap();
        let rows = [record(0, State::Answered), record(3, State::Dropped)];
        let position = Position { rows: 1, bytes: 20, ..Position::default() };
        journal.commit(&rows, Some(&position)).await.unwrap();
        journal.commit(&[record(2, State::Failed)], None).await.unwrap();
        journal.keep(1).await.unwrap();
        let said = Journal::open(&path, &purpose("a"), Begin::Resume).await.unwrap_err();
        assert!(said.to_string().contains("another process"), "{said}");
        drop(journal);

        let said = Journal::open(&path, &purpose("a"), Begin::Anew).await.unwrap_err();
        assert!(said.to_string().contains("--resume"), "{said}");
        let said = Journal::open(&path, &purpose("b"), Begin::Resume).await.unwrap_err();
        assert!(said.to_string().contains("another model"), "{said}");
        let (journal, resumed) = Journal::open(&path, &purpose("a"), Begin::Resume).await.unwrap();
        let counts = Counts { answered: 1, failed: 1, dropped: 1, unreadable: 0 };
        let (done, job) = (vec![2, 3], first.job);
        let expected = Resumed { position, done, kept: 1, counts, job, is_new: false };
        assert_eq!(resumed, expected);
        let rows = journal.reader().await.unwrap().rows(1, 4).await.unwrap();
        assert_eq!(rows, [record(2, State::Failed), record(3, State::Dropped)]);
        journal.remove(false).await.unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    /// As the end of its process does.
    async fn close(journal: Journal) {
        journal.database.close().await.unwrap();
    }

    #[tokio::test]
    async fn what_was_seen_is_gone_with_the_journal_that_somebody_deletes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let (journal, _) = Journal::open(&path, &purpose("a"), Begin::Anew).await.unwrap();
        close(journal).await;
        let seen = [".seen", ".seen-ids", ".seen-ids-wal"].map(|end| beside(&path, end));
        let are_there = || seen.each_ref().map(|it| it.exists());
        seen.iter().for_each(|it| fs::write(it, "rows").unwrap());
        let (journal, _) = Journal::open(&path, &purpose("a"), Begin::Resume).await.unwrap();
        assert_eq!(are_there(), [true; 3]);
        close(journal).await;
        fs::remove_file(&path).unwrap();
        let (_journal, resumed) = Journal::open(&path, &purpose("a"), Begin::Anew).await.unwrap();
        assert!(resumed.is_new);
        assert_eq!(are_there(), [false; 3]);
    }

    #[tokio::test]
    async fn a_row_is_never_done_twice() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let (mut journal, _) = Journal::open(&path, &purpose("a"), Begin::Anew).await.unwrap();
        journal.commit(&[record(0, State::Answered)], None).await.unwrap();
        let twice = [record(1, State::Answered), record(0, State::Failed)];
        journal.commit(&twice, None).await.unwrap_err();
        let rows = journal.reader().await.unwrap().rows(0, 9).await.unwrap();
        assert_eq!(rows, [record(0, State::Answered)]);
    }
}
