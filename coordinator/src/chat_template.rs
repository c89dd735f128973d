//! Messages to text, by the Jinja template that the model carries, as Hugging Face renders it.

use checkpoint::TokenizerSource;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value as JinjaValue};
use minijinja::{Environment, Error, ErrorKind};
use serde_json::{Map, Value};

/// A model's chat template, compiled.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    special: Map<String, Value>,
}

/// Why messages can't be rendered.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The template is malformed.
    #[error("the model's chat template can't be read: {0}")]
    Malformed(String),
    /// It refuses the messages, or takes too long.
    #[error("the model's chat template refuses the messages: {0}")]
    Refused(String),
}

const NAME: &str = "chat_template";

/// Nested blocks, macros and calls.
const MAX_DEPTH: usize = 128;

impl ChatTemplate {
    /// The template of a model, if it has one. Rendering takes at most `max_fuel` steps.
    ///
    /// # Errors
    /// When the template is malformed.
    pub fn from_source(
        source: &TokenizerSource,
        max_fuel: u64,
    ) -> Result<Option<Self>, TemplateError> {
        let Some(template) = source.chat_template() else { return Ok(None) };
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment
            .set_syntax(syntax.map_err(|cause| TemplateError::Malformed(cause.to_string()))?);
        environment.set_fuel(Some(max_fuel));
        environment.set_recursion_limit(MAX_DEPTH);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", tojson);
        environment.add_function("raise_exception", |message: String| {
            Err::<String, _>(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", |format: String| {
            let now = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC);
            jiff::fmt::strtime::format(&format, &now)
                .map_err(|cause| Error::new(ErrorKind::InvalidOperation, cause.to_string()))
        });
        environment
            .add_template_owned(NAME, template.to_owned())
            .map_err(|cause| TemplateError::Malformed(cause.to_string()))?;
        Ok(Some(Self { environment, special: special_tokens(source) }))
    }

    /// The text of `messages`, a list of objects. `extra` are further variables of the template,
    /// such as `enable_thinking`.
    ///
    /// # Errors
    /// When the template raises an exception, or runs out of fuel.
    pub fn render(
        &self,
        messages: &Value,
        add_generation_prompt: bool,
        extra: &Map<String, Value>,
    ) -> Result<String, TemplateError> {
        let refused = |cause: Error| {
            TemplateError::Refused(match cause.detail() {
                Some(detail) => detail.to_owned(),
                None => cause.to_string(),
            })
        };
        let template = self.environment.get_template(NAME).map_err(refused)?;
        let mut variables = self.special.clone();
        variables.extend(extra.clone());
        variables.insert("messages".into(), messages.clone());
        variables.insert("add_generation_prompt".into(), add_generation_prompt.into());
        template.render(JinjaValue::from(Serde(variables))).map_err(refused)
    }
}

fn special_tokens(source: &TokenizerSource) -> Map<String, Value> {
    let named = match source {
        TokenizerSource::Json { special, .. } => [
            ("bos_token", special.bos.clone()),
            ("eos_token", special.eos.clone()),
            ("unk_token", special.unk.clone()),
            ("pad_token", special.pad.clone()),
        ],
        TokenizerSource::Gguf { tokens, bos, eos, unk, pad, .. } => {
            let text = |id: &Option<u32>| tokens.get((*id)? as usize).cloned();
            [
                ("bos_token", text(bos)),
                ("eos_token", text(eos)),
                ("unk_token", text(unk)),
                ("pad_token", text(pad)),
            ]
        }
    };
    let said = named.into_iter().filter_map(|(name, text)| Some((name.to_owned(), text?.into())));
    said.collect()
}

/// As Python's `json.dumps(value, ensure_ascii=False, indent=indent)`, which Hugging Face uses;
/// Jinja's own escapes for HTML.
fn tojson(value: JinjaValue, kwargs: Kwargs) -> Result<JinjaValue, Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    // How they are said in Python; ours is the only one that templates use.
    let _: Option<JinjaValue> = kwargs.get("ensure_ascii")?;
    let _: Option<JinjaValue> = kwargs.get("separators")?;
    let _: Option<JinjaValue> = kwargs.get("sort_keys")?;
    kwargs.assert_all_used()?;
    let json = serde_json::to_value(&value)
        .map_err(|cause| Error::new(ErrorKind::BadSerialization, cause.to_string()))?;
    let mut text = String::new();
    dump(&json, indent, 0, &mut text);
    Ok(JinjaValue::from_safe_string(text))
}

