//! What is done with rows before they are asked for, as a small file declares it. Each step is
//! small and always comes in the same order: normalise, redact, trim; drop what matches, is empty,
//! too short, too long or a duplicate; let the model label.

mod label;
mod near;
mod seen;

use std::borrow::Cow;
use std::fmt;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use regex::Regex;
use serde::Deserialize;
use serde_json::Value;
use unicode_normalization::{UnicodeNormalization as _, is_nfc_quick};

pub(crate) use label::{Label, Labels};
pub(crate) use seen::Seen;

use rows::row::{Cells, text_of};

/// Counts the tokens of a text, as the model that is asked would.
pub trait Tokens: Send {
    /// How many there are; none where they are too many to be counted.
    ///
    /// # Errors
    /// When nobody can tell.
    fn count(&mut self, text: &str) -> Result<Option<usize>>;
}

/// The file that `--clean` names.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Declared {
    /// The columns that are looked at and changed; none: all texts.
    columns: Vec<String>,
    /// Compose characters: Unicode's form NFC.
    nfc: bool,
    /// What matches is replaced.
    redact: Vec<Redact>,
    /// Remove white space at both ends.
    trim: bool,
    /// Drop rows of which a text matches.
    drop: Vec<String>,
    /// Drop rows whose texts are all empty.
    drop_empty: bool,
    /// Drop rows whose texts have fewer tokens.
    min_tokens: Option<usize>,
    /// Drop rows whose texts have more tokens.
    max_tokens: Option<usize>,
    /// Drop rows whose texts were there before.
    duplicates: Duplicates,
    /// How alike two texts are at least that count as near duplicates, from 0.5 to 1.
    near_threshold: Option<f64>,
    /// Columns that the model fills.
    label: Vec<Label>,
}

/// Which rows are duplicates.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Duplicates {
    #[default]
    Keep,
    Exact,
    Near,
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct Redact {
    pattern: String,
    with: String,
}

impl Declared {
    /// Reads such a file.
    ///
    /// # Errors
    /// When it isn't one.
    pub fn read(path: &Path) -> Result<(Self, String)> {
        let name = path.display();
        let text = std::fs::read_to_string(path).with_context(|| format!("can't read {name}"))?;
        let declared = toml::from_str(&text).with_context(|| format!("{name} can't be used"))?;
        Ok((declared, text))
    }

    /// Whether rows stay as they are, but for labels.
    pub(crate) fn is_nothing(&self) -> bool {
        *self == Self { label: self.label.clone(), ..Self::default() }
    }

    /// Whether rows are compared with all before, so that what was seen must be kept.
    pub(crate) fn compares(&self) -> bool {
        self.duplicates != Duplicates::Keep
    }

    /// Whether somebody must count tokens.
    pub(crate) fn counts_tokens(&self) -> bool {
        self.min_tokens.is_some() || self.max_tokens.is_some()
    }

    /// The columns that are looked at; none: all.
    pub(crate) fn columns(&self) -> &[String] {
        &self.columns
    }

    /// What the model is asked for.
    ///
    /// # Errors
    /// When it can't be asked so.
    pub fn labels(&self) -> Result<Labels> {
        Labels::new(&self.label)
    }
}

/// The steps that need no model.
pub(crate) struct Cleaner {
    columns: Vec<String>,
    nfc: bool,
    redact: Vec<(Regex, String)>,
    trim: bool,
    drop: Vec<Regex>,
    drop_empty: bool,
    min_tokens: usize,
    max_tokens: usize,
    tokens: Option<Box<dyn Tokens>>,
    duplicates: Duplicates,
    near_threshold: f64,
    seen: Option<Seen>,
}

impl fmt::Debug for Cleaner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cleaner").finish_non_exhaustive()
    }
}

