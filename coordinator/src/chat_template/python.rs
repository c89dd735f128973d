//! Values written as Python writes them, and its idea of white space and of arguments.

use std::cmp::Ordering;
use std::fmt::{self, Write};
use std::sync::Arc;

use minijinja::value::{DynObject, Kwargs, Object, ObjectRepr, Value, ValueKind};
use minijinja::{Error, ErrorKind, State};

/// Bytes that a step pays for: writing is slower than copying.
pub(super) const BYTES_PER_FUEL: usize = 4;

/// Values within values.
const MAX_DEPTH: usize = 200;

pub(super) fn invalid(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

/// Python's `repr`: as short as ours, but it turns to an exponent elsewhere and writes two digits
/// of it.
pub(super) fn float(float: f64) -> String {
    if !float.is_finite() {
        return if float.is_nan() { "nan".to_owned() } else { format!("{float}") };
    }
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

/// A number of a request that minijinja would write otherwise than Python.
#[derive(Clone, Copy)]
pub(super) struct Float(pub(super) f64);

impl fmt::Debug for Float {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&float(self.0))
    }
}

impl Object for Float {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn is_true(self: &Arc<Self>) -> bool {
        true
    }

    fn custom_cmp(self: &Arc<Self>, other: &DynObject) -> Option<Ordering> {
        self.0.partial_cmp(&other.downcast_ref::<Self>()?.0)
    }
}

/// The number that a value is, if it is one.
pub(super) fn as_float(value: &Value) -> Option<f64> {
    match value.downcast_object_ref::<Float>() {
        Some(float) => Some(float.0),
        None if value.is_number() => f64::try_from(value.clone()).ok(),
        None => None,
    }
}

/// JSON as a template's value.
pub(super) fn value_of(json: &serde_json::Value) -> Value {
    use serde_json::Value as Json;
    match json {
        Json::Array(items) => items.iter().map(value_of).collect(),
        Json::Object(fields) => {
            Value::from_pairs(fields.iter().map(|(name, value)| (name.as_str(), value_of(value))))
        }
        Json::Number(number) => match number.as_f64().filter(|_| number.is_f64()) {
            Some(value) if float(value) != format!("{value:?}") => Value::from_object(Float(value)),
            _ => Value::from(minijinja::value::Serde(number.clone())),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Bool(is) => Value::from(*is),
        Json::Null => Value::from(()),
    }
}

/// `str(value)`, and fuel for what it takes.
///
/// # Errors
/// When what Python writes has no meaning, as for a generator, or there is no more fuel.
pub(super) fn str(state: &State, value: &Value) -> Result<String, Error> {
    let text = text(value)?;
    if value.as_str().is_none() {
        pay(state, text.len() / BYTES_PER_FUEL)?;
    }
    Ok(text)
}

/// Takes fuel for work that grows with what it is given.
pub(super) fn pay(state: &State, fuel: usize) -> Result<(), Error> {
    state.consume_fuel(fuel as u64)
}

/// `str(value)`.
pub(super) fn text(value: &Value) -> Result<String, Error> {
    match value.as_str() {
        Some(text) => Ok(text.to_owned()),
        None => {
            let mut out = String::new();
            repr(value, &mut out, 0)?;
            Ok(out)
        }
    }
}

fn repr(value: &Value, out: &mut String, depth: usize) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(invalid("values are nested too deep"));
    }
    if value.downcast_object_ref::<super::generator::Generator>().is_some() {
        return Err(invalid("a generator can't be shown; use `| list`"));
    }
    if value.downcast_object_ref::<super::generator::View>().is_some() {
        return write!(out, "{value}").map_err(|_| ErrorKind::WriteFailure.into());
    }
    if value.as_object().is_some_and(|object| object.type_name().ends_with("::Namespace")) {
        return Err(invalid("a namespace can't be shown"));
    }
    match value.kind() {
        ValueKind::Undefined if depth > 0 => out.push_str("Undefined"),
        ValueKind::String => quoted(value.as_str().unwrap_or_default(), out),
        ValueKind::Number if !value.is_integer() => {
            out.push_str(&float(f64::try_from(value.clone())?));
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let (open, close) = if value.is_tuple() { ('(', ')') } else { ('[', ']') };
            out.push(open);
            let mut number = 0;
            for item in value.try_iter()? {
                out.push_str(if number > 0 { ", " } else { "" });
                repr(&item, out, depth + 1)?;
                number += 1;
            }
            if number == 1 && value.is_tuple() {
                out.push(',');
            }
            out.push(close);
        }
        ValueKind::Map => {
            out.push('{');
            for (number, key) in value.try_iter()?.enumerate() {
                out.push_str(if number > 0 { ", " } else { "" });
                repr(&key, out, depth + 1)?;
                out.push_str(": ");
                repr(&value.get_item(&key)?, out, depth + 1)?;
            }
            out.push('}');
        }
        _ => write!(out, "{value}").map_err(|_| ErrorKind::WriteFailure)?,
    }
    Ok(())
}

