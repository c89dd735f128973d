//! What `autoglm batch run` is told, and the job that this is.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use clap::Parser;
use hyper::Method;
use rows::answers::{Answers, answer_columns};
use serde_json::{Map, Value};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::address::{Address, Direction, Format};
use crate::answerer::{Answerer, Server, ServerTokens};
use crate::asking::Plan;
use crate::clean::{Declared, Tokens};
use crate::http::Http;
use crate::journal::{self, Begin, Purpose};
use crate::object::Objects;
use crate::run::{Job, MAX_AHEAD};
use crate::sink::{Writing, beside};
use crate::source::Reading;
use crate::template::Template;

/// From data to data: each row of a file, table or store becomes a request of a template, a running
/// server answers it, and rows with answers go where they are wanted, each exactly once.
#[derive(Clone, Debug, Parser)]
#[command(name = "autoglm batch run", bin_name = "autoglm batch run", version)]
pub struct Arguments {
    /// Where rows come from: a file (.jsonl, .csv, .json, .parquet), a directory of texts, `-` for
    /// standard input, s3://BUCKET/KEY, sqlite:FILE?query=…, postgres://…?query=…,
    /// mysql://…?query=…; a query that may be resumed has an ORDER BY.
    #[arg(long, value_name = "SRC")]
    input: String,
    /// Where they go: a file (.jsonl, .csv, .parquet), s3://BUCKET/KEY, sqlite:FILE?table=…,
    /// postgres://…?table=…, mysql://…?table=…, or http(s)://… that takes rows.
    #[arg(long, value_name = "DST")]
    output: String,
    /// How a row becomes a request: a minijinja template of what the user says, or (.json) a body
    /// whose texts are templates. Neither this nor --map: rows are lines of OpenAI's batch files.
    #[arg(long, value_name = "FILE", conflicts_with = "map")]
    template: Option<PathBuf>,
    /// In place of a template: user=COLUMN, system=COLUMN, prompt=COLUMN, or another field of a
    /// body, such as max_tokens=COLUMN.
    #[arg(long, value_name = "FIELD=COLUMN")]
    map: Vec<String>,
    /// What is done with rows before: a file that declares it (see batch/clean.toml).
    #[arg(long, value_name = "FILE")]
    clean: Option<PathBuf>,
    /// Clean (and label) rows, and ask no more of them.
    #[arg(long, conflicts_with_all = ["template", "map"])]
    clean_only: bool,
    /// The model [default: the one that the server has].
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Who goes first: realtime, interactive, standard or batch.
    #[arg(long, value_name = "TIER", default_value = "batch")]
    tier: String,
    /// How long answers are of use, such as 30m, 24h or 7d; then the run stops [default: for ever].
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    window: Option<Duration>,
    /// Tokens of an answer, where the template says nothing.
    #[arg(long, value_name = "N")]
    max_tokens: Option<u32>,
    /// How answers are sampled, where the template says nothing.
    #[arg(long, value_name = "X")]
    temperature: Option<f64>,
    /// Go on with an unfinished run, if there is one.
    #[arg(long)]
    resume: bool,
    /// Take the place of an output that is there.
    #[arg(long)]
    overwrite: bool,
    /// Where the server's API is.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8000")]
    server: String,
    /// Shown to the server with each request.
    #[arg(long, value_name = "KEY", env = "AUTOGLM_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// Requests at once.
    #[arg(long, value_name = "N", default_value_t = 64)]
    concurrency: usize,
    /// How long a server that doesn't answer is asked again.
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "10m")]
    patience: Duration,
    /// What the input is, where its name doesn't say so.
    #[arg(long, value_name = "FORMAT")]
    input_format: Option<Format>,
    /// What the output is, where its name doesn't say so.
    #[arg(long, value_name = "FORMAT")]
    output_format: Option<Format>,
    /// The column whose value is another in each row: a table is updated by it.
    #[arg(long, value_name = "COLUMN")]
    id: Option<String>,
    /// The columns of the input that go to the output [default: all].
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    columns: Option<Vec<String>>,
    /// What the column of answers is called in the output.
    #[arg(long, value_name = "NAME", default_value = "answer")]
    answer_column: String,
    /// Answers are JSON objects: these of their fields are columns [default: the properties of the
    /// schema that the template asks for].
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    answer_columns: Option<Vec<String>>,
    /// How a server gets rows: POST or PUT.
    #[arg(long, value_name = "METHOD", default_value = "POST", value_parser = method)]
    http_method: Method,
    /// How many rows a server gets at once.
    #[arg(long, value_name = "N", default_value_t = 1)]
    rows_together: usize,
    /// The key of a server that gets rows.
    #[arg(long, value_name = "KEY", env = "AUTOGLM_OUTPUT_KEY", hide_env_values = true)]
    output_key: Option<String>,
    /// What has been done is kept there until the end [default: beside the output, or in this
    /// directory, where a file of that name with .done then tells --resume of the end].
    #[arg(long, value_name = "FILE")]
    journal: Option<PathBuf>,
    /// A row that takes more bytes is passed over.
    #[arg(long, value_name = "BYTES", default_value_t = 16 << 20)]
    max_row_bytes: usize,
}

