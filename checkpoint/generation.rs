//! How a model's authors want it to be sampled, where a request doesn't say.

use std::path::Path;

use serde_json::Value;

use crate::config::Refused;
use crate::error::CheckpointError;
use crate::gguf;
use crate::huggingface::{GENERATION_CONFIG, MAX_CONFIG_BYTES, read_json};

/// What the files say of sampling; `None` where they say nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SamplingDefaults {
    /// From 0 on; 0 takes the most probable token, which `do_sample: false` says too.
    pub temperature: Option<f32>,
    /// Only the k most probable tokens stay; 0 keeps all.
    pub top_k: Option<u32>,
    /// Above 0 and at most 1.
    pub top_p: Option<f32>,
    /// Of the most probable token's probability, from 0 to 1; 0 is off.
    pub min_p: Option<f32>,
    /// Above 0; 1 is off.
    pub repetition_penalty: Option<f32>,
    /// Tokens of an answer, at least 1.
    pub max_new_tokens: Option<u32>,
}

/// Values beyond these are no sampling parameters.
const MAX: f64 = 100.0;
const MIN_PENALTY: f64 = 0.01;
const SMALLEST: f64 = f32::MIN_POSITIVE as f64;

/// Of a Hugging Face directory.
pub(crate) fn of_directory(dir: &Path) -> Result<SamplingDefaults, CheckpointError> {
    let path = dir.join(GENERATION_CONFIG);
    if !path.exists() {
        return Ok(SamplingDefaults::default());
    }
    let fields = read_json(&path, MAX_CONFIG_BYTES)?;
    let named = |key: &'static str| (key, fields[key].as_f64());
    let read = || {
        // -1 is how some say "off".
        let top_k = fields["top_k"].as_f64().map(|k| k.max(0.0));
        let mut defaults = SamplingDefaults {
            temperature: within(named("temperature"), 0.0..=MAX)?,
            top_k: whole(("top_k", top_k), 0)?,
            top_p: within(named("top_p"), SMALLEST..=1.0)?,
            min_p: within(named("min_p"), 0.0..=1.0)?,
            repetition_penalty: within(named("repetition_penalty"), MIN_PENALTY..=MAX)?,
            max_new_tokens: whole(named("max_new_tokens"), 1)?,
        };
        let known = ["temperature", "top_k", "top_p", "min_p", "repetition_penalty"];
        for key in known.into_iter().chain(["max_new_tokens"]) {
            if !fields[key].is_null() && !fields[key].is_number() {
                return Err(Refused::new(key, format!("is {}, it must be a number", fields[key])));
            }
        }
        match &fields["do_sample"] {
            Value::Null | Value::Bool(true) => {}
            // Who says so wants the most probable token, whatever temperature stands beside it.
            Value::Bool(false) => defaults.temperature = Some(0.0),
            other => {
                let problem = format!("is {other}, it must be true or false");
                return Err(Refused::new("do_sample", problem));
            }
        }
        Ok(defaults)
    };
    read().map_err(|refused| at(&path, refused))
}

/// Of a GGUF file.
pub(crate) fn of_gguf(
    path: &Path,
    header: &gguf::Header,
) -> Result<SamplingDefaults, CheckpointError> {
    let named = |key: &'static str| {
        let value = header.keys.get(key).and_then(|value| match value {
            gguf::Value::Float(value) => Some(*value),
            gguf::Value::Signed(value) => Some(*value as f64),
            gguf::Value::Unsigned(value) => Some(*value as f64),
            _ => None,
        });
        (key, value)
    };
    let read = || {
        let (key, top_k) = named("general.sampling.top_k");
        let penalty = named("general.sampling.penalty_repeat");
        Ok(SamplingDefaults {
            temperature: within(named("general.sampling.temp"), 0.0..=MAX)?,
            top_k: whole((key, top_k.map(|k| k.max(0.0))), 0)?,
            top_p: within(named("general.sampling.top_p"), SMALLEST..=1.0)?,
            min_p: within(named("general.sampling.min_p"), 0.0..=1.0)?,
            repetition_penalty: within(penalty, MIN_PENALTY..=MAX)?,
            max_new_tokens: None,
        })
    };
    read().map_err(|refused| at(path, refused))
}

