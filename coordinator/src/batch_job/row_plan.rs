//! Jobs over rows: how a row of a CSV file, or of a file of JSON lines, becomes a request, and its
//! answer columns of the row.
//!
//! A template is a body whose texts name columns, `{{ column }}`, and nothing more: it comes from
//! outside, and what it makes is no longer than its texts and the cells that it names.

use std::io::{self, Write};

use rows::answers::{Answers, answer_columns};
use rows::row::{Cells, text_of};
use serde_json::{Map, Value, json};

use super::line::{Asks, Wrong};
use crate::openai::{ApiError, Style};

/// How rows lie in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowFormat {
    /// Comma-separated values under a header.
    Csv,
    /// A JSON object on each line.
    Jsonl,
}

impl RowFormat {
    const ALL: [(&str, Self); 2] = [("csv", Self::Csv), ("jsonl", Self::Jsonl)];

    fn of(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(it, _)| name.eq_ignore_ascii_case(it)).map(|(_, format)| *format)
    }

    /// How names of such files end.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, it)| *it == self).map_or("", |(name, _)| name)
    }
}

/// How a job asks for rows.
#[derive(Clone, Debug, PartialEq)]
pub struct RowPlan {
    /// How they lie in the input, and in the output.
    pub format: RowFormat,
    answers: Answers,
    body: Part,
}

#[derive(Clone, Debug, PartialEq)]
enum Part {
    Said(Value),
    Text(Vec<Piece>),
    List(Vec<Self>),
    Fields(Vec<(String, Self)>),
}

#[derive(Clone, Debug, PartialEq)]
enum Piece {
    Said(String),
    /// The cell of this column.
    Cell(String),
}

/// What a job's `rows` say, with what they leave to the file's name, the route and the model: as it
/// is kept.
///
/// # Errors
/// When no rows can be asked for so, with the field.
pub fn complete(said: Value, filename: &str, style: Style, model: &str) -> Result<Value, ApiError> {
    let Value::Object(mut said) = said else {
        return Err(ApiError::invalid("rows", "rows must be an object with a template"));
    };
    if said.get("format").is_none_or(Value::is_null) {
        let format = filename.rsplit_once('.').and_then(|(_, end)| RowFormat::of(end));
        let format = format.ok_or_else(|| {
            let message = "the file's name ends neither in .csv nor in .jsonl: say rows.format";
            ApiError::invalid("rows.format", message)
        })?;
        said.insert("format".into(), format.name().into());
    }
    if let Some(Value::String(text)) = said.get("template") {
        let body = match style {
            Style::Completion => json!({"prompt": text}),
            _ => json!({"messages": [{"role": "user", "content": text}]}),
        };
        said.insert("template".into(), body);
    }
    if let Some(Value::Object(body)) = said.get_mut("template") {
        body.entry("model").or_insert_with(|| model.into());
    }
    let said = Value::Object(said);
    RowPlan::parse(&said)?;
    Ok(said)
}

impl RowPlan {
    /// Reads what is kept of a job's `rows`.
    ///
    /// # Errors
    /// When they are none, with the field.
    pub fn parse(said: &Value) -> Result<Self, ApiError> {
        let known = ["format", "template", "answer_column", "answer_columns"];
        let fields = said.as_object().into_iter().flatten();
        if let Some((other, _)) = fields.clone().find(|(name, _)| !known.contains(&&name[..])) {
            let shown: String = other.chars().take(40).collect();
            let message = format!("unknown field rows.{shown}; remove it");
            return Err(ApiError::invalid("rows", message).code("unknown_parameter"));
        }
        let format = said["format"].as_str().and_then(RowFormat::of);
        let format = format
            .ok_or_else(|| ApiError::invalid("rows.format", "rows.format must be csv or jsonl"))?;
        let wrong = |message: String| ApiError::invalid("rows.template", message);
        let template = said["template"].as_object().ok_or_else(|| {
            wrong("rows.template must be what the user says, or a request's body".into())
        })?;
        if template.get("stream").is_some_and(|stream| *stream != false) {
            return Err(wrong("stream must not be true: the answer is in a file".into()));
        }
        let body = Part::of(&said["template"]).map_err(wrong)?;
        if body.columns().next().is_none() {
            return Err(wrong("rows.template names no column, as in {{ text }}".into()));
        }
        Ok(Self { format, answers: answers(said, template)?, body })
    }

    /// The columns that answers are.
    pub fn answer_columns(&self) -> impl Iterator<Item = String> {
        self.answers.columns().into_iter().map(|column| column.name)
    }

    /// Why no row of these columns can be asked for.
    pub fn problem(&self, columns: &[String]) -> Option<String> {
        if let Some(name) = self.body.columns().find(|name| !columns.iter().any(|it| it == name)) {
            return Some(format!("the template names {name:?}, and the file has no such column"));
        }
        let taken = self.answer_columns().find(|name| columns.contains(name))?;
        Some(format!("{taken:?} is a column of the file already: rows.answer_column names another"))
    }

    /// What a row asks for. It is called by its line.
    ///
    /// # Errors
    /// When nothing can be asked for so.
    pub fn asks(&self, cells: &Cells, line: u32, max_bytes: usize) -> Result<Asks, Wrong> {
        let custom_id = format!("line-{line}");
        let mut room = max_bytes;
        let taken = self.answer_columns().find(|name| cells.contains_key(name));
        let body = match taken {
            Some(name) => Err(format!("it has a column {name:?} already, which its answer is")),
            None => self.body.fill(cells, &mut room),
        };
        match body {
            Ok(body) => Ok(Asks { custom_id, body: body.to_string() }),
            Err(why) => Err(Self::unreadable(line, why)),
        }
    }

