//! Columns that the model fills with one of a few words, before the row is asked for.

use anyhow::{Context as _, Result, ensure};
use minijinja::Environment;
use rows::row::{Cells, Column, Kind};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::guard::guarded;
use crate::template::{Request, single};

/// Tokens that a label may take.
const MAX_TOKENS: u32 = 16;

/// A column that the model fills.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub(crate) struct Label {
    /// The column's name.
    column: String,
    /// What is asked: a template over the row.
    question: String,
    /// What it may answer.
    values: Vec<String>,
    /// Rows with other answers are dropped; none: all are kept.
    #[serde(default)]
    keep: Vec<String>,
}

/// All that is asked of each row, one after the other: a question may use an earlier answer.
#[derive(Debug, Default)]
pub struct Labels(Vec<(Label, Environment<'static>)>);

impl Labels {
    pub(super) fn new(labels: &[Label]) -> Result<Self> {
        let labels = labels.iter().map(|label| {
            let name = &label.column;
            ensure!(!label.values.is_empty(), "the label {name:?} has no values");
            ensure!(
                label.keep.iter().all(|keep| label.values.contains(keep)),
                "the label {name:?} keeps what is none of its values"
            );
            let question = single(&label.question);
            let question = question.with_context(|| format!("the question of {name:?}"))?;
            Ok((label.clone(), question))
        });
        Ok(Self(labels.collect::<Result<_>>()?))
    }

    /// One for each question, in their order.
    pub(crate) fn columns(&self) -> Vec<Column> {
        self.0.iter().map(|(label, _)| Column::new(&label.column, Kind::Text)).collect()
    }

    /// How many questions there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing is asked.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The question of this number about a row.
    ///
    /// # Errors
    /// When the row can't be asked about.
    pub(crate) fn request(
        &self,
        index: usize,
        cells: &Cells,
        defaults: &Map<String, Value>,
    ) -> Result<Request, String> {
        let (label, question) = &self.0[index];
        let row = minijinja::value::Serde(cells);
        let question = guarded(|| Ok(question.get_template("0")?.render(row)?));
        let question = question.map_err(|cause| {
            format!("the question of {:?} can't be asked: {cause}", label.column)
        })?;
        let values = label.values.join(", ");
        let text = format!("{question}\nAnswer with one of these and nothing else: {values}.");
        let mut body = defaults.clone();
        body.insert("messages".into(), json!([{"role": "user", "content": text}]));
        body.insert("temperature".into(), 0.into());
        body.insert("max_tokens".into(), MAX_TOKENS.into());
        // Thoughts would take all of them.
        body.insert("chat_template_kwargs".into(), json!({"enable_thinking": false}));
        Ok(Request { path: "/v1/chat/completions".into(), body })
    }

    /// Writes an answer into its row, or says why the row is dropped.
    ///
    /// # Errors
    /// When it is no label.
    pub(crate) fn take(
        &self,
        index: usize,
        cells: &mut Cells,
        answer: &Value,
    ) -> Result<Option<String>, String> {
        let (label, _) = &self.0[index];
        let said = answer["choices"][0]["message"]["content"].as_str().unwrap_or_default();
        let lower = said.to_lowercase();
        let found = label.values.iter().filter_map(|value| {
            let place = find_word(&lower, &value.to_lowercase())?;
            // Where one value begins as another, the longer is meant.
            Some((place, usize::MAX - value.len(), value))
        });
        let Some((_, _, value)) = found.min() else {
            return Err(format!(
                "the model labels it {said:?}, which is none of {:?}",
                label.values
            ));
        };
        cells.insert(label.column.clone(), value.clone().into());
        let drop = !label.keep.is_empty() && !label.keep.contains(value);
        Ok(drop.then(|| format!("the model labels it {}: {value}", label.column)))
    }
}

/// Where a word stands that is no part of another: "no" is not in "not sure". Scripts without
/// capitals may have no spaces, so there each character is one.
fn find_word(text: &str, word: &str) -> Option<usize> {
    let joins = |it: Option<char>| it.is_some_and(|it| it.is_lowercase() || it.is_ascii_digit());
    let is_alone = |(place, found): &(usize, &str)| {
        let (before, after) = (&text[..*place], &text[place + found.len()..]);
        let begins = joins(before.chars().next_back()) && joins(word.chars().next());
        let goes_on = joins(word.chars().next_back()) && joins(after.chars().next());
        !begins && !goes_on
    };
    text.match_indices(word).find(is_alone).map(|(place, _)| place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_the_value_that_the_model_says_first() {
        let label = r#"
            column = "tone"
            question = "What is the tone of: {{ text }}"
            values = ["good", "good enough", "bad"]
            keep = ["good", "good enough"]
        "#;
        let labels = Labels::new(&[toml::from_str(label).unwrap()]).unwrap();
        let mut cells = Cells::from_iter([("text".into(), json!("so so"))]);
        let request = labels.request(0, &cells, &Map::new()).unwrap();
        let asked = request.body["messages"][0]["content"].as_str().unwrap();
        assert!(asked.starts_with("What is the tone of: so so\n") && asked.contains("bad"));
        let mut take = |text: &str| {
            let answer = json!({"choices": [{"message": {"content": text}}]});
            let taken = labels.take(0, &mut cells, &answer);
            taken.map(|dropped| (cells["tone"].clone(), dropped.is_some()))
        };
        assert_eq!(take("Good Enough, not bad."), Ok((json!("good enough"), false)));
        assert_eq!(take("It is bad"), Ok((json!("bad"), true)));
        assert!(take("who knows").unwrap_err().contains("none of"));
        assert!(labels.request(0, &Cells::new(), &Map::new()).is_err());
    }

    #[test]
    fn a_value_is_a_word_of_its_own() {
        for (text, word, place) in [
            ("not sure, i know", "no", None),
            ("unknown: no.", "no", Some(9)),
            ("female", "male", None),
            ("10 or 1", "1", Some(6)),
            ("**no**", "no", Some(2)),
            ("\u{5f88}\u{597d}\u{5417}", "\u{597d}", Some(3)),
            ("c++?", "c++", Some(0)),
        ] {
            assert_eq!(find_word(text, word), place, "{text}");
        }
    }
}