fn at(path: &Path, Refused { key, problem }: Refused) -> CheckpointError {
    CheckpointError::Config { path: path.to_owned(), key, problem }
}

type Named = (&'static str, Option<f64>);

fn within(
    (key, value): Named,
    range: std::ops::RangeInclusive<f64>,
) -> Result<Option<f32>, Refused> {
    match value {
        Some(value) if !range.contains(&value) => {
            let (min, max) = range.into_inner();
            Err(Refused::new(key, format!("is {value}, it must be from {min} to {max}")))
        }
        value => Ok(value.map(|value| value as f32)),
    }
}

fn whole((key, value): Named, min: u32) -> Result<Option<u32>, Refused> {
    match value {
        None => Ok(None),
        Some(value) if value.fract() == 0.0 && value >= f64::from(min) => {
            Ok(Some(value.min(f64::from(u32::MAX)) as u32))
        }
        Some(value) => {
            Err(Refused::new(key, format!("is {value}, it must be a whole number from {min} on")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::collections::{BTreeMap, HashMap};

    fn read(fields: &Value) -> Result<SamplingDefaults, String> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(GENERATION_CONFIG), fields.to_string()).unwrap();
        of_directory(dir.path()).map_err(|error| error.to_string())
    }

    #[test]
    fn what_the_authors_recommend_is_read() {
        let all = json!({
            "do_sample": true, "temperature": 1, "top_k": 50, "top_p": 0.8, "min_p": 0.05,
            "repetition_penalty": 1.1, "max_new_tokens": 2048.0, "eos_token_id": [1],
        });
        let expected = SamplingDefaults {
            temperature: Some(1.0),
            top_k: Some(50),
            top_p: Some(0.8),
            min_p: Some(0.05),
            repetition_penalty: Some(1.1),
            max_new_tokens: Some(2048),
        };
        assert_eq!(read(&all), Ok(expected));
        let nothing = json!({"eos_token_id": 1, "temperature": null});
        assert_eq!(read(&nothing), Ok(SamplingDefaults::default()));
        assert_eq!(read(&json!({"top_k": -1})).unwrap().top_k, Some(0));
        let greedy = read(&json!({"do_sample": false, "temperature": 0.7})).unwrap();
        assert_eq!(greedy.temperature, Some(0.0));
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(of_directory(dir.path()).unwrap(), SamplingDefaults::default());
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        for (fields, expected) in [
            (json!({"temperature": -1}), "temperature is -1, it must be from 0 to 100"),
            (json!({"temperature": "hot"}), "temperature is \"hot\", it must be a number"),
            (json!({"top_p": 0}), "top_p is 0"),
            (json!({"top_p": 1.5}), "top_p is 1.5"),
            (json!({"top_k": 1.5}), "top_k is 1.5"),
            (json!({"min_p": 2}), "min_p is 2"),
            (json!({"repetition_penalty": 0}), "repetition_penalty is 0"),
            (json!({"max_new_tokens": 0}), "max_new_tokens is 0"),
            (json!({"do_sample": 1}), "do_sample is 1, it must be true or false"),
        ] {
            let error = read(&fields).unwrap_err();
            assert!(error.contains(expected) && error.contains(GENERATION_CONFIG), "{error}");
        }
    }

    #[test]
    fn a_gguf_says_it_in_its_own_words() {
        let mut header = gguf::Header { keys: BTreeMap::new(), tensors: HashMap::new() };
        let mut set = |key: &str, value| header.keys.insert(key.to_owned(), value);
        set("general.sampling.temp", gguf::Value::Float(0.25));
        set("general.sampling.top_k", gguf::Value::Signed(20));
        set("general.sampling.top_p", gguf::Value::Float(0.5));
        let expected = SamplingDefaults {
            temperature: Some(0.25),
            top_k: Some(20),
            top_p: Some(0.5),
            ..SamplingDefaults::default()
        };
        assert_eq!(of_gguf(Path::new("x.gguf"), &header).unwrap(), expected);
        let key = "general.sampling.min_p";
        header.keys.insert(key.to_owned(), gguf::Value::Float(7.0));
        let error = of_gguf(Path::new("x.gguf"), &header).unwrap_err().to_string();
        assert!(error.contains(key) && error.contains("x.gguf"), "{error}");
    }
}