/// What there is to do.
pub enum Prepared {
    /// A job, and who answers.
    Job(Box<Job>, Arc<dyn Answerer>),
    /// Nothing, and why.
    Nothing(String),
}

impl Arguments {
    /// Makes a job of them.
    ///
    /// # Errors
    /// When there is none that could be done.
    pub async fn prepare(self) -> Result<Prepared> {
        ensure!(self.concurrency > 0, "--concurrency must be 1 or more");
        ensure!(self.rows_together > 0, "--rows-together must be 1 or more");
        ensure!(self.max_row_bytes >= 1024, "--max-row-bytes must be 1024 or more");
        let input = Address::parse(&self.input, self.input_format, Direction::Input)?;
        let output = Address::parse(&self.output, self.output_format, Direction::Output)?;
        if matches!(output, Address::Database { .. }) {
            ensure!(
                self.id.is_some() || self.is_lines(),
                "rows are found again in a table by one of their columns: --id says which"
            );
        }
        let journal = self.journal.clone().unwrap_or_else(|| beside_output(&self.output, &output));
        if let Address::Folder(folder) = &input {
            let file = if let Address::File(path, _) = &output { Some(path) } else { None };
            if let Some(path) = file.into_iter().chain([&journal]).find(|it| lies_in(it, folder)) {
                let (path, folder) = (path.display(), folder.display());
                bail!(
                    "{path} would lie in {folder}, of which every file is a row: --output, or \
                     --journal, must name another directory"
                );
            }
        }
        let http = Http::new()?;
        let runtime = Handle::current();
        let objects = Objects::new(http.clone(), runtime.clone());
        if !self.overwrite && !journal.exists() && is_there(&output, &objects).await {
            ensure!(self.resume, "{output} is there already: --overwrite takes its place");
            return Ok(Prepared::Nothing(format!("{output} is there: nothing to resume")));
        }
        if journal::done(&journal).exists() && !journal.exists() {
            if self.resume {
                let done = journal::done(&journal);
                let why = format!("{} says that all is done: nothing to resume", done.display());
                return Ok(Prepared::Nothing(why));
            }
            std::fs::remove_file(journal::done(&journal))?;
        }
        // Another process may still be at it, so a run looks again when no other can be.
        let mut ended = Vec::new();
        if let Address::File(path, _) = &output
            && !self.overwrite
        {
            ended.push(path.clone());
        }
        if self.resume {
            ended.push(journal::done(&journal));
        }
        let until = self.window.map(|window| Instant::now() + window);
        let (server, key) = (&self.server, self.api_key.clone());
        let server = Server::new(http.clone(), server, key, until, self.patience)?;
        let (clean, clean_text) = match &self.clean {
            Some(path) => Declared::read(path)?,
            None => (Declared::default(), String::new()),
        };
        let labels = clean.labels()?;
        let needs_model = !self.clean_only || !labels.is_empty() || clean.counts_tokens();
        let model = match &self.model {
            Some(model) => model.clone(),
            None if needs_model => server.model().await?,
            None => String::new(),
        };
        let mut defaults = Map::from_iter([
            ("model".into(), Value::from(model.clone())),
            ("service_tier".into(), self.tier.clone().into()),
        ]);
        if let Some(max_tokens) = self.max_tokens {
            defaults.insert("max_tokens".into(), max_tokens.into());
        }
        if let Some(temperature) = self.temperature {
            defaults.insert("temperature".into(), temperature.into());
        }
        let (template, template_text) = self.template(&defaults)?;
        let answers = self.answers(&template_text)?;
        let tokens: Option<Box<dyn Tokens>> = match clean.counts_tokens() {
            true => {
                let server = server.clone();
                Some(Box::new(ServerTokens::new(server, model, runtime.clone())))
            }
            false => None,
        };
        let id = self.id.clone().or_else(|| self.is_lines().then(|| "custom_id".into()));
        let reading = Reading {
            max_row_bytes: self.max_row_bytes,
            runtime: runtime.clone(),
            objects: objects.clone(),
        };
        let mut purpose = self.purpose(&input, &output, &template_text, &clean_text, &defaults)?;
        purpose.insert("input file".into(), state_of(&input, &objects).await?);
        let writing = Writing {
            runtime,
            objects,
            http,
            job: String::new(),
            id: id.clone(),
            rows_together: self.rows_together,
            method: self.http_method.clone(),
            key: self.output_key.clone(),
            stop: CancellationToken::new(),
        };
        let columns = self.columns.clone();
        let rejects = match &output {
            Address::File(path, _) => beside(path, ".rejects.jsonl"),
            _ => beside(&journal.with_extension(""), ".rejects.jsonl"),
        };
        let job = Job {
            input,
            output,
            plan: Plan { template, answers, labels, defaults, columns },
            clean,
            tokens,
            id,
            concurrency: self.concurrency,
            ahead: MAX_AHEAD.max(self.concurrency),
            journal,
            rejects,
            purpose,
            begin: if self.resume { Begin::Resume } else { Begin::Anew },
            ended,
            reading,
            writing,
        };
        Ok(Prepared::Job(Box::new(job), Arc::new(server)))
    }

