//! What is asked about one row, and what becomes of it.

use std::sync::Arc;

use rows::answers::Answers;
use rows::row::{Cells, Column};
use serde_json::{Map, Value, json};

use crate::answerer::{Answerer, Failed};
use crate::clean::Labels;
use crate::journal::{DoneRow, State};
use crate::progress::Progress;
use crate::reading::told;
use crate::template::{Request, Template};

/// How rows are asked for.
pub struct Plan {
    /// How a request is made of a row; none: rows go on as they are.
    pub template: Option<Template>,
    /// What becomes of answers.
    pub answers: Answers,
    /// What the model is asked before.
    pub labels: Labels,
    /// What every question says.
    pub defaults: Map<String, Value>,
    /// The columns of a row that go to the output; none: all.
    pub columns: Option<Vec<String>>,
}

impl Plan {
    /// Why no row of these columns can be asked for so, though each would be tried; `cleaned` are
    /// those that cleaning names.
    pub(crate) fn problem(
        &self,
        input: &[Column],
        id: Option<&str>,
        cleaned: &[String],
    ) -> Option<String> {
        let is_in = |columns: &[Column], name: &str| columns.iter().any(|it| it.name == name);
        let labelled = [input, &self.labels.columns()].concat();
        let mapped = self.template.iter().flat_map(Template::needs).map(|name| ("--map", name));
        let kept = self.columns.iter().flatten().map(|name| ("--columns", name.as_str()));
        let of_labelled = mapped.chain(kept).filter(|(_, name)| !is_in(&labelled, name));
        let cleaned = cleaned.iter().map(|name| ("the file of --clean", name.as_str()));
        let of_input = id.map(|name| ("--id", name)).into_iter().chain(cleaned);
        let of_input = of_input.filter(|(_, name)| !is_in(input, name));
        if let Some((flag, name)) = of_labelled.chain(of_input).next() {
            let names: Vec<_> = input.iter().map(|it| it.name.as_str()).collect();
            let names = names.join(", ");
            return Some(format!("{flag} names a column {name:?}, the input has {names}"));
        }
        let mut labels = input.len()..labelled.len();
        if let Some(at) = labels.find(|at| is_in(&labelled[..*at], &labelled[*at].name)) {
            return Some(label_taken(&labelled[at].name));
        }
        self.template.as_ref().filter(|template| !template.is_lines())?;
        let mut others = self.layout(Some(input.to_vec()))?;
        let answers = self.answers.columns();
        others.truncate(others.len() - answers.len());
        let taken = answers.iter().find(|it| is_in(&others, &it.name))?;
        let name = &taken.name;
        Some(format!("the rows have a column {name:?} already: --answer-column names another"))
    }

    /// The output's columns, where the input's are known.
    pub(crate) fn layout(&self, input: Option<Vec<Column>>) -> Option<Vec<Column>> {
        if self.template.as_ref().is_some_and(Template::is_lines) {
            let names = ["id", "custom_id", "response", "error"];
            return Some(names.map(|name| Column::new(name, rows::row::Kind::Text)).into());
        }
        let mut columns = input?;
        if let Some(wanted) = &self.columns {
            columns.retain(|column| wanted.contains(&column.name));
        }
        columns.extend(self.labels.columns());
        if self.template.is_some() {
            columns.extend(self.answers.columns());
        }
        Some(columns)
    }
}

fn label_taken(name: &str) -> String {
    format!("there is a column {name:?} already: give the label's column another name")
}

/// Asks for rows.
pub(crate) struct Asking {
    pub(crate) plan: Plan,
    pub(crate) answerer: Arc<dyn Answerer>,
    pub(crate) progress: Arc<Progress>,
}

/// A row that comes to no answer.
enum Refused {
    Row(State, String),
    Server(String),
}

impl Asking {
    /// Answers a row.
    ///
    /// # Errors
    /// When nobody answers any row, with the reason.
    pub(crate) async fn ask(
        &self,
        row: u64,
        line: u64,
        mut cells: Cells,
    ) -> Result<DoneRow, String> {
        let (state, text) = match self.answer(row, &mut cells).await {
            Ok(()) => (State::Answered, serde_json::to_string(&cells).expect("cells are JSON")),
            Err(Refused::Row(state, why)) => {
                (state, told(row, line, state, &why, json!({"cells": cells})))
            }
            Err(Refused::Server(why)) => return Err(why),
        };
        Ok(DoneRow { row, state, text })
    }

    async fn answer(&self, row: u64, cells: &mut Cells) -> Result<(), Refused> {
        let Plan { template, answers, labels, defaults, columns } = &self.plan;
        let failed = |why| Refused::Row(State::Failed, why);
        // Of rows that each say their own columns it is known only now.
        if let Some(label) = labels.columns().iter().find(|it| cells.contains_key(&it.name)) {
            return Err(failed(label_taken(&label.name)));
        }
        for index in 0..labels.len() {
            let request = labels.request(index, cells, defaults).map_err(failed)?;
            let answer = self.send(&request).await?;
            if let Some(why) = labels.take(index, cells, &answer).map_err(failed)? {
                return Err(Refused::Row(State::Dropped, why));
            }
        }
        let answer = match template {
            None => None,
            Some(template) => {
                let request = template.request(row, cells).map_err(failed)?;
                Some(self.send(&request).await?)
            }
        };
        let mut out = cells.clone();
        if let Some(columns) = columns {
            let labels = labels.columns();
            out.retain(|name, _| {
                columns.contains(name) || labels.iter().any(|label| label.name == *name)
            });
        }
        if let Some(answer) = &answer {
            answers.fill(&mut out, answer).map_err(failed)?;
        }
        *cells = out;
        Ok(())
    }

    async fn send(&self, request: &Request) -> Result<Value, Refused> {
        match self.answerer.answer(request).await {
            Ok(answer) => {
                self.progress.answered(&answer);
                Ok(answer)
            }
            Err(Failed::Request(why)) => Err(Refused::Row(State::Failed, why)),
            Err(Failed::Server(why)) => Err(Refused::Server(why)),
        }
    }
}
