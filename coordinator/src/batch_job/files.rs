//! Stored files: what is known of each, and whose it is.

use std::io;

use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{QueryBuilder, Row as _, Sqlite};

use super::blobs::{Blobs, Unfinished};
use super::{Page, now_s};
use crate::store::{Store, StoreError};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// The input of a job.
    Batch,
    /// The input of a job over rows.
    Rows,
    BatchOutput,
}

impl Purpose {
    /// OpenAI's word for it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Batch => "batch",
            Self::Rows => "rows",
            Self::BatchOutput => "batch_output",
        }
    }

    pub(crate) fn of(name: &str) -> Option<Self> {
        [Self::Batch, Self::Rows, Self::BatchOutput].into_iter().find(|it| it.name() == name)
    }
}

/// What is known of a file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct StoredFile {
    /// Its name in the API.
    pub id: String,
    pub tenant: String,
    pub purpose: Purpose,
    /// As whoever handed it in calls it.
    pub filename: String,
    pub num_bytes: u64,
    /// Under which its bytes are found.
    pub hash: String,
    /// Seconds since 1970.
    pub created_s: i64,
    /// From when on it is gone.
    pub expires_s: Option<i64>,
}

/// Why a file isn't kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeepError {
    /// Its bytes can't be written.
    #[error("the file can't be kept: {0}")]
    Bytes(#[from] io::Error),
    /// What is known of it can't be.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The files; clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    store: Store,
    pub blobs: Blobs,
}

impl Files {
    /// Those of a data directory. Bytes that nobody knows are swept away: whoever wrote them was
    /// never told that they are kept.
    ///
    /// # Errors
    /// When they can't be read.
    pub(crate) async fn open(store: Store, blobs: Blobs) -> Result<Self, KeepError> {
        let this = Self { store, blobs };
        for hash in this.blobs.all()? {
            this.sweep(&hash).await?;
        }
        Ok(this)
    }

    /// Keeps what was written: it is on the disk when this returns. Whoever goes away meanwhile
    /// changes nothing: a name that is known has its bytes.
    ///
    /// # Errors
    /// When it can't be.
    pub(crate) async fn keep(
        &self,
        bytes: Unfinished,
        what: impl FnOnce(u64, String) -> StoredFile + Send + 'static,
    ) -> Result<StoredFile, KeepError> {
        let this = self.clone();
        // Dropped in the middle, it would let the names go while they are still written.
        let kept = tokio::spawn(async move {
            let num_bytes = bytes.num_bytes();
            let _names = this.blobs.names.lock().await;
            let hash = finish(bytes).await?;
            let file = what(num_bytes, hash);
            let kept = file.clone();
            this.store
                .write(move |database| Box::pin(async move { insert(database, &kept).await }))
                .await?;
            Ok(file)
        });
        kept.await.map_err(io::Error::other)?
    }

    /// The file of this name, unless its time is up.
    ///
    /// # Errors
    /// When it can't be read.
    pub(crate) async fn get(&self, id: &str) -> Result<Option<StoredFile>, StoreError> {
        let query = sqlx::query("SELECT * FROM files WHERE id = ? AND coalesce(expires_s > ?, 1)");
        let row = query.bind(id).bind(now_s()).fetch_optional(self.store.reader()).await?;
        Ok(row.as_ref().map(file_of).transpose()?)
    }

    /// Those of a tenant, or all.
    ///
    /// # Errors
    /// When they can't be read.
    pub(crate) async fn list(
        &self,
        tenant: Option<&str>,
        purpose: Option<Purpose>,
        page: &Page,
    ) -> Result<Vec<StoredFile>, StoreError> {
        let mut query = QueryBuilder::<Sqlite>::new("SELECT * FROM files WHERE coalesce(expires_s");
        query.push(" > ").push_bind(now_s()).push(", 1)");
        if let Some(tenant) = tenant {
            query.push(" AND tenant = ").push_bind(tenant);
        }
        if let Some(purpose) = purpose {
            query.push(" AND purpose = ").push_bind(purpose.name());
        }
        page.push(&mut query, "files");
        let rows = query.build().fetch_all(self.store.reader()).await?;
        Ok(rows.iter().map(file_of).collect::<Result<_, _>>()?)
    }

    /// Bytes of all files together.
    ///
    /// # Errors
    /// When it can't be read.
    pub(crate) async fn num_bytes(&self) -> Result<u64, StoreError> {
        let query = sqlx::query_scalar("SELECT coalesce(sum(num_bytes), 0) FROM files");
        let num: i64 = query.fetch_one(self.store.reader()).await?;
        Ok(num.unsigned_abs())
    }

