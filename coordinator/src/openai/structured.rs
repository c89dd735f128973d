//! What an answer is to keep to, by every name that clients have for it: OpenAI's
//! `response_format`, vLLM's `structured_outputs`, and the `guided_` fields that those were before.

use serde_json::{Map, Value};

use super::fields::wrong;
use super::tools::Must;
use super::{ApiError, Context, Fields};
use crate::grammar::{Begins, Calls, Or, Source};
use crate::request::Constraint;

/// What an answer is to keep to, and the field that says so.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Structured {
    pub(super) field: String,
    pub(super) source: Source,
}

/// Texts of which an answer is to be one.
const MAX_CHOICES: usize = 1024;

impl Structured {
    /// Takes the fields that say it; at most one of them may.
    ///
    /// # Errors
    /// When several do, or one can't.
    pub(crate) fn take(fields: &mut Fields) -> Result<Option<Self>, ApiError> {
        let mut found: Option<Self> = None;
        let mut add = |field: &str, source: Option<Source>| -> Result<(), ApiError> {
            let Some(source) = source else { return Ok(()) };
            if let Some(other) = &found {
                let other = &other.field;
                let message =
                    format!("{field} and {other} both say what answers keep to; give one");
                return Err(ApiError::invalid(field, message));
            }
            found = Some(Self { field: field.to_owned(), source });
            Ok(())
        };
        if let Some(format) = fields.take("response_format") {
            add("response_format", response_format(format)?)?;
        }
        for kind in ["json", "regex", "choice", "grammar"] {
            let field = format!("guided_{kind}");
            if let Some(value) = fields.take(&field) {
                add(&field, Some(source(kind, &field, value)?))?;
            }
        }
        match fields.take("structured_outputs") {
            None => {}
            Some(Value::Object(outputs)) => {
                for (kind, value) in outputs {
                    let field = format!("structured_outputs.{kind}");
                    let source = match (kind.as_str(), value) {
                        // As clients send what they leave at its default.
                        (_, Value::Null | Value::Bool(false)) => None,
                        ("json" | "regex" | "choice" | "grammar", value) => {
                            Some(source(&kind, &field, value)?)
                        }
                        ("json_object", Value::Bool(true)) => Some(Source::object()),
                        _ => return Err(unsupported(&field)),
                    };
                    add(&field, source)?;
                }
            }
            Some(other) => return Err(wrong("structured_outputs", "an object", &other)),
        }
        Ok(found)
    }

    /// Whether only calls within the answer keep to something, wherever they begin.
    pub(super) fn is_free(&self) -> bool {
        matches!(&self.source, Source::Calls(calls) if calls.or == Or::Text)
    }

    /// What each answer keeps to, once it `begins`.
    ///
    /// # Errors
    /// When the grammar can't be compiled.
    pub(crate) fn compile(
        &self,
        begins: Begins,
        context: Context<'_>,
    ) -> Result<Box<dyn Constraint>, ApiError> {
        let model = context.model;
        let vocabulary = context.tokenizer.vocabulary(model.vocab_size, &model.eos);
        let vocabulary = vocabulary.as_ref().map_err(|cause| {
            ApiError::internal(format!("grammars can't be used with this model: {cause}"))
        })?;
        let kept = vocabulary.compile(&self.source, begins, context.config);
        let refused = |cause| {
            let message = format!("{}: answers can't keep to this: {cause}", self.field);
            ApiError::invalid(self.field.clone(), message).code("invalid_grammar")
        };
        Ok(Box::new(kept.map_err(refused)?))
    }
}

fn unsupported(field: &str) -> ApiError {
    let message = format!("{field} is not supported by this server; remove it");
    ApiError::invalid(field, message).code("unsupported_parameter")
}

fn response_format(mut format: Value) -> Result<Option<Source>, ApiError> {
    match format["type"].as_str() {
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some(Source::object())),
        Some("json_schema") => {
            let field = "response_format.json_schema.schema";
            let schema = match &mut format["json_schema"] {
                Value::Object(named) => named.remove("schema").unwrap_or_default(),
                _ => Value::Null,
            };
            // A named format without a schema is any object.
            match schema {
                Value::Null if format["json_schema"].is_object() => Ok(Some(Source::object())),
                Value::Object(_) | Value::Bool(_) => Ok(Some(Source::Schema(schema))),
                other => Err(wrong(field, "a JSON schema", &other)),
            }
        }
        Some("structural_tag") => Err(unsupported("response_format")),
        _ => {
            let expected = "text, json_object or json_schema";
            Err(wrong("response_format.type", expected, &format["type"]))
        }
    }
}

