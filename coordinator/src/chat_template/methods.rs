//! Methods of Python's texts, lists and maps that templates call, where minijinja's differ or are
//! missing.

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, State};
use minijinja_contrib::pycompat;

use super::generator::View;
use super::python::{self, Args, invalid, is_space};

/// Bytes that a step pays for reading.
const BYTES_PER_FUEL: usize = 16;

pub(super) fn call(
    state: &mut State,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    let found = match (value.as_str(), value.kind()) {
        (Some(text), _) => {
            state.consume_fuel((text.len() / BYTES_PER_FUEL) as u64)?;
            of_text(state, text, method, args)?
        }
        (None, ValueKind::Seq) => of_list(state, value, method, args)?,
        (None, ValueKind::Map) => match method {
            "copy" => Some(value.clone()),
            "items" | "keys" | "values" => Some(view(state, value, method, args)?),
            _ => None,
        },
        _ => None,
    };
    match found {
        Some(found) => Ok(found),
        None => pycompat::unknown_method_callback(state, value, method, args),
    }
}

fn view(state: &mut State, map: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    python::pay(state, map.len().unwrap_or(0))?;
    let values = pycompat::unknown_method_callback(state, map, method, args)?;
    let name = match method {
        "items" => "dict_items",
        "keys" => "dict_keys",
        _ => "dict_values",
    };
    Ok(Value::from_object(View { shown: None, name, values: values.try_iter()?.collect() }))
}

fn of_list(
    state: &State,
    list: &Value,
    method: &str,
    args: &[Value],
) -> Result<Option<Value>, Error> {
    if matches!(method, "index" | "count") {
        python::pay(state, list.len().unwrap_or(0))?;
    }
    Ok(Some(match (method, args) {
        ("copy", []) => list.clone(),
        ("index", [wanted]) => match list.try_iter()?.position(|item| item == *wanted) {
            Some(at) => Value::from(at),
            None => return Err(invalid("index: it is not in the list")),
        },
        _ => return Ok(None),
    }))
}

