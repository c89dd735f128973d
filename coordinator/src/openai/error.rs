//! Errors as OpenAI's clients expect them.

use serde_json::{Value, json};

use crate::keys::{KeyRefusal, OverQuota};
use crate::request::{RequestError, SubmitError};

/// An error on its way to a client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// The HTTP status.
    pub status: u16,
    /// OpenAI's `type`.
    pub kind: &'static str,
    /// OpenAI's `code`.
    pub code: Option<&'static str>,
    /// The field that is wrong.
    pub param: Option<String>,
    /// One sentence: what is wrong, and what would be right.
    pub message: String,
    /// Seconds after which trying again makes sense.
    pub retry_after: Option<u32>,
}

impl ApiError {
    /// The client's fault.
    pub(crate) fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            status: 400,
            kind: "invalid_request_error",
            code: None,
            param: Some(param.into()),
            message: message.into(),
            retry_after: None,
        }
    }

    /// A body that isn't what it should be.
    pub(crate) fn malformed(message: impl Into<String>) -> Self {
        Self { param: None, ..Self::invalid("", message) }
    }

    pub(crate) fn no_model(name: &str, served: &str) -> Self {
        let message = format!("there is no model {name}; this server has {served}");
        Self::invalid("model", message).status(404).code("model_not_found")
    }

    /// About a chat's field by the name that it has in another API: an element by where that comes
    /// from, and by each of `names`, pairs of a chat's and that one's, that the field begins with
    /// or, where a dot comes first, contains.
    pub(crate) fn renamed(mut self, names: &[(&str, &str)], places: &Places) -> Self {
        let Some(param) = &mut self.param else { return self };
        let mut rename = |param: &mut String, chat: &str, theirs: &str| {
            *param = param.replacen(chat, theirs, 1);
            self.message = self.message.replacen(chat, theirs, 1);
        };
        if let Some((chat, theirs)) = places.find(param) {
            rename(param, &chat, theirs);
        }
        for (chat, theirs) in names {
            let is_of = if chat.starts_with('.') {
                param.contains(chat)
            } else {
                param
                    .strip_prefix(chat)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
            };
            if is_of {
                rename(param, chat, theirs);
            }
        }
        self
    }

    pub(crate) fn code(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }

    pub(crate) fn status(self, status: u16) -> Self {
        Self { status, ..self }
    }

    /// Our fault.
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self { status: 500, kind: "server_error", param: None, ..Self::invalid("", message) }
    }

    /// Full, or not there yet: worth another try.
    pub(crate) fn unavailable(message: impl Into<String>, code: &'static str) -> Self {
        Self {
            status: 503,
            kind: "service_unavailable",
            code: Some(code),
            retry_after: Some(1),
            ..Self::internal(message)
        }
    }

    /// OpenAI's error object.
    pub(crate) fn body(&self) -> Value {
        json!({"error": {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }})
    }
}

/// Where the elements of a chat's lists come from in a body of another API.
#[derive(Debug, Default)]
pub(crate) struct Places {
    /// Of each message.
    pub(crate) messages: Vec<String>,
    /// Of each tool.
    pub(crate) tools: Vec<String>,
}

impl Places {
    /// What a field of an element begins with, and what it begins with there.
    fn find(&self, param: &str) -> Option<(String, &str)> {
        [("messages", &self.messages), ("tools", &self.tools)].into_iter().find_map(|(list, of)| {
            let (number, _) = param.strip_prefix(list)?.strip_prefix('[')?.split_once(']')?;
            let place = of.get(number.parse::<usize>().ok()?)?;
            // Whatever is no element is a text.
            let content = if place.ends_with(']') { "" } else { ".content" };
            Some((format!("{list}[{number}]{content}"), place.as_str()))
        })
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        let message = error.to_string();
        match error {
            SubmitError::QueueFull { .. } => Self::unavailable(message, "queue_full"),
            SubmitError::NoPipeline(_) => Self::unavailable(message, "no_pipeline"),
            SubmitError::ShuttingDown => Self::unavailable(message, "shutting_down"),
            SubmitError::TooMany { .. } => Self::invalid("prompt", message),
            SubmitError::TooLarge { .. } => {
                Self::malformed(message).code("context_length_exceeded")
            }
        }
    }
}

