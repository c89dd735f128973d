//! OpenAI's API as data: bodies in, legal [`Request`]s out; events in, bodies out. No HTTP here.

mod allowance;
mod answer;
mod body;
mod chat;
mod completions;
mod embeddings;
mod error;
mod fields;
mod infill;
mod known;
#[cfg(test)]
mod limit_tests;
mod logprobs;
mod sampling;
mod scheduling;
mod structured;
#[cfg(test)]
pub(crate) mod testing;
mod tools;

pub use answer::Style;
pub(crate) use answer::{Answer, Chunk};
pub(crate) use answer::{Counts, Described, Spoken};
pub(crate) use chat::prompt_of_messages;
pub(crate) use chat::{count_messages, parse as parse_chat, parse_messages, parse_responses};
pub(crate) use completions::parse as parse_completion;
pub(crate) use embeddings::{Embedding, parse as parse_embeddings};
pub(crate) use error::{ApiError, Places};
pub(crate) use fields::Fields;
pub(crate) use fields::wrong;
pub(crate) use infill::parse as parse_infill;
pub(crate) use sampling::check_model;
pub(crate) use scheduling::deadline;
pub(crate) use structured::may_be_asked;
pub(crate) use tools::{Asked, Reading};

use std::sync::Arc;

use protocol::config::Http;
use protocol::{ModelId, TokenId};

use crate::chat_template::ChatTemplate;
use crate::keys::Access;
use crate::request::Request;
use crate::tokenizer::Tokenizer;

/// The model, as the API shows it.
#[derive(Clone, Debug)]
pub(crate) struct ServedModel {
    pub name: String,
    pub id: ModelId,
    /// Tokens of one sequence, prompt and answer.
    pub max_model_len: u32,
    /// Tokens that the model knows.
    pub vocab_size: u32,
    /// Values of an embedding.
    pub hidden_size: u32,
    /// Tokens that end an answer.
    pub eos: Vec<TokenId>,
    /// How the model is sampled where a request doesn't say.
    pub sampling: checkpoint::SamplingDefaults,
    /// When the server started, in seconds since 1970.
    pub created: u64,
}

/// What a body is judged by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Context<'a> {
    pub model: &'a ServedModel,
    /// Text to tokens.
    pub tokenizer: &'a Arc<Tokenizer>,
    /// Messages to text, where the model has a template.
    pub chat_template: Option<&'a ChatTemplate>,
    pub config: &'a Http,
    /// Who asks, and how much they may.
    pub access: &'a Access,
    /// The seed of a body without one; none: it is drawn.
    pub seed: Option<u64>,
}

/// A parsed body: one request for each prompt, and how to answer.
#[derive(Clone, Debug)]
pub(crate) struct Parsed {
    /// In the order of the prompts.
    pub requests: Vec<Request>,
    /// For each of them what an answer repeats, where that is wanted.
    pub echoes: Vec<Echo>,
    pub options: Options,
}

/// A prompt as it was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Echo {
    pub text: String,
    /// Its tokens, of those that are computed: special ones may have been added around them.
    pub tokens: std::ops::Range<usize>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    /// As server-sent events.
    pub stream: bool,
    /// Whether a stream ends with the token counts.
    pub include_usage: bool,
    /// Whether each chunk has those so far.
    pub continuous_usage: bool,
    /// Whether the answer repeats the prompt.
    pub echo: bool,
    /// Whether token ids are returned beside the text.
    pub return_token_ids: bool,
    /// Whether logprobs name tokens as `token_id:N`.
    pub tokens_as_ids: bool,
    pub logprobs: bool,
    /// Strings that end an answer.
    pub stops: Arc<[String]>,
    /// What a response repeats of its request.
    pub repeated: Arc<serde_json::Map<String, serde_json::Value>>,
    /// How embeddings are told, where they are what is asked for.
    pub embedding: Option<Embedding>,
    /// Whether the answer outlives the coordinator.
    pub durable: bool,
    /// How reasoning and calls are told from content; `None` is not at all.
    pub reading: Option<Reading>,
}

/// An id that nobody else has.
///
/// # Errors
/// When the system has no random numbers.
pub(crate) fn random_u64() -> Result<u64, ApiError> {
    getrandom::u64().map_err(|cause| ApiError::internal(format!("no random numbers: {cause}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Map, Value, json};
    use std::sync::LazyLock;

    static SERVED: LazyLock<testing::Served> = LazyLock::new(testing::Served::chat);

    const FIELDS: &str = "model messages prompt max_tokens max_completion_tokens temperature top_p \
        top_k min_p seed stop n best_of logprobs top_logprobs logit_bias frequency_penalty \
        presence_penalty repetition_penalty stream stream_options ignore_eos echo user \
        return_token_ids return_tokens_as_token_ids chat_template_kwargs add_generation_prompt \
        response_format structured_outputs guided_json modalities store tools suffix";

    const INNER: &str = "role content name type text tool_calls function arguments include_usage \
        reasoning_content tool_call_id enable_thinking tools 5 05 640";

    fn name(of: &'static str) -> impl Strategy<Value = String> {
        proptest::sample::select(of.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    fn value() -> impl Strategy<Value = Value> {
        let texts = ["", "m", "user", "assistant", "text", "{\"a\": 1}", "<|user|>", "\u{fffd}\0"];
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            (-3i64..700).prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            proptest::sample::select(texts.to_vec()).prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::vec((name(INNER), inner), 0..4)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    /// I8: nothing from the network can panic; what is accepted is legal.
    fn check(body: &[u8]) {
        for parse in [parse_chat, parse_completion] {
            let Ok(parsed) = parse(body, SERVED.context()) else { continue };
            for request in parsed.requests {
                let num_tokens = request.prompt.len() as u32 + request.max_tokens;
                assert!((1..=256).contains(&num_tokens) && !request.prompt.is_empty());
                assert!(request.prompt.iter().all(|token| token.0 < 640));
                let sampling = request.sampling;
                assert!(sampling.temperature >= 0.0 && sampling.temperature.is_finite());
                assert!((0.0..=1.0).contains(&sampling.top_p));
                assert!((0.0..=1.0).contains(&sampling.min_p));
                assert!(sampling.repetition_penalty > 0.0);
                assert!(sampling.logit_bias.iter().all(|(_, bias)| bias.is_finite()));
                assert!((1..=16).contains(&request.num_choices));
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2048))]
        #[test]
        fn no_body_panics_and_what_is_accepted_is_legal(
            more in proptest::collection::vec((name(FIELDS), value()), 0..4),
        ) {
            for body in [
                json!({"model": "m", "prompt": [5]}),
                json!({"model": "m", "messages": [{"role": "user", "content": "Hi"}]}),
            ] {
                let mut body = body;
                let more: Map<_, _> = more.clone().into_iter().collect();
                body.as_object_mut().unwrap().extend(more);
                check(body.to_string().as_bytes());
            }
        }

        #[test]
        fn no_message_panics(messages in proptest::collection::vec(value(), 0..3)) {
            check(json!({"model": "m", "messages": messages}).to_string().as_bytes());
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            check(&bytes);
        }
    }
}
