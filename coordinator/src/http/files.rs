//! `/v1/files`: handed in as a stream, listed, read in whole or in part, deleted.

use std::io::{self, Write as _};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::multipart::{Field, MultipartRejection};
use axum::extract::rejection::PathRejection;
use axum::extract::{Extension, Multipart, Path, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use futures::stream;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};

use super::caller::Caller;
use super::paging::{listed, page};
use super::{ApiResult, ApiState, body, storage};
use crate::batch_job::blobs::Unfinished;
use crate::batch_job::files::{KeepError, Purpose, StoredFile};
use crate::batch_job::{Order, new_id, now_s};
use crate::openai::ApiError;

/// Files of a page, unless its question says otherwise: as OpenAI's.
const PAGE: u32 = 10_000;

/// Bytes of a field that isn't the file.
const MAX_FIELD_BYTES: usize = 1 << 10;

/// Bytes of a file's own name.
const MAX_NAME_BYTES: usize = 255;

/// Bytes that are read of a file at once.
const CHUNK_BYTES: u64 = 128 << 10;

/// Seconds that a file may be kept, where whoever hands it in says so: as OpenAI's.
pub(super) const EXPIRY_S: std::ops::RangeInclusive<i64> = 3600..=2_592_000;

pub(super) async fn upload(
    State(state): State<Arc<ApiState>>,
    Extension(caller): Extension<Caller>,
    form: Result<Multipart, MultipartRejection>,
) -> ApiResult {
    let _permit = body::admit(&state, &caller)?;
    let form = form.map_err(|_| {
        ApiError::malformed("a file is handed in as multipart/form-data: fields file and purpose")
    })?;
    storage::accepts(&state.jobs)?;
    let Form { bytes, filename, purpose, expires_s } = Form::read(&state, form).await?;
    let purpose = match (purpose.as_deref(), purpose.as_deref().and_then(Purpose::of)) {
        (_, Some(purpose @ (Purpose::Batch | Purpose::Rows))) => purpose,
        (Some(other), _) => {
            let shown: String = other.chars().take(40).collect();
            let message =
                format!("purpose must be batch or rows, not {shown}: this server keeps no others");
            return Err(ApiError::invalid("purpose", message));
        }
        (None, _) => return Err(ApiError::invalid("purpose", "purpose is missing; use batch")),
    };
    let bytes = bytes.ok_or_else(|| ApiError::invalid("file", "file is missing"))?;
    let created_s = now_s();
    let id = new_id("file-").map_err(|cause| ApiError::internal(cause.to_string()))?;
    let tenant = caller.0.tenant.to_string();
    let what = move |num_bytes, hash| StoredFile {
        id,
        tenant,
        purpose,
        filename,
        num_bytes,
        hash,
        created_s,
        expires_s: expires_s.map(|seconds| created_s + seconds),
    };
    let kept = state.jobs.files().keep(bytes, what).await;
    let file = kept.map_err(|cause| storage::failed(&state.jobs, &cause))?;
    Ok(Json(describe(&file)).into_response())
}

#[derive(Default)]
struct Form {
    bytes: Option<Unfinished>,
    filename: String,
    purpose: Option<String>,
    expires_s: Option<i64>,
}

impl Form {
    async fn read(state: &ApiState, mut form: Multipart) -> Result<Self, ApiError> {
        let timeout = Duration::from_millis(state.config.body_timeout_ms);
        let (mut this, mut anchor) = (Self::default(), None);
        loop {
            let next = in_time(timeout, form.next_field()).await?;
            let Some(field) = next.map_err(|cause| broken(&cause.to_string()))? else { break };
            match field.name().unwrap_or_default() {
                "file" if this.bytes.is_some() => {
                    return Err(ApiError::invalid("file", "give one file"));
                }
                "file" => {
                    let name = field.file_name().unwrap_or("file");
                    let end = name.floor_char_boundary(MAX_NAME_BYTES.min(name.len()));
                    this.filename = name[..end].to_owned();
                    this.bytes = Some(bytes(state, field, timeout).await?);
                }
                "purpose" => this.purpose = Some(text(field, timeout).await?),
                "expires_after[anchor]" => anchor = Some(text(field, timeout).await?),
                "expires_after[seconds]" => {
                    let seconds = text(field, timeout).await?.parse().ok();
                    let seconds = seconds.filter(|seconds| EXPIRY_S.contains(seconds));
                    this.expires_s = Some(seconds.ok_or_else(|| {
                        let (least, most) = (EXPIRY_S.start(), EXPIRY_S.end());
                        let message =
                            format!("expires_after[seconds] must be from {least} to {most}");
                        ApiError::invalid("expires_after", message)
                    })?);
                }
                other => {
                    let shown: String = other.chars().take(40).collect();
                    let message = format!("unknown field {shown}; remove it");
                    return Err(ApiError::invalid(shown, message).code("unknown_parameter"));
                }
            }
        }
        let lacks_seconds = anchor.is_some() && this.expires_s.is_none();
        if lacks_seconds || anchor.is_some_and(|anchor| anchor != "created_at") {
            let message =
                "expires_after[anchor] must be created_at, and needs expires_after[seconds]";
            return Err(ApiError::invalid("expires_after", message));
        }
        Ok(this)
    }
}

