//! Objects of S3-compatible stores: read by ranges, written in parts, of which all or none count.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::client::{ClientOptions, HttpClient, HttpConnector};
use object_store::path::Path;
use object_store::{
    GetOptions, GetRange, MultipartUpload, ObjectMeta, ObjectStore as _, ObjectStoreExt as _,
};
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, Length};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::http::Http;

/// A part of an object that is written. A store takes 10,000 of them.
const PART_BYTES: usize = 16 << 20;
/// How often reading begins again at the same byte. Each request is also repeated beneath.
const MAX_TRIES: u32 = 5;
/// How long a store may take to hear that what it has is of no use.
const ABORT: Duration = Duration::from_secs(10);

/// Where objects are: as the environment says it, by the names that Amazon's tools use
/// (`AWS_ENDPOINT_URL`, `AWS_REGION`, `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`…).
#[derive(Clone, Debug)]
pub struct Objects {
    http: Http,
    runtime: Handle,
    /// In place of the environment's, for tests.
    pub endpoint: Option<String>,
}

#[derive(Debug)]
struct Connector(Http);

impl HttpConnector for Connector {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.0.clone()))
    }
}

impl Objects {
    /// Asks for them through these connections.
    pub fn new(http: Http, runtime: Handle) -> Self {
        Self { http, runtime, endpoint: None }
    }

    fn store(&self, bucket: &str) -> Result<AmazonS3> {
        let mut builder = AmazonS3Builder::from_env()
            .with_bucket_name(bucket)
            // Whoever names an address without TLS means it.
            .with_allow_http(true)
            .with_http_connector(Connector(self.http.clone()));
        if let Some(endpoint) = &self.endpoint {
            builder = builder
                .with_endpoint(endpoint)
                .with_access_key_id("test")
                .with_secret_access_key("test");
        }
        builder.build().context("the store of objects can't be asked")
    }

    /// Opens an object for reading.
    ///
    /// # Errors
    /// When it isn't there.
    pub(crate) fn object(&self, bucket: &str, key: &str) -> Result<Object> {
        let (store, path) = (Arc::new(self.store(bucket)?), path_of(key)?);
        let meta = self.runtime.block_on(store.head(&path));
        let meta = meta.with_context(|| format!("can't read s3://{bucket}/{key}"))?;
        Ok(Object { store, meta, runtime: self.runtime.clone() })
    }

    /// What says whether an object is still the same.
    ///
    /// # Errors
    /// When it isn't there.
    pub(crate) fn tag(&self, bucket: &str, key: &str) -> Result<String> {
        let meta = self.object(bucket, key)?.meta;
        Ok(format!("{} {}", meta.size, meta.e_tag.unwrap_or_default()))
    }

    /// Begins to write an object, which is there when it is complete; waits until `stop`.
    ///
    /// # Errors
    /// When the store doesn't take it.
    pub(crate) fn writer(
        &self,
        bucket: &str,
        key: &str,
        stop: &CancellationToken,
    ) -> Result<ObjectWriter> {
        let (store, path) = (self.store(bucket)?, path_of(key)?);
        let upload = wait(&self.runtime, stop, store.put_multipart(&path));
        let upload = upload.with_context(|| format!("can't write s3://{bucket}/{key}"))?;
        let (runtime, stop, is_complete) = (self.runtime.clone(), stop.clone(), false);
        Ok(ObjectWriter { upload, runtime, stop, part: Vec::new(), is_complete })
    }
}

/// The key as it is written: the library's other way would make another of some characters.
fn path_of(key: &str) -> Result<Path> {
    Path::parse(key).with_context(|| format!("{key:?} is no key that can be asked for"))
}

/// Waits for what a store is asked, until nobody wants it any more.
fn wait<T>(
    runtime: &Handle,
    stop: &CancellationToken,
    asked: impl Future<Output = object_store::Result<T>>,
) -> io::Result<T> {
    let said = runtime.block_on(stop.run_until_cancelled(asked));
    said.ok_or_else(|| io::Error::other("the run stops"))?.map_err(io::Error::other)
}

/// An object to be read. One that is replaced meanwhile is an error, not a mixture.
#[derive(Clone, Debug)]
pub(crate) struct Object {
    store: Arc<AmazonS3>,
    meta: ObjectMeta,
    runtime: Handle,
}

impl Object {
    pub(crate) fn reader(self) -> ObjectReader {
        ObjectReader { object: self, at: 0, body: None, left: Bytes::new() }
    }

    fn options(&self, range: GetRange) -> GetOptions {
        let if_match = self.meta.e_tag.clone();
        GetOptions { range: Some(range), if_match, ..GetOptions::default() }
    }
}

