//! Rows of a query. A database that goes away is asked again when it is back, and what it said
//! before is passed over: a digest over all rows says whether they are still the same.

use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use futures::StreamExt as _;
use rows::Unreadable;
use rows::row::{Cells, Column};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::{Item, Position, Reading, Source};
use crate::address::Dialect;
use crate::database::{Connection, is_gone};

/// Rows that wait to be taken.
const MAX_WAITING: usize = 256;
/// How long a database may be away, once it has said something.
const MAX_AWAY: Duration = Duration::from_secs(300);
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

type Digest = blake3::Hash;

/// A row as it came, and the digest over it and all before it.
struct Row {
    cells: Result<Cells, String>,
    digest: Digest,
}

pub(super) struct Query {
    rows: mpsc::Receiver<Result<Row>>,
    first: Option<Row>,
    columns: Option<Vec<Column>>,
    num: u64,
}

impl Query {
    pub(super) fn open(
        dialect: Dialect,
        url: &str,
        query: &str,
        at: &Position,
        reading: &Reading,
    ) -> Result<Self> {
        let (rows_sender, rows) = mpsc::channel(MAX_WAITING);
        let (columns_sender, mut columns) = mpsc::channel(1);
        let asking = Asking {
            dialect,
            url: url.to_owned(),
            query: query.to_owned(),
            rows: rows_sender,
            columns: columns_sender,
            num_read: at.rows,
            digest: digest_of(&at.mark)?,
            has_answered: false,
        };
        reading.runtime.spawn(asking.run());
        let mut query = Self { rows, first: None, columns: None, num: at.rows };
        query.first = query.receive()?;
        query.columns = columns.try_recv().ok();
        Ok(query)
    }

    fn receive(&mut self) -> Result<Option<Row>> {
        self.rows.blocking_recv().transpose()
    }
}

impl Source for Query {
    fn columns(&self) -> Option<Vec<Column>> {
        self.columns.clone()
    }

    fn next(&mut self) -> Result<Option<Item>> {
        let row = match self.first.take() {
            Some(row) => row,
            None => match self.receive()? {
                Some(row) => row,
                None => return Ok(None),
            },
        };
        self.num += 1;
        let mark = row.digest.to_hex().to_string();
        let after = Position { rows: self.num, mark, ..Position::default() };
        let cells = row.cells.map_err(|why| Unreadable::new(why, b""));
        Ok(Some(Item { cells, line: 0, after }))
    }
}

fn digest_of(mark: &str) -> Result<Digest> {
    if mark.is_empty() {
        return Ok(blake3::hash(b""));
    }
    Digest::from_hex(mark).context("an earlier run's position holds no digest")
}

/// Asks, and asks again.
struct Asking {
    dialect: Dialect,
    url: String,
    query: String,
    rows: mpsc::Sender<Result<Row>>,
    columns: mpsc::Sender<Vec<Column>>,
    /// What was read so far, by this run or an earlier one.
    num_read: u64,
    digest: Digest,
    has_answered: bool,
}

impl Asking {
    async fn run(mut self) {
        if let Err(cause) = self.ask().await {
            // Whoever reads is told, unless it has gone.
            let _ = self.rows.send(Err(cause)).await;
        }
    }

    async fn ask(&mut self) -> Result<()> {
        let mut away: Option<(Instant, Duration)> = None;
        let mut num_before = None;
        loop {
            let asked = self.ask_once().await;
            let Err(cause) = asked else { return Ok(()) };
            let said = format!("the query failed after {} rows", self.num_read);
            let gone = cause.downcast_ref::<sqlx::Error>().is_some_and(is_gone);
            // Somebody who never answered is a mistake in the address rather than a restart.
            if !gone || !self.has_answered {
                return Err(cause.context(said));
            }
            if num_before != Some(self.num_read) {
                away = None;
            }
            num_before = Some(self.num_read);
            let (since, pause) = away.unwrap_or((Instant::now(), FIRST_PAUSE));
            if since.elapsed() > MAX_AWAY {
                let away = format!("the database was away for {} s", MAX_AWAY.as_secs());
                return Err(cause.context(said).context(away));
            }
            sleep(pause).await;
            away = Some((since, (pause * 2).min(LONGEST_PAUSE)));
        }
    }

