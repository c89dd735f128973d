//! What is said, as content blocks: whole, or by the events of a stream.

use serde_json::{Value, json};

use crate::openai::{Chunk, Counts, Described, Spoken};

#[derive(Clone, Debug, Default)]
pub(crate) struct Stream {
    open: Option<Block>,
    num_closed: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Block {
    Thinking,
    Text,
    /// The number of the call.
    Tool(usize),
}

impl Stream {
    /// What comes before all else.
    pub(crate) fn begin(&self, answer: &Described<'_>) -> Vec<Chunk> {
        let counts = Counts { num_generated: 0, num_cached: 0, ..answer.counts };
        let message = body(answer, Vec::new(), Value::Null, counts);
        let begins = json!({"type": "message_start", "message": message});
        vec![chunk("message_start", &begins), chunk("ping", &json!({"type": "ping"}))]
    }

    /// The events of what is said next.
    pub(crate) fn say(&mut self, spoken: &Spoken, answer: &Described<'_>) -> Vec<Chunk> {
        let mut chunks = Vec::new();
        if !spoken.reasoning.is_empty() {
            let delta = json!({"type": "thinking_delta", "thinking": spoken.reasoning});
            let begins = json!({"type": "thinking", "thinking": "", "signature": ""});
            self.delta(Block::Thinking, begins, delta, &mut chunks);
        }
        if !spoken.content.is_empty() {
            let delta = json!({"type": "text_delta", "text": spoken.content});
            self.delta(Block::Text, json!({"type": "text", "text": ""}), delta, &mut chunks);
        }
        for call in &spoken.calls {
            let begins = json!({
                "type": "tool_use", "id": answer.call(call.index), "name": call.name, "input": {},
            });
            let delta = json!({"type": "input_json_delta", "partial_json": call.arguments});
            self.delta(Block::Tool(call.index), begins, delta, &mut chunks);
        }
        chunks
    }

    /// What comes after all else.
    pub(crate) fn end(&mut self, reason: &str, answer: &Described<'_>) -> Vec<Chunk> {
        let mut chunks = Vec::new();
        self.close(&mut chunks);
        let ends = json!({
            "type": "message_delta",
            "delta": {
                "stop_reason": stop_reason(reason, answer.stop), "stop_sequence": answer.stop,
            },
            "usage": usage(answer.counts),
        });
        chunks.push(chunk("message_delta", &ends));
        chunks.push(chunk("message_stop", &json!({"type": "message_stop"})));
        chunks
    }

    fn delta(&mut self, block: Block, begins: Value, delta: Value, chunks: &mut Vec<Chunk>) {
        if self.open != Some(block) {
            self.close(chunks);
            self.open = Some(block);
            let index = self.num_closed;
            let begins =
                json!({"type": "content_block_start", "index": index, "content_block": begins});
            chunks.push(chunk("content_block_start", &begins));
        }
        let index = self.num_closed;
        let delta = json!({"type": "content_block_delta", "index": index, "delta": delta});
        chunks.push(chunk("content_block_delta", &delta));
    }

    fn close(&mut self, chunks: &mut Vec<Chunk>) {
        if self.open.take().is_some() {
            let ends = json!({"type": "content_block_stop", "index": self.num_closed});
            chunks.push(chunk("content_block_stop", &ends));
            self.num_closed += 1;
        }
    }
}

pub(crate) fn message(spoken: &Spoken, reason: &str, answer: &Described<'_>) -> Value {
    let mut content = Vec::new();
    if !spoken.reasoning.is_empty() {
        let thinking = &spoken.reasoning;
        content.push(json!({"type": "thinking", "thinking": thinking, "signature": ""}));
    }
    if !spoken.content.is_empty() {
        content.push(json!({"type": "text", "text": spoken.content}));
    }
    for call in &spoken.calls {
        // Of a call that was cut off nothing can be read.
        let input = serde_json::from_str(&call.arguments).unwrap_or_else(|_| json!({}));
        content.push(json!({
            "type": "tool_use", "id": answer.call(call.index), "name": call.name, "input": input,
        }));
    }
    body(answer, content, stop_reason(reason, answer.stop).into(), answer.counts)
}

fn body(answer: &Described<'_>, content: Vec<Value>, reason: Value, counts: Counts) -> Value {
    json!({
        "id": answer.id, "type": "message", "role": "assistant", "model": answer.model,
        "content": content, "stop_reason": reason, "stop_sequence": answer.stop,
        "usage": usage(counts),
    })
}

fn usage(counts: Counts) -> Value {
    json!({
        "input_tokens": counts.num_prompt - counts.num_cached,
        "cache_read_input_tokens": counts.num_cached,
        "cache_creation_input_tokens": 0,
        "output_tokens": counts.num_generated,
    })
}

fn stop_reason(reason: &str, stop: Option<&str>) -> &'static str {
    match (reason, stop) {
        ("length", _) => "max_tokens",
        ("tool_calls", _) => "tool_use",
        (_, Some(_)) => "stop_sequence",
        (_, None) => "end_turn",
    }
}

fn chunk(event: &'static str, data: &Value) -> Chunk {
    Chunk { event: Some(event), data: data.to_string() }
}
