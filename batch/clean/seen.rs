//! What was seen in rows before, in a file: memory would not hold it. Each thing belongs to the
//! first row that has it, so that a row that is read again is no duplicate of itself.

use std::fmt;
use std::path::Path;

use anyhow::{Context as _, Result};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{AssertSqlSafe, ConnectOptions as _, QueryBuilder, Row as _, Sqlite};
use tokio::runtime::Handle;

use super::near::Signature;

/// The tables: what is the same, what may be alike by a band, and signatures.
const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS same (hash BLOB PRIMARY KEY, row INTEGER) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS bands (band INTEGER, row INTEGER, PRIMARY KEY (band, row))
        WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS signatures (row INTEGER PRIMARY KEY, signature BLOB);
";

/// Rows that are compared, of those with a band in common: first those with the most. Of each band
/// the first rows are looked at, so that one that all rows share costs no more than another.
const MAX_COMPARED: i64 = 64;
const MAX_OF_BAND: i64 = 256;

/// A file of what was seen.
pub(crate) struct Seen {
    database: SqliteConnection,
    runtime: Handle,
    is_open: bool,
}

impl fmt::Debug for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seen")
    }
}

impl Seen {
    /// Opens it, or makes it where there is none.
    ///
    /// # Errors
    /// When it can't be.
    pub(crate) fn open(path: &Path, runtime: Handle) -> Result<Self> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full);
        let opened = runtime.block_on(async {
            let mut database = options.connect().await?;
            sqlx::raw_sql(TABLES).execute(&mut database).await?;
            Ok::<_, sqlx::Error>(database)
        });
        let database = opened.with_context(|| format!("can't use {}", path.display()))?;
        Ok(Self { database, runtime, is_open: false })
    }

    /// The first row with this text, if it is an earlier one.
    ///
    /// # Errors
    /// When that can't be told.
    pub(crate) fn exact(&mut self, row: u64, text: &str) -> Result<Option<u64>> {
        let hash = blake3::hash(text.as_bytes()).as_bytes()[..16].to_vec();
        let row = row.cast_signed();
        self.begin()?;
        let database = &mut self.database;
        let first: i64 = self.runtime.block_on(async {
            let insert = "INSERT INTO same VALUES (?, ?) ON CONFLICT (hash)
                DO UPDATE SET row = min(row, excluded.row) RETURNING row";
            sqlx::query_scalar(insert).bind(hash).bind(row).fetch_one(database).await
        })?;
        Ok((first != row).then_some(first.cast_unsigned()))
    }

    /// The first row with a text that is so much alike, if it is an earlier one.
    ///
    /// # Errors
    /// When that can't be told.
    pub(crate) fn near(&mut self, row: u64, text: &str, threshold: f64) -> Result<Option<u64>> {
        let signature = Signature::of(text);
        let bands: Vec<i64> = signature.bands().map(u64::cast_signed).collect();
        let row = row.cast_signed();
        self.begin()?;
        let (runtime, database) = (self.runtime.clone(), &mut self.database);
        let found = runtime.block_on(async {
            let mut query = QueryBuilder::<Sqlite>::new(
                "SELECT row, signature FROM signatures WHERE row IN (SELECT row FROM (",
            );
            for (index, band) in bands.iter().enumerate() {
                query.push(if index == 0 { "" } else { " UNION ALL " });
                query.push("SELECT row FROM (SELECT row FROM bands WHERE band = ");
                query.push_bind(*band).push(" AND row < ").push_bind(row);
                query.push(" ORDER BY row LIMIT ").push_bind(MAX_OF_BAND).push(")");
            }
            query.push(") GROUP BY row ORDER BY count(*) DESC, row LIMIT ");
            query.push_bind(MAX_COMPARED).push(") ORDER BY row");
            let candidates = query.build().fetch_all(&mut *database).await?;
            for candidate in candidates {
                let bytes: Vec<u8> = candidate.try_get(1)?;
                let other = Signature::from_bytes(&bytes);
                if other.is_some_and(|other| signature.alike(&other) >= threshold) {
                    return Ok::<_, sqlx::Error>(Some(candidate.try_get::<i64, _>(0)?));
                }
            }
            let insert = "INSERT OR IGNORE INTO signatures VALUES (?, ?)";
            let insert = sqlx::query(insert).bind(row).bind(signature.to_bytes());
            insert.execute(&mut *database).await?;
            let mut insert = QueryBuilder::<Sqlite>::new("INSERT OR IGNORE INTO bands ");
            insert.push_values(&bands, |mut values, band| {
                values.push_bind(*band).push_bind(row);
            });
            insert.build().execute(&mut *database).await?;
            Ok(None)
        })?;
        Ok(found.map(i64::cast_unsigned))
    }

    /// Forgets what rows from this one on were: they may be others now.
    ///
    /// # Errors
    /// When that can't be written.
    pub(crate) fn forget_from(&mut self, row: u64) -> Result<()> {
        self.begin()?;
        for table in ["same", "bands", "signatures"] {
            let delete = AssertSqlSafe(format!("DELETE FROM {table} WHERE row >= ?"));
            let delete = sqlx::query(delete).bind(row.cast_signed());
            self.runtime.block_on(delete.execute(&mut self.database))?;
        }
        self.keep()
    }

    fn begin(&mut self) -> Result<()> {
        if !self.is_open {
            self.execute("BEGIN")?;
            self.is_open = true;
        }
        Ok(())
    }

    /// What was seen stays seen, whatever happens.
    ///
    /// # Errors
    /// When it can't be written.
    pub(crate) fn keep(&mut self) -> Result<()> {
        if self.is_open {
            self.execute("COMMIT")?;
            self.is_open = false;
        }
        Ok(())
    }

    fn execute(&mut self, statement: &'static str) -> Result<()> {
        let database = &mut self.database;
        self.runtime.block_on(sqlx::raw_sql(statement).execute(database))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::reading;

    #[test]
    fn a_text_belongs_to_its_first_row_also_when_that_is_read_again() {
        let (runtime, _) = reading();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("seen");
        let mut seen = Seen::open(&path, runtime.handle().clone()).unwrap();
        let long: String = (0..60).map(|n| format!("word{n} ")).collect();
        assert_eq!(seen.exact(0, "a").unwrap(), None);
        assert_eq!(seen.exact(1, "a").unwrap(), Some(0));
        assert_eq!(seen.near(2, &long, 0.8).unwrap(), None);
        assert_eq!(seen.near(3, &format!("{long} more"), 0.8).unwrap(), Some(2));
        assert_eq!(seen.near(4, "something else entirely, as it were", 0.8).unwrap(), None);
        seen.keep().unwrap();
        // Never kept: as if it had not been.
        assert_eq!(seen.exact(5, "b").unwrap(), None);
        drop(seen);
        let mut seen = Seen::open(&path, runtime.handle().clone()).unwrap();
        assert_eq!(seen.exact(0, "a").unwrap(), None, "it is itself");
        assert_eq!(seen.exact(1, "a").unwrap(), Some(0));
        assert_eq!(seen.near(2, &long, 0.8).unwrap(), None, "it is itself");
        assert_eq!(seen.near(3, &format!("{long} more"), 0.8).unwrap(), Some(2));
        assert_eq!(seen.exact(6, "b").unwrap(), None);
        // Rows that are others now.
        seen.forget_from(1).unwrap();
        assert_eq!(seen.exact(1, "b").unwrap(), None);
        assert_eq!(seen.near(3, &long, 0.8).unwrap(), None);
        assert_eq!(seen.exact(4, "a").unwrap(), Some(0));
    }

    #[test]
    fn a_text_is_compared_with_the_likeliest_of_many_that_share_a_part() {
        let (runtime, _) = reading();
        let dir = tempfile::tempdir().unwrap();
        let mut seen = Seen::open(&dir.path().join("seen"), runtime.handle().clone()).unwrap();
        let shared: String = (0..40).map(|n| format!("word{n} ")).collect();
        let of = |row: u64| {
            let own = (0..16).map(|n| format!("{} ", (row * 16 + n) * 7919 % 99_991));
            shared.clone() + &own.collect::<String>()
        };
        for row in 0..120 {
            assert_eq!(seen.near(row, &of(row), 0.95).unwrap(), None);
        }
        assert_eq!(seen.near(120, &format!("{} ", of(110)), 0.95).unwrap(), Some(110));
    }
}
