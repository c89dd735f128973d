//! What an answer is to keep to, in the words of whoever asks.

use llguidance::api::TopLevelGrammar;
use protocol::config::Http;
use serde_json::{Value, json};

use super::Calls;

/// What an answer keeps to.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// JSON of this schema.
    Schema(Value),
    /// This regular expression, all of it.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// A grammar as Lark writes them.
    Lark(String),
    /// Calls of tools.
    Calls(Calls),
}

/// Brackets within each other: what reads a grammar goes as deep as they do.
const MAX_NESTING: usize = 100;

/// White space between two parts of JSON. Some models would write nothing else, had they as much as
/// they like.
const SPACE: &str = r"[\x20\x0A\x0D\x09]{1,32}";

impl Source {
    /// Any JSON object.
    pub fn object() -> Self {
        Self::Schema(json!({"type": "object"}))
    }

    /// As the library takes it.
    pub(super) fn grammar(&self, config: &Http) -> Result<TopLevelGrammar, String> {
        let (text, grammar) = match self {
            Self::Schema(schema) => {
                let schema = spaced(schema);
                (schema.to_string(), TopLevelGrammar::from_json_schema(schema))
            }
            Self::Regex(regex) => (regex.clone(), TopLevelGrammar::from_regex(regex)),
            Self::Choice(choices) => {
                let quoted: Vec<_> = choices.iter().map(|text| quoted(text)).collect();
                let text = format!("start: {}", quoted.join(" | "));
                (text.clone(), TopLevelGrammar::from_lark(text))
            }
            Self::Lark(text) => (text.clone(), TopLevelGrammar::from_lark(text.clone())),
            Self::Calls(calls) => {
                let text = calls.lark();
                (text.clone(), TopLevelGrammar::from_lark(text))
            }
        };
        let max = config.max_grammar_bytes;
        if text.len() > max {
            let num_bytes = text.len();
            return Err(format!(
                "it has {num_bytes} bytes, at most {max} are taken (http.max_grammar_bytes)"
            ));
        }
        if nesting(&text) > MAX_NESTING {
            return Err(format!("its brackets are nested more than {MAX_NESTING} deep"));
        }
        Ok(grammar)
    }
}

/// A schema whose JSON has no more white space than it needs to be read with ease.
pub(super) fn spaced(schema: &Value) -> Value {
    let mut schema = schema.clone();
    match &mut schema {
        Value::Object(fields) => {
            fields.entry("x-guidance").or_insert(json!({"whitespace_pattern": SPACE}));
        }
        // Anything, which is the same as an object that says nothing.
        Value::Bool(true) => return json!({"x-guidance": {"whitespace_pattern": SPACE}}),
        _ => {}
    }
    schema
}

/// A text as Lark writes it.
pub(super) fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

fn nesting(text: &str) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    for byte in text.bytes() {
        match byte {
            b'(' | b'[' | b'{' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}
