//! How a row becomes a request, and an answer becomes cells.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use minijinja::{Environment, UndefinedBehavior};
use rows::row::Cells;
use serde_json::{Map, Value, json};

use crate::guard::guarded;

/// Instructions that one template may take: loops end.
const FUEL: u64 = 1_000_000;

/// Fields that say what another one says, which the server takes only one of.
const TWINS: [(&str, &str); 2] =
    [("service_tier", "priority"), ("max_tokens", "max_completion_tokens")];

/// A request to the server.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Where it goes.
    pub path: String,
    /// What is asked.
    pub body: Map<String, Value>,
}

/// How requests are made of rows.
#[derive(Debug)]
pub struct Template {
    way: Way,
    environment: Environment<'static>,
    /// What every body says that doesn't say otherwise.
    defaults: Map<String, Value>,
}

#[derive(Debug)]
enum Way {
    /// Rows are requests already: lines of OpenAI's batch files.
    Lines,
    /// A text: what the user says.
    Text,
    /// A body whose texts are templates.
    Body(Part),
    /// Fields of a body, each from a column.
    Columns(Vec<(String, String)>),
}

/// A part of a body.
#[derive(Debug)]
enum Part {
    Said(Value),
    /// By its name among the templates.
    Text(String),
    List(Vec<Self>),
    Fields(Vec<(String, Self)>),
}

impl Template {
    /// Rows are requests already.
    pub fn lines() -> Self {
        Self { way: Way::Lines, environment: Environment::empty(), defaults: Map::new() }
    }

    /// Reads a template: a body (`.json`) whose texts are templates, or else one of what the user
    /// says; and its text, of which a byte-order mark is no part.
    ///
    /// # Errors
    /// When it can't be read, or is none.
    pub fn read(path: &Path) -> Result<(Self, String)> {
        let name = path.display();
        let text = fs::read_to_string(path).with_context(|| format!("can't read {name}"))?;
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
        let is_body = path.extension().is_some_and(|end| end.eq_ignore_ascii_case("json"));
        let template = Self::parse(text, is_body).with_context(|| format!("{name} is no template"));
        Ok((template?, text.to_owned()))
    }

    /// Reads the text of one.
    ///
    /// # Errors
    /// When it is none.
    pub fn parse(text: &str, is_body: bool) -> Result<Self> {
        let mut environment = environment();
        let way = if is_body {
            let body: Value = serde_json::from_str(text)?;
            ensure!(
                body["messages"].is_array() || body["prompt"].is_string(),
                "a body has \"messages\" or a \"prompt\""
            );
            Way::Body(part(body, &mut environment)?)
        } else {
            environment.add_template_owned("0", text.to_owned())?;
            Way::Text
        };
        Ok(Self { way, environment, defaults: Map::new() })
    }

    /// Reads `FIELD=COLUMN` of `--map`: `user` and `system` are messages, all other fields are the
    /// body's.
    ///
    /// # Errors
    /// When nothing is asked so.
    pub fn columns(fields: &[String]) -> Result<Self> {
        let fields = fields.iter().map(|field| {
            let (field, column) = field
                .split_once('=')
                .filter(|(a, b)| !(a.is_empty() || b.is_empty()))
                .with_context(|| format!("{field:?} is no FIELD=COLUMN"))?;
            Ok((field.to_owned(), column.to_owned()))
        });
        let fields = fields.collect::<Result<Vec<_>>>()?;
        let asks = fields.iter().any(|(field, _)| field == "user" || field == "prompt");
        ensure!(
            asks,
            "--map must say which column is the user's message (user=COLUMN) or the prompt"
        );
        Ok(Self { way: Way::Columns(fields), environment: environment(), defaults: Map::new() })
    }

    /// What every body says that doesn't say otherwise.
    #[must_use]
    pub(crate) fn with_defaults(mut self, defaults: Map<String, Value>) -> Self {
        self.defaults = defaults;
        self
    }

    /// Whether rows are lines of OpenAI's batch files.
    pub(crate) fn is_lines(&self) -> bool {
        matches!(self.way, Way::Lines)
    }