fn source(kind: &str, field: &str, value: Value) -> Result<Source, ApiError> {
    match (kind, value) {
        ("json", Value::String(text)) => match serde_json::from_str(&text) {
            Ok(schema @ (Value::Object(_) | Value::Bool(_))) => Ok(Source::Schema(schema)),
            _ => Err(wrong(field, "a JSON schema", &text.into())),
        },
        ("json", schema @ (Value::Object(_) | Value::Bool(_))) => Ok(Source::Schema(schema)),
        ("json", other) => Err(wrong(field, "a JSON schema", &other)),
        ("regex", Value::String(regex)) => Ok(Source::Regex(regex)),
        ("regex", other) => Err(wrong(field, "a regular expression", &other)),
        ("grammar", Value::String(grammar)) if grammar.contains("::=") => {
            let message = format!("{field}: this is BNF; write it as Lark does (start: ...)");
            Err(ApiError::invalid(field, message).code("invalid_grammar"))
        }
        ("grammar", Value::String(grammar)) => Ok(Source::Lark(grammar)),
        ("grammar", other) => Err(wrong(field, "a grammar as Lark writes them", &other)),
        (_, Value::Array(choices)) if (1..=MAX_CHOICES).contains(&choices.len()) => {
            let text = |choice: Value| match choice {
                Value::String(text) if !text.is_empty() => Ok(text),
                other => Err(wrong(field, "a list of texts", &other)),
            };
            Ok(Source::Choice(choices.into_iter().map(text).collect::<Result<_, _>>()?))
        }
        (_, other) => Err(wrong(field, &format!("1 to {MAX_CHOICES} texts"), &other)),
    }
}

/// What the answer of a chat keeps to: calls where it must call, calls or JSON where it may do
/// either, or else what its body says.
pub(super) fn of_chat(
    calls: Option<(Calls, Must)>,
    said: Option<Structured>,
) -> Result<Option<Structured>, ApiError> {
    let of = |field: &str, calls| Structured { field: field.into(), source: Source::Calls(calls) };
    Ok(match (calls, said) {
        (Some((calls, Must::Call)), _) => Some(of("tool_choice", calls)),
        (Some((calls, _)), Some(Structured { field, source: Source::Schema(schema) })) => {
            Some(of(&field, Calls { or: Or::Json(schema), ..calls }))
        }
        (Some((_, Must::BeStrict)), Some(said)) => {
            let field = said.field;
            let message = format!(
                "{field} and strict tools don't go together; set tool_choice to none or required, \
                 or leave strict out"
            );
            return Err(ApiError::invalid(field, message).code("unsupported_parameter"));
        }
        (Some((calls, Must::BeStrict)), None) => Some(of("tools", Calls { or: Or::Text, ..calls })),
        (_, said) => said,
    })
}

/// Whether a short body may ask for a grammar: compiling one is no work for the runtime.
pub(crate) fn may_be_asked(body: &[u8]) -> bool {
    let names = ["response_format", "structured_outputs", "guided_"].map(str::as_bytes);
    names.iter().any(|name| body.windows(name.len()).any(|part| part == *name))
}