fn of_text(
    state: &State,
    text: &str,
    method: &str,
    args: &[Value],
) -> Result<Option<Value>, Error> {
    Ok(Some(match method {
        "split" | "rsplit" => {
            let args = Args::new("split", args, &["sep", "maxsplit"])?;
            let max = args.int(1)?.and_then(|max| usize::try_from(max).ok());
            let max = max.unwrap_or(usize::MAX);
            split(text, args.text(0)?, max, method == "rsplit")?
        }
        "splitlines" => {
            let args = Args::new("splitlines", args, &["keepends"])?;
            lines(text, args.is(0)).into_iter().map(Value::from).collect()
        }
        "strip" | "lstrip" | "rstrip" => {
            let args = Args::new("strip", args, &["chars"])?;
            let chars = args.text(0)?;
            let goes = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
            let text = if method == "rstrip" { text } else { text.trim_start_matches(goes) };
            Value::from(if method == "lstrip" { text } else { text.trim_end_matches(goes) })
        }
        "find" | "rfind" | "index" | "rindex" => {
            let args = Args::new("find", args, &["sub", "start", "end"])?;
            let found = window(text, &args)?.and_then(|(from, part)| {
                let sub = args.required(0).ok()?;
                let at = if method.starts_with('r') { part.rfind(sub) } else { part.find(sub) };
                Some(text[..from + at?].chars().count())
            });
            args.required(0)?;
            match found {
                Some(at) => Value::from(at),
                None if method.ends_with("find") => Value::from(-1),
                None => return Err(invalid("index: the text is not found")),
            }
        }
        "count" => {
            let args = Args::new("count", args, &["sub", "start", "end"])?;
            let part = window(text, &args)?;
            Value::from(part.map_or(Ok(0), |(_, part)| {
                Ok::<_, Error>(part.matches(args.required(0)?).count())
            })?)
        }
        "startswith" | "endswith" => {
            let args = Args::new("startswith", args, &["prefix", "start", "end"])?;
            let wanted = args.get(0).cloned().unwrap_or_default();
            let wanted: Vec<Value> = match wanted.as_str() {
                Some(_) => vec![wanted],
                None if wanted.is_tuple() => wanted.try_iter()?.collect(),
                None => return Err(invalid("startswith: a text or a tuple of texts is wanted")),
            };
            let is_there = |part: &str, wanted: &Value| match wanted.as_str() {
                Some(wanted) if method == "startswith" => part.starts_with(wanted),
                Some(wanted) => part.ends_with(wanted),
                None => false,
            };
            let part = window(text, &args)?;
            let found = part.is_some_and(|(_, part)| wanted.iter().any(|w| is_there(part, w)));
            Value::from(found)
        }
        "removeprefix" => {
            let args = Args::new("removeprefix", args, &["prefix"])?;
            Value::from(text.strip_prefix(args.required(0)?).unwrap_or(text))
        }
        "removesuffix" => {
            let args = Args::new("removesuffix", args, &["suffix"])?;
            Value::from(text.strip_suffix(args.required(0)?).unwrap_or(text))
        }
        "partition" | "rpartition" => {
            let args = Args::new("partition", args, &["sep"])?;
            let sep = args.required(0)?;
            let parts = match method {
                "partition" => text.split_once(sep).unwrap_or((text, "")),
                _ => text.rsplit_once(sep).unwrap_or(("", text)),
            };
            let sep = if text.contains(sep) { sep } else { "" };
            minijinja::value::Tuple::from(vec![
                Value::from(parts.0),
                Value::from(sep),
                Value::from(parts.1),
            ])
            .into()
        }
        "zfill" => {
            let args = Args::new("zfill", args, &["width"])?;
            let signed = usize::from(text.starts_with(['+', '-']));
            let (sign, digits) = text.split_at(signed);
            let width = args.int(0)?.unwrap_or(0).saturating_sub(signed as i64);
            let padded = pad(state, digits, width, '0', Pad::Before)?;
            Value::from(format!("{sign}{padded}"))
        }
        "ljust" | "rjust" | "center" => {
            let args = Args::new("ljust", args, &["width", "fillchar"])?;
            let fill = args.text(1)?.and_then(|text| text.chars().next()).unwrap_or(' ');
            let side = match method {
                "ljust" => Pad::After,
                "rjust" => Pad::Before,
                _ => Pad::Both,
            };
            pad(state, text, args.int(0)?.unwrap_or(0), fill, side)?
        }
        "title" => Value::from(title(text)),
        "swapcase" => {
            let swapped = text.chars().map(|c| match c.is_uppercase() {
                true => c.to_lowercase().collect::<String>(),
                false => c.to_uppercase().collect(),
            });
            Value::from(swapped.collect::<String>())
        }
        "join" => {
            let items = args.first().cloned().unwrap_or_default();
            let mut out = String::new();
            for (number, item) in items.try_iter()?.enumerate() {
                let Some(item) = item.as_str() else {
                    return Err(invalid("join: the items must be texts"));
                };
                let before = if number > 0 { text } else { "" };
                let new = before.len() + item.len();
                state.consume_fuel(1 + (new / BYTES_PER_FUEL) as u64)?;
                out.push_str(before);
                out.push_str(item);
            }
            Value::from(out)
        }
        "isspace" => Value::from(!text.is_empty() && text.chars().all(is_space)),
        _ => return Ok(None),
    }))
}

/// The part between `start` and `end`, and the byte where it begins; none where the start is past
/// the end.
fn window<'a>(text: &'a str, args: &Args) -> Result<Option<(usize, &'a str)>, Error> {
    let (start, end) = (args.int(1)?, args.int(2)?);
    if start.is_none() && end.is_none() {
        return Ok(Some((0, text)));
    }
    let num_chars = text.chars().count() as i64;
    let place = |at: i64| if at < 0 { (at + num_chars).max(0) } else { at };
    let (start, end) = (place(start.unwrap_or(0)), place(end.unwrap_or(num_chars)));
    if start > end.min(num_chars) {
        return Ok(None);
    }
    let byte = |at: i64| {
        let mut places = text.char_indices().map(|(at, _)| at);
        usize::try_from(at).ok().and_then(|at| places.nth(at)).unwrap_or(text.len())
    };
    let (start, end) = (byte(start), byte(end));
    Ok(Some((start, &text[start..end])))
}

