//! What an answer is written as: OpenAI's objects, written as they are, since each token has one.

use serde::Serialize;
use serde_json::Value;

/// What an answer and each of its chunks begin with.
#[derive(Serialize)]
pub(super) struct Head<'a> {
    pub(super) id: &'a str,
    pub(super) object: &'static str,
    pub(super) created: u64,
    pub(super) model: &'a str,
    pub(super) system_fingerprint: &'a str,
}

/// An answer, or a chunk of one: what follows its head.
#[derive(Serialize)]
pub(super) struct Body<'a> {
    pub(super) choices: Vec<Choice<'a>>,
    /// Only where it isn't: bits may have changed on the way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) exact: Option<bool>,
    /// Of chunks not there, null, or the counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) usage: Option<Option<Usage>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) prompt_token_ids: Option<Vec<u32>>,
}

#[derive(Default, Serialize)]
pub(super) struct Choice<'a> {
    pub(super) index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) delta: Option<Message<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) message: Option<Message<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) text: Option<&'a str>,
    pub(super) logprobs: Option<Value>,
    pub(super) finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) token_ids: Option<Vec<u32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) prompt_token_ids: Option<Vec<u32>>,
}

/// What is said in a chat, or a part of it.
#[derive(Default, Serialize)]
pub(super) struct Message<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) role: Option<&'static str>,
    /// Null beside calls alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) content: Option<Option<&'a str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reasoning_content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tool_calls: Option<Vec<CallBody<'a>>>,
    /// Null where it is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) refusal: Option<()>,
}

/// A call of a tool, or a part of it.
#[derive(Serialize)]
pub(super) struct CallBody<'a> {
    /// In streams.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) index: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) id: Option<String>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub(super) kind: Option<&'static str>,
    pub(super) function: FunctionBody<'a>,
}

#[derive(Serialize)]
pub(super) struct FunctionBody<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<&'a str>,
    pub(super) arguments: &'a str,
}

#[derive(Serialize)]
pub(super) struct Usage {
    pub(super) prompt_tokens: usize,
    pub(super) completion_tokens: usize,
    pub(super) total_tokens: usize,
    pub(super) prompt_tokens_details: Details,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) exact: Option<bool>,
}

/// Which of the prompt's.
#[derive(Serialize)]
pub(super) struct Details {
    pub(super) cached_tokens: usize,
}

impl Head<'_> {
    /// As JSON, without its end: every chunk of an answer has the same.
    pub(super) fn text(&self) -> String {
        let mut text = serde_json::to_string(self).expect("it is written to memory");
        text.pop();
        text
    }
}

impl Body<'_> {
    /// As JSON, behind a head's.
    pub(super) fn text(&self, head: &str) -> String {
        // Most are short, and one allocation is enough for them.
        let mut text = Vec::with_capacity(head.len() + 256);
        text.extend_from_slice(head.as_bytes());
        serde_json::to_writer(&mut text, self).expect("it is written to memory");
        // The head's fields and these are one object's.
        text[head.len()] = b',';
        String::from_utf8(text).expect("JSON is UTF-8")
    }
}