impl Cleaner {
    /// Of what was declared; with who counts tokens, and what was seen, where that is needed.
    ///
    /// # Errors
    /// When something declared can't be done.
    pub(crate) fn new(
        declared: &Declared,
        tokens: Option<Box<dyn Tokens>>,
        seen: Option<Seen>,
    ) -> Result<Self> {
        let regex = |pattern: &String| {
            Regex::new(pattern).with_context(|| format!("{pattern:?} is no regular expression"))
        };
        let redact = declared.redact.iter().map(|redact| {
            let pattern = regex(&redact.pattern)?;
            if pattern.is_match(&redact.with) {
                bail!(
                    "{:?} matches {:?}, which takes its place: it would be redacted again",
                    redact.pattern,
                    redact.with
                );
            }
            Ok((pattern, redact.with.clone()))
        });
        let near_threshold = declared.near_threshold.unwrap_or(0.85);
        ensure!(
            (0.5..=1.0).contains(&near_threshold),
            "near_threshold must be from 0.5 to 1, not {near_threshold}"
        );
        let (min, max) = (declared.min_tokens.unwrap_or(0), declared.max_tokens);
        let max = max.unwrap_or(usize::MAX);
        ensure!(min <= max, "min_tokens is {min}, and max_tokens is {max}: no text is so long");
        Ok(Self {
            columns: declared.columns.clone(),
            nfc: declared.nfc,
            redact: redact.collect::<Result<_>>()?,
            trim: declared.trim,
            drop: declared.drop.iter().map(regex).collect::<Result<_>>()?,
            drop_empty: declared.drop_empty,
            min_tokens: min,
            max_tokens: max,
            tokens,
            duplicates: declared.duplicates,
            near_threshold,
            seen,
        })
    }

    /// Cleans a row, or says why it is dropped.
    ///
    /// # Errors
    /// When it can't be told what to do with it.
    pub(crate) fn clean(&mut self, row: u64, cells: &mut Cells) -> Result<Option<String>> {
        if let Some(missing) = self.columns.iter().find(|name| !cells.contains_key(*name)) {
            return Ok(Some(format!("it has no column {missing:?}")));
        }
        let is_named = !self.columns.is_empty();
        let is_wanted = |name: &String| !is_named || self.columns.contains(name);
        for (_, cell) in cells.iter_mut().filter(|(name, _)| is_wanted(name)) {
            // A number whose column is named is redacted as the text that it is.
            if is_named && cell.is_number() {
                let text = cell.to_string();
                if self.redact.iter().any(|(pattern, _)| pattern.is_match(&text)) {
                    *cell = Value::String(text);
                }
            }
            self.change(cell);
        }
        // Numbers count only where their column is named; what is null is an empty text, so that
        // the others stay in their places.
        let texts = cells.iter().filter(|(name, cell)| {
            is_wanted(name) && (is_named || !(cell.is_number() || cell.is_boolean()))
        });
        let texts: Vec<Cow<'_, str>> = texts.map(|(_, cell)| text_of(cell)).collect();
        for pattern in &self.drop {
            if texts.iter().any(|text| pattern.is_match(text)) {
                return Ok(Some(format!("it matches {:?}", pattern.as_str())));
            }
        }
        if self.drop_empty && texts.iter().all(|text| text.is_empty()) {
            return Ok(Some("it is empty".into()));
        }
        // No text holds this character where it was trimmed, and few do anywhere.
        let text = texts.join("\u{1f}");
        if let Some(why) = self.wrong_length(&text)? {
            return Ok(Some(why));
        }
        // Rows without any text have nothing in which they could be the same.
        if texts.is_empty() {
            return Ok(None);
        }
        self.duplicate(row, &text)
    }

    /// Changes a text, or those in a list or an object, such as the messages of a body.
    fn change(&self, cell: &mut Value) {
        match cell {
            Value::String(text) => self.change_text(text),
            Value::Array(cells) => cells.iter_mut().for_each(|cell| self.change(cell)),
            Value::Object(cells) => cells.values_mut().for_each(|cell| self.change(cell)),
            _ => {}
        }
    }

