//! `tojson` as Hugging Face has it: `json.dumps(value, ensure_ascii=False, ...)`, where Jinja's own
//! escapes for HTML.

use minijinja::value::{Rest, Value, ValueKind, ValueOrKwargs};
use minijinja::{Error, State};

use super::generator::{Generator, View};
use super::python::{self, Args, BYTES_PER_FUEL, Float, invalid};

/// Bytes after which they are paid.
const CHUNK: usize = 4 << 10;

/// Values within values; Python gives up later, at a thousand.
const MAX_DEPTH: usize = 200;

/// How Python's `json.dumps` is asked to write.
struct Style {
    indent: Option<String>,
    between_items: String,
    after_key: String,
    is_ascii: bool,
    is_sorted: bool,
}

pub(super) fn tojson(
    state: &State,
    value: Value,
    args: Rest<ValueOrKwargs>,
) -> Result<Value, Error> {
    const NAMES: [&str; 4] = ["ensure_ascii", "indent", "separators", "sort_keys"];
    let args = Args::new("tojson", &args.into_values(), &NAMES)?;
    let indent = match args.some(1) {
        None => None,
        Some(text) if text.as_str().is_some() => text.as_str().map(str::to_owned),
        Some(_) => {
            let width = usize::try_from(args.int(1)?.unwrap_or(0)).unwrap_or(0);
            state.consume_fuel((width / BYTES_PER_FUEL) as u64)?;
            Some(" ".repeat(width))
        }
    };
    let [between_items, after_key] = match args.some(2) {
        None => [if indent.is_some() { "," } else { ", " }, ": "].map(str::to_owned),
        Some(both) => {
            let texts = both.try_iter()?.filter_map(|text| text.as_str().map(str::to_owned));
            let both: Result<[String; 2], _> = texts.collect::<Vec<_>>().try_into();
            both.map_err(|_| invalid("tojson: separators must be two texts"))?
        }
    };
    let style =
        Style { indent, between_items, after_key, is_ascii: args.is(0), is_sorted: args.is(3) };
    let mut dump = Dump { style, state, out: String::new(), num_paid: 0 };
    dump.value(&value, 0)?;
    Ok(Value::from(dump.out))
}

struct Dump<'a> {
    style: Style,
    state: &'a State<'a, 'a>,
    out: String,
    num_paid: usize,
}

impl Dump<'_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(invalid("tojson: values are nested too deep"));
        }
        let is_view = value.downcast_object_ref::<View>().is_some();
        if is_view || value.downcast_object_ref::<Generator>().is_some() {
            return Err(invalid("tojson: this is no list; use `| list` before"));
        }
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.out.push_str(&number(value)?),
            ValueKind::String => self.text(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => self.list(value, depth)?,
            ValueKind::Map => self.map(value, depth)?,
            _ if value.downcast_object_ref::<Float>().is_some() => {
                self.out.push_str(&value.to_string());
            }
            other => return Err(invalid(format!("tojson: {other} can't be written as JSON"))),
        }
        self.pay(CHUNK)
    }

    /// Takes fuel for what was written, once it is `at_least` so much.
    fn pay(&mut self, at_least: usize) -> Result<(), Error> {
        let new = self.out.len() - self.num_paid;
        if new >= at_least {
            self.num_paid = self.out.len();
            self.state.consume_fuel((new / BYTES_PER_FUEL) as u64)?;
        }
        Ok(())
    }

    fn list(&mut self, items: &Value, depth: usize) -> Result<(), Error> {
        self.out.push('[');
        let mut is_empty = true;
        for item in items.try_iter()? {
            self.begin_item(depth + 1, is_empty)?;
            self.value(&item, depth + 1)?;
            is_empty = false;
        }
        self.end(']', depth, is_empty)
    }

    fn map(&mut self, fields: &Value, depth: usize) -> Result<(), Error> {
        let mut keys: Vec<_> = fields.try_iter()?.collect();
        if self.style.is_sorted {
            keys.sort();
        }
        self.out.push('{');
        let is_empty = keys.is_empty();
        for (number, key) in keys.into_iter().enumerate() {
            self.begin_item(depth + 1, number == 0)?;
            match key.as_str() {
                Some(name) => self.text(name),
                None => {
                    self.out.push('"');
                    self.value(&key, MAX_DEPTH)?;
                    self.out.push('"');
                }
            }
            self.out.push_str(&self.style.after_key);
            self.value(&fields.get_item(&key)?, depth + 1)?;
        }
        self.end('}', depth, is_empty)
    }

    fn begin_item(&mut self, depth: usize, is_first: bool) -> Result<(), Error> {
        if !is_first {
            self.out.push_str(&self.style.between_items);
        }
        self.newline(depth)
    }

    fn end(&mut self, close: char, depth: usize, is_empty: bool) -> Result<(), Error> {
        if !is_empty {
            self.newline(depth)?;
        }
        self.out.push(close);
        Ok(())
    }

    fn newline(&mut self, depth: usize) -> Result<(), Error> {
        if let Some(indent) = &self.style.indent {
            self.out.push('\n');
            for _ in 0..depth {
                self.out.push_str(indent);
            }
        }
        self.pay(CHUNK)
    }

    fn text(&mut self, text: &str) {
        let quoted = serde_json::Value::from(text).to_string();
        if !self.style.is_ascii {
            return self.out.push_str(&quoted);
        }
        for c in quoted.chars() {
            if matches!(c, ' '..='~') {
                self.out.push(c);
            } else {
                let mut units = [0; 2];
                let units = c.encode_utf16(&mut units).iter();
                self.out.extend(units.map(|unit| format!("\\u{unit:04x}")));
            }
        }
    }
}

fn number(value: &Value) -> Result<String, Error> {
    if value.is_integer() {
        return Ok(value.to_string());
    }
    let float = f64::try_from(value.clone())?;
    Ok(match float {
        float if float.is_nan() => "NaN".to_owned(),
        float if float.is_infinite() => {
            if float > 0.0 { "Infinity" } else { "-Infinity" }.to_owned()
        }
        float => python::float(float),
    })
}
