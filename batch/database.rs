//! Databases of others, each through its own driver: what rows are made of, and who has gone.

use std::str::FromStr as _;

use anyhow::{Context as _, Result};
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use rows::row::{Cells, Column, Kind};
use serde_json::Value;
use sqlx::mysql::{MySqlConnection, MySqlRow};
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteRow};
use sqlx::{AssertSqlSafe, Column as _, ConnectOptions as _, Connection as _};
use sqlx::{Row as _, TypeInfo as _, ValueRef as _};

use crate::address::Dialect;

/// An open connection.
pub(crate) enum Connection {
    Sqlite(Box<SqliteConnection>),
    Postgres(Box<PgConnection>),
    Mysql(Box<MySqlConnection>),
}

/// The columns, with the first row only; and the cells, or why one can't be read.
pub(crate) type Read = (Option<Vec<Column>>, Result<Cells, String>);

impl Connection {
    /// Connects; to read only where that can be said.
    pub(crate) async fn open(dialect: Dialect, url: &str, to_read: bool) -> Result<Self> {
        Ok(match dialect {
            Dialect::Sqlite => {
                let options = SqliteConnectOptions::from_str(url).context("no SQLite address")?;
                let options = options.read_only(to_read && !url.contains(":memory:"));
                Self::Sqlite(Box::new(options.create_if_missing(!to_read).connect().await?))
            }
            Dialect::Postgres => Self::Postgres(Box::new(PgConnection::connect(url).await?)),
            Dialect::Mysql => Self::Mysql(Box::new(MySqlConnection::connect(url).await?)),
        })
    }

    /// What a query says, row by row as they come. What is typed by whoever runs the command is
    /// its own affair: nothing of a row becomes a part of it.
    pub(crate) fn rows(&mut self, query: &str) -> BoxStream<'_, sqlx::Result<Read>> {
        let query = sqlx::raw_sql(AssertSqlSafe(query.to_owned()));
        // Servers say every value as text where a query isn't prepared: no type is unknown.
        let mut is_first = true;
        let mut first = move || std::mem::take(&mut is_first);
        match self {
            Self::Sqlite(database) => {
                let rows = query.fetch(&mut **database);
                rows.map_ok(move |row| {
                    let columns = first().then(|| columns_of(row.columns(), kind_of_sqlite));
                    (columns, cells_of(&row, sqlite_cell))
                })
                .boxed()
            }
            Self::Postgres(database) => {
                let rows = query.fetch(&mut **database);
                rows.map_ok(move |row| {
                    let columns = first().then(|| columns_of(row.columns(), kind_of_postgres));
                    (columns, cells_of(&row, postgres_cell))
                })
                .boxed()
            }
            Self::Mysql(database) => {
                let rows = query.fetch(&mut **database);
                rows.map_ok(move |row| {
                    let columns = first().then(|| columns_of(row.columns(), kind_of_mysql));
                    (columns, cells_of(&row, mysql_cell))
                })
                .boxed()
            }
        }
    }
}

fn columns_of<C: sqlx::Column>(columns: &[C], kind: fn(&str) -> Kind) -> Vec<Column> {
    let columns = columns.iter();
    columns.map(|it| Column::new(it.name(), kind(it.type_info().name()))).collect()
}

fn cells_of<R: sqlx::Row>(
    row: &R,
    cell: fn(&R, usize) -> sqlx::Result<Value>,
) -> Result<Cells, String> {
    let mut cells = Cells::new();
    for column in row.columns() {
        let name = column.name();
        let cell = cell(row, column.ordinal());
        let cell = cell.map_err(|_| format!("column {name:?} holds bytes that are no text"))?;
        if cells.insert(name.to_owned(), cell).is_some() {
            return Err(format!("two columns are called {name:?}: name one with AS"));
        }
    }
    Ok(cells)
}

fn sqlite_cell(row: &SqliteRow, index: usize) -> sqlx::Result<Value> {
    let raw = row.try_get_raw(index)?;
    if raw.is_null() {
        return Ok(Value::Null);
    }
    let kind = raw.type_info().name().to_owned();
    Ok(match kind.as_str() {
        "INTEGER" | "BOOLEAN" => row.try_get_unchecked::<i64, _>(index)?.into(),
        "REAL" => number(row.try_get_unchecked::<f64, _>(index)?),
        _ => row.try_get_unchecked::<String, _>(index)?.into(),
    })
}

fn postgres_cell(row: &PgRow, index: usize) -> sqlx::Result<Value> {
    let name = row.column(index).type_info().name();
    let text = row.try_get_unchecked::<Option<String>, _>(index)?;
    Ok(cell_of(text, name, kind_of_postgres(name)))
}

fn mysql_cell(row: &MySqlRow, index: usize) -> sqlx::Result<Value> {
    let name = row.column(index).type_info().name();
    let text = row.try_get_unchecked::<Option<String>, _>(index)?;
    Ok(cell_of(text, name, kind_of_mysql(name)))
}

/// What a server says of a value whose type has this name. What can't be read as its kind stays
/// text.
fn cell_of(text: Option<String>, name: &str, kind: Kind) -> Value {
    let Some(text) = text else { return Value::Null };
    if matches!(name, "JSON" | "JSONB") {
        // A template names what is in it, and a column of its type takes it as it was.
        return serde_json::from_str(&text).unwrap_or(Value::String(text));
    }
    let read = match kind {
        Kind::Bool => match text.as_str() {
            "t" | "1" | "true" => Some(Value::Bool(true)),
            "f" | "0" | "false" => Some(Value::Bool(false)),
            _ => None,
        },
        Kind::Int => text.parse::<i64>().ok().map(Value::from),
        Kind::Float => text.parse::<f64>().ok().map(number).filter(|it| !it.is_null()),
        Kind::Null | Kind::Text => None,
    };
    read.unwrap_or(Value::String(text))
}

/// JSON has neither infinities nor NaN.
fn number(number: f64) -> Value {
    serde_json::Number::from_f64(number).map_or(Value::Null, Value::Number)
}

fn kind_of_sqlite(name: &str) -> Kind {
    match name {
        "INTEGER" | "BOOLEAN" => Kind::Int,
        "REAL" => Kind::Float,
        _ => Kind::Text,
    }
}

/// Decimals stay text: a float would lose their digits.
fn kind_of_postgres(name: &str) -> Kind {
    match name {
        "BOOL" => Kind::Bool,
        "INT2" | "INT4" | "INT8" => Kind::Int,
        "FLOAT4" | "FLOAT8" => Kind::Float,
        _ => Kind::Text,
    }
}

fn kind_of_mysql(name: &str) -> Kind {
    match name {
        "BOOLEAN" => Kind::Bool,
        "BIGINT UNSIGNED" => Kind::Text,
        "FLOAT" | "DOUBLE" => Kind::Float,
        "YEAR" => Kind::Int,
        name if name.contains("INT") => Kind::Int,
        _ => Kind::Text,
    }
}

/// Whether a database went away in the middle, and may be back soon.
pub(crate) fn is_gone(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::Tls(_) => true,
        sqlx::Error::Database(said) => {
            let code = said.code().unwrap_or_default();
            // PostgreSQL: connections' failures, and a server that stops or starts. MySQL numbers:
            // too many connections, a server that stops, a connection that was killed.
            let mysql = said.try_downcast_ref::<sqlx::mysql::MySqlDatabaseError>();
            code.starts_with("08")
                || code.starts_with("57P")
                || mysql.is_some_and(|said| matches!(said.number(), 1040 | 1053 | 1927))
        }
        _ => false,
    }
}
