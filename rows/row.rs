//! A row: named cells in order, and what can be said of a column of them.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The cells of a row by their columns' names, in order.
pub type Cells = Map<String, Value>;

/// What all cells of a column are, those that are null apart.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Nothing but nulls so far.
    #[default]
    Null,
    /// True or false.
    Bool,
    /// Whole numbers of 64 bits with a sign.
    Int,
    /// Numbers.
    Float,
    /// Texts; whatever else stands in such a column is written as JSON.
    Text,
}

impl Kind {
    /// The narrowest that holds this cell.
    pub fn of(cell: &Value) -> Self {
        match cell {
            Value::Null => Self::Null,
            Value::Bool(_) => Self::Bool,
            Value::Number(number) if number.is_i64() => Self::Int,
            Value::Number(number) if number.is_f64() => Self::Float,
            _ => Self::Text,
        }
    }

    /// The narrowest that holds both. A float doesn't hold every whole number, so the two meet in
    /// text: no digit is lost.
    #[must_use]
    pub fn join(self, other: Self) -> Self {
        match (self, other) {
            (Self::Null, kind) | (kind, Self::Null) => kind,
            (one, two) if one == two => one,
            _ => Self::Text,
        }
    }
}

/// What rows have in common: a name and what it holds.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Column {
    /// As the header, the key or the table names it.
    pub name: String,
    /// What stands in it.
    pub kind: Kind,
}

impl Column {
    /// Named and typed; whether rows have it is theirs to say.
    pub fn new(name: impl Into<String>, kind: Kind) -> Self {
        Self { name: name.into(), kind }
    }
}

/// A cell as text: a string is itself, null is empty, all else is JSON.
pub fn text_of(cell: &Value) -> Cow<'_, str> {
    match cell {
        Value::Null => Cow::Borrowed(""),
        Value::String(text) => Cow::Borrowed(text),
        other => Cow::Owned(other.to_string()),
    }
}

/// Bytes that a cell takes in memory, about, with all that is in it.
pub fn memory_of(cell: &Value) -> usize {
    let inside = match cell {
        Value::String(text) => text.len(),
        Value::Array(cells) => cells.iter().map(memory_of).sum(),
        Value::Object(cells) => cells.iter().map(|(name, cell)| name.len() + memory_of(cell)).sum(),
        _ => 0,
    };
    size_of::<Value>() + inside
}

/// Adds to the columns what a row has: new names, wider kinds.
pub fn widen(columns: &mut Vec<Column>, cells: &Cells) {
    for (place, (name, cell)) in cells.iter().enumerate() {
        // Rows are mostly alike: the column stands where it stood in the row before.
        let found = match columns.get(place) {
            Some(column) if column.name == *name => Some(place),
            _ => columns.iter().position(|column| column.name == *name),
        };
        match found {
            Some(found) => columns[found].kind = columns[found].kind.join(Kind::of(cell)),
            None => columns.push(Column::new(name.clone(), Kind::of(cell))),
        }
    }
}

/// Whether a row is as the columns say: none that they don't name.
///
/// # Errors
/// With the column that they don't.
pub fn check_known(columns: &[Column], cells: &Cells) -> Result<(), String> {
    match cells.keys().find(|name| !columns.iter().any(|column| column.name == **name)) {
        Some(name) => Err(name.clone()),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn cells(value: Value) -> Cells {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn a_column_is_as_wide_as_what_stands_in_it_and_no_digit_is_lost() {
        let mut columns = Vec::new();
        for row in [
            json!({"a": 1, "b": null, "c": true}),
            json!({"b": 0.5, "a": null, "d": [1]}),
            json!({"a": 9_007_199_254_740_993_i64, "c": "x", "b": 2.0}),
        ] {
            widen(&mut columns, &cells(row));
        }
        let kinds: Vec<_> = columns.iter().map(|it| (it.name.as_str(), it.kind)).collect();
        let expected = [("a", Kind::Int), ("b", Kind::Float), ("c", Kind::Text), ("d", Kind::Text)];
        assert_eq!(kinds, expected);
        assert_eq!(Kind::Int.join(Kind::Float), Kind::Text);
        // No column of 64 bits with a sign holds it.
        assert_eq!(Kind::of(&json!(u64::MAX)), Kind::Text);
        assert_eq!(check_known(&columns, &cells(json!({"d": 1, "e": 2}))), Err("e".into()));
    }

    #[test]
    fn a_cell_takes_what_all_in_it_takes() {
        let long = "x".repeat(1000);
        for cell in [json!(long), json!([[long]]), json!({"a": {"b": [1, long]}})] {
            assert!((1000..1500).contains(&memory_of(&cell)), "{}", memory_of(&cell));
        }
    }
}