fn broken(cause: &str) -> ApiError {
    ApiError::malformed(format!("the form can't be read: {cause}"))
}

async fn in_time<T>(timeout: Duration, what: impl Future<Output = T>) -> Result<T, ApiError> {
    tokio::time::timeout(timeout, what).await.map_err(|_| {
        let message = format!(
            "nothing of the body arrived within {} ms (http.body_timeout_ms)",
            timeout.as_millis()
        );
        ApiError::malformed(message).status(408).code("request_timeout")
    })
}

/// Writes a file's bytes as they come.
async fn bytes(
    state: &ApiState,
    mut field: Field<'_>,
    timeout: Duration,
) -> Result<Unfinished, ApiError> {
    let (jobs, max) = (&state.jobs, state.jobs.config().max_file_bytes);
    let stored = jobs.files().num_bytes().await;
    let stored = stored.map_err(|cause| storage::failed(jobs, &cause))?;
    let room = jobs.config().max_stored_bytes.saturating_sub(stored);
    let failed = |cause: io::Error| storage::failed(jobs, &KeepError::Bytes(cause));
    let mut bytes = jobs.files().blobs.begin().map_err(failed)?;
    loop {
        let chunk = in_time(timeout, field.chunk()).await?;
        let Some(chunk) = chunk.map_err(|cause| broken(&cause.to_string()))? else { break };
        let num_bytes = bytes.num_bytes() + chunk.len() as u64;
        if num_bytes > max {
            let message = format!("the file has more than {max} bytes (batch.max_file_bytes)");
            return Err(ApiError::invalid("file", message).status(413).code("file_too_large"));
        }
        if num_bytes > room {
            let message = "files fill what they may (batch.max_stored_bytes): delete some";
            return Err(storage::full(message));
        }
        // A slow disk holds up nobody else.
        let written = tokio::task::spawn_blocking(move || {
            bytes.write_all(&chunk)?;
            Ok(bytes)
        });
        bytes =
            written.await.unwrap_or_else(|cause| Err(io::Error::other(cause))).map_err(failed)?;
    }
    Ok(bytes)
}

async fn text(mut field: Field<'_>, timeout: Duration) -> Result<String, ApiError> {
    let mut text = Vec::new();
    loop {
        let chunk = in_time(timeout, field.chunk()).await?;
        let Some(chunk) = chunk.map_err(|cause| broken(&cause.to_string()))? else { break };
        if text.len() + chunk.len() > MAX_FIELD_BYTES {
            return Err(broken(&format!("a field has more than {MAX_FIELD_BYTES} bytes")));
        }
        text.extend_from_slice(&chunk);
    }
    String::from_utf8(text).map_err(|_| broken("a field isn't UTF-8"))
}

pub(super) async fn list(
    State(state): State<Arc<ApiState>>,
    Extension(caller): Extension<Caller>,
    uri: Uri,
) -> ApiResult {
    let (page, more) = page(uri.query(), (PAGE, PAGE), &["purpose", "order"])?;
    let page = match more.get("order").map(String::as_str) {
        None | Some("desc") => page,
        Some("asc") => crate::batch_job::Page { order: Order::Ascending, ..page },
        Some(_) => return Err(ApiError::invalid("order", "order must be asc or desc")),
    };
    let files = state.jobs.files();
    let found = match more.get("purpose").map(|name| Purpose::of(name)) {
        Some(None) => Vec::new(),
        purpose => {
            let found = files.list(caller.sees(), purpose.flatten(), &page.one_more()).await;
            found.map_err(|cause| storage::failed(&state.jobs, &cause))?
        }
    };
    if let (true, Some(after)) = (found.is_empty(), &page.after) {
        // Behind what isn't there is nothing: whoever goes on there would take it for the end.
        find(&state, &caller, Ok(Path(after.clone()))).await?;
    }
    Ok(Json(listed(found, &page, describe)).into_response())
}

pub(super) async fn retrieve(
    State(state): State<Arc<ApiState>>,
    Extension(caller): Extension<Caller>,
    id: Result<Path<String>, PathRejection>,
) -> ApiResult {
    Ok(Json(describe(&find(&state, &caller, id).await?)).into_response())
}

pub(super) async fn delete(
    State(state): State<Arc<ApiState>>,
    Extension(caller): Extension<Caller>,
    id: Result<Path<String>, PathRejection>,
) -> ApiResult {
    let file = find(&state, &caller, id).await?;
    let deleted = state.jobs.files().delete(&file).await;
    deleted.map_err(|cause| storage::failed(&state.jobs, &cause))?;
    Ok(Json(json!({"id": file.id, "object": "file", "deleted": true})).into_response())
}

