//! What is said, as output items: whole, or by the events of a stream.

use serde_json::{Value, json};

use crate::openai::{ApiError, Chunk, Described, Spoken};

/// An answer under way.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stream {
    sequence: u64,
    open: Option<Item>,
    done: Vec<Value>,
}

#[derive(Clone, Debug)]
struct Item {
    kind: Kind,
    text: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Reasoning,
    Message,
    /// Number and name.
    Call(usize, String),
}

impl Item {
    fn id(&self, at: usize, answer: &Described<'_>) -> String {
        let prefix = match self.kind {
            Kind::Reasoning => "rs",
            Kind::Message => "msg",
            Kind::Call(..) => "fc",
        };
        format!("{prefix}_{}{at:02x}", answer.number)
    }

    fn body(&self, at: usize, status: &str, answer: &Described<'_>) -> Value {
        let id = self.id(at, answer);
        match &self.kind {
            Kind::Reasoning => json!({
                "type": "reasoning", "id": id, "summary": [], "status": status,
                "content": if self.text.is_empty() { json!([]) } else { json!([self.part()]) },
            }),
            Kind::Message => json!({
                "type": "message", "id": id, "role": "assistant", "status": status,
                "content": if status == "in_progress" { json!([]) } else { json!([self.part()]) },
            }),
            Kind::Call(number, name) => json!({
                "type": "function_call", "id": id, "call_id": answer.call(*number), "name": name,
                "arguments": self.text, "status": status,
            }),
        }
    }

    fn part(&self) -> Value {
        match self.kind {
            Kind::Reasoning => json!({"type": "reasoning_text", "text": self.text}),
            _ => {
                json!({"type": "output_text", "text": self.text, "annotations": [], "logprobs": []})
            }
        }
    }
}

impl Stream {
    /// What comes before all else.
    pub(crate) fn begin(&mut self, answer: &Described<'_>) -> Vec<Chunk> {
        let response = body(answer, "in_progress", &[], None);
        let mut chunks = Vec::new();
        for event in ["response.created", "response.in_progress"] {
            self.tell(event, json!({"response": response}), &mut chunks);
        }
        chunks
    }

    /// The events of what is said next.
    pub(crate) fn say(&mut self, spoken: &Spoken, answer: &Described<'_>) -> Vec<Chunk> {
        let mut chunks = Vec::new();
        if !spoken.reasoning.is_empty() {
            self.delta(Kind::Reasoning, &spoken.reasoning, answer, &mut chunks);
        }
        if !spoken.content.is_empty() {
            self.delta(Kind::Message, &spoken.content, answer, &mut chunks);
        }
        for call in &spoken.calls {
            let name = match (&call.name, &self.open) {
                (Some(name), _) => name.clone(),
                (None, Some(Item { kind: Kind::Call(_, name), .. })) => name.clone(),
                (None, _) => continue,
            };
            let kind = Kind::Call(call.index, name);
            self.delta(kind, &call.arguments, answer, &mut chunks);
        }
        chunks
    }

    /// What comes after all else.
    pub(crate) fn end(&mut self, reason: &str, answer: &Described<'_>) -> Vec<Chunk> {
        let mut chunks = Vec::new();
        let is_whole = reason != "length";
        self.close(if is_whole { "completed" } else { "incomplete" }, answer, &mut chunks);
        let event = if is_whole { "response.completed" } else { "response.incomplete" };
        let response = self.whole(reason, answer);
        self.tell(event, json!({"response": response}), &mut chunks);
        chunks
    }

    /// There is no answer, for this reason.
    pub(crate) fn fail(&mut self, error: &ApiError, answer: &Described<'_>) -> Vec<Chunk> {
        let mut response = body(answer, "failed", &self.done, None);
        let code = error.code.unwrap_or("server_error");
        response["error"] = json!({"code": code, "message": error.message});
        let mut chunks = Vec::new();
        self.tell("response.failed", json!({"response": response}), &mut chunks);
        chunks
    }

    fn whole(&self, reason: &str, answer: &Described<'_>) -> Value {
        let incomplete = (reason == "length").then_some("max_output_tokens");
        body(answer, status(reason), &self.done, incomplete)
    }

