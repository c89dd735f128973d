//! Calls of tools as a model writes them, as a grammar.

use serde_json::{Map, Value, json};

use super::source::{quoted, spaced};
use crate::parser::{CallFormat, is_text};

/// Calls that an answer consists of.
#[derive(Clone, Debug, PartialEq)]
pub struct Calls {
    /// How the model writes them.
    pub format: CallFormat,
    /// The tools that may be called, with the schemas of their arguments.
    pub tools: Map<String, Value>,
    /// Whether there may be several.
    pub parallel: bool,
    /// What else the answer may be.
    pub or: Or,
}

/// What an answer may be in place of calls, or beside them.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Or {
    /// It must call.
    #[default]
    Nothing,
    /// JSON of this schema, if it doesn't call.
    Json(Value),
    /// Any text, in which calls may begin.
    Text,
}

/// What begins a call in the formats that have tags.
const OPENING: &str = "<tool_call>";

impl Calls {
    /// Lark's rules for them.
    pub(super) fn lark(&self) -> String {
        let names: Vec<_> = (0..self.tools.len()).map(|i| format!("call{i}")).collect();
        // GLM-4 calls one tool in an answer: the call is all of it.
        let several = self.parallel && self.format != CallFormat::NameThenJson;
        let more = if several { " (\"\\n\"? call)*" } else { "" };
        let calls = names.join(" | ");
        let mut rules = match (&self.or, self.format) {
            (Or::Nothing, _) => format!("start: call{more}\ncall: {calls}\n"),
            (Or::Json(schema), _) => {
                let schema = spaced(schema);
                format!("start: call{more} | content\ncall: {calls}\ncontent: %json {schema}\n")
            }
            // What names a tool and goes on with an object is a call, and all of the answer.
            (Or::Text, CallFormat::NameThenJson) => {
                let names: Vec<_> = self.tools.keys().map(|name| escaped(name)).collect();
                let names = names.join("|");
                format!(
                    "start: call | TEXT\ncall: {calls}\n\
                     TEXT: /(?s:.+)/ & ~/(?s:\\s*({names})\\s*\\{{.*)/\n"
                )
            }
            // The text before a call ends with the tag that begins it.
            (Or::Text, _) => {
                let opening = quoted(OPENING);
                format!(
                    "start: (text call)* TAIL?\ncall: {calls}\n\
                     text[suffix={opening}]: /(?s:.*)/\n\
                     TAIL: /(?s:.+)/ & ~/(?s:.*{OPENING}.*)/\n"
                )
            }
        };
        let free = self.or == Or::Text;
        for (i, (name, schema)) in self.tools.iter().enumerate() {
            match self.format {
                CallFormat::Json => {
                    let name = quoted(name);
                    let (head, tail) = if free {
                        let head = format!("{{ ?\"name\": ?{name}, ?\"arguments\": ?");
                        let head = format!("/[ \\n]{{0,4}}{}/", escaped(&head));
                        (head, r"/[ \n]{0,4}\}[ \n]{0,4}<\x2ftool_call>/".to_owned())
                    } else {
                        let head = format!("<tool_call>\n{{\"name\": {name}, \"arguments\": ");
                        (quoted(&head), quoted("}\n</tool_call>"))
                    };
                    rules += &format!("call{i}: {head} args{i} {tail}\n");
                    rules += &format!("args{i}: %json {}\n", object(schema));
                }
                CallFormat::NameThenJson => {
                    let name = format!("{name}\n");
                    let head = if free {
                        format!("/\\s*{}\\s*/", escaped(name.trim_end()))
                    } else {
                        quoted(&name)
                    };
                    rules += &format!("call{i}: {head} args{i}\n");
                    rules += &format!("args{i}: %json {}\n", object(schema));
                }
                CallFormat::KeysAndValues => {
                    let head = if free {
                        format!("/\\n?{}/", escaped(name))
                    } else {
                        quoted(&format!("{OPENING}{name}"))
                    };
                    let tail = "\"</tool_call>\"";
                    let pairs = pairs(i, schema, &mut rules);
                    rules += &format!("call{i}: {head} \"\\n\"?{pairs} {tail}\n");
                }
            }
        }
        rules
    }
}

/// A text as a regular expression has it; the names of tools have no other signs than these.
fn escaped(text: &str) -> String {
    text.replace('.', "\\.").replace('{', "\\{")
}

/// A schema of objects: what a tool without one takes, too.
fn object(schema: &Value) -> Value {
    let mut schema = spaced(schema);
    if let Value::Object(fields) = &mut schema {
        fields.entry("type").or_insert("object".into());
    }
    schema
}

/// Keys and values of the `i`th tool, whose own rules are added.
fn pairs(i: usize, schema: &Value, rules: &mut String) -> String {
    let Some(properties) = schema["properties"].as_object() else {
        // It may take anything, or nothing.
        *rules += &format!(
            "pair{i}: \"<arg_key>\" /[^<>\\n]+/ \"</arg_key>\" \"\\n\"? \"<arg_value>\" value{i} \
             \"\\n\"?\nvalue{i}[suffix=\"</arg_value>\"]: /(?s:.*)/\n"
        );
        let takes_nothing = schema["additionalProperties"] == false;
        return if takes_nothing { String::new() } else { format!(" pair{i}*") };
    };
    let required = schema["required"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut pairs = String::new();
    for (j, (key, property)) in properties.iter().enumerate() {
        let name = format!("{i}_{j}");
        let key_tags = quoted(&format!("<arg_key>{key}</arg_key>"));
        *rules +=
            &format!("pair_{name}: {key_tags} \"\\n\"? \"<arg_value>\" value_{name} \"\\n\"?\n");
        *rules += &value(&name, schema, key, property);
        let optional = if required.iter().any(|it| it == key) { "" } else { "?" };
        pairs += &format!(" pair_{name}{optional}");
    }
    pairs
}

/// The rule of a value with its closing tag: text stands as it is, everything else is JSON.
fn value(name: &str, schema: &Value, key: &str, property: &Value) -> String {
    if !is_text(schema, key) {
        let mut property = property.clone();
        if let Value::Object(fields) = &mut property {
            // What it may refer to.
            for definitions in ["$defs", "definitions"] {
                if let Some(these) = schema.get(definitions) {
                    fields.insert(definitions.into(), these.clone());
                }
            }
        }
        let property = if property.is_object() { property } else { json!({}) };
        return format!(
            "value_{name}: json_{name} \"</arg_value>\"\njson_{name}: %json {}\n",
            spaced(&property)
        );
    }
    let constant = property.get("const").map(std::slice::from_ref);
    let values = constant.or(property["enum"].as_array().map(Vec::as_slice)).unwrap_or_default();
    let texts: Vec<_> = values.iter().filter_map(Value::as_str).collect();
    if texts.is_empty() {
        return format!("value_{name}[suffix=\"</arg_value>\"]: /(?s:.*)/\n");
    }
    let texts: Vec<_> = texts.iter().map(|text| quoted(&format!("{text}</arg_value>"))).collect();
    format!("value_{name}: {}\n", texts.join(" | "))
}