pub(super) async fn content(
    State(state): State<Arc<ApiState>>,
    Extension(caller): Extension<Caller>,
    id: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> ApiResult {
    let file = find(&state, &caller, id).await?;
    let all = 0..file.num_bytes;
    let asked = headers.get(header::RANGE).and_then(|range| range.to_str().ok());
    let part = asked.and_then(|range| range_of(range, file.num_bytes));
    let gone = |cause: io::Error| ApiError::internal(format!("the file can't be read: {cause}"));
    let (status, range) = match part {
        None => (StatusCode::OK, all),
        Some(Some(range)) => (StatusCode::PARTIAL_CONTENT, range),
        Some(None) => {
            let message = format!("the file has {} bytes", file.num_bytes);
            let error = ApiError::malformed(message).status(416).code("range_not_satisfiable");
            let mut response = error.into_response();
            let of = format!("bytes */{}", file.num_bytes);
            response.headers_mut().insert(header::CONTENT_RANGE, of.parse().expect("digits"));
            return Ok(response);
        }
    };
    let path = state.jobs.files().blobs.path(&file.hash);
    let mut source = tokio::fs::File::open(path).await.map_err(gone)?;
    source.seek(io::SeekFrom::Start(range.start)).await.map_err(gone)?;
    let num_bytes = range.end - range.start;
    let chunks = stream::try_unfold((source, num_bytes), |(mut source, left)| async move {
        if left == 0 {
            return Ok::<_, io::Error>(None);
        }
        let mut chunk = vec![0; left.min(CHUNK_BYTES) as usize];
        source.read_exact(&mut chunk).await?;
        let left = left - chunk.len() as u64;
        Ok(Some((chunk, (source, left))))
    });
    let mut response = Response::new(Body::from_stream(chunks));
    *response.status_mut() = status;
    let mut insert = |name, value: String| {
        if let Ok(value) = value.parse() {
            response.headers_mut().insert(name, value);
        }
    };
    insert(header::CONTENT_TYPE, "application/octet-stream".to_owned());
    insert(header::ACCEPT_RANGES, "bytes".to_owned());
    insert(header::CONTENT_LENGTH, num_bytes.to_string());
    if status == StatusCode::PARTIAL_CONTENT {
        let last = range.end - 1;
        insert(header::CONTENT_RANGE, format!("bytes {}-{last}/{}", range.start, file.num_bytes));
    }
    Ok(response)
}

/// The part of `bytes=A-B`, `bytes=A-` or `bytes=-N`; none where it isn't one part, which then is
/// the whole, and `Some(None)` where there is no such part.
fn range_of(range: &str, num_bytes: u64) -> Option<Option<Range<u64>>> {
    let (start, end) = range.trim().strip_prefix("bytes=")?.split_once('-')?;
    let range = match (start.trim(), end.trim()) {
        ("", last) => num_bytes.saturating_sub(last.parse().ok()?)..num_bytes,
        (start, "") => start.parse().ok()?..num_bytes,
        (start, last) => {
            let (start, last): (u64, u64) = (start.parse().ok()?, last.parse().ok()?);
            if last < start {
                return None;
            }
            start..last.saturating_add(1).min(num_bytes)
        }
    };
    Some((range.start < range.end).then_some(range))
}

async fn find(
    state: &ApiState,
    caller: &Caller,
    id: Result<Path<String>, PathRejection>,
) -> Result<StoredFile, ApiError> {
    let Ok(Path(id)) = id else {
        return Err(ApiError::malformed("the file's id in the path is no text"));
    };
    let found = state.jobs.files().get(&id).await;
    let found = found.map_err(|cause| storage::failed(&state.jobs, &cause))?;
    // Another's looks as if there were none.
    found.filter(|file| caller.may_see(&file.tenant)).ok_or_else(|| unknown(&id))
}

pub(super) fn unknown(id: &str) -> ApiError {
    let shown: String = id.chars().take(64).collect();
    let message = format!("there is no file {shown}; GET /v1/files lists those that there are");
    ApiError::invalid("id", message).status(404).code("file_not_found")
}

fn describe(file: &StoredFile) -> Value {
    let mut described = json!({
        "id": file.id,
        "object": "file",
        "bytes": file.num_bytes,
        "created_at": file.created_s,
        "filename": file.filename,
        "purpose": file.purpose.name(),
        "status": "processed",
        "status_details": null,
    });
    if let Some(expires_s) = file.expires_s {
        described["expires_at"] = expires_s.into();
    }
    described
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_file_is_what_its_header_says_or_all_of_it() {
        for (range, expected) in [
            ("bytes=0-3", Some(Some(0..4))),
            ("bytes=2-99", Some(Some(2..10))),
            ("bytes=4-", Some(Some(4..10))),
            ("bytes=-3", Some(Some(7..10))),
            ("bytes=-30", Some(Some(0..10))),
            ("bytes=10-", Some(None)),
            ("bytes=-0", Some(None)),
            // What is no part, or several, is the whole.
            ("bytes=3-1", None),
            ("bytes=0-1,4-5", None),
            ("bytes=a-b", None),
            ("lines=0-1", None),
        ] {
            assert_eq!(range_of(range, 10), expected, "{range}");
        }
    }
}