    fn is_lines(&self) -> bool {
        self.template.is_none() && self.map.is_empty() && !self.clean_only
    }

    /// The template, and its text.
    fn template(&self, defaults: &Map<String, Value>) -> Result<(Option<Template>, String)> {
        if self.clean_only {
            return Ok((None, String::new()));
        }
        let (template, text) = match &self.template {
            Some(path) => Template::read(path)?,
            None if self.map.is_empty() => (Template::lines(), String::new()),
            None => (Template::columns(&self.map)?, self.map.join("\n")),
        };
        Ok((Some(template.with_defaults(defaults.clone())), text))
    }

    fn answers(&self, template_text: &str) -> Result<Answers> {
        if self.is_lines() {
            return Ok(Answers::Lines);
        }
        if let Some(names) = &self.answer_columns {
            return answer_columns(names);
        }
        let of_template = Answers::of_template(template_text);
        Ok(of_template.unwrap_or_else(|| Answers::Text(self.answer_column.clone())))
    }

    /// What may not change between a run and one that goes on with it.
    fn purpose(
        &self,
        input: &Address,
        output: &Address,
        template: &str,
        clean: &str,
        defaults: &Map<String, Value>,
    ) -> Result<Purpose> {
        let hash = |text: &str| blake3::hash(text.as_bytes()).to_hex()[..16].to_owned();
        let list =
            |names: &Option<Vec<String>>| names.as_ref().map_or("all".into(), |it| it.join(","));
        let facts = [
            ("input", input.to_string()),
            ("output", output.to_string()),
            ("template", hash(template)),
            ("cleaning", hash(clean)),
            ("model and sampling", serde_json::to_string(defaults)?),
            ("--id", self.id.clone().unwrap_or_default()),
            ("--columns", list(&self.columns)),
            ("--answer-column", self.answer_column.clone()),
            ("--answer-columns", list(&self.answer_columns)),
            ("--rows-together", self.rows_together.to_string()),
            ("--max-row-bytes", self.max_row_bytes.to_string()),
            ("--clean-only", self.clean_only.to_string()),
        ];
        Ok(facts.map(|(name, value)| (name.to_owned(), value)).into_iter().collect())
    }
}

/// Whether there is a file or an object of which a run would take the place. A table takes rows
/// beside others; a store that can't be asked says so when it is written to.
async fn is_there(output: &Address, objects: &Objects) -> bool {
    match output {
        Address::File(path, _) => path.exists(),
        Address::Object { .. } => state_of(output, objects).await.is_ok(),
        _ => false,
    }
}

