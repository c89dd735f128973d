//! Where rows come from and go to, as `--input` and `--output` say it.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

/// How rows lie in a file.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub enum Format {
    /// A JSON object on each line.
    Jsonl,
    /// Comma-separated values under a header.
    Csv,
    /// One array of JSON objects.
    Json,
    /// Apache Parquet.
    Parquet,
}

impl Format {
    /// By the end of a file's name.
    fn of(name: &str) -> Result<Self> {
        let end = name.rsplit_once('.').map_or("", |(_, end)| end);
        Ok(match end.to_ascii_lowercase().as_str() {
            "jsonl" | "ndjson" => Self::Jsonl,
            "csv" => Self::Csv,
            "json" => Self::Json,
            "parquet" => Self::Parquet,
            _ => bail!(
                "{name:?} doesn't say how rows lie in it: use a name that ends in .jsonl, .csv, \
                 .json or .parquet, or --input-format and --output-format"
            ),
        })
    }
}

/// Which database speaks there.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Dialect {
    /// A file.
    Sqlite,
    /// PostgreSQL.
    Postgres,
    /// MySQL or MariaDB.
    Mysql,
}

/// A place of rows.
#[derive(Clone, Eq, PartialEq)]
pub enum Address {
    /// A file of this machine.
    File(PathBuf, Format),
    /// A directory whose files are texts, a row each.
    Folder(PathBuf),
    /// Standard input.
    Stdin(Format),
    /// An object of an S3-compatible store.
    Object {
        /// As the store's API names it.
        bucket: String,
        /// Without a slash in front.
        key: String,
        /// How rows lie in it.
        format: Format,
    },
    /// A database, with a query to read or a table to write.
    Database {
        /// Named by the URL's scheme.
        dialect: Dialect,
        /// As the database's driver takes it, without what is ours.
        url: String,
        /// The query or the table.
        what: String,
    },
    /// A server that takes rows.
    Http(String),
}

/// What an address is wanted for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Direction {
    /// To read rows.
    Input,
    /// To write rows.
    Output,
}

impl Address {
    /// Whether its rows may be others, or stand elsewhere, when they are read again, so that only
    /// those before a position are known by their numbers. A file or an object says by itself that
    /// it has changed.
    pub(crate) fn may_change(&self) -> bool {
        matches!(self, Self::Folder(_) | Self::Database { .. })
    }

    /// Reads what `--input` or `--output` says; `format` overrules a file's name.
    ///
    /// # Errors
    /// When there is no such place, or it can't be used so.
    pub fn parse(text: &str, format: Option<Format>, direction: Direction) -> Result<Self> {
        let format_of = |name: &str| format.map_or_else(|| Format::of(name), Ok);
        let address = match text.split_once(':') {
            Some(("sqlite", rest)) => {
                let rest = rest.strip_prefix("//").unwrap_or(rest);
                database(Dialect::Sqlite, "sqlite:", rest, direction)?
            }
            Some(("postgres" | "postgresql", rest)) => {
                database(Dialect::Postgres, "postgres:", rest, direction)?
            }
            Some(("mysql" | "mariadb", rest)) => {
                database(Dialect::Mysql, "mysql:", rest, direction)?
            }
            Some(("s3", rest)) => {
                let rest = rest.strip_prefix("//").unwrap_or(rest);
                let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
                ensure!(
                    !bucket.is_empty() && !key.is_empty(),
                    "{text:?} names no object: use s3://BUCKET/KEY"
                );
                let format = format_of(key)?;
                Self::Object { bucket: bucket.into(), key: key.into(), format }
            }
            Some(("http" | "https", _)) => Self::Http(text.into()),
            _ if text == "-" => {
                let format =
                    format.context("standard input has no name: --input-format says what it is")?;
                Self::Stdin(format)
            }
            _ if Path::new(text).is_dir() => Self::Folder(text.into()),
            _ => Self::File(text.into(), format_of(text)?),
        };
        match (&address, direction) {
            (Self::Http(_), Direction::Input) => {
                bail!("rows aren't read from a web server: fetch the file first")
            }
            (Self::Stdin(Format::Parquet), _) => {
                bail!("a Parquet file is read from its end: save standard input to a file first")
            }
            (Self::Folder(path), Direction::Output) => {
                bail!("{} is a directory: name a file in it", path.display())
            }
            (Self::Stdin(_), Direction::Output) => {
                bail!("what is written to standard output can't be resumed: name a file")
            }
            (Self::File(_, Format::Json) | Self::Object { format: Format::Json, .. }, _)
                if direction == Direction::Output =>
            {
                bail!("answers are written as .jsonl, .csv or .parquet, not as one .json array")
            }
            _ => Ok(address),
        }
    }
}

