//! Prompt and answer as attributes of a span: only where the operator wants them.

use serde_json::{Value, json};
use telemetry::KeyValue;

use crate::request::Event;

/// What was asked and what was answered, each cut off where it is too long.
pub(super) struct Content {
    input: Value,
    answers: Vec<String>,
    num_input_bytes_left: usize,
    num_answer_bytes_left: usize,
}

impl Content {
    pub(super) fn new(max_bytes: usize) -> Self {
        Self {
            input: Value::Null,
            answers: Vec::new(),
            num_input_bytes_left: max_bytes,
            num_answer_bytes_left: max_bytes,
        }
    }

    /// Takes in a body that was found legal.
    pub(super) fn asked(&mut self, body: &[u8]) {
        let Ok(body) = serde_json::from_slice::<Value>(body) else { return };
        let left = &mut self.num_input_bytes_left;
        let mut message = |role: &str, content: &Value| {
            let mut part = |text: &str| json!({"type": "text", "content": cut(text, left)});
            let parts: Vec<_> = match content {
                Value::String(text) => vec![part(text)],
                Value::Array(parts) if parts.iter().any(Value::is_object) => {
                    parts.iter().filter_map(|one| one["text"].as_str()).map(part).collect()
                }
                Value::Array(prompts) if prompts.iter().any(Value::is_string) => {
                    prompts.iter().filter_map(Value::as_str).map(part).collect()
                }
                Value::Null => Vec::new(),
                // Token ids.
                other => vec![part(&other.to_string())],
            };
            json!({"role": role, "parts": parts})
        };
        self.input = match (&body["messages"], &body["prompt"]) {
            (Value::Array(messages), _) => messages
                .iter()
                .map(|one| message(one["role"].as_str().unwrap_or("user"), &one["content"]))
                .collect(),
            (_, prompt) => json!([message("user", prompt)]),
        };
    }

    /// Takes in what choice number `choice` of all says.
    pub(super) fn heard(&mut self, choice: usize, event: &Event) {
        let (Event::Token { text, .. } | Event::Finished { text, .. }) = event else { return };
        if self.answers.len() <= choice {
            self.answers.resize(choice + 1, String::new());
        }
        self.answers[choice].push_str(&cut(text, &mut self.num_answer_bytes_left));
    }

    /// `gen_ai.input.messages` and `gen_ai.output.messages`.
    pub(super) fn attributes(self, finish_reasons: &[&'static str]) -> Vec<KeyValue> {
        let answers = self.answers.into_iter().enumerate().map(|(choice, text)| {
            json!({
                "role": "assistant",
                "parts": [{"type": "text", "content": text}],
                "finish_reason": finish_reasons.get(choice),
            })
        });
        let answers: Value = answers.collect();
        vec![
            KeyValue::new("gen_ai.input.messages", self.input.to_string()),
            KeyValue::new("gen_ai.output.messages", answers.to_string()),
        ]
    }
}

/// As much of a text as there is room for.
fn cut(text: &str, num_bytes_left: &mut usize) -> String {
    let end = text.floor_char_boundary(*num_bytes_left);
    *num_bytes_left -= end;
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(attribute: &KeyValue) -> Value {
        serde_json::from_str(attribute.value.as_str().as_ref()).unwrap()
    }

    #[test]
    fn prompts_of_every_form_become_messages() {
        let text = |text: &str| json!([{"type": "text", "content": text}]);
        let cases = [
            (
                json!({"messages": [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
                    {"role": "assistant", "content": null},
                ]}),
                json!([
                    {"role": "system", "parts": text("Be brief.")},
                    {"role": "user", "parts": text("Hi")},
                    {"role": "assistant", "parts": []},
                ]),
            ),
            (json!({"prompt": "Alice"}), json!([{"role": "user", "parts": text("Alice")}])),
            (json!({"prompt": [5, 6]}), json!([{"role": "user", "parts": text("[5,6]")}])),
            (
                json!({"prompt": ["a", "b"]}),
                json!([{"role": "user", "parts": [text("a")[0], text("b")[0]]}]),
            ),
        ];
        for (body, expected) in cases {
            let mut content = Content::new(100);
            content.asked(body.to_string().as_bytes());
            assert_eq!(messages(&content.attributes(&[])[0]), expected);
        }
    }

    #[test]
    fn what_is_too_long_is_cut_off_between_characters() {
        let mut content = Content::new(3);
        content.asked(json!({"prompt": "ab\u{e9}d"}).to_string().as_bytes());
        for text in ["x", "\u{e9}", "yz"] {
            let text = text.to_owned();
            let reason = crate::request::FinishReason::Stop;
            content.heard(0, &Event::Finished { choice: 0, reason, text });
        }
        let [input, output] = &content.attributes(&["stop"])[..] else { panic!() };
        assert_eq!(messages(input)[0]["parts"][0]["content"], "ab");
        assert_eq!(messages(output)[0]["parts"][0]["content"], "x\u{e9}");
        assert_eq!(messages(output)[0]["finish_reason"], "stop");
    }
}
