//! Durable answers in the coordinator's database.

use futures::future::BoxFuture;
use protocol::RequestId;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{Row as _, SqlitePool};

/// How what was asked and records are written. A release that writes them otherwise takes another.
pub(super) const FORMAT: i64 = 1;

pub(super) type Done<'c> = BoxFuture<'c, Result<(), sqlx::Error>>;

/// One of them, but for what was asked and said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) id: RequestId,
    pub(super) format: i64,
    pub(super) ended_ms: Option<i64>,
    pub(super) read_ms: Option<i64>,
}

/// All of them, in the order in which they were asked.
pub(super) async fn all(reader: &SqlitePool) -> Result<Vec<Row>, sqlx::Error> {
    let query = "SELECT id, format, ended_ms, read_ms FROM durable_requests ORDER BY position";
    let row = |row: SqliteRow| {
        Ok(Row {
            id: RequestId(row.try_get::<i64, _>(0)?.cast_unsigned()),
            format: row.try_get(1)?,
            ended_ms: row.try_get(2)?,
            read_ms: row.try_get(3)?,
        })
    };
    sqlx::query(query).fetch_all(reader).await?.into_iter().map(row).collect()
}

/// What was asked, and the parts in which records were written.
pub(super) async fn read(
    reader: &SqlitePool,
    id: RequestId,
) -> Result<Option<(Vec<u8>, Vec<Vec<u8>>)>, sqlx::Error> {
    let id = id.0.cast_signed();
    let asked = sqlx::query_scalar("SELECT asked FROM durable_requests WHERE id = ?").bind(id);
    let Some(asked) = asked.fetch_optional(reader).await? else { return Ok(None) };
    let records = "SELECT records FROM durable_records WHERE request = ? ORDER BY number";
    Ok(Some((asked, sqlx::query_scalar(records).bind(id).fetch_all(reader).await?)))
}

pub(super) fn begin(database: &mut SqliteConnection, id: RequestId, asked: Vec<u8>) -> Done<'_> {
    Box::pin(async move {
        let insert = "INSERT INTO durable_requests (id, format, asked) VALUES (?, ?, ?)";
        let insert = sqlx::query(insert).bind(id.0.cast_signed()).bind(FORMAT).bind(asked);
        insert.execute(database).await.map(drop)
    })
}

pub(super) fn add(
    database: &mut SqliteConnection,
    id: RequestId,
    (number, records): (usize, Vec<u8>),
    ended_ms: Option<i64>,
) -> Done<'_> {
    Box::pin(async move {
        let id = id.0.cast_signed();
        let insert = sqlx::query("INSERT INTO durable_records VALUES (?, ?, ?)");
        let insert = insert.bind(id).bind(number as i64).bind(records);
        insert.execute(&mut *database).await?;
        if ended_ms.is_some() {
            let end = sqlx::query("UPDATE durable_requests SET ended_ms = ? WHERE id = ?");
            end.bind(ended_ms).bind(id).execute(database).await?;
        }
        Ok(())
    })
}

pub(super) fn was_read(database: &mut SqliteConnection, id: RequestId, now_ms: i64) -> Done<'_> {
    Box::pin(async move {
        let read = "UPDATE durable_requests SET read_ms = ? WHERE id = ? AND read_ms IS NULL";
        let read = sqlx::query(read).bind(now_ms).bind(id.0.cast_signed());
        read.execute(database).await.map(drop)
    })
}

pub(super) fn forget(database: &mut SqliteConnection, ids: Vec<RequestId>) -> Done<'_> {
    Box::pin(async move {
        for id in ids {
            let delete = sqlx::query("DELETE FROM durable_requests WHERE id = ?");
            delete.bind(id.0.cast_signed()).execute(&mut *database).await?;
        }
        Ok(())
    })
}
