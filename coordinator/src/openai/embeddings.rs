//! `/v1/embeddings`: what a model makes of a text, as a direction. Of the hidden states after the
//! last layer and the final norm it is that of the text's last token, at length 1.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use protocol::TokenId;
use serde::Serialize;
use serde_json::Value;

use super::fields::wrong;
use super::sampling::{Common, check_length};
use super::{ApiError, Context, Fields, Parsed};

/// Fields that mean something here.
const FIELDS: [&str; 11] = [
    "model",
    "input",
    "encoding_format",
    "dimensions",
    "user",
    "metadata",
    "priority",
    "service_tier",
    "max_time_ms",
    "require_exact",
    "seed",
];

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Embedding {
    /// Whether as bytes in base64: f32s, little-endian.
    pub base64: bool,
    /// How many of the values are kept; they get length 1 again.
    pub dimensions: Option<u32>,
}

/// The requests of a body, one for each text.
///
/// # Errors
/// When the body asks for what this server or this model can't do.
pub(crate) fn parse(body: &[u8], context: Context<'_>) -> Result<Parsed, ApiError> {
    let mut fields = Fields::parse(body)?;
    if let Some((name, _)) = fields.left().find(|(name, _)| !FIELDS.contains(&name.as_str())) {
        let message = format!("{name} means nothing for embeddings; remove it");
        return Err(ApiError::invalid(name.clone(), message).code("unknown_parameter"));
    }
    let base64 = match fields.string("encoding_format")?.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(other) => return Err(wrong("encoding_format", "float or base64", &other.into())),
    };
    let dimensions = fields.u32("dimensions")?;
    let width = context.model.hidden_size;
    if let Some(wanted) = dimensions.filter(|it| *it == 0 || *it > width) {
        let message =
            format!("dimensions must be from 1 to {width}, which this model has, not {wanted}");
        return Err(ApiError::invalid("dimensions", message));
    }
    let inputs = inputs(fields.required("input")?, context)?;
    for hint in ["user", "metadata"] {
        fields.take(hint);
    }
    fields.put("max_tokens", 0.into());
    let mut common = Common::take(&mut fields, context)?;
    fields.finish()?;
    (common.prompt_field, common.may_say_nothing) = ("input", true);
    common.check_sequences(inputs.len(), context)?;
    common.options.embedding = Some(Embedding { base64, dimensions });
    let mut requests = Vec::with_capacity(inputs.len());
    for tokens in inputs {
        let mut request = common.request(tokens, None, context)?;
        request.tells_hidden = true;
        request.turn = requests.len() as u32;
        requests.push(request);
    }
    Ok(Parsed { requests, echoes: Vec::new(), options: common.options })
}

fn inputs(input: Value, context: Context<'_>) -> Result<Vec<Vec<TokenId>>, ApiError> {
    let expected = |found: &Value| {
        wrong("input", "a string, a list of strings, token ids, or lists of token ids", found)
    };
    let text = |text: &str| {
        if text.is_empty() {
            let message = "input has an empty text; give at least one sign";
            return Err(ApiError::invalid("input", message));
        }
        check_length(text, "input", context)?;
        let tokens = context.tokenizer.encode(text, true);
        tokens.map_err(|cause| ApiError::invalid("input", cause.to_string()))
    };
    let ids = |items: &[Value]| {
        let id = |item: &Value| item.as_u64().and_then(|id| u32::try_from(id).ok()).map(TokenId);
        items.iter().map(|item| id(item).ok_or_else(|| expected(item))).collect()
    };
    match input {
        Value::String(one) => Ok(vec![text(&one)?]),
        Value::Array(items) if items.first().is_some_and(Value::is_number) => {
            Ok(vec![ids(&items)?])
        }
        Value::Array(items) if !items.is_empty() => {
            let max = context.config.max_request_sequences;
            if items.len() > max {
                let message = format!(
                    "input has {} texts, a request has at most {max} (http.max_request_sequences)",
                    items.len()
                );
                return Err(ApiError::invalid("input", message));
            }
            let tokens = items.iter().map(|item| match item {
                Value::String(one) => text(one),
                Value::Array(items) => ids(items),
                other => Err(expected(other)),
            });
            tokens.collect()
        }
        other => Err(expected(&other)),
    }
}

/// The body of an answer, written as it is: thousands of numbers.
#[derive(Serialize)]
struct Body<'a> {
    object: &'static str,
    data: Vec<Data>,
    model: &'a str,
    usage: Usage,
    /// What of the hidden states an embedding is.
    pooling: &'static str,
    normalized: bool,
}