    fn delta(&mut self, kind: Kind, text: &str, answer: &Described<'_>, chunks: &mut Vec<Chunk>) {
        if self.open.as_ref().is_none_or(|open| open.kind != kind) {
            self.close("completed", answer, chunks);
            let item = Item { kind, text: String::new() };
            let at = self.done.len();
            let added = json!({
                "output_index": at, "item": item.body(at, "in_progress", answer),
            });
            self.tell("response.output_item.added", added, chunks);
            if !matches!(item.kind, Kind::Call(..)) {
                let part = json!({
                    "item_id": item.id(at, answer), "output_index": at, "content_index": 0,
                    "part": item.part(),
                });
                self.tell("response.content_part.added", part, chunks);
            }
            self.open = Some(item);
        }
        let at = self.done.len();
        let Some(item) = &mut self.open else { return };
        item.text.push_str(text);
        if text.is_empty() {
            return;
        }
        let id = item.id(at, answer);
        let (event, data) = match item.kind {
            Kind::Call(..) => (
                "response.function_call_arguments.delta",
                json!({"item_id": id, "output_index": at, "delta": text}),
            ),
            Kind::Reasoning => (
                "response.reasoning_text.delta",
                json!({"item_id": id, "output_index": at, "content_index": 0, "delta": text}),
            ),
            Kind::Message => (
                "response.output_text.delta",
                json!({"item_id": id, "output_index": at, "content_index": 0, "delta": text,
                    "logprobs": []}),
            ),
        };
        self.tell(event, data, chunks);
    }

    fn close(&mut self, status: &str, answer: &Described<'_>, chunks: &mut Vec<Chunk>) {
        let Some(item) = self.open.take() else { return };
        let at = self.done.len();
        let id = item.id(at, answer);
        let text = &item.text;
        if let Kind::Call(_, name) = &item.kind {
            let ends = json!({
                "item_id": id, "output_index": at, "name": name, "arguments": text,
            });
            self.tell("response.function_call_arguments.done", ends, chunks);
        } else {
            let place = json!({"item_id": id, "output_index": at, "content_index": 0});
            let with = |more: (&str, Value)| {
                let mut place = place.clone();
                place[more.0] = more.1;
                place
            };
            let mut ends = with(("text", text.as_str().into()));
            let event = match item.kind {
                Kind::Reasoning => "response.reasoning_text.done",
                _ => {
                    ends["logprobs"] = json!([]);
                    "response.output_text.done"
                }
            };
            self.tell(event, ends, chunks);
            self.tell("response.content_part.done", with(("part", item.part())), chunks);
        }
        let body = item.body(at, status, answer);
        let ends = json!({"output_index": at, "item": body});
        self.tell("response.output_item.done", ends, chunks);
        self.done.push(body);
    }

    fn tell(&mut self, event: &'static str, mut data: Value, chunks: &mut Vec<Chunk>) {
        data["type"] = event.into();
        data["sequence_number"] = self.sequence.into();
        self.sequence += 1;
        chunks.push(Chunk { event: Some(event), data: data.to_string() });
    }
}

pub(crate) fn response(spoken: &Spoken, reason: &str, answer: &Described<'_>) -> Value {
    let mut stream = Stream::default();
    stream.say(spoken, answer);
    stream.end(reason, answer);
    stream.whole(reason, answer)
}

fn status(reason: &str) -> &'static str {
    if reason == "length" { "incomplete" } else { "completed" }
}

fn body(answer: &Described<'_>, status: &str, output: &[Value], incomplete: Option<&str>) -> Value {
    let counts = answer.counts;
    let usage = (status != "in_progress").then(|| {
        json!({
            "input_tokens": counts.num_prompt,
            "input_tokens_details": {"cached_tokens": counts.num_cached},
            "output_tokens": counts.num_generated,
            "output_tokens_details": {"reasoning_tokens": counts.num_reasoning},
            "total_tokens": counts.num_prompt + counts.num_generated,
        })
    });
    let mut response = json!({
        "id": answer.id, "object": "response", "created_at": answer.created, "status": status,
        "model": answer.model, "output": output, "usage": usage, "error": null,
        "incomplete_details": incomplete.map(|reason| json!({"reason": reason})),
        "previous_response_id": null, "store": false, "truncation": "disabled",
        "text": {"format": {"type": "text"}},
    });
    for (name, value) in answer.repeated {
        response[name] = value.clone();
    }
    response
}