    /// A row that is none.
    pub fn unreadable(line: u32, why: String) -> Wrong {
        let custom_id = Some(format!("line-{line}"));
        Wrong { custom_id, code: "invalid_row", message: why, param: None }
    }

    /// The columns that the body of an answer gives, as they are kept until the output is made.
    ///
    /// # Errors
    /// When it isn't what was asked for, with the reason.
    pub fn answered(&self, body: &str) -> Result<String, String> {
        let body = serde_json::from_str(body).map_err(|cause| cause.to_string())?;
        Ok(Value::Object(self.answers.cells(&body)?).to_string())
    }

    /// The line before all rows.
    ///
    /// # Errors
    /// When it can't be written.
    pub(crate) fn write_header(&self, out: &mut impl Write, columns: &[String]) -> io::Result<()> {
        match self.format {
            RowFormat::Csv => {
                rows::csv::write(out, columns.iter().cloned().chain(self.answer_columns()))
            }
            RowFormat::Jsonl => Ok(()),
        }
    }

    /// A row with its answer.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write(&self, out: &mut impl Write, mut row: Cells, answered: &str) -> io::Result<()> {
        let answered: Map<String, Value> = serde_json::from_str(answered)?;
        row.extend(answered);
        match self.format {
            RowFormat::Csv => rows::csv::write(out, row.values().map(text_of)),
            RowFormat::Jsonl => {
                serde_json::to_writer(&mut *out, &row)?;
                out.write_all(b"\n")
            }
        }
    }
}

/// What becomes of answers: the columns that are named, those of the schema that they keep to, or
/// one of their text.
fn answers(said: &Value, template: &Map<String, Value>) -> Result<Answers, ApiError> {
    match (&said["answer_column"], &said["answer_columns"]) {
        (Value::Null, Value::Null) => {
            let of_schema = Answers::of_body(&Value::Object(template.clone()));
            Ok(of_schema.unwrap_or_else(|| Answers::Text("answer".into())))
        }
        (Value::String(name), Value::Null) if !name.is_empty() => Ok(Answers::Text(name.clone())),
        (Value::Null, Value::Array(names)) if !names.is_empty() => {
            let texts = names.iter().map(|name| name.as_str().map(str::to_owned));
            let names = texts.collect::<Option<Vec<_>>>().and_then(|it| answer_columns(&it).ok());
            names.ok_or_else(|| {
                let message = "rows.answer_columns must be names, none empty and none twice";
                ApiError::invalid("rows.answer_columns", message)
            })
        }
        _ => {
            let message = "rows.answer_column must be a name, or rows.answer_columns a list of \
                           names: one of the two";
            Err(ApiError::invalid("rows.answer_column", message))
        }
    }
}

impl Part {
    fn of(value: &Value) -> Result<Self, String> {
        Ok(match value {
            Value::String(text) if text.contains("{{") || text.contains("{%") => {
                Self::Text(pieces(text)?)
            }
            Value::Array(values) => {
                Self::List(values.iter().map(Self::of).collect::<Result<_, _>>()?)
            }
            Value::Object(fields) => {
                let part = |(name, value): (&String, &Value)| Ok((name.clone(), Self::of(value)?));
                Self::Fields(fields.iter().map(part).collect::<Result<_, String>>()?)
            }
            other => Self::Said(other.clone()),
        })
    }

    fn columns(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        match self {
            Self::Said(_) => Box::new(std::iter::empty()),
            Self::Text(pieces) => Box::new(pieces.iter().filter_map(|piece| match piece {
                Piece::Said(_) => None,
                Piece::Cell(name) => Some(&name[..]),
            })),
            Self::List(parts) => Box::new(parts.iter().flat_map(Self::columns)),
            Self::Fields(fields) => Box::new(fields.iter().flat_map(|(_, part)| part.columns())),
        }
    }

    /// Fills it, while there is room for so many bytes.
    fn fill(&self, cells: &Cells, room: &mut usize) -> Result<Value, String> {
        Ok(match self {
            Self::Said(value) => value.clone(),
            Self::Text(pieces) => {
                let mut filled = String::new();
                for piece in pieces {
                    let text = match piece {
                        Piece::Said(text) => text.into(),
                        Piece::Cell(name) => {
                            let cell = cells.get(name);
                            text_of(cell.ok_or_else(|| format!("it has no column {name:?}"))?)
                        }
                    };
                    *room = room
                        .checked_sub(text.len())
                        .ok_or("its request is longer than a line may be (batch.max_line_bytes)")?;
                    filled += &text;
                }
                Value::String(filled)
            }
            Self::List(parts) => {
                let parts = parts.iter().map(|part| part.fill(cells, room));
                parts.collect::<Result<Vec<_>, _>>()?.into()
            }
            Self::Fields(fields) => {
                let fields = fields.iter();
                let fields = fields.map(|(name, part)| Ok((name.clone(), part.fill(cells, room)?)));
                Value::Object(fields.collect::<Result<_, String>>()?)
            }
        })
    }
}

fn pieces(text: &str) -> Result<Vec<Piece>, String> {
    if text.contains("{%") {
        return Err("a template here has columns in it, {{ column }}, and no statements, {% %}: \
                    `autoglm batch run` takes those"
            .into());
    }
    let (mut pieces, mut rest) = (Vec::new(), text);
    while let Some((said, more)) = rest.split_once("{{") {
        let (name, after) = more.split_once("}}").ok_or("{{ is opened and not closed by }}")?;
        let name = name.trim();
        if name.is_empty() {
            return Err("{{ }} names no column".into());
        }
        pieces.extend([Piece::Said(said.into()), Piece::Cell(name.into())]);
        rest = after;
    }
    pieces.push(Piece::Said(rest.into()));
    Ok(pieces)
}