#[derive(Serialize)]
struct Data {
    object: &'static str,
    index: usize,
    embedding: Values,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Values {
    Floats(Vec<f32>),
    Base64(String),
}

#[derive(Serialize)]
struct Usage {
    prompt_tokens: usize,
    total_tokens: usize,
}

impl Embedding {
    /// The whole answer, of the hidden state of each text.
    pub(super) fn body<'a>(
        self,
        model: &str,
        rows: impl Iterator<Item = &'a [f32]>,
        num_tokens: usize,
    ) -> String {
        let data = rows.enumerate().map(|(index, row)| {
            let values = self.pooled(row);
            let embedding = if self.base64 {
                let bytes: Vec<u8> = values.iter().flat_map(|it| it.to_le_bytes()).collect();
                Values::Base64(BASE64_STANDARD.encode(bytes))
            } else {
                Values::Floats(values)
            };
            Data { object: "embedding", index, embedding }
        });
        let body = Body {
            object: "list",
            data: data.collect(),
            model,
            usage: Usage { prompt_tokens: num_tokens, total_tokens: num_tokens },
            pooling: "last_token",
            normalized: true,
        };
        serde_json::to_string(&body).expect("it is written to memory")
    }

    /// As many values as are wanted, at length 1.
    fn pooled(self, row: &[f32]) -> Vec<f32> {
        let row = &row[..self.dimensions.map_or(row.len(), |it| row.len().min(it as usize))];
        let sum: f64 = row.iter().map(|it| f64::from(*it) * f64::from(*it)).sum();
        let scale = if sum > 0.0 { 1.0 / sum.sqrt() } else { 0.0 };
        row.iter().map(|it| (f64::from(*it) * scale) as f32).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::openai::testing::{Served, table};
    use serde_json::json;

    fn parsed(body: &Value) -> Result<Parsed, ApiError> {
        parse(body.to_string().as_bytes(), Served::chat().context())
    }

    #[test]
    fn an_input_is_text_or_tokens_one_or_many() {
        let prompts = |input: Value| -> Vec<Vec<u32>> {
            let parsed = parsed(&json!({"model": "m", "input": input})).unwrap();
            let of = |request: &crate::request::Request| {
                assert!(request.tells_hidden && request.max_tokens == 0);
                request.prompt.iter().map(|token| token.0).collect()
            };
            parsed.requests.iter().map(of).collect()
        };
        assert_eq!(prompts(json!([5, 6])), [[5, 6]]);
        assert_eq!(prompts(json!([[5, 6], [7]])), [vec![5, 6], vec![7]]);
        let one = prompts(json!("Hi"));
        assert_eq!(prompts(json!(["Hi", "Hi"])), [one[0].clone(), one[0].clone()]);
        // A text may fill the context: nothing is to follow.
        assert_eq!(prompts(json!(vec![5; 256]))[0].len(), 256);
    }

    #[test]
    fn what_can_not_be_is_refused_by_name() {
        let body = json!({"model": "m", "input": "Hi"});
        table(
            &Served::chat(),
            parse,
            &body,
            &[
                (json!({"input": []}), "input", None),
                (json!({"input": ""}), "input", None),
                (json!({"input": 5}), "input", None),
                (json!({"input": [1.5]}), "input", None),
                (json!({"input": ["a", 1]}), "input", None),
                (json!({"input": [640]}), "input", None),
                (json!({"input": vec![5; 257]}), "input", Some("context_length_exceeded")),
                (json!({"input": vec!["a"; 10_000]}), "input", None),
                (json!({"encoding_format": "hex"}), "encoding_format", None),
                (json!({"dimensions": 0}), "dimensions", None),
                (json!({"dimensions": 65}), "dimensions", None),
                (json!({"temperature": 1}), "temperature", Some("unknown_parameter")),
            ],
        );
    }

    #[test]
    fn embeddings_have_length_1_in_either_form_and_at_any_width() {
        let row = [3.0, 4.0, 12.0];
        let of = |embedding: Embedding| -> Value {
            serde_json::from_str(&embedding.body("m", [&row[..]].into_iter(), 2)).unwrap()
        };
        let whole = of(Embedding::default());
        let expected = json!({
            "object": "list", "model": "m", "pooling": "last_token", "normalized": true,
            "usage": {"prompt_tokens": 2, "total_tokens": 2},
            "data": [{"object": "embedding", "index": 0,
                "embedding": [3.0_f32 / 13.0, 4.0_f32 / 13.0, 12.0_f32 / 13.0]}],
        });
        let floats = |body: &Value| -> Vec<f32> {
            serde_json::from_value(body["data"][0]["embedding"].clone()).unwrap()
        };
        assert_eq!(floats(&whole), floats(&expected));
        assert_eq!(whole["usage"], expected["usage"]);
        let short = of(Embedding { dimensions: Some(2), ..Embedding::default() });
        assert_eq!(floats(&short), [0.6, 0.8]);
        let coded = of(Embedding { base64: true, dimensions: Some(2) });
        let bytes: Vec<u8> = [0.6_f32, 0.8].iter().flat_map(|it| it.to_le_bytes()).collect();
        assert_eq!(coded["data"][0]["embedding"], BASE64_STANDARD.encode(bytes));
    }
}
