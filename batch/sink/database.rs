//! A table: rows are inserted, or take the place of those with the same id, so that one that comes
//! twice is there once.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rows::row::{Cells, Column, Kind, check_known, text_of};
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection as _, MySql, QueryBuilder, Sqlite};

use super::{Sink, Writing};
use crate::address::Dialect;
use crate::database::{Connection, is_gone};

/// Rows and bytes of one transaction, and values of one statement, of which SQLite takes 32,766;
/// MariaDB takes 16 MiB.
const MAX_ROWS: usize = 500;
const MAX_BYTES: usize = 2 << 20;
const MAX_VALUES: usize = 30_000;
/// How long a database may be away.
const MAX_AWAY: Duration = Duration::from_secs(300);
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

pub(super) struct Table {
    dialect: Dialect,
    url: String,
    table: String,
    columns: Vec<Column>,
    id: String,
    writing: Writing,
    database: Option<Connection>,
    rows: Vec<Cells>,
    num_bytes: usize,
    next: u64,
    kept: u64,
}

impl Table {
    pub(super) fn open(
        dialect: Dialect,
        url: &str,
        table: &str,
        columns: &[Column],
        kept: u64,
        writing: &Writing,
    ) -> Result<Self> {
        let id = writing
            .id
            .clone()
            .context("rows are found again in a table by one of their columns: --id says which")?;
        let (url, columns, writing) = (url.to_owned(), columns.to_vec(), writing.clone());
        let mut sink = Self {
            dialect,
            url,
            table: table.to_owned(),
            columns,
            id,
            writing,
            database: None,
            rows: Vec::new(),
            num_bytes: 0,
            next: 0,
            kept,
        };
        if sink.columns.is_empty() {
            // There were no rows.
            return Ok(sink);
        }
        let has_id = sink.columns.iter().any(|column| column.name == sink.id);
        ensure!(has_id, "the rows have no column {:?}, which --id names", sink.id);
        let writing = sink.writing.clone();
        writing
            .wait(sink.prepare())?
            .with_context(|| format!("rows can't be written to the table {}", sink.table))?;
        Ok(sink)
    }

    /// Makes the table where there is none, and looks whether rows would be found again.
    async fn prepare(&mut self) -> Result<()> {
        let database = Connection::open(self.dialect, &self.url, false).await?;
        let columns = self.columns.iter().map(|column| {
            let kind = self.sql_kind(column);
            format!("{} {kind}", self.quoted(&column.name))
        });
        let columns = columns.collect::<Vec<_>>().join(", ");
        let create = format!("CREATE TABLE IF NOT EXISTS {} ({columns})", self.quoted_table());
        // Nothing is inserted, and all is looked at that inserting needs, no more.
        let (table, names, end) = (self.quoted_table(), self.names(), self.on_conflict());
        let none = match self.dialect {
            Dialect::Postgres => format!("json_populate_recordset(NULL::{table}, '[]')"),
            _ => format!("{table} WHERE false"),
        };
        let nothing = format!("INSERT INTO {table} ({names}) SELECT {names} FROM {none} {end}");
        let what = format!(
            "its columns must be {names} at least, and {} its primary key or have a unique index",
            self.quoted(&self.id)
        );
        let explained = |cause: sqlx::Error| match is_of_columns(&cause) {
            true => anyhow::Error::from(cause).context(what),
            false => cause.into(),
        };
        match self.database.insert(database) {
            Connection::Sqlite(it) => {
                sqlx::raw_sql(AssertSqlSafe(create)).execute(&mut **it).await?;
                let tried = sqlx::raw_sql(AssertSqlSafe(nothing)).execute(&mut **it).await;
                tried.map_err(explained)?;
            }
            Connection::Postgres(it) => {
                sqlx::raw_sql(AssertSqlSafe(create)).execute(&mut **it).await?;
                let tried = sqlx::raw_sql(AssertSqlSafe(nothing)).execute(&mut **it).await;
                tried.map_err(explained)?;
            }
            Connection::Mysql(it) => {
                let create = format!("{create} DEFAULT CHARACTER SET utf8mb4");
                sqlx::raw_sql(AssertSqlSafe(create)).execute(&mut **it).await?;
                // It would insert a row twice without a word, also where the index is of several
                // columns, one of which is null; or it would take the place of another, where
                // the index is of the first characters only.
                let query = "SELECT count(*) FROM information_schema.statistics
                    WHERE table_schema = coalesce(?, database()) AND table_name = ?
                    AND non_unique = 0 GROUP BY index_name HAVING count(*) = 1
                    AND min(column_name = ?) = 1 AND count(sub_part) = 0";
                let (schema, table) = match self.table.split_once('.') {
                    Some((schema, table)) => (Some(schema), table),
                    None => (None, self.table.as_str()),
                };
                let query = sqlx::query_scalar::<_, i64>(query);
                let query = query.bind(schema).bind(table).bind(&self.id);
                let found = query.fetch_optional(&mut **it).await?;
                let why = "has no unique index of its own";
                ensure!(found.is_some(), "its column {:?} {why}", self.id);
            }
        }
        Ok(())
    }

