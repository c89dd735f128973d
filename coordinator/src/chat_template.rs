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
            .add_template_owned(NAME, without_generation(template))
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
        // Hugging Face defines these always, and templates ask whether they are none.
        variables.extend(["tools", "documents"].map(|name| (name.to_owned(), Value::Null)));
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

/// Hugging Face marks with `{% generation %}` what an assistant says, for training only. Here the
/// tags become ones that change nothing, with their signs for white space.
fn without_generation(template: &str) -> String {
    let mut out = String::with_capacity(template.len());
    for (number, part) in template.split("{%").enumerate() {
        if number == 0 {
            out.push_str(part);
            continue;
        }
        out.push_str("{%");
        let tag = part.trim_start_matches(['-', '+']).trim_start();
        let name = tag.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default();
        let instead = match name {
            "generation" => "if true",
            "endgeneration" => "endif",
            name => name,
        };
        out.push_str(&part[..part.len() - tag.len()]);
        out.push_str(instead);
        out.push_str(&tag[name.len()..]);
    }
    out
}

/// How Python's `json.dumps` is asked to write.
struct Style {
    indent: Option<usize>,
    between_items: String,
    after_key: String,
    is_ascii: bool,
    is_sorted: bool,
}

/// As Hugging Face does it, `json.dumps(value, ensure_ascii=False, ...)`; Jinja's own escapes for
/// HTML.
fn tojson(value: JinjaValue, kwargs: Kwargs) -> Result<JinjaValue, Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    let usual = if indent.is_some() { [",", ": "] } else { [", ", ": "] };
    let [between_items, after_key] = match kwargs.get::<Option<Vec<String>>>("separators")? {
        None => usual.map(str::to_owned),
        Some(both) => both.try_into().map_err(|_| {
            Error::new(ErrorKind::InvalidOperation, "tojson: separators must be two texts")
        })?,
    };
    let style = Style {
        indent,
        between_items,
        after_key,
        is_ascii: kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        is_sorted: kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    kwargs.assert_all_used()?;
    let json = serde_json::to_value(&value)
        .map_err(|cause| Error::new(ErrorKind::BadSerialization, cause.to_string()))?;
    let mut text = String::new();
    dump(&json, &style, 0, &mut text);
    Ok(JinjaValue::from(text))
}

fn dump(value: &Value, style: &Style, depth: usize, out: &mut String) {
    let newline = |out: &mut String, depth: usize| {
        if let Some(width) = style.indent {
            out.push('\n');
            out.push_str(&" ".repeat(width * depth));
        }
    };
    match value {
        Value::Array(items) if !items.is_empty() => {
            out.push('[');
            for (number, item) in items.iter().enumerate() {
                if number > 0 {
                    out.push_str(&style.between_items);
                }
                newline(out, depth + 1);
                dump(item, style, depth + 1, out);
            }
            newline(out, depth);
            out.push(']');
        }
        Value::Object(fields) if !fields.is_empty() => {
            let mut fields: Vec<_> = fields.iter().collect();
            if style.is_sorted {
                fields.sort_by_key(|(name, _)| *name);
            }
            out.push('{');
            for (number, (name, item)) in fields.into_iter().enumerate() {
                if number > 0 {
                    out.push_str(&style.between_items);
                }
                newline(out, depth + 1);
                dump_text(name, style, out);
                out.push_str(&style.after_key);
                dump(item, style, depth + 1, out);
            }
            newline(out, depth);
            out.push('}');
        }
        Value::String(text) => dump_text(text, style, out),
        Value::Number(number) => match number.as_f64().filter(|_| number.is_f64()) {
            Some(float) => out.push_str(&python_float(float)),
            None => out.push_str(&number.to_string()),
        },
        other => out.push_str(&other.to_string()),
    }
}

fn dump_text(text: &str, style: &Style, out: &mut String) {
    let quoted = Value::from(text).to_string();
    if !style.is_ascii {
        return out.push_str(&quoted);
    }
    for c in quoted.chars() {
        if c.is_ascii() {
            out.push(c);
        } else {
            let mut units = [0; 2];
            out.extend(c.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}")));
        }
    }
}

/// Python's `repr`: as short as ours, but it turns to an exponent elsewhere and writes two digits
/// of it.
fn python_float(float: f64) -> String {
    if float == 0.0 || (1e-4..1e16).contains(&float.abs()) {
        return format!("{float:?}");
    }
    let text = format!("{float:e}");
    match text.split_once('e') {
        Some((digits, exponent)) => {
            let sign = if exponent.starts_with('-') { '-' } else { '+' };
            format!("{digits}e{sign}{:0>2}", exponent.trim_start_matches('-'))
        }
        None => text,
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
    fn json_is_written_as_the_template_asks() {
        let messages = json!([{"b": [1e16, 1.5e-7, 0.0001, 3.0, -0.0], "a": "é😀\n"}]);
        let render = |text| template(text).render(&messages, true, &Map::new()).unwrap();
        assert_eq!(
            render("{{ messages[0] | tojson(separators=(',', ':'), sort_keys=True) }}"),
            r#"{"a":"é😀\n","b":[1e+16,1.5e-07,0.0001,3.0,-0.0]}"#
        );
        assert_eq!(
            render("{{ messages[0].a | tojson(ensure_ascii=True) }}"),
            r#""\u00e9\ud83d\ude00\n""#
        );
    }

    #[test]
    fn what_hugging_face_adds_to_jinja_is_there() {
        let render = |text| template(text).render(&json!([]), true, &Map::new()).unwrap();
        assert_eq!(render("{{ tools is none }} {{ documents is none }}"), "True True");
        assert_eq!(render("a {%- generation -%} b {%- endgeneration %} c"), "ab c");
        assert_eq!(render("{% set generation = 1 %}{{ generation }}"), "1");
    }

    #[test]
    fn smollm2_is_rendered_and_tokenized_as_hugging_face_does() {
        let Some(file) = std::env::var_os("AUTOGLM_SMOLLM2") else {
            return println!("skipped: AUTOGLM_SMOLLM2 names no GGUF file");
        };
        let source = Checkpoint::open(Path::new(&file)).unwrap().tokenizer().unwrap();
        let template = ChatTemplate::from_source(&source, FUEL).unwrap().unwrap();
        let tokenizer = Tokenizer::from_source(&source).unwrap();
        let ids = |json: &Value| -> Vec<_> {
            let ids = json.as_array().unwrap().iter();
            ids.map(|id| protocol::TokenId(id.as_u64().unwrap() as u32)).collect()
        };
        for case in golden("models/smollm2-135m-instruct/golden.json").as_array().unwrap() {
            let rendered = match case["prompt"].as_str() {
                Some(text) => text.to_owned(),
                None => template.render(&case["prompt"], true, &Map::new()).unwrap(),
            };
            assert_eq!(rendered, case["rendered"].as_str().unwrap());
            assert_eq!(tokenizer.encode(&rendered, false).unwrap(), ids(&case["ids"]));
            assert_eq!(tokenizer.decode(&ids(&case["greedy"]), false), case["text"]);
        }
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