/// Reads an object from the first to the last byte.
pub(crate) struct ObjectReader {
    object: Object,
    at: u64,
    body: Option<BoxStream<'static, object_store::Result<Bytes>>>,
    left: Bytes,
}

impl ObjectReader {
    pub(crate) fn len(&self) -> u64 {
        self.object.meta.size
    }

    /// Passes over bytes, which are not fetched.
    pub(crate) fn skip(&mut self, num: u64) {
        self.at += num;
        (self.body, self.left) = (None, Bytes::new());
    }

    /// The next piece of it; none at its end, or where it breaks off again and again.
    async fn fetch(&mut self) -> object_store::Result<Option<Bytes>> {
        let Object { store, meta, .. } = &self.object;
        for tries in 0..=MAX_TRIES {
            if self.at >= meta.size {
                return Ok(None);
            }
            let body = match self.body.take() {
                Some(body) => Ok(body),
                None => {
                    let options = self.object.options(GetRange::Offset(self.at));
                    store.get_opts(&meta.location, options).await.map(|got| got.into_stream())
                }
            };
            let piece = match body {
                Ok(mut body) => {
                    let piece = body.next().await.transpose();
                    self.body = Some(body);
                    piece
                }
                Err(cause) => Err(cause),
            };
            match piece {
                Ok(Some(bytes)) => return Ok(Some(bytes)),
                Err(cause) if tries == MAX_TRIES => return Err(cause),
                _ => self.body = None,
            }
        }
        Ok(None)
    }
}

impl Read for ObjectReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.left.is_empty() {
            let runtime = self.object.runtime.clone();
            match runtime.block_on(self.fetch()).map_err(io::Error::other)? {
                Some(bytes) => self.left = bytes,
                None if self.at < self.len() => {
                    let said = "the object broke off";
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, said));
                }
                None => return Ok(0),
            }
        }
        let num = buffer.len().min(self.left.len());
        buffer[..num].copy_from_slice(&self.left.split_to(num));
        self.at += num as u64;
        Ok(num)
    }
}

impl Length for Object {
    fn len(&self) -> u64 {
        self.meta.size
    }
}

impl ChunkReader for Object {
    type T = io::BufReader<ObjectReader>;

    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        let mut reader = self.clone().reader();
        reader.skip(start);
        Ok(io::BufReader::with_capacity(1 << 16, reader))
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        let range = GetRange::Bounded(start..start + length as u64);
        let got = self.runtime.block_on(async {
            self.store.get_opts(&self.meta.location, self.options(range)).await?.bytes().await
        });
        got.map_err(|cause| ParquetError::External(Box::new(cause)))
    }
}

/// Writes an object in parts.
pub(crate) struct ObjectWriter {
    upload: Box<dyn MultipartUpload>,
    runtime: Handle,
    stop: CancellationToken,
    part: Vec<u8>,
    is_complete: bool,
}

impl ObjectWriter {
    fn send(&mut self) -> io::Result<()> {
        let part = std::mem::take(&mut self.part);
        wait(&self.runtime, &self.stop, self.upload.put_part(part.into()))
    }

    /// The object is there, all of it, when this returns.
    pub(crate) fn complete(mut self) -> io::Result<()> {
        self.send()?;
        wait(&self.runtime, &self.stop, self.upload.complete())?;
        self.is_complete = true;
        Ok(())
    }
}

impl Write for ObjectWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.part.len() >= PART_BYTES {
            self.send()?;
        }
        self.part.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for ObjectWriter {
    fn drop(&mut self) {
        if !self.is_complete {
            // What a store keeps of it costs money; one that can't be told keeps it for a while.
            let runtime = self.runtime.clone();
            let abort = async { tokio::time::timeout(ABORT, self.upload.abort()).await };
            let _ = runtime.block_on(abort);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::testing::serve;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_key_is_asked_for_as_it_is_written() {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&asked);
        let url = serve(move |head, _| {
            kept.lock().unwrap().push(head.uri.path().to_owned());
            (404, String::new())
        });
        let mut objects = Objects::new(Http::new().unwrap(), Handle::current());
        objects.endpoint = Some(url.await);
        let said = tokio::task::spawn_blocking(move || {
            objects.tag("data", "a/#1 ~[50%].csv").unwrap_err();
            format!("{:#}", objects.tag("data", "a//b.csv").unwrap_err())
        });
        assert!(said.await.unwrap().contains("\"a//b.csv\" is no key"));
        assert_eq!(*asked.lock().unwrap(), ["/data/a/%231%20~%5B50%25%5D.csv"]);
    }
}
