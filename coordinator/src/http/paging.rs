//! Lists in parts, as OpenAI's: `limit` and `after` in, `has_more` out.

use std::collections::HashMap;

use serde_json::{Value, json};

use crate::batch_job::{Order, Page};
use crate::openai::ApiError;

/// How many, and after which, of a query; what else it has of the names in `others`. None of it
/// needs what a query could escape.
pub(super) fn page(
    query: Option<&str>,
    (limit, most): (u32, u32),
    others: &[&str],
) -> Result<(Page, HashMap<String, String>), ApiError> {
    let mut page = Page { limit, after: None, order: Order::Descending };
    let mut more = HashMap::new();
    for field in query.unwrap_or_default().split('&').filter(|field| !field.is_empty()) {
        let (name, value) = field.split_once('=').unwrap_or((field, ""));
        match name {
            "after" => page.after = Some(value.to_owned()),
            "limit" => {
                let number = value.parse().ok().filter(|it| (1..=most).contains(it));
                page.limit = number.ok_or_else(|| {
                    let message = format!("limit must be a whole number from 1 to {most}");
                    ApiError::invalid("limit", message)
                })?;
            }
            name if others.contains(&name) => {
                more.insert(name.to_owned(), value.to_owned());
            }
            name => {
                let shown: String = name.chars().take(40).collect();
                let message = format!("this list takes no {shown}; remove it");
                return Err(ApiError::invalid(shown, message).code("unknown_parameter"));
            }
        }
    }
    Ok((page, more))
}

impl Page {
    /// One more tells whether there are more.
    pub(super) fn one_more(&self) -> Self {
        Self { limit: self.limit + 1, ..self.clone() }
    }
}

/// A part of a list of what was found, one more than its limit.
pub(super) fn listed<T>(mut found: Vec<T>, page: &Page, describe: impl Fn(&T) -> Value) -> Value {
    let has_more = found.len() > page.limit as usize;
    found.truncate(page.limit as usize);
    let data: Vec<_> = found.iter().map(describe).collect();
    let id = |it: Option<&Value>| it.map_or(Value::Null, |it| it["id"].clone());
    let (first, last) = (id(data.first()), id(data.last()));
    json!({
        "object": "list", "data": data, "first_id": first, "last_id": last, "has_more": has_more,
    })
}