/// What says that a file is still the one that an earlier run read.
async fn state_of(input: &Address, objects: &Objects) -> Result<String> {
    Ok(match input {
        Address::File(path, _) => {
            let said = std::fs::metadata(path);
            let said = said.with_context(|| format!("can't read {}", path.display()))?;
            if !said.is_file() {
                return Ok(String::new());
            }
            let modified = said.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
            format!("{} bytes of {}", said.len(), modified.as_nanos())
        }
        Address::Object { bucket, key, .. } => {
            let (objects, bucket, key) = (objects.clone(), bucket.clone(), key.clone());
            tokio::task::spawn_blocking(move || objects.tag(&bucket, &key)).await??
        }
        // A query says by itself when it isn't as it was; of a directory what is behind the newest
        // file is read.
        _ => String::new(),
    })
}

/// Whether a file, which needn't be there yet, is or will be one of a directory.
fn lies_in(path: &Path, folder: &Path) -> bool {
    let parent = path.parent().filter(|it| !it.as_os_str().is_empty());
    match (parent.unwrap_or(Path::new(".")).canonicalize(), folder.canonicalize()) {
        (Ok(parent), Ok(folder)) => parent.starts_with(folder),
        _ => false,
    }
}

/// The journal's place: an output that is no file has a name of its own in this directory.
fn beside_output(text: &str, output: &Address) -> PathBuf {
    match output {
        Address::File(path, _) => beside(path, ".journal"),
        _ => {
            let hash = blake3::hash(text.as_bytes()).to_hex();
            Path::new(".").join(format!("batch-{}.journal", &hash[..12]))
        }
    }
}

/// How rows are sent, by the name of the method.
fn method(name: &str) -> Result<Method> {
    match name.to_ascii_uppercase().as_str() {
        "POST" => Ok(Method::POST),
        "PUT" => Ok(Method::PUT),
        _ => bail!("{name:?} is no way to send rows: use POST or PUT"),
    }
}

/// A duration as people write it.
fn duration(text: &str) -> Result<Duration> {
    let wrong = || anyhow!("{text:?} is no duration: use 90s, 30m, 24h or 7d");
    let end = text.find(|character: char| !character.is_ascii_digit()).ok_or_else(wrong)?;
    let (number, unit) = text.split_at(end);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    let seconds = number.checked_mul(seconds).filter(|it| (1..=365 * 86_400).contains(it));
    Ok(Duration::from_secs(seconds.context("a duration is from a second to a year")?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::serve;

    #[test]
    fn a_duration_is_a_number_with_its_unit() {
        assert_eq!(duration("24h").unwrap(), Duration::from_secs(86_400));
        assert_eq!(duration("90s").unwrap(), Duration::from_secs(90));
        for wrong in ["", "5", "m", "1w", "0s", "99999d", "-1h"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[tokio::test]
    async fn an_output_is_not_one_of_the_files_that_are_read() {
        let (texts, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::create_dir(texts.path().join("more")).unwrap();
        let path = |dir: &Path, name: &str| dir.join(name).display().to_string();
        let inside = path(texts.path(), "more/../out.csv");
        let (outside, journal) = (path(other.path(), "out.csv"), path(texts.path(), "more/j"));
        let input = texts.path().display().to_string();
        for (output, more) in [(&inside, vec![]), (&outside, vec!["--journal", &journal])] {
            let arguments = ["batch", "--input", &input, "--output", output, "--map", "user=text"];
            let arguments = Arguments::parse_from(arguments.into_iter().chain(more));
            let said = arguments.prepare().await.err().unwrap().to_string();
            assert!(said.contains("of which every file is a row"), "{said}");
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_object_that_is_there_is_seen_as_a_file_is() {
        let url = serve(|head, _| match head.uri.path() {
            "/data/old.csv" => (200, "rows".into()),
            _ => (404, String::new()),
        });
        let mut objects = Objects::new(Http::new().unwrap(), Handle::current());
        objects.endpoint = Some(url.await);
        for (name, expected) in [("old", true), ("new", false)] {
            let address = format!("s3://data/{name}.csv");
            let output = Address::parse(&address, None, Direction::Output).unwrap();
            assert_eq!(is_there(&output, &objects).await, expected, "{address}");
        }
    }

    #[test]
    fn flags_are_ones_that_clap_can_have() {
        use clap::CommandFactory as _;
        Arguments::command().debug_assert();
    }
}
