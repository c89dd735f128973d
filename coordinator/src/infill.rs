//! llama.cpp's `/infill` as data, which editors ask as one types: what stands before the cursor and
//! after it comes in, what belongs between them goes out.
//! <https://github.com/ggml-org/llama.cpp/tree/master/tools/server>

use serde_json::{Value, json};

use crate::openai::{ApiError, Chunk, Described, Fields, Spoken, wrong};

/// Names that completions have for what it calls otherwise.
const NAMES: [(&str, &str); 3] = [
    ("n_predict", "max_tokens"),
    ("repeat_penalty", "repetition_penalty"),
    ("t_max_predict_ms", "max_time_ms"),
];

/// Fields that change no answer here: how it caches, and which samplers it has in which order.
const HINTS: [&str; 14] = [
    "cache_prompt",
    "id_slot",
    "n_cache_reuse",
    "n_indent",
    "n_keep",
    "repeat_last_n",
    "response_fields",
    "return_tokens",
    "samplers",
    "speculative.n_max",
    "speculative.n_min",
    "speculative.p_min",
    "t_max_prompt_ms",
    "timings_per_token",
];

/// Other files that are shown, at most.
const MAX_EXTRA: usize = 256;

/// Between which texts something is to stand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Between {
    /// Other files: name and text.
    pub(crate) extra: Vec<(String, String)>,
    pub(crate) before: String,
    pub(crate) after: String,
    pub(crate) begun: String,
}

impl Between {
    /// Takes the fields that say it; what else a body has gets the names that completions have.
    ///
    /// # Errors
    /// When one of them isn't what it should be.
    pub(crate) fn take(fields: &mut Fields) -> Result<Self, ApiError> {
        for name in HINTS {
            fields.take(name);
        }
        // What is without limit there.
        for name in ["n_predict", "t_max_predict_ms", "n_probs"] {
            if let Some(value) = fields.take(name) {
                let is_off = value.as_f64().is_some_and(|it| it < 0.0)
                    || (name != "n_predict" && value.as_f64() == Some(0.0));
                if !is_off {
                    fields.put(name, value);
                }
            }
        }
        if fields.has("n_probs") {
            let message = "n_probs is not supported by /infill; use logprobs of /v1/completions";
            return Err(ApiError::invalid("n_probs", message).code("unsupported_parameter"));
        }
        // -1 has one drawn there.
        if let Some(seed) = fields.take("seed").filter(|seed| *seed != -1) {
            fields.put("seed", seed);
        }
        for (theirs, ours) in NAMES {
            if let Some(value) = fields.take(theirs) {
                fields.put(ours, value);
            }
        }
        let extra = match fields.take("input_extra") {
            None => Vec::new(),
            Some(Value::Array(extra)) if extra.len() <= MAX_EXTRA => {
                extra.iter().map(file).collect::<Result<_, _>>()?
            }
            Some(other) => {
                let expected = format!("a list of at most {MAX_EXTRA} files with a text each");
                return Err(wrong("input_extra", &expected, &other));
            }
        };
        let mut text = |name: &str| fields.string(name).map(Option::unwrap_or_default);
        let (before, after) = (text("input_prefix")?, text("input_suffix")?);
        Ok(Self { extra, before, after, begun: text("prompt")? })
    }
}

fn file(file: &Value) -> Result<(String, String), ApiError> {
    let name = file["filename"].as_str().unwrap_or("tmp").to_owned();
    match file["text"].as_str() {
        Some(text) => Ok((name, text.to_owned())),
        None => Err(wrong("input_extra", "files with a text each", file)),
    }
}

/// Tells what stands between: in one piece, or in several and an end.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stream;

impl Stream {
    /// What is said next.
    pub(crate) fn say(&self, spoken: &Spoken, answer: &Described<'_>) -> Vec<Chunk> {
        if spoken.content.is_empty() {
            return Vec::new();
        }
        let counts = answer.counts;
        let said = json!({
            "index": 0, "content": spoken.content, "tokens": [], "stop": false, "id_slot": -1,
            "tokens_predicted": counts.num_generated, "tokens_evaluated": counts.num_prompt,
        });
        vec![said.to_string().into()]
    }

    /// What comes after all else.
    pub(crate) fn end(&self, reason: &str, answer: &Described<'_>) -> Vec<Chunk> {
        vec![whole(&Spoken::default(), reason, answer).to_string().into()]
    }
}

pub(crate) fn whole(spoken: &Spoken, reason: &str, answer: &Described<'_>) -> Value {
    let counts = answer.counts;
    let stop_type = match (reason, answer.stop) {
        ("length", _) => "limit",
        (_, Some(_)) => "word",
        (_, None) => "eos",
    };
    json!({
        "index": 0, "content": spoken.content, "tokens": [], "stop": true, "id_slot": -1,
        "model": answer.model, "stop_type": stop_type,
        "stopping_word": answer.stop.unwrap_or_default(), "truncated": false,
        "tokens_predicted": counts.num_generated, "tokens_evaluated": counts.num_prompt,
        "tokens_cached": counts.num_cached,
    })
}