fn dump(value: &Value, indent: Option<usize>, depth: usize, out: &mut String) {
    let newline = |out: &mut String, depth: usize| {
        if let Some(width) = indent {
            out.push('\n');
            out.push_str(&" ".repeat(width * depth));
        }
    };
    let separator = if indent.is_some() { "," } else { ", " };
    match value {
        Value::Array(items) if !items.is_empty() => {
            out.push('[');
            for (number, item) in items.iter().enumerate() {
                if number > 0 {
                    out.push_str(separator);
                }
                newline(out, depth + 1);
                dump(item, indent, depth + 1, out);
            }
            newline(out, depth);
            out.push(']');
        }
        Value::Object(fields) if !fields.is_empty() => {
            out.push('{');
            for (number, (name, item)) in fields.iter().enumerate() {
                if number > 0 {
                    out.push_str(separator);
                }
                newline(out, depth + 1);
                out.push_str(&Value::from(name.as_str()).to_string());
                out.push_str(": ");
                dump(item, indent, depth + 1, out);
            }
            newline(out, depth);
            out.push('}');
        }
        other => out.push_str(&other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::Tokenizer;
    use checkpoint::Checkpoint;
    use serde_json::json;
    use std::path::Path;

    const FUEL: u64 = 10_000_000;

    fn golden(path: &str) -> Value {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests").join(path);
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    #[test]
    fn conversations_are_rendered_as_hugging_face_does() {
        for (name, dtype) in [("glm", "bf16"), ("glm-edge", "bf16"), ("glm4", "f32")] {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("../tests/fixtures")
                .join(name)
                .join(dtype);
            let source = Checkpoint::open(&folder).unwrap().tokenizer().unwrap();
            let template = ChatTemplate::from_source(&source, FUEL).unwrap().unwrap();
            let tokenizer = Tokenizer::from_source(&source).unwrap();
            let golden = golden(&format!("fixtures/{name}/golden.json"));
            for case in golden["chat"].as_array().unwrap() {
                let mut extra = case["kwargs"].as_object().cloned().unwrap_or_default();
                if !case["tools"].is_null() {
                    extra.insert("tools".into(), case["tools"].clone());
                }
                let add = case["add_generation_prompt"].as_bool().unwrap();
                let rendered = template.render(&case["messages"], add, &extra).unwrap();
                assert_eq!(rendered, case["rendered"].as_str().unwrap());
                let ids: Vec<_> = tokenizer.encode(&rendered, false).unwrap();
                let ids: Vec<u32> = ids.into_iter().map(|token| token.0).collect();
                assert_eq!(json!(ids), case["ids"]);
            }
        }
    }

    fn template(text: &str) -> ChatTemplate {
        let source = TokenizerSource::Json {
            tokenizer: Vec::new(),
            special: checkpoint::SpecialTokens { bos: Some("<s>".into()), ..Default::default() },
            chat_template: Some(text.into()),
        };
        ChatTemplate::from_source(&source, FUEL).unwrap().unwrap()
    }

    #[test]
    fn json_is_written_as_python_writes_it() {
        let messages = json!([{"a": [1, 2.5, "ü<'"], "b": {}, "c": null}]);
        let render = |text| template(text).render(&messages, true, &Map::new()).unwrap();
        assert_eq!(
            render("{{ bos_token }}{{ messages[0] | tojson(ensure_ascii=False) }}"),
            "<s>{\"a\": [1, 2.5, \"ü<'\"], \"b\": {}, \"c\": null}"
        );
        assert_eq!(
            render("{{ messages[0]['a'] | tojson(indent=2) }}"),
            "[\n  1,\n  2.5,\n  \"ü<'\"\n]"
        );
    }

    #[test]
    fn an_exception_or_an_endless_loop_is_the_messages_fault() {
        let text = "{{ raise_exception('roles must alternate') }}";
        let error = template(text).render(&json!([]), true, &Map::new()).unwrap_err();
        assert!(error.to_string().ends_with("roles must alternate"), "{error}");
        let text =
            "{% for i in range(100000) %}{% for j in range(100000) %}x{% endfor %}{% endfor %}";
        assert!(template(text).render(&json!([]), true, &Map::new()).is_err());
    }
}
