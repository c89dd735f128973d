//! `/v1/batches`: jobs, as OpenAI's API has them.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Extension, Path, Request, State};
use axum::http::Uri;
use axum::response::IntoResponse;
use serde_json::{Map, Value, json};

use super::caller::Caller;
use super::files::EXPIRY_S;
use super::paging::{listed, page};
use super::{ApiResult, ApiState, body, storage};
use crate::batch_job::files::Purpose;
use crate::batch_job::line::{ENDPOINTS, style_of};
use crate::batch_job::records::{BatchJob, JobState};
use crate::batch_job::row_plan::complete;
use crate::batch_job::{BatchJobs, new_id, now_s};
use crate::openai::{ApiError, Fields, Style};

/// Jobs of a page, and the most that a question may ask for: as OpenAI's.
const PAGE: (u32, u32) = (20, 100);

/// Entries of `metadata`, and characters of their names and values.
const METADATA: (usize, usize, usize) = (16, 64, 512);

pub(super) async fn create(
    State(state): State<Arc<ApiState>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> ApiResult {
    let _permit = body::admit(&state, &caller)?;
    let bytes = body::read(&state, request).await?;
    let jobs = &state.jobs;
    let asked = Asked::parse(&bytes, jobs.config().max_window_hours)?;
    storage::accepts(jobs)?;
    let failed = |cause| storage::failed(jobs, &cause);
    let tenant = caller.0.tenant.to_string();
    let num_open = jobs.records().num_open(&tenant).await.map_err(failed)?;
    let max = jobs.config().max_open_jobs;
    if num_open >= max {
        let message =
            format!("{num_open} batches haven't ended, and {max} may (batch.max_open_jobs)");
        let error = ApiError::malformed(message).status(429).code("too_many_batches");
        return Err(ApiError { retry_after: Some(60), ..error });
    }
    // Whoever deletes the file meanwhile finds that its bytes are needed, or it isn't found here.
    let names = Arc::clone(&jobs.files().blobs.names).lock_owned().await;
    let input = jobs.files().get(&asked.input_file).await.map_err(failed)?;
    let input = input.filter(|file| caller.may_see(&file.tenant)).ok_or_else(|| {
        let message = "there is no such file; hand it in at /v1/files first";
        ApiError::invalid("input_file_id", message).code("file_not_found")
    })?;
    let purpose = if asked.rows.is_some() { Purpose::Rows } else { Purpose::Batch };
    if input.purpose != purpose {
        let (found, wanted) = (input.purpose.name(), purpose.name());
        let message = format!("the file's purpose is {found}, not {wanted}");
        return Err(ApiError::invalid("input_file_id", message).code("invalid_purpose"));
    }
    let style = style_of(&asked.endpoint).unwrap_or(Style::Completion);
    let rows = asked.rows.map(|rows| complete(rows, &input.filename, style, &state.model.name));
    let rows = rows.transpose()?;
    let created_s = now_s();
    let id = new_id("batch_").map_err(|cause| ApiError::internal(cause.to_string()))?;
    let job = BatchJob {
        number: 0,
        id: id.clone(),
        tenant,
        key_name: caller.0.name.clone(),
        endpoint: asked.endpoint,
        input_file: input.id,
        input_hash: input.hash,
        rows,
        completion_window: asked.window,
        metadata: asked.metadata,
        output_expires_s: asked.output_expires_s,
        state: JobState::Validating,
        errors: None,
        output_file: None,
        error_file: None,
        num_lines: 0,
        num_completed: 0,
        num_failed: 0,
        num_tokens: [0; 3],
        created_s,
        expires_s: created_s + asked.window_s,
        since_s: Vec::new(),
    };
    let inserting = jobs.insert(job.clone(), names);
    inserting.await.map_err(|cause| ApiError::internal(cause.to_string()))?.map_err(failed)?;
    Ok(Json(describe(&state, &job)).into_response())
}

struct Asked {
    input_file: String,
    endpoint: String,
    window: String,
    window_s: i64,
    metadata: Option<Map<String, Value>>,
    output_expires_s: Option<i64>,
    /// Ours: the input's rows become requests so.
    rows: Option<Value>,
}

impl Asked {
    fn parse(body: &[u8], max_hours: u32) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let string = |fields: &mut Fields, name: &str| {
            let missing = || ApiError::invalid(name, format!("{name} is missing"));
            fields.string(name)?.ok_or_else(missing)
        };
        let input_file = string(&mut fields, "input_file_id")?;
        let endpoint = string(&mut fields, "endpoint")?;
        if style_of(&endpoint).is_none() {
            let names: Vec<_> = ENDPOINTS.iter().map(|(name, _)| *name).collect();
            let message = format!("endpoint must be one of {}", names.join(", "));
            return Err(ApiError::invalid("endpoint", message).code("invalid_endpoint"));
        }
        let window = string(&mut fields, "completion_window")?;
        let window_s = seconds(&window).filter(|it| *it <= i64::from(max_hours) * 3600);
        let window_s = window_s.ok_or_else(|| {
            let message = format!(
                "completion_window must be a time such as 30s, 15m, 24h or 7d, of at most \
                 {max_hours} hours (batch.max_window_hours)"
            );
            ApiError::invalid("completion_window", message)
        })?;
        let metadata = metadata(&mut fields)?;
        let output_expires_s = output_expires(&mut fields)?;
        let rows = fields.take("rows");
        fields.finish()?;
        Ok(Self { input_file, endpoint, window, window_s, metadata, output_expires_s, rows })
    }
}

