//! A legal request, and what happens to it: past this point nothing is validated twice.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use protocol::{Logprobs, ModelId, RequestId, SamplingParams, TokenId};
use serde::{Deserialize, Serialize};

use crate::block_manager::BlockManager;
use crate::trace::RequestTrace;

/// Who goes first: a higher one takes the place of a lower one that runs.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Deserialize,
    Serialize,
    clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// Fills what others leave; the API's word for it is `batch`.
    Offline,
    /// Where nothing is said.
    #[default]
    Standard,
    /// Somebody waits for it.
    Interactive,
    /// Somebody waits for it while typing.
    Realtime,
}

impl Priority {
    /// All there are, lowest first.
    pub const ALL: [Self; 4] = [Self::Offline, Self::Standard, Self::Interactive, Self::Realtime];

    /// Its name in logs, metrics and answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Offline => "offline",
            Self::Standard => "standard",
            Self::Interactive => "interactive",
            Self::Realtime => "realtime",
        }
    }

    /// Its place in [`ALL`](Self::ALL).
    pub fn index(self) -> usize {
        self as usize
    }
}

/// Whose work it is: tenants of one priority share what there is by their weights.
pub type Tenant = Arc<str>;

/// All that the core knows of an answer's text: tokens go in, what may be shown comes out.
pub trait AnswerText: fmt::Debug + Send + Sync {
    /// The next token.
    fn push(&mut self, token: TokenId) -> TokenText;
    /// What was held back, once the answer ends for another reason than a stop string.
    fn finish(&mut self) -> String;
    /// A copy.
    fn copy(&self) -> Box<dyn AnswerText>;
}

impl Clone for Box<dyn AnswerText> {
    fn clone(&self) -> Self {
        self.copy()
    }
}

/// What a token brings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenText {
    /// Text that may be shown.
    pub text: String,
    /// The number of the stop string that has appeared: the answer ends before it.
    pub stopped: Option<u32>,
}

/// All that the core knows of what an answer keeps to: tokens go in, which may come next comes out.
pub trait Constraint: fmt::Debug + Send + Sync {
    /// Where it is found out which tokens may come next; none: all may.
    fn next(&self) -> Option<Arc<dyn NextTokens>>;
    /// The next token has come, none that ends answers: whether another may.
    ///
    /// # Errors
    /// Why nobody can say what may come next.
    fn push(&mut self, token: TokenId) -> Result<Going, String>;
    /// A token that ends answers has come.
    ///
    /// # Errors
    /// Why nobody could say what may come next: then nobody knows whether it might.
    fn end(&self) -> Result<(), String>;
    /// A copy.
    fn copy(&self) -> Box<dyn Constraint>;
}

/// Finds out which tokens may come next. That takes a while, for which the core has no time:
/// whoever sends a step asks, while it is under way.
pub trait NextTokens: fmt::Debug + Send + Sync {
    /// A bit for each token of the vocabulary, the lowest first; none where nobody can say, which
    /// the constraint tells with the next token, be it one that ends the answer.
    fn mask(&self) -> Option<Vec<u32>>;
}

/// The masks of a step, which are yet to be made: where, and for which of its slices.
#[derive(Clone, Debug, Default)]
pub struct WantedMasks(pub Vec<(usize, Arc<dyn NextTokens>)>);

impl PartialEq for WantedMasks {
    fn eq(&self, other: &Self) -> bool {
        self.0.iter().map(|(slice, _)| slice).eq(other.0.iter().map(|(slice, _)| slice))
    }
}

impl Clone for Box<dyn Constraint> {
    fn clone(&self) -> Self {
        self.copy()
    }
}

