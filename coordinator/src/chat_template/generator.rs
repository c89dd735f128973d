//! What Python walks through and minijinja has as lists. Most filters give a generator: it is true
//! though nothing is in it, has no items to take, and is there once. Ranges and what maps have are
//! shown by names.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use minijinja::value::{Enumerator, Object, ObjectRepr, Rest, Value, ValueOrKwargs};
use minijinja::{Environment, Error, State, filters, functions};

use super::python::pay;

/// Values that are walked through once.
#[derive(Debug)]
pub(super) struct Generator(Mutex<Vec<Value>>);

impl Object for Generator {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Iterable
    }

    fn get_value(self: &Arc<Self>, _: &Value) -> Option<Value> {
        Some(Value::UNDEFINED)
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        let values = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        Enumerator::Iter(Box::new(values.into_iter()))
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        Some(self.0.lock().unwrap_or_else(PoisonError::into_inner).len())
    }

    fn is_true(self: &Arc<Self>) -> bool {
        true
    }
}

/// Values under a name.
#[derive(Debug)]
pub(super) struct View {
    /// What is shown, where it isn't the values.
    pub(super) shown: Option<String>,
    /// What is shown around them.
    pub(super) name: &'static str,
    pub(super) values: Vec<Value>,
}

impl Object for View {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.values.get(key.as_usize()?).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(self.values.len())
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.shown {
            Some(shown) => f.write_str(shown),
            None => {
                let values = self.values.iter().cloned().collect::<Value>();
                write!(
                    f,
                    "{}({})",
                    self.name,
                    super::python::text(&values).map_err(|_| fmt::Error)?
                )
            }
        }
    }
}

fn range(state: &State, start: i64, stop: Option<i64>, step: Option<i64>) -> Result<Value, Error> {
    let values = functions::range(start as _, stop.map(|n| n as _), step.map(|n| n as _))?;
    let (from, to) = stop.map_or((0, start), |stop| (start, stop));
    let step = step.filter(|step| *step != 1).map_or(String::new(), |step| format!(", {step}"));
    let shown = Some(format!("range({from}, {to}{step})"));
    pay(state, values.len().unwrap_or(0))?;
    let values = values.try_iter()?.collect();
    Ok(Value::from_object(View { shown, name: "range", values }))
}

pub(super) fn new(values: Vec<Value>) -> Value {
    Value::from_object(Generator(Mutex::new(values)))
}

pub(super) fn add_to(environment: &mut Environment<'_>) {
    // minijinja's own give lists; they are called by other names.
    macro_rules! generators {
        ($($name:literal $own:literal $filter:path),*) => {$(
            environment.add_filter($own, $filter);
            environment.add_filter($name, |state: &mut State, args: Rest<ValueOrKwargs>| {
                if let Some(value) = args.first() {
                    pay(state, value.len().unwrap_or(0))?;
                }
                let values = state.apply_filter($own, &args.into_values())?.try_iter()?;
                Ok::<_, Error>(new(values.collect()))
            });
        )*};
    }
    generators!(
        "select" "_select" filters::select,
        "reject" "_reject" filters::reject,
        "selectattr" "_selectattr" filters::selectattr,
        "rejectattr" "_rejectattr" filters::rejectattr,
        "map" "_map" filters::map,
        "unique" "_unique" filters::unique,
        "batch" "_batch" filters::batch,
        "slice" "_slice" filters::slice,
        "items" "_items" filters::items
    );
    environment.add_function("range", range);
    environment.add_filter("reverse", |state: &State, value: &Value| {
        pay(state, value.len().unwrap_or(0))?;
        let reversed = filters::reverse(value)?;
        match value.as_str() {
            Some(_) => Ok::<_, Error>(reversed),
            None => Ok(new(reversed.try_iter()?.collect())),
        }
    });
}
