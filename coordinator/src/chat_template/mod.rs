//! Messages to text, by the Jinja template that the model carries, as Hugging Face renders it.

#[cfg(test)]
mod corpus;
mod engine;
mod filters;
mod generator;
mod globals;
mod json;
mod lexer;
mod methods;
mod python;
mod source;

use std::io::{self, Write};

use checkpoint::TokenizerSource;
use minijinja::{Environment, Error, ErrorKind};
use protocol::config::Http;
use serde_json::{Map, Value};

use crate::guard::guarded;
use crate::parser::AnswerFormat;

/// A model's chat template, compiled. One that can't be used says so when it is asked to render:
/// completions do without.
#[derive(Debug)]
pub struct ChatTemplate {
    compiled: Result<Environment<'static>, TemplateError>,
    special: Map<String, Value>,
    max_bytes: usize,
    text: String,
    format: AnswerFormat,
}

/// Why messages can't be rendered.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TemplateError {
    /// The template is malformed.
    #[error("the model's chat template can't be read: {0}")]
    Malformed(String),
    /// It refuses the messages, or takes too long.
    #[error("the model's chat template refuses the messages: {0}")]
    Refused(String),
    /// It makes more of them than is allowed.
    #[error("the messages become more than {0} bytes (http.max_rendered_bytes); send less")]
    TooLarge(usize),
}

impl ChatTemplate {
    /// The template of a model, if it has one. Rendering takes at most `max_template_fuel` steps
    /// and makes at most `max_rendered_bytes`.
    pub fn from_source(source: &TokenizerSource, limits: &Http) -> Option<Self> {
        let template = source.chat_template()?;
        let compiled = engine::compile(template, limits.max_template_fuel)
            .map_err(|cause| TemplateError::Malformed(format!("{cause:#}")));
        let max_bytes = limits.max_rendered_bytes;
        let special = special_tokens(source);
        Some(Self {
            compiled,
            special,
            max_bytes,
            text: template.to_owned(),
            format: AnswerFormat::of_template(template),
        })
    }

    /// Whether it has something for the role `developer`, the newer name of `system`.
    pub(crate) fn knows_developers(&self) -> bool {
        self.text.contains("developer")
    }

    /// Whether it shows the tools that may be called.
    pub(crate) fn knows_tools(&self) -> bool {
        self.text.contains("tools")
    }

    /// Whether it asks for a role by its name.
    pub(crate) fn names_role(&self, role: &str) -> bool {
        !role.is_empty()
            && ['\'', '"'].iter().any(|quote| self.text.contains(&format!("{quote}{role}{quote}")))
    }

    /// Whether it asks whether a message's content is none: one that doesn't would write `None`.
    pub(crate) fn knows_none(&self) -> bool {
        let is_name = |it: char| it.is_alphanumeric() || it == '_';
        self.text.match_indices("content").any(|(at, found)| {
            let (before, after) = (&self.text[..at], &self.text[at + found.len()..]);
            // Behind a quote and a bracket, where it isn't an attribute.
            let after = after.trim_start_matches(|it: char| "'\")]".contains(it));
            let mut words = after.split_whitespace();
            let asks = match words.next() {
                Some("is") => {
                    words.next().map(|word| if word == "not" { words.next() } else { Some(word) })
                }
                Some("==" | "!=") => Some(words.next()),
                _ => None,
            };
            let word = asks.flatten().unwrap_or_default();
            let of_none = ["none", "None"].iter().any(|it| word.starts_with(it));
            of_none && !before.ends_with(is_name)
        })
    }

    /// How its model writes reasoning and calls.
    pub fn format(&self) -> AnswerFormat {
        self.format
    }

    /// Why it renders nothing.
    pub fn problem(&self) -> Option<&TemplateError> {
        self.compiled.as_ref().err()
    }

    /// The text of `messages`, a list of objects. `extra` are further variables of the template,
    /// such as `enable_thinking`.
    ///
    /// # Errors
    /// When the template is malformed, raises an exception, runs out of fuel or makes too much.
    pub fn render(
        &self,
        messages: &Value,
        add_generation_prompt: bool,
        extra: &Map<String, Value>,
    ) -> Result<String, TemplateError> {
        let environment = self.compiled.as_ref().map_err(Clone::clone)?;
        let mut out = Bounded { bytes: Vec::new(), max: self.max_bytes, is_full: false };
        let mut variables = self.special.clone();
        // Hugging Face defines these always, and templates ask whether they are none.
        variables.extend(["tools", "documents"].map(|name| (name.to_owned(), Value::Null)));
        variables.extend(extra.clone());
        variables.insert("messages".into(), messages.clone());
        variables.insert("add_generation_prompt".into(), add_generation_prompt.into());
        let variables = python::value_of(&Value::Object(variables));
        let template = environment.get_template(engine::NAME);
        // Of some formats that texts are put into the library makes a panic, as fuzzing found.
        let rendered = guarded(|| {
            Ok(template.and_then(|found| found.render_captured_to(variables, &mut out).map(drop)))
        });
        if out.is_full {
            return Err(TemplateError::TooLarge(self.max_bytes));
        }
        let rendered = rendered.map_err(TemplateError::Refused)?;
        rendered.map_err(|cause| TemplateError::Refused(told(&cause)))?;
        String::from_utf8(out.bytes).map_err(|cause| TemplateError::Refused(cause.to_string()))
    }
}