/// Whether an answer that keeps to something may go on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Going {
    /// It may.
    #[default]
    On,
    /// It is whole.
    Over,
}

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
    pub text: Box<dyn AnswerText>,
    /// What each answer keeps to, if anything; each choice gets a copy.
    pub constraint: Option<Box<dyn Constraint>>,
    /// Whether the hidden state of its prompt's last token is wanted, which takes `max_tokens` 0.
    pub tells_hidden: bool,
    /// Its place in a trace, where it is traced.
    pub trace: Option<Box<RequestTrace>>,
    /// Who goes first.
    pub priority: Priority,
    /// Whose it is.
    pub tenant: Tenant,
    /// Its tenant's weight: twice as much, twice the share.
    pub weight: u32,
    /// When its answer is of no more use.
    pub deadline: Option<Instant>,
    /// Whether it rather waits than go on with bits of another device class.
    pub require_exact: bool,
    /// Sequences of the same body that come before it: bodies of one tenant take turns.
    pub turn: u32,
    /// Where another coordinator began it, which is gone: how far its only choice had come.
    pub resumed: Option<Resumed>,
}

/// What is known of an answer that another coordinator began.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resumed {
    /// Its tokens so far: not all of it.
    pub tokens: Arc<[TokenId]>,
    /// The class of pipeline that they come from, where they all come from one; none also before
    /// it was computed at all.
    pub class: Option<u64>,
}

impl Request {
    /// Whether stages must know what the release before doesn't: masks, or to tell hidden states.
    pub(crate) fn needs_newest(&self) -> bool {
        self.constraint.is_some() || self.tells_hidden
    }

    /// Blocks that prompt and longest answer of a choice fill. The last token is never computed, so
    /// it needs no place.
    pub fn num_blocks(&self) -> usize {
        let (prompt, max_tokens) = (self.prompt.len(), self.max_tokens as usize);
        BlockManager::blocks_for((prompt + max_tokens).saturating_sub(1).max(prompt))
    }
}

/// What a request's client hears, in order. The last event of a request is `Finished` of its last
/// choice, or `Failed`.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A choice is computed for the first time.
    Admitted {
        /// Which choice.
        choice: u32,
        /// Tokens of the prompt that were found in the prefix cache.
        num_cached_tokens: u32,
        /// The class of pipeline that computes it.
        class: u64,
    },
    /// It went on where other bits may come out: from here on the answer isn't exact.
    Inexact,
    /// The hidden state of the prompt's last token, normed.
    Hidden(Vec<f32>),
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
    /// An end token, or the end of what the answer keeps to.
    Stop,
    /// The stop string of this number.
    StopString(u32),
    /// `max_tokens`.
    Length,
}

impl FinishReason {
    /// OpenAI's word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stop | Self::StopString(_) => "stop",
            Self::Length => "length",
        }
    }
}

/// Why an admitted request failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// It waited for a pipeline for `scheduler.max_pipeline_wait_ms`.
    #[error("no pipeline served for {waited_s} s ({cause}); send the request again")]
    NoPipeline {
        /// Seconds.
        waited_s: u64,
        /// Why there is none.
        cause: String,
    },
    /// Its deadline has passed.
    #[error("the deadline has passed: {0}")]
    DeadlineExceeded(&'static str),
    /// The step that held the request failed.
    #[error("computing this answer failed: {0}")]
    StepFailed(String),
    /// Its answer left its grammar, or that can't say what may come next.
    #[error("the answer can't keep to its grammar: {0}")]
    OffGrammar(String),
    /// Somebody who may do so has cancelled it.
    #[error("the request was cancelled")]
    Cancelled,
    /// The coordinator stops.
    #[error("the server is shutting down")]
    ShuttingDown,
}

impl RequestError {
    /// Its name in answers (`code`) and in spans (`error.type`).
    pub fn kind(&self) -> &'static str {
        match self {
            Self::NoPipeline { .. } => "no_pipeline",
            Self::DeadlineExceeded(_) => "deadline_exceeded",
            Self::StepFailed(_) => "step_failed",
            Self::OffGrammar(_) => "off_grammar",
            Self::Cancelled => "cancelled",
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
    /// A body of more than could ever wait.
    #[error(
        "{num_requests} prompts in one request, of which at most {max} can wait \
         (scheduler.max_queued_requests)"
    )]
    TooMany {
        /// Its prompts.
        num_requests: usize,
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
