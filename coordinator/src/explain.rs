//! `autoglm explain`: asks a server why a request waits or waited, and prints what it says.

use std::io::Write;

use anyhow::{Result, ensure};
use clap::Args;
use hyper::Method;
use serde_json::Value;

use crate::asking::{Server, block_on};

/// Says why a request waits or waited.
#[derive(Args)]
pub struct Arguments {
    /// The `id` of the answer, which is its header `x-request-id` too.
    id: String,
    #[command(flatten)]
    server: Server,
    /// As the server says it, in JSON.
    #[arg(long)]
    json: bool,
}

impl Arguments {
    /// Asks and prints.
    ///
    /// # Errors
    /// When the server can't be asked, or doesn't know the request.
    pub fn run(self, out: &mut impl Write) -> Result<()> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        ensure!(
            !self.id.is_empty() && self.id.bytes().all(is_plain),
            "{:?} is no request's id: they look like cmpl-0123456789abcdef",
            self.id
        );
        let path = format!("/v1/requests/{}", self.id);
        let story = block_on(self.server.ask(Method::GET, &path))?;
        if self.json {
            writeln!(out, "{story}")?;
        } else {
            write!(out, "{}", table(&story))?;
        }
        Ok(())
    }
}

/// A line for each decision, then for each choice that waits.
fn table(story: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let choice = |value: &Value| value.as_u64().map_or("all".to_owned(), |it| it.to_string());
    let id = text(&story["id"]);
    let (state, priority) = (text(&story["state"]), text(&story["priority"]));
    let mut lines = format!("{id}: {state}, priority {priority}\n");
    let mut line = |time: String, choice: String, what: String, why: String| {
        lines += &format!("{time:>11}  {choice:>6}  {what:<9}  {why}\n");
    };
    line("time".into(), "choice".into(), "what".into(), "why".into());
    let forgotten = story["num_forgotten"].as_u64().unwrap_or(0);
    if forgotten > 0 {
        let why = format!("{forgotten} older decisions (scheduler.max_explained_decisions)");
        line(String::new(), String::new(), "forgotten".into(), why);
    }
    for it in story["decisions"].as_array().into_iter().flatten() {
        let (what, why) = (text(&it["what"]), text(&it["why"]));
        line(seconds(&it["at_ms"]), choice(&it["choice"]), what, why);
    }
    for it in story["waiting"].as_array().into_iter().flatten() {
        let why = format!(
            "for {}, {} before it at priority {}, {} passed it: {}",
            seconds(&it["waited_ms"]),
            it["num_before"],
            text(&it["priority"]),
            it["num_passed"],
            text(&it["why"])
        );
        line(seconds(&story["age_ms"]), choice(&it["choice"]), "waits".into(), why);
    }
    lines
}

fn seconds(millis: &Value) -> String {
    format!("{:.3} s", millis.as_u64().unwrap_or(0) as f64 / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_story_is_a_table_of_what_happened_when_and_why() {
        let story = json!({
            "id": "cmpl-000000000000000a", "state": "waiting", "priority": "standard",
            "age_ms": 2500, "num_forgotten": 3,
            "decisions": [
                {"at_ms": 0, "choice": 0, "what": "queued", "why": "it waits for its turn"},
                {"at_ms": 1004, "choice": null, "what": "failed", "why": "x"},
            ],
            "waiting": [{
                "choice": 1, "waited_ms": 2496, "priority": "interactive", "num_before": 7,
                "num_passed": 2, "why": "it needs 9 KV blocks to begin, 4 are free",
            }],
        });
        let expected = "cmpl-000000000000000a: waiting, priority standard\n\
            \x20      time  choice  what       why\n\
            \x20                    forgotten  3 older decisions \
            (scheduler.max_explained_decisions)\n\
            \x20   0.000 s       0  queued     it waits for its turn\n\
            \x20   1.004 s     all  failed     x\n\
            \x20   2.500 s       1  waits      for 2.496 s, 7 before it at priority interactive, \
            2 passed it: it needs 9 KV blocks to begin, 4 are free\n";
        assert_eq!(table(&story), expected);
    }
}