fn told(cause: &Error) -> String {
    match cause.kind() {
        ErrorKind::OutOfFuel => "it would take too many steps (http.max_template_fuel)".to_owned(),
        _ => cause.detail().map_or_else(|| cause.to_string(), str::to_owned),
    }
}

struct Bounded {
    bytes: Vec<u8>,
    max: usize,
    is_full: bool,
}

impl Write for Bounded {
    fn write(&mut self, new: &[u8]) -> io::Result<usize> {
        if new.len() > self.max - self.bytes.len() {
            self.is_full = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(new);
        Ok(new.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::Tokenizer;
    use checkpoint::Checkpoint;
    use serde_json::json;
    use std::path::Path;

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
            let template = ChatTemplate::from_source(&source, &Http::default()).unwrap();
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
        limited(text, &Http::default())
    }

    fn limited(text: &str, limits: &Http) -> ChatTemplate {
        let source = TokenizerSource::Json {
            tokenizer: Vec::new(),
            special: checkpoint::SpecialTokens { bos: Some("<s>".into()), ..Default::default() },
            chat_template: Some(text.into()),
        };
        ChatTemplate::from_source(&source, limits).unwrap()
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
        let template = ChatTemplate::from_source(&source, &Http::default()).unwrap();
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

    #[test]
    fn a_broken_template_is_there_and_says_so_when_it_is_asked() {
        let broken = template("{% if %}");
        assert!(broken.problem().is_some());
        let error = broken.render(&json!([]), true, &Map::new()).unwrap_err().to_string();
        assert!(error.starts_with("the model's chat template can't be read: "), "{error}");
        assert!(template("fine").problem().is_none());
    }

    #[test]
    fn deep_arrays_written_prettily_cost_what_they_become() {
        // 15 KB of brackets, a hundred deep, become megabytes of spaces.
        let deep = (0..100).fold(json!([]), |inner, _| json!([inner]));
        let messages = Value::Array(vec![deep; 75]);
        let text = "{{ messages | tojson(indent=400) }}";
        let limits = Http { max_template_fuel: 1000, ..Http::default() };
        let error = limited(text, &limits).render(&messages, true, &Map::new()).unwrap_err();
        assert!(error.to_string().contains("http.max_template_fuel"), "{error}");
        assert!(template(text).render(&messages, true, &Map::new()).is_err());
        let small = template("{{ messages[0] | tojson(indent=2) }}");
        assert!(small.render(&messages, true, &Map::new()).is_ok());
    }

    #[test]
    fn what_is_rendered_is_bounded_in_bytes() {
        let limits = Http { max_rendered_bytes: 8, ..Http::default() };
        let render = |text| limited(text, &limits).render(&json!(["1234"]), true, &Map::new());
        assert_eq!(render("{{ messages[0] * 2 }}").unwrap(), "12341234");
        let error = render("{{ messages[0] * 2 }}5").unwrap_err().to_string();
        assert!(error.contains("8 bytes (http.max_rendered_bytes)"), "{error}");
    }

    /// Where a step could take as long as a list is, few steps would hold a thread for hours.
    #[test]
    fn whatever_walks_through_a_list_takes_steps_for_it() {
        let list = Value::from_iter((0..2000).map(|n| n.to_string()));
        let map = Value::from_iter((0..2000).map(|n| (n.to_string(), n)));
        let text = "a b\n".repeat(5000);
        let messages = json!([list, map, text]);
        let limits = Http { max_template_fuel: 100_000, ..Http::default() };
        for walks in [
            "messages[0] | join",
            "messages[0] | string | length",
            "messages[0] | wordcount",
            "messages[0] | reverse",
            "messages[0] | map('upper')",
            "messages[0] | select",
            "messages[0] | unique",
            "messages[0] | sort",
            "messages[0] | tojson | length",
            "messages[0].index('1999')",
            "messages[0].count('x')",
            "range(2000)",
            "messages[1].keys()",
            "messages[1].items()",
            "messages[1] | items",
            "messages[1] | dictsort",
            "dict(messages[1])",
            "messages[2].title()",
            "messages[2].find('x')",
            "messages[2].split() | length",
            "messages[2] | indent | length",
            "messages[2] | trim",
        ] {
            let loops = "{% for i in range(2000) %}{% set x = WALKS %}{% endfor %}";
            let template = limited(&loops.replace("WALKS", walks), &limits);
            let error = template.render(&messages, true, &Map::new()).expect_err(walks).to_string();
            assert!(error.contains("http.max_template_fuel"), "{walks}: {error}");
        }
    }
}
