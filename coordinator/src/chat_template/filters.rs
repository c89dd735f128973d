//! Filters and tests as Jinja2 has them, where minijinja's differ or are missing.

use minijinja::value::{Kwargs, Rest, Value, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, State, filters};

use super::generator::{Generator, View};
use super::python::{self, Args, Float, as_float, invalid, is_space};
use super::{json, methods};

/// Steps that sorting takes for each of the values.
const SORTING: usize = 8;

pub(super) fn add_to(environment: &mut Environment<'_>) {
    environment.add_filter("tojson", json::tojson);
    environment.add_filter("_percent", percent);
    environment.add_filter("int", int);
    environment.add_filter("float", float);
    for name in ["default", "d"] {
        environment.add_filter(name, default);
    }
    environment.add_filter("string", |state: &State, value: &Value| {
        python::str(state, value).map(Value::from)
    });
    environment.add_filter("join", join);
    environment.add_filter("trim", trim);
    environment.add_filter("truncate", truncate);
    environment.add_filter("wordcount", wordcount);
    environment.add_filter("center", center);
    environment.add_filter("indent", indent);
    environment.add_filter("dictsort", dictsort);
    environment.add_filter("_sort", filters::sort);
    environment.add_filter("sort", sort);
    environment.add_test("sequence", |value: &Value| {
        let is_view = value.downcast_object_ref::<View>().is_some_and(|view| view.shown.is_none());
        is_walked(value) && !is_view && value.downcast_object_ref::<Generator>().is_none()
    });
    environment.add_test("iterable", is_walked);
    environment.add_test("callable", |value: &Value| {
        value.kind() == ValueKind::Plain && value.downcast_object_ref::<Float>().is_none()
            || format!("{value:?}").starts_with("<macro ")
    });
    environment.add_test("number", |value: &Value| {
        as_float(value).is_some() || value.kind() == ValueKind::Bool
    });
    environment.add_test("float", |value: &Value| as_float(value).is_some() && !value.is_integer());
}

fn is_walked(value: &Value) -> bool {
    use ValueKind::{Iterable, Map, Seq, String, Undefined};
    matches!(value.kind(), Iterable | Map | Seq | String | Undefined)
}

/// `value % right`, of a text.
fn percent(state: &mut State, value: Value, right: Value) -> Result<Value, Error> {
    let mut args = vec![value];
    if right.is_tuple() {
        args.extend(right.try_iter()?);
    } else if right.kind() == ValueKind::Map {
        let fields = right.try_iter()?.filter_map(|key| {
            let value = right.get_item(&key).ok()?;
            Some((key.as_str()?.to_owned(), value))
        });
        args.push(fields.collect::<Kwargs>().into());
    } else {
        args.push(right);
    }
    state.apply_filter("format", &args)
}

/// The whole number that a text is in Python.
fn parse_int(text: &str, base: u32) -> Option<i128> {
    let text = text.trim_matches(is_space).replace('_', "").to_lowercase();
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, text.strip_prefix('+').unwrap_or(&text)),
    };
    let prefix = match base {
        2 => "0b",
        8 => "0o",
        16 => "0x",
        _ => "",
    };
    let digits = digits.strip_prefix(prefix).unwrap_or(digits);
    if digits.starts_with(['+', '-']) || !(2..=36).contains(&base) {
        return None;
    }
    i128::from_str_radix(digits, base).ok().map(|number| number * sign)
}

fn parse_float(text: &str) -> Option<f64> {
    text.trim_matches(is_space).replace('_', "").parse().ok()
}

fn int(value: &Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let args = Args::new("int", &args.into_values(), &["default", "base"])?;
    let base = args.int(1)?.and_then(|base| u32::try_from(base).ok()).unwrap_or(10);
    let whole = |float: f64| {
        (float.is_finite() && float.abs() < 1e38).then(|| Value::from(float.trunc() as i128))
    };
    let found = match (value.kind(), value.as_str()) {
        (ValueKind::Undefined, _) => return Err(invalid("int: the value is undefined")),
        (_, Some(text)) => match parse_int(text, base) {
            Some(number) => Some(Value::from(number)),
            None => parse_float(text).and_then(whole),
        },
        (ValueKind::Bool, _) => Some(Value::from(i64::from(value.is_true()))),
        _ if value.is_integer() => Some(value.clone()),
        _ => as_float(value).and_then(whole),
    };
    let narrow = |value: Value| value.as_i64().map_or(value, Value::from);
    Ok(found.map(narrow).or(args.get(0).cloned()).unwrap_or(Value::from(0)))
}

fn float(value: &Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let args = Args::new("float", &args.into_values(), &["default"])?;
    let found = match (value.kind(), value.as_str()) {
        (ValueKind::Undefined, _) => return Err(invalid("float: the value is undefined")),
        (_, Some(text)) => parse_float(text),
        (ValueKind::Bool, _) => Some(f64::from(u8::from(value.is_true()))),
        _ => as_float(value),
    };
    Ok(found.map(Value::from).or(args.get(0).cloned()).unwrap_or(Value::from(0.0)))
}