    /// The columns that it can't do without, as far as it names them: those of `--map`.
    pub(crate) fn needs(&self) -> impl Iterator<Item = &str> {
        let fields = match &self.way {
            Way::Columns(fields) => &fields[..],
            _ => &[],
        };
        fields.iter().map(|(_, column)| column.as_str())
    }

    /// The request of a row. Where it names no seed it gets one that depends on what it asks and
    /// on the row's number: a run that is resumed draws the same tokens.
    ///
    /// # Errors
    /// When the row can't be asked so, with the reason.
    pub fn request(&self, row: u64, cells: &Cells) -> Result<Request, String> {
        let mut request = self.body(cells)?;
        if request.body.get("stream").is_some_and(|stream| *stream == true) {
            return Err("its \"stream\" is true: the answer is read whole, take it away".into());
        }
        for (field, value) in &self.defaults {
            let mut twins = TWINS.iter().filter(|(one, _)| one == field);
            if twins.any(|(_, twin)| request.body.contains_key(*twin)) {
                continue;
            }
            request.body.entry(field.clone()).or_insert_with(|| value.clone());
        }
        if !request.body.contains_key("seed") {
            let text = serde_json::to_vec(&request.body).expect("a body is JSON");
            let mut hasher = blake3::Hasher::new();
            hasher.update(&text).update(&row.to_le_bytes());
            let seed = *hasher.finalize().as_bytes().first_chunk().expect("it is longer");
            // Some servers know numbers of 63 bits only.
            request.body.insert("seed".into(), (u64::from_le_bytes(seed) >> 1).into());
        }
        Ok(request)
    }

    fn body(&self, cells: &Cells) -> Result<Request, String> {
        let body = match &self.way {
            Way::Lines => return line(cells),
            Way::Text => {
                let text = self.render("0", cells)?;
                json!({"messages": [{"role": "user", "content": text}]})
            }
            Way::Body(part) => self.fill(part, cells)?,
            Way::Columns(fields) => columns(fields, cells)?,
        };
        let Value::Object(body) = body else { return Err("the body is no object".into()) };
        let path =
            if body.contains_key("prompt") { "/v1/completions" } else { "/v1/chat/completions" };
        Ok(Request { path: path.into(), body })
    }

    fn fill(&self, part: &Part, cells: &Cells) -> Result<Value, String> {
        Ok(match part {
            Part::Said(value) => value.clone(),
            Part::Text(name) => Value::String(self.render(name, cells)?),
            Part::List(parts) => {
                parts.iter().map(|part| self.fill(part, cells)).collect::<Result<_, _>>()?
            }
            Part::Fields(fields) => {
                let fields = fields
                    .iter()
                    .map(|(name, part)| Ok((name.clone(), self.fill(part, cells)?)))
                    .collect::<Result<Map<_, _>, String>>()?;
                Value::Object(fields)
            }
        })
    }

    fn render(&self, name: &str, cells: &Cells) -> Result<String, String> {
        let template = self.environment.get_template(name).map_err(|cause| cause.to_string())?;
        guarded(|| Ok(template.render(minijinja::value::Serde(cells))?))
            .map_err(|cause| format!("the template can't be filled: {cause}"))
    }
}

/// A column that a row lacks is a mistake, never an empty text; one that is null is one, as it is
/// in every file of texts.
fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_formatter(|out, state, value| match value.is_none() {
        true => Ok(()),
        false => minijinja::escape_formatter(out, state, value),
    });
    environment.set_fuel(Some(FUEL));
    environment
}

/// One template, for whoever has only one.
pub(crate) fn single(text: &str) -> Result<Environment<'static>> {
    let mut environment = environment();
    environment.add_template_owned("0", text.to_owned())?;
    Ok(environment)
}

fn part(value: Value, environment: &mut Environment<'static>) -> Result<Part> {
    Ok(match value {
        Value::String(text) if text.contains("{{") || text.contains("{%") => {
            let name = environment.templates().count().to_string();
            environment.add_template_owned(name.clone(), text)?;
            Part::Text(name)
        }
        Value::Array(values) => {
            let parts = values.into_iter().map(|value| part(value, environment));
            Part::List(parts.collect::<Result<_>>()?)
        }
        Value::Object(fields) => {
            let parts =
                fields.into_iter().map(|(name, value)| Ok((name, part(value, environment)?)));
            Part::Fields(parts.collect::<Result<_>>()?)
        }
        other => Part::Said(other),
    })
}