fn quoted(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => out.extend(['\\', c]),
            c if c == ' ' || is_printable(c) => out.push(c),
            c => {
                let code = u64::from(u32::from(c));
                let width = [2, 4, 8].into_iter().find(|width| code >> (4 * width) == 0);
                let letter = match width {
                    Some(2) => 'x',
                    Some(4) => 'u',
                    _ => 'U',
                };
                out.push_str(&format!("\\{letter}{code:0width$x}", width = width.unwrap_or(8)));
            }
        }
    }
    out.push(quote);
}

/// What Rust writes as it is in a debugged text, apart from marks that join others.
fn is_printable(c: char) -> bool {
    !c.is_whitespace() && (c.escape_debug().len() == 1 || matches!(c, '\'' | '"'))
        || c.is_alphanumeric()
        || matches!(c, '\u{300}'..='\u{36f}' | '\u{fe00}'..='\u{fe0f}')
}

/// What `str.strip` and `str.split` take away.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// The arguments of a call by a signature of Python.
pub(super) struct Args {
    name: &'static str,
    names: &'static [&'static str],
    values: Vec<Option<Value>>,
}

impl Args {
    /// # Errors
    /// When there are more than the signature has, or others.
    pub(super) fn new(
        name: &'static str,
        args: &[Value],
        names: &'static [&'static str],
    ) -> Result<Self, Error> {
        let (args, named) = match args.split_last() {
            Some((last, rest)) if last.is_kwargs() => (rest, Some(Kwargs::try_from(last.clone())?)),
            _ => (args, None),
        };
        if args.len() > names.len() {
            return Err(Error::new(ErrorKind::TooManyArguments, format!("{name} has too many")));
        }
        let mut values: Vec<_> = args.iter().cloned().map(Some).collect();
        values.resize(names.len(), None);
        if let Some(named) = named {
            for (value, name) in values.iter_mut().zip(names) {
                if named.has(name) {
                    *value = Some(named.get(name)?);
                }
            }
            named.assert_all_used()?;
        }
        Ok(Self { name, names, values })
    }

    /// One that may be absent.
    pub(super) fn get(&self, at: usize) -> Option<&Value> {
        self.values[at].as_ref()
    }

    /// One that may be absent or none.
    pub(super) fn some(&self, at: usize) -> Option<&Value> {
        self.get(at).filter(|value| !value.is_none())
    }

    pub(super) fn text(&self, at: usize) -> Result<Option<&str>, Error> {
        let Some(value) = self.some(at) else { return Ok(None) };
        match value.as_str() {
            Some(text) => Ok(Some(text)),
            None => Err(invalid(format!("{}: {} must be a text", self.name, self.names[at]))),
        }
    }

    /// A text that must be there.
    pub(super) fn required(&self, at: usize) -> Result<&str, Error> {
        self.text(at)?
            .ok_or_else(|| invalid(format!("{}: {} is missing", self.name, self.names[at])))
    }

    /// A whole number.
    pub(super) fn int(&self, at: usize) -> Result<Option<i64>, Error> {
        let Some(value) = self.some(at) else { return Ok(None) };
        match value.as_i64() {
            Some(number) => Ok(Some(number)),
            None => Err(invalid(format!("{}: {} must be a number", self.name, self.names[at]))),
        }
    }

    /// Whether one is true; not where it is absent.
    pub(super) fn is(&self, at: usize) -> bool {
        self.get(at).is_some_and(Value::is_true)
    }
}