    fn sql_kind(&self, column: &Column) -> String {
        let kind = match (self.dialect, column.kind) {
            (Dialect::Sqlite, Kind::Bool | Kind::Int) => "INTEGER",
            (_, Kind::Bool) => "BOOLEAN",
            (_, Kind::Int) => "BIGINT",
            (Dialect::Sqlite, Kind::Float) => "REAL",
            (_, Kind::Float) => "DOUBLE PRECISION",
            // An index has a longest text; capitals and spaces make another id, and no comparison
            // of texts that both MariaDB and MySQL have minds spaces at their ends.
            (Dialect::Mysql, _) if column.name == self.id => "VARBINARY(1020)",
            (Dialect::Mysql, _) => "LONGTEXT",
            (_, _) => "TEXT",
        };
        let end = if column.name == self.id { " NOT NULL PRIMARY KEY" } else { "" };
        format!("{kind}{end}")
    }

    fn quoted(&self, name: &str) -> String {
        match self.dialect {
            Dialect::Mysql => format!("`{}`", name.replace('`', "``")),
            _ => format!("\"{}\"", name.replace('"', "\"\"")),
        }
    }

    /// A dot stands between a schema and its table.
    fn quoted_table(&self) -> String {
        self.table.split('.').map(|part| self.quoted(part)).collect::<Vec<_>>().join(".")
    }

    fn names(&self) -> String {
        let names = self.columns.iter().map(|column| self.quoted(&column.name));
        names.collect::<Vec<_>>().join(", ")
    }

    /// What is done with a row whose id is there.
    fn on_conflict(&self) -> String {
        let others = self.columns.iter().filter(|column| column.name != self.id);
        let others = others.map(|column| self.quoted(&column.name));
        let id = self.quoted(&self.id);
        if self.dialect == Dialect::Mysql {
            let others = others.chain([id]);
            let set: Vec<_> = others.map(|name| format!("{name} = VALUES({name})")).collect();
            return format!("ON DUPLICATE KEY UPDATE {}", set.join(", "));
        }
        let set: Vec<_> = others.map(|name| format!("{name} = excluded.{name}")).collect();
        match set.is_empty() {
            true => format!("ON CONFLICT ({id}) DO NOTHING"),
            false => format!("ON CONFLICT ({id}) DO UPDATE SET {}", set.join(", ")),
        }
    }