/// A whole number of seconds, minutes, hours or days.
fn seconds(text: &str) -> Option<i64> {
    let (number, unit) = [("s", 1), ("m", 60), ("h", 3600), ("d", 86_400)]
        .iter()
        .find_map(|(unit, seconds)| Some((text.strip_suffix(unit)?, *seconds)))?;
    let is_number = number.bytes().all(|byte| byte.is_ascii_digit());
    let number: i64 = number.parse().ok().filter(|_| is_number)?;
    number.checked_mul(unit).filter(|it| *it > 0)
}

fn metadata(fields: &mut Fields) -> Result<Option<Map<String, Value>>, ApiError> {
    let (max, max_name, max_value) = METADATA;
    let wrong = || {
        let message = format!(
            "metadata must be an object of at most {max} strings, names of at most {max_name} \
             characters and values of at most {max_value}"
        );
        ApiError::invalid("metadata", message)
    };
    let Some(metadata) = fields.take("metadata") else { return Ok(None) };
    let Value::Object(metadata) = metadata else { return Err(wrong()) };
    let is_right = metadata.len() <= max
        && metadata.iter().all(|(name, value)| {
            let fits = |value: &str| value.chars().count() <= max_value;
            name.chars().count() <= max_name && value.as_str().is_some_and(fits)
        });
    if is_right { Ok(Some(metadata)) } else { Err(wrong()) }
}

fn output_expires(fields: &mut Fields) -> Result<Option<i64>, ApiError> {
    let Some(value) = fields.take("output_expires_after") else { return Ok(None) };
    let is_right =
        value["anchor"] == "created_at" && value.as_object().is_some_and(|it| it.len() == 2);
    let seconds = value["seconds"].as_i64().filter(|it| is_right && EXPIRY_S.contains(it));
    let (least, most) = (EXPIRY_S.start(), EXPIRY_S.end());
    let message = format!(
        "output_expires_after must be {{\"anchor\": \"created_at\", \"seconds\": N}}, N from \
         {least} to {most}"
    );
    seconds.map(Some).ok_or_else(|| ApiError::invalid("output_expires_after", message))
}

pub(super) async fn list(
    State(state): State<Arc<ApiState>>,
    Extension(caller): Extension<Caller>,
    uri: Uri,
) -> ApiResult {
    let (page, _) = page(uri.query(), PAGE, &[])?;
    let found = state.jobs.records().list(caller.sees(), &page.one_more()).await;
    let found = found.map_err(|cause| storage::failed(&state.jobs, &cause))?;
    if let (true, Some(after)) = (found.is_empty(), &page.after) {
        // Behind what isn't there is nothing: whoever goes on there would take it for the end.
        find(&state.jobs, &caller, Ok(Path(after.clone()))).await?;
    }
    Ok(Json(listed(found, &page, |job| describe(&state, job))).into_response())
}

pub(super) async fn retrieve(
    State(state): State<Arc<ApiState>>,
    Extension(caller): Extension<Caller>,
    id: Result<Path<String>, PathRejection>,
) -> ApiResult {
    let job = find(&state.jobs, &caller, id).await?;
    Ok(Json(describe(&state, &job)).into_response())
}

/// What it has answered is kept; one at its end stays as it is.
pub(super) async fn cancel(
    State(state): State<Arc<ApiState>>,
    Extension(caller): Extension<Caller>,
    id: Result<Path<String>, PathRejection>,
) -> ApiResult {
    let jobs = &state.jobs;
    let job = find(jobs, &caller, id).await?;
    let is_cancelled = jobs.cancel(job.number).await;
    let is_cancelled = is_cancelled.map_err(|cause| storage::failed(jobs, &cause))?;
    let job = find(jobs, &caller, Ok(Path(job.id))).await?;
    if !is_cancelled && !matches!(job.state, JobState::Cancelling | JobState::Cancelled) {
        let message = format!("the batch is {}: it can't be cancelled any more", job.state.name());
        return Err(ApiError::malformed(message).status(409).code("batch_not_cancellable"));
    }
    Ok(Json(describe(&state, &job)).into_response())
}

