//! What tests of several files need.

use sqlx::Connection as _;
use tokio::runtime::Runtime;

use crate::http::Http;
use crate::object::Objects;
use crate::source::Reading;

/// What sources are opened with, and what it runs on.
pub(crate) fn reading() -> (Runtime, Reading) {
    let runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = { runtime }.worker_threads(2).enable_all().build().unwrap();
    let handle = runtime.handle().clone();
    let objects = Objects::new(Http::new().unwrap(), handle.clone());
    (runtime, Reading { max_row_bytes: 1 << 20, runtime: handle, objects })
}

/// Does something to a file of SQLite.
pub(crate) fn sqlite(runtime: &Runtime, path: &str, statements: &'static str) {
    runtime.block_on(async {
        let url = format!("sqlite:{path}?mode=rwc");
        let mut database = sqlx::SqliteConnection::connect(&url).await.unwrap();
        sqlx::raw_sql(statements).execute(&mut database).await.unwrap();
    });
}