    /// Writes the rows that wait: all of them or none.
    async fn write_once(&mut self) -> Result<()> {
        let mut database = match self.database.take() {
            Some(database) => database,
            None => Connection::open(self.dialect, &self.url, false).await?,
        };
        let (table, names, end) = (self.quoted_table(), self.names(), self.on_conflict());
        let begin = format!("INSERT INTO {table} ({names}) ");
        let rows_together = (MAX_VALUES / self.columns.len()).max(1);
        match &mut database {
            Connection::Postgres(database) => {
                // The server reads each value as its column's kind, whatever that is.
                let rows = serde_json::to_string(&self.rows)?;
                let statement = format!(
                    "{begin} SELECT {names} FROM json_populate_recordset(NULL::{table}, \
                     $1::text::json) {end}"
                );
                let query = sqlx::query(AssertSqlSafe(statement)).bind(rows);
                query.execute(&mut **database).await?;
            }
            Connection::Mysql(database) => {
                let mut transaction = database.begin().await?;
                for rows in self.rows.chunks(rows_together) {
                    let mut query = QueryBuilder::<MySql>::new(&begin);
                    query.push_values(rows, |mut values, row| {
                        for column in &self.columns {
                            values.push_bind(mysql_text(row.get(&column.name)));
                        }
                    });
                    query.push(" ").push(&end);
                    query.build().persistent(false).execute(&mut *transaction).await?;
                }
                transaction.commit().await?;
            }
            Connection::Sqlite(database) => {
                let mut transaction = database.begin().await?;
                for rows in self.rows.chunks(rows_together) {
                    let mut query = QueryBuilder::<Sqlite>::new(&begin);
                    query.push_values(rows, |mut values, row| {
                        for column in &self.columns {
                            match row.get(&column.name).unwrap_or(&Value::Null) {
                                Value::Null => values.push_bind(None::<String>),
                                Value::Bool(value) => values.push_bind(*value),
                                Value::Number(number) if number.is_i64() => {
                                    values.push_bind(number.as_i64())
                                }
                                Value::Number(number) if number.is_f64() => {
                                    values.push_bind(number.as_f64())
                                }
                                other => values.push_bind(text_of(other).into_owned()),
                            };
                        }
                    });
                    query.push(" ").push(&end);
                    query.build().persistent(false).execute(&mut *transaction).await?;
                }
                transaction.commit().await?;
            }
        }
        self.database = Some(database);
        Ok(())
    }

    fn send(&mut self) -> Result<()> {
        if self.rows.is_empty() {
            return Ok(());
        }
        let (since, mut pause) = (Instant::now(), FIRST_PAUSE);
        let writing = self.writing.clone();
        while let Err(cause) = writing.wait(self.write_once())? {
            let gone = cause.downcast_ref::<sqlx::Error>().is_some_and(is_gone);
            if !gone || since.elapsed() > MAX_AWAY {
                let table = &self.table;
                return Err(cause.context(format!("rows can't be written to the table {table}")));
            }
            writing.wait(async { tokio::time::sleep(pause).await })?;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        self.rows.clear();
        self.num_bytes = 0;
        self.kept = self.next;
        Ok(())
    }
}

/// Whether a statement names columns that aren't there, or an id that isn't unique: by PostgreSQL's
/// codes, and SQLite's for errors in statements. Who may write, or must wait, is another matter.
fn is_of_columns(cause: &sqlx::Error) -> bool {
    let code = cause.as_database_error().and_then(|it| it.code());
    code.is_some_and(|code| ["42703", "42P10", "1"].contains(&&*code))
}

/// The server makes of a text what its column is.
fn mysql_text(cell: Option<&Value>) -> Option<String> {
    match cell {
        None | Some(Value::Null) => None,
        Some(Value::Bool(value)) => Some(u8::from(*value).to_string()),
        Some(cell) => Some(text_of(cell).into_owned()),
    }
}

impl Sink for Table {
    fn write(&mut self, row: u64, cells: Cells) -> Result<()> {
        if let Err(name) = check_known(&self.columns, &cells) {
            bail!("row {} has a column {name:?}, which the table has not", row + 1);
        }
        self.num_bytes += cells.values().map(|cell| text_of(cell).len()).sum::<usize>();
        self.rows.push(cells);
        self.next = row + 1;
        if self.rows.len() == MAX_ROWS || self.num_bytes >= MAX_BYTES {
            self.send()?;
        }
        Ok(())
    }

    fn kept(&self) -> u64 {
        self.kept
    }

    fn finish(mut self: Box<Self>) -> Result<()> {
        self.send()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::{Trial, reading};

    #[test]
    fn rows_that_are_long_are_sent_before_they_are_many() {
        let (runtime, _) = reading();
        let dir = tempfile::tempdir().unwrap();
        let trial = Trial { id: Some("id"), ..Trial::new(dir.path(), "in.csv", "out.csv") };
        let writing = trial.writing(&runtime);
        let url = format!("sqlite:{}", dir.path().join("a.db").display());
        let columns = [Column::new("id", Kind::Int), Column::new("list", Kind::Text)];
        let mut table = Table::open(Dialect::Sqlite, &url, "t", &columns, 0, &writing).unwrap();
        for row in 0..5 {
            let cells = json!({"id": row, "list": ["x".repeat(MAX_BYTES / 2)]});
            table.write(row, cells.as_object().unwrap().clone()).unwrap();
        }
        assert_eq!(table.kept(), 4);
    }
}