impl From<OverQuota> for ApiError {
    fn from(error: OverQuota) -> Self {
        let message = error.to_string();
        // Requests or tokens: OpenAI's clients tell by the type which of the two ran out.
        let (kind, wait_s) = match error {
            OverQuota::TooLarge { .. } => {
                return Self::invalid("max_tokens", message).code("key_limit_exceeded");
            }
            OverQuota::Tokens { wait_s, .. } => ("tokens", wait_s),
            OverQuota::Requests { wait_s, .. } => ("requests", wait_s),
            // When one ends nobody knows.
            OverQuota::Streams { .. } => ("requests", 1),
        };
        let error = Self::malformed(message).status(429).code("rate_limit_exceeded");
        Self { kind, retry_after: Some(wait_s), ..error }
    }
}

impl From<KeyRefusal> for ApiError {
    fn from(refusal: KeyRefusal) -> Self {
        Self::malformed(refusal.to_string()).status(401).code("invalid_api_key")
    }
}

impl From<RequestError> for ApiError {
    fn from(error: RequestError) -> Self {
        let (message, code) = (error.to_string(), error.kind());
        match error {
            RequestError::NoPipeline { .. } | RequestError::ShuttingDown => {
                Self::unavailable(message, code)
            }
            RequestError::DeadlineExceeded(_) => {
                Self { status: 504, kind: "timeout", ..Self::internal(message) }.code(code)
            }
            RequestError::StepFailed(_) | RequestError::OffGrammar(_) => {
                Self::internal(message).code(code)
            }
            // nginx's code for a request that its client doesn't want any more.
            RequestError::Cancelled => Self::malformed(message).status(499).code(code),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_has_its_status_and_code() {
        let submit = |error: SubmitError| ApiError::from(error);
        let request = |error: RequestError| ApiError::from(error);
        let table = [
            (submit(SubmitError::QueueFull { max: 1 }), 503, Some("queue_full"), true),
            (submit(SubmitError::TooMany { num_requests: 3, max: 2 }), 400, None, false),
            (submit(SubmitError::NoPipeline("x".into())), 503, Some("no_pipeline"), true),
            (submit(SubmitError::ShuttingDown), 503, Some("shutting_down"), true),
            (
                submit(SubmitError::TooLarge { needed: 2, held: 1 }),
                400,
                Some("context_length_exceeded"),
                false,
            ),
            (
                request(RequestError::NoPipeline { waited_s: 9, cause: "x".into() }),
                503,
                Some("no_pipeline"),
                true,
            ),
            (request(RequestError::DeadlineExceeded("x")), 504, Some("deadline_exceeded"), false),
            (request(RequestError::StepFailed("x".into())), 500, Some("step_failed"), false),
            (request(RequestError::OffGrammar("x".into())), 500, Some("off_grammar"), false),
            (request(RequestError::Cancelled), 499, Some("cancelled"), false),
            (request(RequestError::ShuttingDown), 503, Some("shutting_down"), true),
            (
                OverQuota::Requests { limit: 1, wait_s: 60 }.into(),
                429,
                Some("rate_limit_exceeded"),
                true,
            ),
            (
                OverQuota::Tokens { limit: 9, remaining: 2, num: 3, wait_s: 7 }.into(),
                429,
                Some("rate_limit_exceeded"),
                true,
            ),
            (OverQuota::Streams { limit: 1 }.into(), 429, Some("rate_limit_exceeded"), true),
            (
                OverQuota::TooLarge { limit: 1, num: 2 }.into(),
                400,
                Some("key_limit_exceeded"),
                false,
            ),
            (KeyRefusal::Missing.into(), 401, Some("invalid_api_key"), false),
            (KeyRefusal::Unknown.into(), 401, Some("invalid_api_key"), false),
        ];
        for (error, status, code, retry) in table {
            assert_eq!(
                (error.status, error.code, error.retry_after.is_some()),
                (status, code, retry)
            );
            assert!(error.body()["error"]["message"].is_string());
        }
    }
}
