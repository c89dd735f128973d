//! Arguments as JSON, written while they come.

use std::collections::HashSet;

use serde_json::Value;

/// Where a JSON value ends, found while it comes. What isn't JSON ends where its brackets do.
#[derive(Clone, Debug, Default)]
pub(super) struct JsonEnd {
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl JsonEnd {
    /// How many bytes of `text`, which goes on with an object or a list, belong to it; `None` is
    /// all, and more.
    pub(super) fn find(&mut self, text: &str) -> Option<usize> {
        for (at, byte) in text.bytes().enumerate() {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' if self.in_string => self.escaped = true,
                b'"' => self.in_string = !self.in_string,
                _ if self.in_string => {}
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        return Some(at + 1);
                    }
                }
                _ => {}
            }
        }
        None
    }
}

/// An object of which keys and values come as text.
#[derive(Clone, Debug, Default)]
pub(super) struct ObjectText {
    keys: HashSet<String>,
}

impl ObjectText {
    /// What stands before the value of `key`; `None` where it has one already, as an object can't
    /// have two.
    pub(super) fn key(&mut self, key: &str) -> Option<String> {
        let before = if self.keys.is_empty() { '{' } else { ',' };
        let is_new = self.keys.insert(key.to_owned());
        is_new.then(|| format!("{before}{}:", Value::from(key)))
    }

    /// What stands after the last value.
    pub(super) fn end(&self) -> &'static str {
        if self.keys.is_empty() { "{}" } else { "}" }
    }
}

/// A part of a JSON string, without quotation marks.
pub(super) fn escaped(text: &str) -> String {
    let quoted = Value::from(text).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}

/// What a value may be, of what its schema says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Text as it stands.
    Text,
    /// JSON where it is such, else text.
    Json,
}

/// What the value of `key` is in the arguments that `schema` describes.
pub(super) fn kind(schema: Option<&Value>, key: &str) -> Kind {
    let Some(property) = schema.and_then(|schema| schema.get("properties")?.get(key)) else {
        return Kind::Json;
    };
    let is_text = |schema: &Value| match (&schema["type"], &schema["enum"]) {
        (Value::String(name), _) => name == "string",
        (Value::Array(names), _) => !names.is_empty() && names.iter().all(|it| it == "string"),
        (_, Value::Array(values)) => !values.is_empty() && values.iter().all(Value::is_string),
        _ => schema["const"].is_string(),
    };
    if is_text(property) { Kind::Text } else { Kind::Json }
}

/// Whether the value of `key` stands as text in calls of a tool with this schema.
pub(crate) fn is_text(schema: &Value, key: &str) -> bool {
    kind(Some(schema), key) == Kind::Text
}

/// The JSON of a whole value that isn't text for sure. Where text is one of the things that it may
/// be, `schema` decides.
pub(super) fn json(schema: Option<&Value>, key: &str, text: &str) -> String {
    let property = schema.and_then(|schema| schema.get("properties")?.get(key));
    let names: Vec<&str> = property.map_or(Vec::new(), type_names);
    let trimmed = text.trim();
    let Ok(value) = serde_json::from_str::<Value>(trimmed) else {
        return Value::from(text).to_string();
    };
    let name = match &value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let allows = |name: &str| names.contains(&name);
    let is_allowed = allows(name) || (name == "integer" && allows("number"));
    if allows("string") && !is_allowed {
        return Value::from(text).to_string();
    }
    trimmed.to_owned()
}

/// The types that a schema names, those of its alternatives, too.
fn type_names(schema: &Value) -> Vec<&str> {
    let own: Vec<&str> = match &schema["type"] {
        Value::String(name) => vec![name],
        Value::Array(names) => names.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    let others = ["anyOf", "oneOf"].into_iter().filter_map(|of| schema[of].as_array()).flatten();
    // One level is what tools have; a schema's depth is its client's choice.
    let others = others.filter_map(|schema| schema["type"].as_str());
    own.into_iter().chain(others).collect()
}