/// Tools that may be called, as a grammar has them.
pub(super) fn tools(schemas: &Map<String, Value>, named: Option<&str>) -> Map<String, Value> {
    let is_meant = |name: &str| named.is_none_or(|named| named == name);
    let meant = schemas.iter().filter(|(name, _)| is_meant(name));
    meant.map(|(name, schema)| (name.clone(), schema.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::openai::testing::Served;
    use crate::openai::{Parsed, parse_chat, parse_completion};
    use serde_json::json;

    fn parse(more: &Value) -> Result<Parsed, ApiError> {
        let served = Served::chat();
        let mut chat = json!({"model": "m", "messages": [{"role": "user", "content": "Hi"}]});
        let mut completion = json!({"model": "m", "prompt": [5]});
        for body in [&mut chat, &mut completion] {
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        }
        let parsed = parse_completion(completion.to_string().as_bytes(), served.context());
        let other = parse_chat(chat.to_string().as_bytes(), served.context());
        let named = |parsed: &Result<Parsed, ApiError>| {
            parsed.as_ref().err().map(|error| (error.param.clone(), error.code))
        };
        assert_eq!(named(&parsed), named(&other), "both have them");
        other
    }

    #[test]
    fn every_name_for_it_makes_answers_keep_to_it() {
        let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}});
        for more in [
            json!({"response_format": {"type": "json_object"}}),
            json!({"response_format": {
                "type": "json_schema", "json_schema": {"name": "x", "schema": schema},
            }}),
            json!({"structured_outputs": {"json": schema, "regex": null}}),
            json!({"structured_outputs": {"json": schema.to_string()}}),
            json!({"structured_outputs": {"json_object": true}}),
            json!({"structured_outputs": {"regex": "[0-9]+"}}),
            json!({"structured_outputs": {"choice": ["yes", "no"]}}),
            json!({"structured_outputs": {"grammar": "start: /[a-z]+/"}}),
            json!({"guided_json": schema}),
            json!({"guided_regex": "[0-9]+"}),
            json!({"guided_choice": ["yes", "no"]}),
            json!({"guided_grammar": "start: /[a-z]+/"}),
        ] {
            let parsed = parse(&more).unwrap_or_else(|error| panic!("{more}: {error}"));
            let constraint = parsed.requests[0].constraint.as_ref().unwrap();
            let mask = constraint.next().unwrap().mask().unwrap();
            assert_eq!(mask.len(), 20, "{more}");
            let num_allowed: u32 = mask.iter().map(|word| word.count_ones()).sum();
            assert!((1..400).contains(&num_allowed), "{more}: {num_allowed} of 640");
        }
        for more in [json!({}), json!({"response_format": {"type": "text"}})] {
            assert!(parse(&more).unwrap().requests[0].constraint.is_none(), "{more}");
        }
    }

    #[test]
    fn what_no_answer_can_keep_to_is_refused_by_name() {
        let schema = |schema: Value| {
            let format = json!({"name": "x", "schema": schema});
            json!({"response_format": {"type": "json_schema", "json_schema": format}})
        };
        let lark = |grammar: String| json!({"structured_outputs": {"grammar": grammar}});
        let deep = (0..110).fold(
            json!({"type": "null"}),
            |inner, _| json!({"type": "array", "items": inner, "minItems": 1, "maxItems": 1}),
        );
        let large: Map<_, _> =
            (0..3000).map(|i| (format!("key {i} of many"), json!({"type": "null"}))).collect();
        let invalid = Some("invalid_grammar");
        let unsupported = Some("unsupported_parameter");
        for (more, param, code) in [
            (json!({"response_format": 1}), "response_format.type", None),
            (json!({"response_format": {"type": "xml"}}), "response_format.type", None),
            (
                json!({"response_format": {"type": "structural_tag"}}),
                "response_format",
                unsupported,
            ),
            (
                json!({"response_format": {"type": "json_schema"}}),
                "response_format.json_schema.schema",
                None,
            ),
            (schema(json!(5)), "response_format.json_schema.schema", None),
            (schema(json!(false)), "response_format", invalid),
            (schema(json!({"type": "wibble"})), "response_format", invalid),
            (schema(json!({"$ref": "#/$defs/none"})), "response_format", invalid),
            (schema(json!({"$ref": "https://example.org/x"})), "response_format", invalid),
            (
                schema(json!({"type": "integer", "minimum": 5, "maximum": 4})),
                "response_format",
                invalid,
            ),
            (schema(json!({"type": "string", "pattern": "("})), "response_format", invalid),
            (schema(deep), "response_format", invalid),
            (schema(json!({"type": "object", "properties": large})), "response_format", invalid),
            (json!({"guided_json": "{"}), "guided_json", None),
            (json!({"guided_json": []}), "guided_json", None),
            (json!({"guided_regex": "[a"}), "guided_regex", invalid),
            (json!({"guided_regex": "a".repeat(70_000)}), "guided_regex", invalid),
            (json!({"guided_choice": []}), "guided_choice", None),
            (json!({"guided_choice": ["a", 1]}), "guided_choice", None),
            (lark("root ::= \"a\"".into()), "structured_outputs.grammar", invalid),
            (lark("start: nobody".into()), "structured_outputs.grammar", invalid),
            (
                lark(format!("start: {}\"a\"{}", "(".repeat(20_000), ")".repeat(20_000))),
                "structured_outputs.grammar",
                invalid,
            ),
            (lark("start: \"\u{0}\" start".into()), "structured_outputs.grammar", invalid),
            (
                json!({"structured_outputs": {"structural_tag": "{}"}}),
                "structured_outputs.structural_tag",
                unsupported,
            ),
            (
                json!({"structured_outputs": {"regex": "a", "choice": ["b"]}}),
                "structured_outputs.choice",
                None,
            ),
            (
                json!({"guided_regex": "a", "response_format": {"type": "json_object"}}),
                "guided_regex",
                None,
            ),
        ] {
            let error = parse(&more).err().unwrap_or_else(|| panic!("{more} is taken"));
            let named = (error.status, error.param.as_deref(), error.code);
            assert_eq!(named, (400, Some(param), code), "{more}: {error}");
            assert!(error.message.len() < 500, "{error}");
        }
    }

    #[test]
    fn grammars_are_no_work_for_the_runtime() {
        assert!(may_be_asked(br#"{"model": "m", "guided_regex": "a"}"#));
        assert!(may_be_asked(br#"{"response_format": {"type": "json_object"}}"#));
        assert!(!may_be_asked(br#"{"model": "m", "prompt": "x"}"#));
    }
}
