//! `autoglm batch list|show|cancel|output`: the jobs of a running server.

use std::io::Write;

use anyhow::{Result, bail, ensure};
use clap::{Args, Subcommand};
use hyper::Method;
use serde_json::Value;

use crate::asking::{Server, block_on};

/// What is wanted of batch jobs.
#[derive(Subcommand)]
pub enum Command {
    /// A line for each job, the newest first.
    List {
        /// Jobs at most.
        #[arg(long, value_name = "N", default_value = "20")]
        limit: u32,
        /// Whom to ask, and how to print.
        #[command(flatten)]
        how: How,
    },
    /// How far a job is.
    Show {
        /// Its id.
        id: String,
        /// Whom to ask, and how to print.
        #[command(flatten)]
        how: How,
    },
    /// Ends a job; what it has answered is kept.
    Cancel {
        /// Its id.
        id: String,
        /// Whom to ask, and how to print.
        #[command(flatten)]
        how: How,
    },
    /// Prints a job's answers, a line each.
    Output {
        /// Its id.
        id: String,
        /// The lines without an answer, and why.
        #[arg(long)]
        errors: bool,
        /// Whom to ask.
        #[command(flatten)]
        server: Server,
    },
}

/// Which server, and in which form.
#[derive(Args)]
pub struct How {
    #[command(flatten)]
    server: Server,
    /// As the server says it, in JSON.
    #[arg(long)]
    json: bool,
}

impl Command {
    /// Asks and prints.
    ///
    /// # Errors
    /// When the server can't be asked, or says no.
    pub fn run(self, out: &mut impl Write) -> Result<()> {
        match self {
            Self::List { limit, how } => {
                let path = format!("/v1/batches?limit={limit}");
                let said = block_on(how.server.ask(Method::GET, &path))?;
                if how.json {
                    writeln!(out, "{}", said["data"])?;
                } else {
                    write!(out, "{}", table(&said["data"]))?;
                }
                Ok(())
            }
            Self::Show { id, how } => one(&how, Method::GET, &path(&id, "")?, out),
            Self::Cancel { id, how } => one(&how, Method::POST, &path(&id, "/cancel")?, out),
            Self::Output { id, errors, server } => block_on(async {
                let job = server.ask(Method::GET, &path(&id, "")?).await?;
                let (field, what) = match errors {
                    true => ("error_file_id", "no line without an answer"),
                    false => ("output_file_id", "no answers"),
                };
                let Some(file) = job[field].as_str() else {
                    let status = text(&job["status"]);
                    bail!("the job is {status} and has {what}; autoglm batch show {id} says more")
                };
                server.copy(&format!("/v1/files/{file}/content"), out).await
            }),
        }
    }
}

/// Of a job, as the API calls it.
fn path(id: &str, action: &str) -> Result<String> {
    let is_id = id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    ensure!(is_id && !id.is_empty(), "{id:?} is no job's id: autoglm batch list shows them");
    Ok(format!("/v1/batches/{id}{action}"))
}

fn one(how: &How, method: Method, path: &str, out: &mut impl Write) -> Result<()> {
    let said = block_on(how.server.ask(method, path))?;
    if how.json {
        writeln!(out, "{said}")?;
    } else {
        write!(out, "{}", described(&said))?;
    }
    Ok(())
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn number(value: &Value) -> i64 {
    value.as_i64().unwrap_or(0)
}

/// When, and what is left of the time.
fn time(seconds: &Value) -> String {
    let at = seconds.as_i64().and_then(|at| jiff::Timestamp::from_second(at).ok());
    at.map_or_else(|| "-".to_owned(), |at| at.to_string())
}

fn lines(job: &Value) -> String {
    let counts = &job["request_counts"];
    let (done, failed) = (number(&counts["completed"]), number(&counts["failed"]));
    format!("{}/{}", done + failed, number(&counts["total"]))
}

fn table(jobs: &Value) -> String {
    let row = |cells: [&str; 5]| {
        let [id, status, lines, failed, expires] = cells;
        format!("{id:<39}  {status:<11}  {lines:>13}  {failed:>6}  {expires}\n")
    };
    let mut rows = row(["id", "status", "lines", "failed", "expires"]);
    for job in jobs.as_array().into_iter().flatten() {
        let failed = number(&job["request_counts"]["failed"]).to_string();
        let (lines, expires) = (lines(job), time(&job["expires_at"]));
        rows += &row([text(&job["id"]), text(&job["status"]), &lines, &failed, &expires]);
    }
    rows
}

fn described(job: &Value) -> String {
    let usage = &job["usage"];
    let num_prompt = number(&usage["input_tokens"]);
    let num_cached = number(&usage["input_tokens_details"]["cached_tokens"]);
    let share = num_cached * 100 / num_prompt.max(1);
    let mut said = format!("{}: {}\n", text(&job["id"]), text(&job["status"]));
    if let Some(problem) = job["paused"].as_str() {
        said += &format!("waits for the disk: {problem}\n");
    }
    let failed = number(&job["request_counts"]["failed"]);
    said += &format!("lines {} ({failed} failed), {}\n", lines(job), text(&job["endpoint"]));
    said += &format!(
        "tokens of prompts {num_prompt}, of which {num_cached} ({share} %) need not be computed; \
         of answers {}\n",
        number(&usage["output_tokens"])
    );
    said +=
        &format!("created {}, expires {}\n", time(&job["created_at"]), time(&job["expires_at"]));
    for (name, field) in
        [("input", "input_file_id"), ("output", "output_file_id"), ("errors", "error_file_id")]
    {
        if let Some(file) = job[field].as_str() {
            said += &format!("{name} {file}\n");
        }
    }
    for error in job["errors"]["data"].as_array().into_iter().flatten() {
        said += &format!("{}\n", text(&error["message"]));
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_job_is_shown_with_what_the_prefix_cache_saved() {
        let job = json!({
            "id": "batch_1", "status": "in_progress", "endpoint": "/v1/completions",
            "request_counts": {"total": 10, "completed": 4, "failed": 1},
            "usage": {
                "input_tokens": 200, "input_tokens_details": {"cached_tokens": 150},
                "output_tokens": 7,
            },
            "created_at": 0, "expires_at": 60, "input_file_id": "file-1", "output_file_id": null,
            "errors": null, "paused": "the disk is full",
        });
        let expected = "batch_1: in_progress\n\
            waits for the disk: the disk is full\n\
            lines 5/10 (1 failed), /v1/completions\n\
            tokens of prompts 200, of which 150 (75 %) need not be computed; of answers 7\n\
            created 1970-01-01T00:00:00Z, expires 1970-01-01T00:01:00Z\n\
            input file-1\n";
        assert_eq!(described(&job), expected);
        let rows = table(&json!([job]));
        assert!(rows.lines().nth(1).unwrap().contains("in_progress           5/10"), "{rows}");
        assert!(path("../files", "").is_err() && path("", "").is_err());
    }
}
