//! A configuration of an experiment, as its TOML file says it: which server, and which load.
//!
//! ```toml
//! name = "pooled"                     # default: the file's name
//!
//! [server]
//! url = "http://127.0.0.1:8000"       # one that runs, or:
//! # command = ["autoglm", "serve", "--model", "{here}/model", "--http", "127.0.0.1:{port}"]
//! # ready_seconds = 180
//!
//! [load]                              # the options of `autoglm-bench load`, without their dashes
//! concurrency = 180
//! duration = "10s"
//! ```

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use toml::{Table, Value};

/// Options of `load` that an experiment decides itself.
const OWN_OPTIONS: [&str; 5] = ["url", "json", "html", "hgrm", "label"];
/// Seconds that a server may take until it is ready.
const READY_SECONDS: u64 = 180;

/// One of the two things that are compared.
#[derive(Clone, Debug, PartialEq)]
pub struct Configuration {
    /// What tables call it.
    pub name: String,
    /// The server that answers.
    pub server: Target,
    /// How it is asked: arguments of `autoglm-bench load`.
    pub load: Vec<String>,
}

/// A server that runs anyway, or one that an experiment starts.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// One that runs.
    Url(String),
    /// One that is started, and ended with the experiment.
    Command(Command),
}

/// A server's command line.
#[derive(Clone, Debug, PartialEq)]
pub struct Command {
    /// Program and arguments, in which `{port}` stands for a free port and `{dir}` for an empty
    /// folder.
    pub words: Vec<String>,
    /// Seconds that it may take until it is ready.
    pub ready_seconds: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: Option<String>,
    server: Server,
    #[serde(default)]
    load: Table,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Server {
    url: Option<String>,
    command: Option<Vec<String>>,
    ready_seconds: Option<u64>,
}

impl Configuration {
    /// Reads a file. `{here}` stands for its folder wherever text is given.
    ///
    /// # Errors
    /// When it can't be read or isn't a configuration.
    pub fn read(path: &Path) -> Result<Self> {
        let shown = path.display();
        let text = std::fs::read_to_string(path).with_context(|| format!("can't read {shown}"))?;
        let here = match path.parent() {
            Some(folder) if folder != Path::new("") => folder.to_string_lossy().into_owned(),
            _ => ".".to_string(),
        };
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        Self::parse(&text, &stem, &here).with_context(|| format!("{shown} is no configuration"))
    }

    fn parse(text: &str, stem: &str, here: &str) -> Result<Self> {
        let file: File = toml::from_str(text)?;
        let placed = |text: &str| text.replace("{here}", here);
        let server = match (file.server.url, file.server.command) {
            (Some(_), Some(_)) => {
                bail!("[server] has both a url and a command: one of them says what to ask")
            }
            (None, None) => bail!("[server] has neither a url nor a command"),
            (Some(_), None) if file.server.ready_seconds.is_some() => {
                bail!("[server] ready_seconds goes with a command")
            }
            (Some(url), None) => Target::Url(url),
            (None, Some(words)) => {
                let words: Vec<String> = words.iter().map(|word| placed(word)).collect();
                if words.is_empty() {
                    bail!("[server] command is empty");
                }
                if !words.iter().any(|word| word.contains("{port}")) {
                    bail!("[server] command doesn't say {{port}}: where would the server listen?");
                }
                let ready_seconds = file.server.ready_seconds.unwrap_or(READY_SECONDS);
                Target::Command(Command { words, ready_seconds })
            }
        };
        let mut load = Vec::new();
        for (key, value) in &file.load {
            let option = key.replace('_', "-");
            if OWN_OPTIONS.contains(&option.as_str()) {
                bail!("[load] {key} is for the experiment to decide");
            }
            let values = match value {
                Value::Array(values) => values.as_slice(),
                value => std::slice::from_ref(value),
            };
            for value in values {
                let text = match value {
                    Value::Boolean(true) => {
                        load.push(format!("--{option}"));
                        continue;
                    }
                    Value::Boolean(false) => continue,
                    Value::String(text) => placed(text),
                    Value::Integer(_) | Value::Float(_) => value.to_string(),
                    other => bail!("[load] {key} is a {}, not text or a number", other.type_str()),
                };
                // In one word, so that a value that begins with a dash is one.
                load.push(format!("--{option}={text}"));
            }
        }
        Ok(Self { name: file.name.unwrap_or_else(|| stem.to_string()), server, load })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Configuration> {
        Configuration::parse(text, "pool", "bench/experiments")
    }

    #[test]
    fn a_load_is_written_as_on_the_command_line() {
        let found = parse(
            "[server]\ncommand = [\"autoglm\", \"{here}/../x\", \"{port}\"]\n\
             [load]\nmax_tokens = 8\nrate = 1.5\nignore_eos = true\nno = false\n\
             prompts = \"{here}/p\"\nfault = [\"a\", \"b\"]",
        )
        .unwrap();
        assert_eq!(found.name, "pool");
        let words = ["autoglm", "bench/experiments/../x", "{port}"].map(String::from).to_vec();
        assert_eq!(found.server, Target::Command(Command { words, ready_seconds: 180 }));
        assert_eq!(
            found.load,
            [
                "--fault=a",
                "--fault=b",
                "--ignore-eos",
                "--max-tokens=8",
                "--prompts=bench/experiments/p",
                "--rate=1.5",
            ]
        );
    }

    #[test]
    fn what_is_no_configuration_is_refused_with_a_reason() {
        let url = "[server]\nurl = \"http://a:1\"\n";
        for (text, said) in [
            ("", "missing field `server`"),
            ("[server]\nurll = 1", "unknown field `urll`"),
            ("[server]\n", "neither a url nor a command"),
            ("[server]\nurl = \"a\"\ncommand = [\"b\"]", "both a url and a command"),
            ("[server]\ncommand = []", "is empty"),
            ("[server]\ncommand = [\"a\"]", "doesn't say {port}"),
            (&format!("{url}ready_seconds = 3"), "goes with a command"),
            (&format!("{url}[load]\njson = \"a\""), "json is for the experiment to decide"),
            (&format!("{url}[load]\nrate = 1979-05-27"), "rate is a datetime"),
            (&format!("{url}[load]\nrate = {{ a = 1 }}"), "rate is a table"),
            (&format!("{url}[loads]\n"), "unknown field `loads`"),
            ("nonsense", "expected"),
        ] {
            let error = format!("{:#}", parse(text).unwrap_err());
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
