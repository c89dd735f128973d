//! OpenAI's API as data: bodies in, legal [`Request`]s out; events in, bodies out. No HTTP here.

mod answer;
mod chat;
mod completions;
mod error;
mod fields;
mod logprobs;
mod sampling;

pub use answer::{Answer, Style};
pub use chat::parse as parse_chat;
pub use chat::prompt_of_messages;
pub use completions::parse as parse_completion;
pub use error::ApiError;
pub use fields::Fields;

use std::sync::Arc;

use protocol::config::Http;
use protocol::{ModelId, TokenId};

use crate::chat_template::ChatTemplate;
use crate::request::Request;
use crate::tokenizer::Tokenizer;

/// The model, as the API shows it.
#[derive(Clone, Debug)]
pub struct ServedModel {
    /// Its name in the API.
    pub name: String,
    /// Which weights.
    pub id: ModelId,
    /// Tokens of one sequence, prompt and answer.
    pub max_model_len: u32,
    /// Tokens that the model knows.
    pub vocab_size: u32,
    /// Tokens that end an answer.
    pub eos: Vec<TokenId>,
    /// When the server started, in seconds since 1970.
    pub created: u64,
}

/// What a body is judged by.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// What is served.
    pub model: &'a ServedModel,
    /// Text to tokens.
    pub tokenizer: &'a Arc<Tokenizer>,
    /// Messages to text, where the model has a template.
    pub chat_template: Option<&'a ChatTemplate>,
    /// Limits.
    pub config: &'a Http,
}

/// A parsed body: one request for each prompt, and how to answer.
#[derive(Debug)]
pub struct Parsed {
    /// In the order of the prompts.
    pub requests: Vec<Request>,
    /// How to answer.
    pub options: Options,
}

/// How to answer.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// As server-sent events.
    pub stream: bool,
    /// Whether a stream ends with the token counts.
    pub include_usage: bool,
    /// Whether the answer repeats the prompt.
    pub echo: bool,
    /// Whether token ids are returned beside the text.
    pub return_token_ids: bool,
    /// Whether logprobs name tokens as `token_id:N`.
    pub tokens_as_ids: bool,
    /// Whether logprobs are wanted.
    pub logprobs: bool,
}

/// An id that nobody else has.
///
/// # Errors
/// When the system has no random numbers.
pub(crate) fn random_u64() -> Result<u64, ApiError> {
    getrandom::u64().map_err(|cause| ApiError::internal(format!("no random numbers: {cause}")))
}