    /// Forgets a file; its bytes go when nothing else needs them.
    ///
    /// # Errors
    /// When it can't be.
    pub(crate) async fn delete(&self, file: &StoredFile) -> Result<(), KeepError> {
        let (this, id, hash) = (self.clone(), file.id.clone(), file.hash.clone());
        // Dropped in the middle, it would leave bytes that nobody knows.
        let deleted = tokio::spawn(async move {
            let delete = this.store.write(move |database| {
                Box::pin(async move {
                    let delete = sqlx::query("DELETE FROM files WHERE id = ?").bind(id);
                    delete.execute(database).await?;
                    Ok(())
                })
            });
            delete.await?;
            this.sweep(&hash).await
        });
        deleted.await.map_err(io::Error::other)?
    }

    /// Forgets those whose time is up.
    ///
    /// # Errors
    /// When they can't be.
    pub(crate) async fn expire(&self) -> Result<(), KeepError> {
        let query = sqlx::query("SELECT * FROM files WHERE expires_s <= ? LIMIT 1000");
        let rows = query.bind(now_s()).fetch_all(self.store.reader()).await;
        for row in rows.map_err(StoreError::from)? {
            self.delete(&file_of(&row).map_err(StoreError::from)?).await?;
        }
        Ok(())
    }

    /// Takes bytes away that neither a file nor a job that hasn't ended needs.
    ///
    /// # Errors
    /// When they can't be.
    pub(crate) async fn sweep(&self, hash: &str) -> Result<(), KeepError> {
        let _names = self.blobs.names.lock().await;
        let query = sqlx::query_scalar(
            "SELECT EXISTS (SELECT 1 FROM files WHERE hash = ?1) OR EXISTS (SELECT 1 FROM batches
             WHERE input_hash = ?1
             AND status IN ('validating', 'in_progress', 'finalizing', 'cancelling'))",
        );
        let is_needed: bool =
            query.bind(hash).fetch_one(self.store.reader()).await.map_err(StoreError::from)?;
        if !is_needed {
            self.blobs.remove(hash)?;
        }
        Ok(())
    }
}

/// Flushes bytes where that holds up nobody else.
pub(super) async fn finish(bytes: Unfinished) -> io::Result<String> {
    let finished = tokio::task::spawn_blocking(move || bytes.finish()).await;
    finished.unwrap_or_else(|cause| Err(io::Error::other(cause)))
}

/// Makes a file known.
pub(super) async fn insert(
    database: &mut SqliteConnection,
    file: &StoredFile,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO files (id, tenant, purpose, filename, num_bytes, hash, created_s, expires_s)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(&file.id)
    .bind(&file.tenant)
    .bind(file.purpose.name())
    .bind(&file.filename)
    .bind(i64::try_from(file.num_bytes).unwrap_or(i64::MAX))
    .bind(&file.hash)
    .bind(file.created_s)
    .bind(file.expires_s)
    .execute(database)
    .await?;
    Ok(())
}