    async fn ask_once(&mut self) -> Result<()> {
        let mut database = Connection::open(self.dialect, &self.url, true).await?;
        let mut rows = database.rows(&self.query);
        let (mut num, mut digest) = (0, digest_of("")?);
        while let Some(row) = rows.next().await {
            let (columns, cells) = row?;
            self.has_answered = true;
            if let Some(columns) = columns {
                let _ = self.columns.try_send(columns);
            }
            digest = next_digest(&digest, &cells);
            num += 1;
            if num < self.num_read {
                continue;
            }
            if num == self.num_read {
                self.check(&digest)?;
                continue;
            }
            (self.num_read, self.digest) = (num, digest);
            if self.rows.send(Ok(Row { cells, digest })).await.is_err() {
                return Ok(());
            }
        }
        ensure!(
            num >= self.num_read,
            "the query said {num} rows, and {} before: nothing more is read of it",
            self.num_read
        );
        Ok(())
    }

    fn check(&self, digest: &Digest) -> Result<()> {
        if *digest != self.digest {
            bail!(
                "the first {} rows are others than before, or in another order: add ORDER BY to \
                 the query, by a column that is different in each row",
                self.num_read
            );
        }
        Ok(())
    }
}

fn next_digest(before: &Digest, cells: &Result<Cells, String>) -> Digest {
    let mut hasher = blake3::Hasher::new();
    hasher.update(before.as_bytes());
    let text = match cells {
        Ok(cells) => serde_json::to_vec(cells).map_err(|cause| anyhow!(cause)),
        Err(why) => Ok(why.clone().into_bytes()),
    };
    hasher.update(&text.expect("cells are JSON"));
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{read_all, said};
    use super::*;
    use crate::testing::{reading, sqlite};

    fn query(path: &str, query: &str, at: &Position, reading: &Reading) -> Result<Query> {
        Query::open(Dialect::Sqlite, &format!("sqlite:{path}"), query, at, reading)
    }

    #[test]
    fn a_query_is_read_with_the_kinds_of_its_cells() {
        let (runtime, reading) = reading();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.db").display().to_string();
        let rows = "CREATE TABLE t (id INTEGER, x REAL, s TEXT, b BLOB);
            INSERT INTO t VALUES (1, 0.5, 'é', NULL), (2, NULL, '', x'ff'), (3, 2.0, 'c', 'd')";
        sqlite(&runtime, &path, rows);
        let items = read_all(|at| {
            Box::new(query(&path, "SELECT * FROM t ORDER BY id", at, &reading).unwrap())
        });
        let said: Vec<_> = items.iter().map(said).collect();
        assert_eq!(said[0], r#"{"id":1,"x":0.5,"s":"é","b":null}"#);
        assert!(said[1].contains("column \"b\""), "{said:?}");
        assert_eq!(said[2], r#"{"id":3,"x":2.0,"s":"c","b":"d"}"#);
    }

    #[test]
    fn a_query_whose_rows_have_changed_is_not_gone_on_with() {
        let (runtime, reading) = reading();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.db").display().to_string();
        sqlite(&runtime, &path, "CREATE TABLE t (id); INSERT INTO t VALUES (1), (2), (3)");
        let mut source = query(&path, "SELECT id FROM t", &Position::default(), &reading).unwrap();
        source.next().unwrap();
        let at = source.next().unwrap().unwrap().after;
        let said = query(&path, "SELECT id FROM t ORDER BY id DESC", &at, &reading);
        let said = format!("{:#}", said.err().unwrap());
        assert!(said.contains("ORDER BY"), "{said}");
        sqlite(&runtime, &path, "DELETE FROM t WHERE id > 1");
        let said = query(&path, "SELECT id FROM t", &at, &reading);
        let said = format!("{:#}", said.err().unwrap());
        assert!(said.contains("said 1 rows, and 2 before"), "{said}");
    }

    #[test]
    fn a_query_that_fails_halfway_says_after_how_many_rows() {
        let (_runtime, reading) = reading();
        let text = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 9)
            SELECT CASE WHEN i < 6 THEN i ELSE json('{') END AS i FROM n";
        let mut source = query(":memory:", text, &Position::default(), &reading).unwrap();
        for _ in 0..5 {
            source.next().unwrap().unwrap();
        }
        let said = format!("{:#}", source.next().unwrap_err());
        assert!(said.contains("failed after 5 rows") && said.contains("malformed JSON"), "{said}");
    }
}
