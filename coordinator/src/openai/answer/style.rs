//! The endpoints that answer.

use serde_json::Value;

use crate::openai::ApiError;

/// Which endpoint's bodies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completion,
    /// `/v1/messages`
    Messages,
    /// `/v1/responses`
    Responses,
    /// `/infill`
    Infill,
    /// `/v1/embeddings`
    Embeddings,
}

impl Style {
    /// Whether messages go through the model's template.
    pub(crate) fn renders(self) -> bool {
        !matches!(self, Self::Completion | Self::Infill | Self::Embeddings)
    }

    /// What an answer's id begins with.
    pub(super) fn prefix(self) -> &'static str {
        match self {
            Self::Chat => "chatcmpl-",
            Self::Completion => "cmpl-",
            Self::Messages => "msg_",
            Self::Responses => "resp_",
            Self::Infill => "infill-",
            Self::Embeddings => "embd-",
        }
    }

    /// The body of an error.
    pub fn error(self, error: &ApiError) -> Value {
        match self {
            Self::Messages => crate::messages::error(error),
            Self::Chat | Self::Completion | Self::Responses | Self::Infill | Self::Embeddings => {
                error.body()
            }
        }
    }
}
