//! Answers as columns.

use anyhow::{Result, bail};
use serde_json::{Value, json};

use crate::jsonl::read;
use crate::row::{Cells, Column, Kind};

/// What becomes of an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Answers {
    /// Its text, in a column of this name.
    Text(String),
    /// It is JSON, an object: a column for each of these fields.
    Fields(Vec<Column>),
    /// It is told whole, as OpenAI's batches do.
    Lines,
}

impl Answers {
    /// As the template's `response_format` wants it: the properties of its schema are columns.
    pub fn of_template(text: &str) -> Option<Self> {
        Self::of_body(&serde_json::from_str(text).ok()?)
    }

    /// As this body's `response_format` wants it.
    pub fn of_body(body: &Value) -> Option<Self> {
        let properties = &body["response_format"]["json_schema"]["schema"]["properties"];
        let columns = properties.as_object()?.iter().map(|(name, property)| {
            let kind = match property["type"].as_str() {
                Some("boolean") => Kind::Bool,
                Some("integer") => Kind::Int,
                Some("number") => Kind::Float,
                _ => Kind::Text,
            };
            Column::new(name, kind)
        });
        Some(Self::Fields(columns.collect())).filter(|it| *it != Self::Fields(Vec::new()))
    }

    /// None where answers are whole lines.
    pub fn columns(&self) -> Vec<Column> {
        match self {
            Self::Text(name) => vec![Column::new(name, Kind::Text)],
            Self::Fields(columns) => columns.clone(),
            Self::Lines => Vec::new(),
        }
    }

    /// Adds an answer to a row.
    ///
    /// # Errors
    /// When the answer isn't what was asked for, with the reason.
    pub fn fill(&self, cells: &mut Cells, answer: &Value) -> Result<(), String> {
        if *self == Self::Lines {
            let custom_id = cells.get("custom_id").cloned().unwrap_or(Value::Null);
            let line = json!({
                "id": answer["id"], "custom_id": custom_id,
                "response": {"status_code": 200, "request_id": answer["id"], "body": answer},
                "error": null,
            });
            *cells = line.as_object().expect("it is one").clone();
            return Ok(());
        }
        for (name, cell) in self.cells(answer)? {
            if cells.contains_key(&name) {
                let why = "--answer-column names another";
                return Err(format!("the row has a column {name:?} already: {why}"));
            }
            cells.insert(name, cell);
        }
        Ok(())
    }

    /// The cells of its columns.
    ///
    /// # Errors
    /// When the answer isn't what was asked for, with the reason.
    pub fn cells(&self, answer: &Value) -> Result<Cells, String> {
        let choice = &answer["choices"][0];
        let text = choice["message"]["content"].as_str().or_else(|| choice["text"].as_str());
        let text = text.ok_or("the answer has no text")?;
        let columns = match self {
            Self::Text(name) => return Ok(Cells::from_iter([(name.clone(), text.into())])),
            Self::Fields(columns) => columns,
            Self::Lines => return Ok(Cells::new()),
        };
        let said = read(inner(text).as_bytes())
            .map_err(|cause| format!("the answer is no JSON ({cause}): {text}"))?;
        let said = said.as_object().ok_or("the answer is JSON, but no object")?;
        let cell = |column: &Column| {
            let mut cell = said.get(&column.name).cloned().unwrap_or(Value::Null);
            // To a schema 3.0 is an integer.
            if column.kind == Kind::Int
                && let Some(whole) = whole(&cell)
            {
                cell = whole.into();
            }
            // A whole number is a number, too.
            let fits = match (Kind::of(&cell), column.kind) {
                (Kind::Null, _) | (_, Kind::Text) => true,
                (Kind::Int, Kind::Float) => true,
                (one, other) => one == other,
            };
            if !fits {
                return Err(format!("the answer's {:?} is {cell}", column.name));
            }
            let cell = match (column.kind, cell) {
                (Kind::Float, Value::Number(number)) => {
                    number.as_f64().map_or(Value::Null, Value::from)
                }
                (_, cell) => cell,
            };
            Ok((column.name.clone(), cell))
        };
        columns.iter().map(cell).collect()
    }
}

/// The whole number that a float is, where it says each digit of it.
fn whole(cell: &Value) -> Option<i64> {
    const MAX: f64 = (1_u64 << 53) as f64;
    let number = cell.as_f64().filter(|number| cell.is_f64() && number.abs() < MAX)?;
    (number.fract() == 0.0).then_some(number as i64)
}

/// What stands in a fence of Markdown, in which models like to put JSON.
fn inner(text: &str) -> &str {
    let text = text.trim();
    let fenced = text.strip_prefix("```").and_then(|text| text.strip_suffix("```"));
    fenced.map_or(text, |text| text.trim_start_matches(char::is_alphanumeric).trim())
}

/// The columns of `--answer-columns`.
///
/// # Errors
/// When one has no name, or comes twice.
pub fn answer_columns(names: &[String]) -> Result<Answers> {
    for (index, name) in names.iter().enumerate() {
        if name.is_empty() || names[..index].contains(name) {
            bail!("--answer-columns names {name:?}, which is empty or named twice");
        }
    }
    Ok(Answers::Fields(names.iter().map(|name| Column::new(name, Kind::Text)).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cells(value: Value) -> Cells {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn the_properties_of_a_schema_are_columns_of_their_kinds() {
        let text = r#"{"messages": [], "response_format": {"type": "json_schema", "json_schema":
            {"schema": {"type": "object", "properties": {"name": {"type": "string"},
            "age": {"type": "integer"}, "score": {"type": "number"}}}}}}"#;
        let answers = Answers::of_template(text).unwrap();
        let fill = |text: &str| {
            let mut cells = Cells::new();
            let answer = json!({"choices": [{"message": {"content": text}}]});
            answers.fill(&mut cells, &answer).map(|()| Value::Object(cells))
        };
        let said = fill(r#"{"name": "x", "age": 3, "score": 1, "other": true}"#).unwrap();
        assert_eq!(said, json!({"name": "x", "age": 3, "score": 1.0}));
        assert_eq!(fill("{}").unwrap(), json!({"name": null, "age": null, "score": null}));
        assert_eq!(fill(r#"{"age": "old"}"#).unwrap_err(), "the answer's \"age\" is \"old\"");
        // Models write these for integers, and are right.
        assert_eq!(fill(r#"{"age": -0, "score": -0}"#).unwrap()["age"], json!(0));
        assert_eq!(fill(r#"{"age": -0, "score": -0}"#).unwrap()["score"].to_string(), "0.0");
        assert_eq!(fill(r#"{"age": 4e1}"#).unwrap()["age"], json!(40));
        assert_eq!(fill(r#"{"age": 1e300}"#).unwrap_err(), "the answer's \"age\" is 1e+300");
        assert_eq!(fill(r#"{"age": 0.5}"#).unwrap_err(), "the answer's \"age\" is 0.5");
        let text = answer_columns(&["n".into()]).unwrap();
        let cell = text.cells(&json!({"choices": [{"text": "{\"n\": -0}"}]})).unwrap();
        assert_eq!(crate::row::text_of(&cell["n"]), "0");
        let mut taken = cells(json!({"name": "here"}));
        let answer = json!({"choices": [{"text": "{}"}]});
        assert!(answers.fill(&mut taken, &answer).unwrap_err().contains("already"));
        assert_eq!(Answers::of_template("Say {{ text }}"), None);
    }
}