    fn change_text(&self, text: &mut String) {
        let is_composed = is_nfc_quick(text.chars());
        if self.nfc && is_composed != unicode_normalization::IsNormalized::Yes {
            *text = text.nfc().collect();
        }
        for (pattern, with) in &self.redact {
            if pattern.is_match(text) {
                *text = pattern.replace_all(text, regex::NoExpand(with)).into_owned();
            }
        }
        if self.trim {
            let trimmed = text.trim();
            if trimmed.len() < text.len() {
                *text = trimmed.to_owned();
            }
        }
    }

    /// A token is at least a byte: most texts needn't be counted.
    fn wrong_length(&mut self, text: &str) -> Result<Option<String>> {
        let (min, max) = (self.min_tokens, self.max_tokens);
        if text.len() >= min && (min == 0 && text.len() <= max) {
            return Ok(None);
        }
        if text.len() < min {
            return Ok(Some(format!("it has fewer than {min} tokens")));
        }
        let tokens = self.tokens.as_mut().context("nobody counts tokens")?;
        let Some(num) = tokens.count(text)? else {
            let why = || format!("it has too many tokens to be counted, more than {max}");
            return Ok((max < usize::MAX).then(why));
        };
        Ok(match num {
            _ if num < min => Some(format!("it has {num} tokens, fewer than {min}")),
            _ if num > max => Some(format!("it has {num} tokens, more than {max}")),
            _ => None,
        })
    }

    fn duplicate(&mut self, row: u64, text: &str) -> Result<Option<String>> {
        let Some(seen) = self.seen.as_mut().filter(|_| self.duplicates != Duplicates::Keep) else {
            return Ok(None);
        };
        if let Some(first) = seen.exact(row, text)? {
            return Ok(Some(format!("it is the same as row {}", first + 1)));
        }
        if self.duplicates == Duplicates::Near {
            let near = seen.near(row, text, self.near_threshold)?;
            return Ok(near.map(|first| format!("it is nearly the same as row {}", first + 1)));
        }
        Ok(None)
    }