fn file_of(row: &SqliteRow) -> Result<StoredFile, sqlx::Error> {
    let purpose: String = row.try_get("purpose")?;
    Ok(StoredFile {
        id: row.try_get("id")?,
        tenant: row.try_get("tenant")?,
        purpose: Purpose::of(&purpose).unwrap_or(Purpose::Batch),
        filename: row.try_get("filename")?,
        num_bytes: row.try_get::<i64, _>("num_bytes")?.unsigned_abs(),
        hash: row.try_get("hash")?,
        created_s: row.try_get("created_s")?,
        expires_s: row.try_get("expires_s")?,
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::super::Order;
    use super::*;

    async fn keep(files: &Files, id: &str, bytes: &[u8], expires_s: Option<i64>) -> StoredFile {
        let mut blob = files.blobs.begin().unwrap();
        blob.write_all(bytes).unwrap();
        let id = id.to_owned();
        let what = move |num_bytes, hash| StoredFile {
            id,
            tenant: "lab".into(),
            purpose: Purpose::Batch,
            filename: "a.jsonl".into(),
            num_bytes,
            hash,
            created_s: now_s(),
            expires_s,
        };
        files.keep(blob, what).await.unwrap()
    }

    async fn open(dir: &std::path::Path) -> Files {
        let store = Store::open(dir).await.unwrap();
        Files::open(store, Blobs::open(dir).unwrap()).await.unwrap()
    }

    #[tokio::test]
    async fn bytes_stay_as_long_as_a_file_needs_them_and_no_longer() {
        let dir = tempfile::tempdir().unwrap();
        let files = open(dir.path()).await;
        let (one, two) = (keep(&files, "a", b"x", None).await, keep(&files, "b", b"x", None).await);
        assert_eq!(one.hash, two.hash);
        assert_eq!(files.num_bytes().await.unwrap(), 2);
        files.delete(&one).await.unwrap();
        assert_eq!(files.get("a").await.unwrap(), None);
        assert_eq!(files.get("b").await.unwrap(), Some(two.clone()));
        assert!(files.blobs.read(&two.hash).is_ok());
        files.delete(&two).await.unwrap();
        assert_eq!(files.blobs.all().unwrap(), [""; 0]);
        // Whose time is up looks as if it weren't there, and soon isn't.
        let late = keep(&files, "c", b"y", Some(now_s())).await;
        assert_eq!(files.get("c").await.unwrap(), None);
        assert!(files.blobs.read(&late.hash).is_ok());
        files.expire().await.unwrap();
        assert_eq!(files.blobs.all().unwrap(), [""; 0]);
    }

    /// Goal: nothing is left of a file whose handing in was cut off between its bytes and its name.
    #[tokio::test]
    async fn bytes_that_nobody_knows_are_swept_away_at_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let known = {
            let files = open(dir.path()).await;
            let mut blob = files.blobs.begin().unwrap();
            blob.write_all(b"unknown").unwrap();
            blob.finish().unwrap();
            keep(&files, "a", b"known", None).await
        };
        let files = open(dir.path()).await;
        assert_eq!(files.blobs.all().unwrap(), [known.hash]);
    }

    /// Goal: who disconnects while a file is kept leaves a file that is whole. Method: the future
    /// is dropped after its first look, while the bytes are flushed.
    #[tokio::test]
    async fn a_file_is_kept_though_nobody_waits_for_it_any_more() {
        let dir = tempfile::tempdir().unwrap();
        let files = open(dir.path()).await;
        let names = files.blobs.names.lock().await;
        let waiting = keep(&files, "a", b"x", None);
        assert!(futures::poll!(std::pin::pin!(waiting)).is_pending());
        drop(names);
        let start = std::time::Instant::now();
        while files.get("a").await.unwrap().is_none() {
            assert!(start.elapsed() < std::time::Duration::from_secs(60), "it is never kept");
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        let file = files.get("a").await.unwrap().unwrap();
        assert!(files.blobs.read(&file.hash).is_ok());
    }

    /// Goal: who disconnects while a file is deleted leaves no bytes behind. Method: the future is
    /// dropped after its first look, while the name is written.
    #[tokio::test]
    async fn bytes_of_a_file_are_gone_though_nobody_waits_for_that_any_more() {
        let dir = tempfile::tempdir().unwrap();
        let files = open(dir.path()).await;
        let file = keep(&files, "a", b"x", None).await;
        assert!(futures::poll!(std::pin::pin!(files.delete(&file))).is_pending());
        let start = std::time::Instant::now();
        while !files.blobs.all().unwrap().is_empty() {
            assert!(start.elapsed() < std::time::Duration::from_secs(60), "they stay");
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    }

    #[tokio::test]
    async fn lists_go_on_behind_the_last_of_a_page() {
        let dir = tempfile::tempdir().unwrap();
        let files = open(dir.path()).await;
        for id in ["a", "b", "c"] {
            keep(&files, id, b"x", None).await;
        }
        let list = async |order, after: Option<&str>, limit| {
            let page = Page { limit, after: after.map(str::to_owned), order };
            let found = files.list(Some("lab"), Some(Purpose::Batch), &page).await.unwrap();
            found.into_iter().map(|it| it.id).collect::<Vec<_>>()
        };
        assert_eq!(list(Order::Descending, None, 2).await, ["c", "b"]);
        assert_eq!(list(Order::Descending, Some("b"), 2).await, ["a"]);
        assert_eq!(list(Order::Ascending, Some("a"), 9).await, ["b", "c"]);
        assert_eq!(list(Order::Ascending, Some("gone"), 9).await, [""; 0]);
        let all = Page { limit: 9, after: None, order: Order::Ascending };
        assert!(files.list(Some("others"), None, &all).await.unwrap().is_empty());
        assert!(files.list(None, Some(Purpose::BatchOutput), &all).await.unwrap().is_empty());
    }
}