async fn find(
    jobs: &BatchJobs,
    caller: &Caller,
    id: Result<Path<String>, PathRejection>,
) -> Result<BatchJob, ApiError> {
    let Ok(Path(id)) = id else {
        return Err(ApiError::malformed("the batch's id in the path is no text"));
    };
    let found = jobs.records().get(&id).await.map_err(|cause| storage::failed(jobs, &cause))?;
    // Another's looks as if there were none.
    found.filter(|job| caller.may_see(&job.tenant)).ok_or_else(|| {
        let shown: String = id.chars().take(64).collect();
        let message = format!("there is no batch {shown}; GET /v1/batches lists those there are");
        ApiError::invalid("id", message).status(404).code("batch_not_found")
    })
}

fn describe(state: &ApiState, job: &BatchJob) -> Value {
    let [num_prompt, num_cached, num_generated] = job.num_tokens;
    let since = |state| job.since(state);
    let mut described = json!({
        "id": job.id,
        "object": "batch",
        "endpoint": job.endpoint,
        "model": state.model.name,
        "errors": job.errors,
        "input_file_id": job.input_file,
        "completion_window": job.completion_window,
        "status": job.state.name(),
        "output_file_id": job.output_file,
        "error_file_id": job.error_file,
        "created_at": job.created_s,
        "in_progress_at": since(JobState::InProgress),
        "expires_at": job.expires_s,
        "finalizing_at": since(JobState::Finalizing),
        "completed_at": since(JobState::Completed),
        "failed_at": since(JobState::Failed),
        "expired_at": since(JobState::Expired),
        "cancelling_at": since(JobState::Cancelling),
        "cancelled_at": since(JobState::Cancelled),
        "request_counts": {
            "total": job.num_lines, "completed": job.num_completed, "failed": job.num_failed,
        },
        "usage": {
            "input_tokens": num_prompt,
            "input_tokens_details": {"cached_tokens": num_cached},
            "output_tokens": num_generated,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": num_prompt + num_generated,
        },
        "metadata": job.metadata,
    });
    if let Some(rows) = &job.rows {
        described["rows"] = rows.clone();
    }
    // Ours: why nothing goes on.
    if let (true, Some(problem)) = (job.state.is_open(), state.jobs.disk().problem()) {
        described["paused"] = problem.into();
    }
    described
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(change: impl FnOnce(&mut Value)) -> Result<Asked, ApiError> {
        let mut body = json!({
            "input_file_id": "file-1", "endpoint": "/v1/completions", "completion_window": "24h",
        });
        change(&mut body);
        Asked::parse(body.to_string().as_bytes(), 48)
    }

    #[test]
    fn a_window_is_any_time_that_is_allowed() {
        for (text, expected) in [
            ("24h", Some(86_400)),
            ("30s", Some(30)),
            ("15m", Some(900)),
            ("2d", Some(172_800)),
            ("3d", None),
            ("0s", None),
            ("-1h", None),
            ("+1h", None),
            ("h", None),
            ("", None),
            ("24", None),
            ("1w", None),
            ("9999999999999999999d", None),
            ("1é", None),
        ] {
            let parsed = parse(|it| it["completion_window"] = json!(text));
            assert_eq!(parsed.map(|it| it.window_s).ok(), expected, "{text}");
        }
    }

    #[test]
    fn what_no_batch_can_have_is_refused_by_name() {
        type Change = fn(&mut Value);
        let many: fn(&mut Value) = |it| {
            let many = (0..17).map(|n| (n.to_string(), json!("x")));
            it["metadata"] = Value::Object(many.collect());
        };
        let cases: [(Change, &str); 11] = [
            (|it| it["endpoint"] = json!("/v1/embeddings"), "endpoint"),
            (|it| it["endpoint"] = json!(null), "endpoint"),
            (|it| it["input_file_id"] = json!(5), "input_file_id"),
            (|it| it["metadata"] = json!([]), "metadata"),
            (|it| it["metadata"] = json!({"a": 1}), "metadata"),
            (|it| it["metadata"] = json!({"a": "x".repeat(513)}), "metadata"),
            (|it| it["metadata"] = json!({"a".repeat(65): "x"}), "metadata"),
            (many, "metadata"),
            (|it| it["output_expires_after"] = json!({"seconds": 3600}), "output_expires_after"),
            (
                |it| it["output_expires_after"] = json!({"anchor": "created_at", "seconds": 9}),
                "output_expires_after",
            ),
            (|it| it["wibble"] = json!(1), "wibble"),
        ];
        for (change, param) in cases {
            let error = parse(change).map(|_| ()).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{error}");
        }
        let asked = parse(|it| {
            it["metadata"] = json!({"a": "b"});
            it["output_expires_after"] = json!({"anchor": "created_at", "seconds": 3600});
        });
        let asked = asked.unwrap();
        assert_eq!(asked.output_expires_s, Some(3600));
        assert_eq!(asked.metadata.unwrap()["a"], "b");
    }
}