fn default(value: &Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let args = Args::new("default", &args.into_values(), &["default_value", "boolean"])?;
    if value.is_undefined() || args.is(1) && !value.is_true() {
        return Ok(args.get(0).cloned().unwrap_or(Value::from("")));
    }
    Ok(value.clone())
}

fn join(state: &mut State, value: Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let args = Args::new("join", &args.into_values(), &["d", "attribute"])?;
    let joiner = args.some(0).map(|d| python::str(state, d)).transpose()?.unwrap_or_default();
    let value = match args.some(1) {
        None => value,
        Some(attribute) => {
            let named = Kwargs::from_iter([("attribute", attribute.clone())]);
            state.apply_filter("map", &[value, named.into()])?
        }
    };
    if value.is_undefined() {
        return Ok(Value::from(""));
    }
    let mut out = String::new();
    for (number, item) in value.try_iter()?.enumerate() {
        let item = python::str(state, &item)?;
        let before = if number > 0 { joiner.as_str() } else { "" };
        state.consume_fuel(1 + ((before.len() + item.len()) / 64) as u64)?;
        out.push_str(before);
        out.push_str(&item);
    }
    Ok(Value::from(out))
}

fn trim(state: &State, value: &Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let args = Args::new("trim", &args.into_values(), &["chars"])?;
    let text = python::str(state, value)?;
    Ok(match args.text(0)? {
        Some(chars) => Value::from(text.trim_matches(|c| chars.contains(c))),
        None => Value::from(text.trim_matches(is_space)),
    })
}

fn truncate(state: &State, value: &Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let args =
        Args::new("truncate", &args.into_values(), &["length", "killwords", "end", "leeway"])?;
    let text = python::str(state, value)?;
    let length = args.int(0)?.unwrap_or(255);
    let end = args.text(2)?.unwrap_or("...");
    let num_chars = text.chars().count() as i64;
    if num_chars <= length.saturating_add(args.int(3)?.unwrap_or(5)) {
        return Ok(Value::from(text));
    }
    let Ok(kept) = usize::try_from(length - end.chars().count() as i64) else {
        return Err(invalid("truncate: the length has no place for the end"));
    };
    let kept: String = text.chars().take(kept).collect();
    let words = kept.rsplit_once(' ').map_or(kept.as_str(), |(words, _)| words);
    Ok(Value::from(format!("{}{end}", if args.is(1) { &kept } else { words })))
}

fn wordcount(state: &State, value: &Value) -> Result<usize, Error> {
    let text = python::str(state, value)?;
    let words = text.split(|c: char| !(c.is_alphanumeric() || c == '_'));
    Ok(words.filter(|word| !word.is_empty()).count())
}

fn center(state: &State, value: &Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let args = Args::new("center", &args.into_values(), &["width"])?;
    methods::pad(
        state,
        &python::str(state, value)?,
        args.int(0)?.unwrap_or(80),
        ' ',
        methods::Pad::Both,
    )
}

fn indent(state: &State, value: &Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let args = Args::new("indent", &args.into_values(), &["width", "first", "blank"])?;
    let before = match args.some(0) {
        None => " ".repeat(4),
        Some(text) if text.as_str().is_some() => text.as_str().unwrap_or_default().to_owned(),
        Some(_) => {
            let width = usize::try_from(args.int(0)?.unwrap_or(0)).unwrap_or(0);
            state.consume_fuel((width / 64) as u64)?;
            " ".repeat(width)
        }
    };
    // With this, a last newline stays.
    let text = python::str(state, value)? + "\n";
    let mut out = String::new();
    for (number, line) in methods::lines(&text, false).into_iter().enumerate() {
        state.consume_fuel(((before.len() + line.len()) / 64) as u64)?;
        if number > 0 {
            out.push('\n');
        }
        let is_first = number == 0;
        if is_first && args.is(1) || !is_first && (args.is(2) || !line.is_empty()) {
            out.push_str(&before);
        }
        out.push_str(line);
    }
    Ok(Value::from(out))
}

fn dictsort(state: &State, value: &Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    const NAMES: [&str; 3] = ["case_sensitive", "by", "reverse"];
    let args = Args::new("dictsort", &args.into_values(), &NAMES)?;
    python::pay(state, value.len().unwrap_or(0) * SORTING)?;
    filters::dictsort(value, named(&args, &NAMES))
}

fn sort(state: &mut State, value: Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    const NAMES: [&str; 3] = ["reverse", "case_sensitive", "attribute"];
    let args = Args::new("sort", &args.into_values(), &NAMES)?;
    state.apply_filter("_sort", &[value, named(&args, &NAMES).into()])
}

fn named(args: &Args, names: &[&'static str]) -> Kwargs {
    let given = names.iter().enumerate();
    given.filter_map(|(at, name)| Some((*name, args.get(at)?.clone()))).collect()
}