fn split(text: &str, sep: Option<&str>, max: usize, is_right: bool) -> Result<Value, Error> {
    let limit = max.saturating_add(1);
    let mut parts: Vec<&str> = match (sep, is_right) {
        (Some(""), _) => return Err(invalid("split: the separator is empty")),
        (Some(sep), false) => text.splitn(limit, sep).collect(),
        (Some(sep), true) => text.rsplitn(limit, sep).collect(),
        (None, _) => words(text, max, is_right),
    };
    if is_right {
        parts.reverse();
    }
    Ok(parts.into_iter().map(Value::from).collect())
}

/// The words of a text, from one of its ends, and after `max` of them the rest.
fn words(text: &str, max: usize, is_right: bool) -> Vec<&str> {
    let trim = |text| match is_right {
        true => str::trim_end_matches(text, is_space),
        false => str::trim_start_matches(text, is_space),
    };
    let (mut words, mut rest) = (Vec::new(), trim(text));
    while !rest.is_empty() {
        let end = if is_right { rest.rfind(is_space) } else { rest.find(is_space) };
        let Some(at) = end.filter(|_| words.len() < max) else {
            words.push(rest);
            break;
        };
        let next = at + rest[at..].chars().next().map_or(1, char::len_utf8);
        let (word, more) =
            if is_right { (&rest[next..], &rest[..at]) } else { (&rest[..at], &rest[next..]) };
        words.push(word);
        rest = trim(more);
    }
    // What is left has its own end trimmed, as the words have.
    if words.len() > max
        && let Some(last) = words.last_mut()
    {
        *last = if is_right {
            last.trim_end_matches(is_space)
        } else {
            last.trim_start_matches(is_space)
        };
    }
    words
}

/// `str.splitlines`: more than newlines end a line.
pub(super) fn lines(text: &str, keeps_ends: bool) -> Vec<&str> {
    let is_end = |c: char| {
        matches!(
            c,
            '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let (mut lines, mut rest) = (Vec::new(), text);
    while !rest.is_empty() {
        let (line, end) = match rest.find(is_end) {
            None => (rest.len(), rest.len()),
            Some(at) if rest[at..].starts_with("\r\n") => (at, at + 2),
            Some(at) => (at, at + rest[at..].chars().next().map_or(1, char::len_utf8)),
        };
        lines.push(&rest[..if keeps_ends { end } else { line }]);
        rest = &rest[end..];
    }
    lines
}

/// `str.title`: a letter after what is none is large, all others small.
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut is_inside = false;
    for c in text.chars() {
        if is_inside {
            out.extend(c.to_lowercase());
        } else {
            out.extend(c.to_uppercase());
        }
        is_inside = c.is_alphabetic();
    }
    out
}

/// Where a text is filled up.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Pad {
    Before,
    After,
    Both,
}

pub(super) fn pad(
    state: &State,
    text: &str,
    width: i64,
    fill: char,
    side: Pad,
) -> Result<Value, Error> {
    let num_chars = text.chars().count();
    let width = usize::try_from(width).unwrap_or(0);
    let missing = width.saturating_sub(num_chars);
    state.consume_fuel((missing / BYTES_PER_FUEL) as u64)?;
    // The odd one stands where Python puts it.
    let before = match side {
        Pad::Before => missing,
        Pad::After => 0,
        Pad::Both => missing / 2 + (missing & width & 1),
    };
    let fill = fill.to_string();
    Ok(Value::from([&fill.repeat(before), text, &fill.repeat(missing - before)].concat()))
}
