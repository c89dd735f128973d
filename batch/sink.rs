//! Where rows go, in the order of the input. A file or an object is there when it is whole; a table
//! and a server take rows as they come, so that each may come twice and counts once.

mod csv;
mod database;
mod http;
mod jsonl;
mod parquet;

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use hyper::Method;
use rows::row::{Cells, Column};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::address::{Address, Format};
use crate::http::Http;
use crate::object::{ObjectWriter, Objects};

/// Takes rows. It may wait for a disk or a network, so it has a thread of its own.
pub(crate) trait Sink: Send {
    /// Takes a row; its number grows from one to the next.
    ///
    /// # Errors
    /// When it can't be taken, now or later.
    fn write(&mut self, row: u64, cells: Cells) -> Result<()>;

    /// Rows with lower numbers are where they are wanted, and needn't be written again by a run
    /// that goes on.
    fn kept(&self) -> u64 {
        0
    }

    /// All rows are where they are wanted when this returns.
    ///
    /// # Errors
    /// When they aren't.
    fn finish(self: Box<Self>) -> Result<()>;
}

/// What sinks are opened with.
#[derive(Clone, Debug)]
pub struct Writing {
    /// Runs what waits for a network.
    pub runtime: Handle,
    /// Which S3-compatible store, and how it is asked.
    pub objects: Objects,
    /// Connections to servers.
    pub http: Http,
    /// The name of this run and all that go on with it: no other has it.
    pub job: String,
    /// The column whose value is a different one in each row.
    pub id: Option<String>,
    /// Rows that a server gets at once.
    pub rows_together: usize,
    /// How it gets them.
    pub method: Method,
    /// What its key is, if it wants one.
    pub key: Option<String>,
    /// When nobody waits for what is written any more; the run fills in its own.
    pub stop: CancellationToken,
}

impl Writing {
    /// Waits for a network, until the run stops.
    ///
    /// # Errors
    /// When it stops first. What was on its way then is written again by a run that goes on.
    pub(crate) fn wait<T>(&self, what: impl Future<Output = T>) -> Result<T> {
        self.runtime.block_on(self.stop.run_until_cancelled(what)).context("the run stops")
    }
}

/// When the columns of the output must be known.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Wants {
    /// Never: each row says its own.
    Nothing,
    /// Before the first row: their names.
    Names,
    /// Before the first row: what stands in them, in any row.
    Kinds,
}

impl Address {
    /// What a sink there must know of columns.
    pub fn wants(&self) -> Wants {
        match self {
            Self::File(_, Format::Csv) | Self::Object { format: Format::Csv, .. } => Wants::Names,
            Self::Database { .. } => Wants::Names,
            Self::File(_, Format::Parquet) | Self::Object { format: Format::Parquet, .. } => {
                Wants::Kinds
            }
            _ => Wants::Nothing,
        }
    }
}

/// Opens a sink for rows of these columns; `kept` is what an earlier run reached.
///
/// # Errors
/// When rows can't go there.
pub(crate) fn open(
    address: &Address,
    columns: &[Column],
    kept: u64,
    writing: &Writing,
) -> Result<Box<dyn Sink>> {
    let (target, format) = match address {
        Address::File(path, format) => (Target::File(Whole::create(path)?), *format),
        Address::Object { bucket, key, format } => {
            let object = writing.objects.writer(bucket, key, &writing.stop)?;
            (Target::Object(Box::new(object)), *format)
        }
        Address::Database { dialect, url, what } => {
            let sink = database::Table::open(*dialect, url, what, columns, kept, writing)?;
            return Ok(Box::new(sink));
        }
        Address::Http(url) => return Ok(Box::new(http::HttpSink::open(url, kept, writing)?)),
        Address::Folder(_) | Address::Stdin(_) => bail!("rows can't go to {address}"),
    };
    Ok(match format {
        Format::Jsonl => Box::new(jsonl::Jsonl::new(target)),
        Format::Csv => Box::new(csv::Csv::open(target, columns)?),
        Format::Parquet => Box::new(parquet::Parquet::open(target, columns)?),
        Format::Json => bail!("answers aren't written as one .json array"),
    })
}

/// Bytes that are there when all of them are.
pub(crate) enum Target {
    File(Whole),
    Object(Box<ObjectWriter>),
}

impl Target {
    pub(crate) fn complete(self) -> Result<()> {
        match self {
            Self::File(file) => file.complete(),
            Self::Object(object) => object.complete().context("the object can't be written"),
        }
    }
}

impl Write for Target {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::File(file) => file.file.write(bytes),
            Self::Object(object) => object.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::File(file) => file.file.flush(),
            Self::Object(object) => object.flush(),
        }
    }
}

/// A file that takes its name when it is whole.
pub(crate) struct Whole {
    path: PathBuf,
    part: PathBuf,
    file: BufWriter<File>,
}

impl Whole {
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let part = beside(path, ".part");
        let file =
            File::create(&part).with_context(|| format!("can't write {}", part.display()))?;
        let file = BufWriter::with_capacity(1 << 16, file);
        Ok(Self { path: path.to_owned(), part, file })
    }

    /// It has its name, and is on the disk, when this returns.
    pub(crate) fn complete(mut self) -> Result<()> {
        let named = || format!("can't write {}", self.path.display());
        self.file.flush().with_context(named)?;
        self.file.get_ref().sync_all().with_context(named)?;
        fs::rename(&self.part, &self.path).with_context(named)?;
        sync_folder(&self.path).with_context(named)
    }
}

/// A part is of no use to anybody: whoever goes on writes all of it again.
impl Drop for Whole {
    fn drop(&mut self) {
        // There is none once it has its name.
        let _ = fs::remove_file(&self.part);
    }
}

impl Write for Whole {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// A path with something behind its name.
pub(crate) fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}

/// A name is on the disk only when its directory is.
fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}
