//! A legal request, and what happens to it: past this point nothing is validated twice.

use std::sync::Arc;

use protocol::{Logprobs, ModelId, RequestId, SamplingParams, TokenId};

use crate::text::TextStream;
use crate::trace::RequestTrace;

/// One completion, parsed: every value is legal for the model that is served.
#[derive(Clone, Debug)]
pub struct Request {
    /// Drawn by the API when the request arrived.
    pub id: RequestId,
    /// Which model.
    pub model: ModelId,
    /// At least one token; with `max_tokens` it fits the model's context.
    pub prompt: Arc<[TokenId]>,
    /// How many answers; each is a sequence of its own.
    pub num_choices: u32,
    /// How tokens are chosen. The choice's index is filled in for each sequence.
    pub sampling: SamplingParams,
    /// Tokens of one answer; 0 computes the prompt only (for its logprobs).
    pub max_tokens: u32,
    /// Tokens that end the answer: the model's ends, unless the request ignores them.
    pub stop_tokens: Arc<[TokenId]>,
    /// Turns tokens into text and notices stop strings; each choice gets a copy.
    pub text: TextStream,
    /// Its place in a trace, where it is traced.
    pub trace: Option<Box<RequestTrace>>,
}

/// What a request's client hears, in order. The last event of a request is `Finished` of its last
/// choice, or `Failed`.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The logprobs of the prompt's tokens after the first; before the first token of choice 0.
    Prompt(Vec<Logprobs>),
    /// A token was sampled and recorded.
    Token {
        /// Of which choice.
        choice: u32,
        /// The token.
        token: TokenId,
        /// Its logprobs, where asked for.
        logprobs: Option<Logprobs>,
        /// Text that may be shown now. Empty while a character or a stop string may be under way.
        text: String,
    },
    /// A choice has ended.
    Finished {
        /// Which choice.
        choice: u32,
        /// Why.
        reason: FinishReason,
        /// Text that was held back and may be shown now.
        text: String,
    },
    /// The request can't be answered.
    Failed(RequestError),
}

/// Why a choice ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// An end token or a stop string.
    Stop,
    /// `max_tokens`.
    Length,
}

impl FinishReason {
    /// OpenAI's word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

/// Why an admitted request failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// A stage was lost while the request ran.
    #[error("the pipeline that computed this answer was lost ({0}); send the request again")]
    PipelineLost(String),
    /// The step that held the request failed.
    #[error("computing this answer failed: {0}")]
    StepFailed(String),
    /// The coordinator stops.
    #[error("the server is shutting down")]
    ShuttingDown,
}

impl RequestError {
    /// Its name in answers (`code`) and in spans (`error.type`).
    pub fn kind(&self) -> &'static str {
        match self {
            Self::PipelineLost(_) => "pipeline_lost",
            Self::StepFailed(_) => "step_failed",
            Self::ShuttingDown => "shutting_down",
        }
    }
}

/// Why a request is not admitted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// `scheduler.max_queued_requests` wait already.
    #[error("{max} requests wait already (scheduler.max_queued_requests); try again later")]
    QueueFull {
        /// The limit.
        max: usize,
    },
    /// No pipeline serves.
    #[error("no pipeline serves: {0}")]
    NoPipeline(String),
    /// Larger than the KV cache of the pipeline.
    #[error("the request needs {needed} KV blocks, the pipeline has {held}")]
    TooLarge {
        /// Blocks of 16 tokens that prompt and answer fill.
        needed: usize,
        /// Blocks of the pipeline.
        held: usize,
    },
    /// The coordinator stops.
    #[error("the server is shutting down")]
    ShuttingDown,
}