/// Takes our parameter out of a database's address: `query` to read, `table` to write.
fn database(dialect: Dialect, scheme: &str, rest: &str, direction: Direction) -> Result<Address> {
    let ours = if direction == Direction::Input { "query" } else { "table" };
    let (before, parameters) = rest.split_once('?').unwrap_or((rest, ""));
    let (mut what, mut others) = (None, Vec::new());
    // A query may hold `&`, unescaped, as a person types it: ours is the last then.
    let mut left = parameters;
    while !left.is_empty() {
        if let Some(text) = left.strip_prefix(ours).and_then(|left| left.strip_prefix('=')) {
            what = Some(unescape(text)?);
            break;
        }
        let (parameter, next) = left.split_once('&').unwrap_or((left, ""));
        others.push(parameter);
        left = next;
    }
    let what = what.filter(|what| !what.trim().is_empty());
    let what = what.with_context(|| {
        format!("{scheme}{before} says no {ours}: add ?{ours}=…, after its other parameters")
    })?;
    let mut url = format!("{scheme}{before}");
    if !others.is_empty() {
        url = format!("{url}?{}", others.join("&"));
    }
    Ok(Address::Database { dialect, url, what })
}

/// `%20` is a space; what is no escape stands for itself, since a query is typed by people. `+` is
/// plus.
fn unescape(text: &str) -> Result<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [byte, more @ ..] = rest {
        let digits = more.get(..2).filter(|_| *byte == b'%');
        let escaped = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        let escaped = escaped.filter(|it| it.bytes().all(|byte| byte.is_ascii_hexdigit()));
        match escaped.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(value) => {
                bytes.push(value);
                rest = &more[2..];
            }
            None => {
                bytes.push(*byte);
                rest = more;
            }
        }
    }
    String::from_utf8(bytes).context("what is escaped in the address is no UTF-8")
}

/// Without the password that an address may hold: it is printed and kept.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path, _) | Self::Folder(path) => write!(f, "{}", path.display()),
            Self::Stdin(_) => f.write_str("standard input"),
            Self::Object { bucket, key, .. } => write!(f, "s3://{bucket}/{key}"),
            Self::Database { url, what, .. } => write!(f, "{} ({what})", without_password(url)),
            Self::Http(url) => f.write_str(&without_password(url)),
        }
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Address({self})")
    }
}

fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    // A driver also takes it as a parameter.
    let path = match path.split_once("password=") {
        Some((before, after)) => {
            let after = after.split_once('&').map_or("", |(_, after)| after);
            format!("{before}password=…{after}")
        }
        None => path.to_owned(),
    };
    match authority.rsplit_once('@') {
        Some((who, host)) => {
            let user = who.split_once(':').map_or(who, |(user, _)| user);
            format!("{scheme}://{user}@{host}{path}")
        }
        None => format!("{scheme}://{authority}{path}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(text: &str) -> Result<Address> {
        Address::parse(text, None, Direction::Input)
    }

    #[test]
    fn an_address_says_what_it_is() {
        let database = |dialect, url: &str, what: &str| Address::Database {
            dialect,
            url: url.into(),
            what: what.into(),
        };
        for (text, expected) in [
            ("a/b.CSV", Address::File("a/b.CSV".into(), Format::Csv)),
            ("x.ndjson", Address::File("x.ndjson".into(), Format::Jsonl)),
            ("/tmp", Address::Folder("/tmp".into())),
            (
                "s3://data/in/a.parquet",
                Address::Object {
                    bucket: "data".into(),
                    key: "in/a.parquet".into(),
                    format: Format::Parquet,
                },
            ),
            (
                "sqlite:a.db?query=SELECT * FROM t WHERE a > 1 & 2",
                database(Dialect::Sqlite, "sqlite:a.db", "SELECT * FROM t WHERE a > 1 & 2"),
            ),
            (
                "postgres://u:p%40@h/d?sslmode=require&query=SELECT%20'100%'",
                database(
                    Dialect::Postgres,
                    "postgres://u:p%40@h/d?sslmode=require",
                    "SELECT '100%'",
                ),
            ),
            ("mariadb://h/d?query=x", database(Dialect::Mysql, "mysql://h/d", "x")),
        ] {
            assert_eq!(input(text).unwrap(), expected, "{text}");
        }
        let table = Address::parse("mysql://h/d?table=t", None, Direction::Output).unwrap();
        assert_eq!(table, database(Dialect::Mysql, "mysql://h/d", "t"));
    }

    #[test]
    fn what_can_not_be_is_told_with_what_could() {
        let output = |text| Address::parse(text, None, Direction::Output);
        for (said, word) in [
            (input("a.txt"), "--input-format"),
            (input("-"), "--input-format"),
            (input("http://x/a.csv"), "fetch"),
            (input("s3://bucket"), "s3://BUCKET/KEY"),
            (input("sqlite:a.db?table=t"), "?query="),
            (output("postgres://h/d?query=x"), "?table="),
            (output("a.json"), ".jsonl"),
            (output("/tmp"), "directory"),
        ] {
            let said = said.unwrap_err().to_string();
            assert!(said.contains(word), "{said}");
        }
    }

    #[test]
    fn a_password_is_never_shown() {
        for text in [
            "postgres://me:secret@host/db?query=SELECT 1",
            "postgres://host/db?user=me&password=secret&query=SELECT 1",
        ] {
            let address = input(text).unwrap();
            let said = format!("{address} {address:?}");
            assert!(!said.contains("secret") && said.contains("host"), "{said}");
        }
    }
}