/// A line of OpenAI's batch files.
fn line(cells: &Cells) -> Result<Request, String> {
    let body = cells.get("body").and_then(Value::as_object);
    let body = body.ok_or("it has no \"body\": rows that are no requests need a --template")?;
    let path = cells.get("url").and_then(Value::as_str).unwrap_or("/v1/chat/completions");
    if !matches!(path, "/v1/chat/completions" | "/v1/completions") {
        return Err(format!(
            "{path:?} can't be asked: use /v1/chat/completions or /v1/completions"
        ));
    }
    if cells.get("method").is_some_and(|method| method != "POST") {
        return Err("its method is not POST".into());
    }
    Ok(Request { path: path.into(), body: body.clone() })
}

fn columns(fields: &[(String, String)], cells: &Cells) -> Result<Value, String> {
    let (mut messages, mut body) = (Vec::new(), Map::new());
    for (field, column) in fields {
        let cell = cells.get(column).ok_or_else(|| format!("it has no column {column:?}"))?;
        match field.as_str() {
            "user" | "system" => {
                let text = rows::row::text_of(cell);
                let message = json!({"role": field, "content": text});
                if field == "system" { messages.insert(0, message) } else { messages.push(message) }
            }
            "prompt" => {
                body.insert(field.clone(), rows::row::text_of(cell).into());
            }
            _ if cell.is_null() || cell == "" => {}
            _ => {
                // A file of texts says numbers as texts.
                let said = cell.as_str().and_then(|text| serde_json::from_str(text).ok());
                body.insert(field.clone(), said.unwrap_or_else(|| cell.clone()));
            }
        }
    }
    if !messages.is_empty() {
        body.insert("messages".into(), messages.into());
    }
    Ok(Value::Object(body))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cells(value: Value) -> Cells {
        value.as_object().unwrap().clone()
    }

    fn body(template: &Template, row: Value) -> Result<Value, String> {
        let mut request = template.request(0, &cells(row))?;
        request.body.remove("seed");
        Ok(Value::Object(request.body))
    }

    #[test]
    fn texts_of_a_body_are_templates_and_all_else_is_said_as_it_is() {
        let text = r#"{"messages": [{"role": "system", "content": "Be brief."},
            {"role": "user", "content": "{% if n > 1 %}{{ n }} times {% endif %}{{ t }}"}],
            "max_tokens": 5, "stop": ["{{ t }}!"]}"#;
        let template = Template::parse(text, true).unwrap();
        let defaults = cells(json!({"model": "glm", "max_tokens": 9}));
        let template = template.with_defaults(defaults);
        let said = body(&template, json!({"n": 2, "t": "say \"x\""})).unwrap();
        let expected = json!({
            "messages": [{"role": "system", "content": "Be brief."},
                {"role": "user", "content": "2 times say \"x\""}],
            "max_tokens": 5, "stop": ["say \"x\"!"], "model": "glm",
        });
        assert_eq!(said, expected);
        let said = body(&template, json!({"n": 2})).unwrap_err();
        assert!(said.contains("undefined"), "{said}");
        let said = body(&template, json!({"n": 2, "t": null})).unwrap();
        assert_eq!(said["messages"][1]["content"], "2 times ");
        for (wrong, is_body) in [("{{ a", false), ("{}", true), ("no", true)] {
            assert!(Template::parse(wrong, is_body).is_err(), "{wrong}");
        }
        let endless =
            "{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}";
        let said = body(&Template::parse(endless, false).unwrap(), json!({})).unwrap_err();
        assert!(said.contains("fuel"), "{said}");
    }

    #[test]
    fn a_mark_of_the_byte_order_is_no_part_of_a_template() {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [("a.txt", "{{ t }}"), ("a.json", r#"{"prompt": "{{ t }}"}"#)] {
            let path = dir.path().join(name);
            fs::write(&path, format!("\u{feff}{text}")).unwrap();
            let (template, read) = Template::read(&path).unwrap();
            let said = body(&template, json!({"t": "x"})).unwrap();
            assert!(said["prompt"] == "x" || said["messages"][0]["content"] == "x", "{said}");
            assert_eq!(read, text);
        }
    }

    #[test]
    fn a_body_says_once_who_goes_first_and_how_long_an_answer_may_be() {
        let defaults = cells(json!({"model": "glm", "service_tier": "batch", "max_tokens": 9}));
        let template = Template::lines().with_defaults(defaults);
        let said = |own: Value| body(&template, json!({"body": own})).unwrap();
        let own = json!({"prompt": "a", "priority": 1, "max_completion_tokens": 5, "model": "b"});
        assert_eq!(said(own.clone()), own);
        let expected =
            json!({"prompt": "a", "model": "glm", "service_tier": "batch", "max_tokens": 9});
        assert_eq!(said(json!({"prompt": "a"})), expected);
    }

    #[test]
    fn columns_are_fields_of_a_body_and_numbers_of_a_text_file_are_numbers() {
        let fields = ["user=q", "system=s", "max_tokens=n", "stop=e"].map(str::to_owned);
        let template = Template::columns(&fields).unwrap();
        let said = body(&template, json!({"q": "why", "s": "Be kind.", "n": "12", "e": ""}));
        let expected = json!({
            "max_tokens": 12,
            "messages": [{"role": "system", "content": "Be kind."},
                {"role": "user", "content": "why"}],
        });
        assert_eq!(said.unwrap(), expected);
        assert!(body(&template, json!({"q": "why"})).unwrap_err().contains("no column \"s\""));
        let prompt = Template::columns(&["prompt=q".into()]).unwrap();
        let request = prompt.request(0, &cells(json!({"q": 7}))).unwrap();
        assert_eq!(
            (request.path.as_str(), &request.body["prompt"]),
            ("/v1/completions", &json!("7"))
        );
        assert!(Template::columns(&["max_tokens=n".into()]).is_err());
        assert!(Template::columns(&["user".into()]).is_err());
    }

    #[test]
    fn lines_of_batch_files_are_requests_and_their_answers_lines() {
        let line = json!({"custom_id": "a", "method": "POST", "url": "/v1/completions",
            "body": {"prompt": "x", "seed": 5}});
        let request = Template::lines().request(0, &cells(line.clone())).unwrap();
        assert_eq!((request.path.as_str(), &request.body["seed"]), ("/v1/completions", &json!(5)));
        for (field, value, word) in [
            ("url", json!("/v1/embeddings"), "can't be asked"),
            ("method", json!("GET"), "POST"),
            ("body", json!(null), "--template"),
            ("body", json!({"prompt": "x", "stream": true}), "\"stream\""),
        ] {
            let mut wrong = cells(line.clone());
            wrong.insert(field.into(), value);
            let said = Template::lines().request(0, &wrong).unwrap_err();
            assert!(said.contains(word), "{said}");
        }
        let mut cells = cells(line);
        let answer = json!({"id": "cmpl-1", "choices": [{"text": "y"}]});
        rows::answers::Answers::Lines.fill(&mut cells, &answer).unwrap();
        let expected = json!({"id": "cmpl-1", "custom_id": "a", "error": null, "response":
            {"status_code": 200, "request_id": "cmpl-1", "body": answer}});
        assert_eq!(Value::Object(cells), expected);
    }

    #[test]
    fn a_seed_hangs_on_what_is_asked_and_on_the_row() {
        let template = Template::parse("{{ t }}", false).unwrap();
        let seed = |row, text| {
            let request = template.request(row, &cells(json!({"t": text}))).unwrap();
            request.body["seed"].as_i64().expect("it has 63 bits")
        };
        assert_eq!(seed(0, "a"), seed(0, "a"));
        assert_ne!(seed(0, "a"), seed(1, "a"));
        assert_ne!(seed(0, "a"), seed(0, "b"));
    }
}