    /// What was seen stays seen.
    ///
    /// # Errors
    /// When it can't be written.
    pub(crate) fn keep(&mut self) -> Result<()> {
        self.seen.as_mut().map_or(Ok(()), Seen::keep)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// A token for each word, of which it counts a few.
    struct Words;

    impl Tokens for Words {
        fn count(&mut self, text: &str) -> Result<Option<usize>> {
            Ok(Some(text.split_whitespace().count()).filter(|num| *num < 6))
        }
    }

    fn cleaner(declared: &str) -> Cleaner {
        let declared: Declared = toml::from_str(declared).unwrap();
        Cleaner::new(&declared, Some(Box::new(Words)), None).unwrap()
    }

    fn cells(text: &str) -> Cells {
        json!({"id": 7, "text": text, "note": " as it is "}).as_object().unwrap().clone()
    }

    #[test]
    fn each_step_does_what_it_says_and_no_other_column_is_touched() {
        let mut cleaner = cleaner(
            r#"
            columns = ["text"]
            nfc = true
            trim = true
            drop_empty = true
            min_tokens = 2
            max_tokens = 4
            drop = ["(?i)lorem"]
            redact = [{ pattern = '\b\d{4}\b', with = "[$1]" }]
            "#,
        );
        let mut said = |text: &str| {
            let mut cells = cells(text);
            let dropped = cleaner.clean(0, &mut cells).unwrap();
            assert_eq!(cells["note"], " as it is ");
            dropped.unwrap_or_else(|| cells["text"].as_str().unwrap().to_owned())
        };
        assert_eq!(said(" e\u{301} 1234 \n"), "\u{e9} [$1]");
        assert_eq!(said("a LOREM b"), "it matches \"(?i)lorem\"");
        assert_eq!(said(" \t "), "it is empty");
        assert_eq!(said("x"), "it has fewer than 2 tokens");
        assert_eq!(said("word"), "it has 1 tokens, fewer than 2");
        assert_eq!(said("a b c d e"), "it has 5 tokens, more than 4");
        assert_eq!(said("a b c d e f"), "it has too many tokens to be counted, more than 4");
        let dropped = cleaner.clean(0, &mut Cells::new()).unwrap();
        assert_eq!(dropped.unwrap(), "it has no column \"text\"");
    }

    #[test]
    fn cells_that_are_no_texts_are_looked_at_where_their_column_is_named() {
        let (runtime, _) = crate::testing::reading();
        let dir = tempfile::tempdir().unwrap();
        let cleaner = |columns: &str| {
            let declared = r"drop_empty = true
                duplicates = 'exact'
                redact = [{ pattern = '\d{9}', with = '_' }]";
            let declared: Declared = toml::from_str(&format!("{columns}\n{declared}")).unwrap();
            let path = dir.path().join(format!("seen{}", columns.len()));
            let seen = Seen::open(&path, runtime.handle().clone()).unwrap();
            Cleaner::new(&declared, None, Some(seen)).unwrap()
        };
        let mut named = cleaner("columns = ['a', 'b']");
        for (row, (cells, expected)) in [
            (json!({"a": 1, "b": null}), None),
            (json!({"a": null, "b": 1}), None),
            (json!({"a": {"c": ["x 123456789"]}, "b": 123456789}), None),
            (json!({"a": 1, "b": null}), Some("it is the same as row 1")),
            (json!({"a": null, "b": null}), Some("it is empty")),
        ]
        .into_iter()
        .enumerate()
        {
            let mut cells = cells.as_object().unwrap().clone();
            let said = named.clean(row as u64, &mut cells).unwrap();
            assert_eq!(said.as_deref(), expected, "row {row}");
            if row == 2 {
                assert_eq!(Value::Object(cells), json!({"a": {"c": ["x _"]}, "b": "_"}));
            }
        }
        // Where none is named, rows are as alike as their texts.
        let mut all = cleaner("");
        let mut said =
            |row, cells: Value| all.clean(row, &mut cells.as_object().unwrap().clone()).unwrap();
        assert_eq!(said(0, json!({"id": 1, "a": "x", "b": null})), None);
        assert_eq!(said(1, json!({"id": 2, "a": null, "b": "x"})), None);
        let same = said(2, json!({"id": 3, "a": "x", "b": null}));
        assert_eq!(same.as_deref(), Some("it is the same as row 1"));
    }

    #[test]
    fn the_file_that_explains_every_step_is_one() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("clean.toml");
        let (declared, text) = Declared::read(&path).unwrap();
        Cleaner::new(&declared, None, None).unwrap();
        assert_eq!(declared.labels().unwrap().len(), 1);
        let said = toml::from_str::<Declared>("no_such_step = 1").unwrap_err().to_string();
        let steps = said.rsplit_once("expected one of ").unwrap().1.trim().replace('`', "");
        for step in steps.split(", ") {
            assert!(text.contains(step), "{step} is not explained");
        }
    }

    #[test]
    fn what_can_not_be_done_is_refused_before_the_first_row() {
        for (declared, word) in [
            ("drop = ['(']", "regular expression"),
            ("redact = [{ pattern = 'a', with = 'banana' }]", "redacted again"),
            ("near_threshold = 0.1", "from 0.5 to 1"),
            ("min_tokens = 5\nmax_tokens = 4", "no text is so long"),
        ] {
            let declared: Declared = toml::from_str(declared).unwrap();
            let said = Cleaner::new(&declared, None, None).unwrap_err().to_string();
            assert!(said.contains(word), "{said}");
        }
        let said = toml::from_str::<Declared>("tirm = true").unwrap_err().to_string();
        assert!(said.contains("trim"), "{said}");
    }

    proptest! {
        #[test]
        fn what_is_clean_stays_as_it_is(text in "[ae\u{301}\u{300} \t0-9x@.]{0,20}") {
            let mut cleaner = cleaner(
                r#"
                nfc = true
                trim = true
                redact = [{ pattern = '\d+', with = "_" }, { pattern = '\S+@\S+', with = "mail" }]
                "#,
            );
            let mut once = cells(&text);
            prop_assert_eq!(cleaner.clean(0, &mut once).unwrap(), None);
            let mut twice = once.clone();
            cleaner.clean(0, &mut twice).unwrap();
            prop_assert_eq!(once, twice);
        }
    }
}
