//! What templates find without defining it: Jinja2's own functions, and Hugging Face's.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use jiff::Zoned;
use minijinja::value::{Kwargs, Object, ObjectRepr, Rest, Value, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State, functions};

use super::python::{Args, invalid, pay};

pub(super) fn add_to(environment: &mut Environment<'_>) {
    environment.remove_global("debug");
    environment.add_function("raise_exception", |message: String| {
        Err::<String, _>(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", |format: String| strftime(&format, &Zoned::now()));
    environment.add_function("_argument", |value: Value| {
        if value.is_undefined() { Value::from_object(Missing) } else { value }
    });
    environment.add_function("_given", |value: Value| {
        let is_missing = value.downcast_object_ref::<Missing>().is_some();
        if is_missing { Value::UNDEFINED } else { value }
    });
    environment.add_function("dict", |state: &State, args: Rest<ValueOrKwargs>| {
        fields(state, &args.into_values()).map(Value::from_pairs)
    });
    environment.add_function("namespace", |state: &State, args: Rest<ValueOrKwargs>| {
        let fields = Value::from_pairs(fields(state, &args.into_values())?);
        functions::namespace(Some(ValueOrKwargs::from(fields)))
    });
    environment.add_function("joiner", |args: Rest<ValueOrKwargs>| {
        let args = Args::new("joiner", &args.into_values(), &["sep"])?;
        let sep = args.text(0)?.unwrap_or(", ").into();
        Ok::<_, Error>(Value::from_object(Joiner { sep, is_begun: AtomicBool::new(false) }))
    });
    environment.add_function("cycler", |items: Rest<Value>| match items.is_empty() {
        true => Err(invalid("cycler: give at least one item")),
        false => Ok(Value::from_object(Cycler { items: items.0, at: AtomicUsize::new(0) })),
    });
}

/// What `dict(...)` makes of its arguments: a map, or pairs, and what is named.
fn fields(state: &State, args: &[Value]) -> Result<Vec<(Value, Value)>, Error> {
    let (args, named) = match args.split_last() {
        Some((last, rest)) if last.is_kwargs() => (rest, Some(last)),
        _ => (args, None),
    };
    let mut fields = Vec::new();
    if args.len() > 1 {
        return Err(Error::new(ErrorKind::TooManyArguments, "one map and names are wanted"));
    }
    if let Some(first) = args.first() {
        pay(state, first.len().unwrap_or(0))?;
        for item in first.try_iter()? {
            fields.push(match first.kind() {
                ValueKind::Map => (item.clone(), first.get_item(&item)?),
                _ => match item.try_iter()?.collect::<Vec<_>>().as_slice() {
                    [name, value] => (name.clone(), value.clone()),
                    _ => return Err(invalid("dict: pairs are wanted")),
                },
            });
        }
    }
    if let Some(named) = named {
        let named = Kwargs::try_from(named.clone())?;
        for name in named.args().map(str::to_owned).collect::<Vec<_>>() {
            fields.push((Value::from(name.as_str()), named.get(&name)?));
        }
    }
    Ok(fields)
}

/// An argument that is given and undefined, on its way to a macro.
#[derive(Debug)]
struct Missing;

impl Object for Missing {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }
}

/// Nothing at first, then what stands between.
#[derive(Debug)]
struct Joiner {
    sep: Arc<str>,
    is_begun: AtomicBool,
}

impl Object for Joiner {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, _: &mut State, _: &[Value]) -> Result<Value, Error> {
        let is_begun = self.is_begun.swap(true, Ordering::Relaxed);
        Ok(Value::from(if is_begun { &*self.sep } else { "" }))
    }
}

/// One item after the other, and again.
#[derive(Debug)]
struct Cycler {
    items: Vec<Value>,
    at: AtomicUsize,
}

impl Cycler {
    fn current(&self) -> Value {
        self.items[self.at.load(Ordering::Relaxed) % self.items.len()].clone()
    }
}

impl Object for Cycler {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        (key.as_str() == Some("current")).then(|| self.current())
    }

    fn call_method(
        self: &Arc<Self>,
        _: &mut State,
        method: &str,
        _: &[Value],
    ) -> Result<Value, Error> {
        match method {
            "next" => {
                let current = self.current();
                self.at.fetch_add(1, Ordering::Relaxed);
                Ok(current)
            }
            "reset" => {
                self.at.store(0, Ordering::Relaxed);
                Ok(Value::from(()))
            }
            _ => Err(ErrorKind::UnknownMethod.into()),
        }
    }
}

/// `datetime.now().strftime(format)`, in the C locale.
fn strftime(format: &str, now: &Zoned) -> Result<String, Error> {
    let mut ours = String::with_capacity(format.len());
    let mut rest = format.chars();
    while let Some(c) = rest.next() {
        if c != '%' {
            ours.push(c);
            continue;
        }
        match rest.next() {
            Some('c') => ours.push_str("%a %b %e %H:%M:%S %Y"),
            Some('x') => ours.push_str("%m/%d/%y"),
            Some('X') => ours.push_str("%H:%M:%S"),
            Some('r') => ours.push_str("%I:%M:%S %p"),
            Some('f') => ours.push_str("%6f"),
            // A time that knows no zone has neither.
            Some('z' | 'Z') => {}
            Some(other) => ours.extend(['%', other]),
            None => ours.push_str("%%"),
        }
    }
    jiff::fmt::strtime::format(&ours, now).map_err(|cause| invalid(cause.to_string()))
}

#[cfg(test)]
mod tests {
    use super::strftime;

    #[test]
    fn times_are_written_as_python_writes_them() {
        let corpus = super::super::corpus::read();
        let time: jiff::civil::DateTime = corpus["time"].as_str().unwrap().parse().unwrap();
        let now = time.to_zoned(jiff::tz::TimeZone::UTC).unwrap();
        for (format, expected) in corpus["times"].as_object().unwrap() {
            assert_eq!(strftime(format, &now).unwrap(), expected.as_str().unwrap(), "{format}");
        }
    }
}
