//! Anthropic's Messages as data: a body becomes a chat's, what a chat says becomes content blocks.
//! <https://docs.anthropic.com/en/api/messages>

mod request;
mod stream;

use serde_json::{Value, json};

pub(crate) use request::{NAMES, chat};
pub(crate) use stream::{Stream, message};

use crate::openai::ApiError;

/// An error in Anthropic's form.
pub(crate) fn error(error: &ApiError) -> Value {
    let kind = match error.status {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        503 | 504 => "overloaded_error",
        500.. => "api_error",
        _ => "invalid_request_error",
    };
    json!({"type": "error", "error": {"type": kind, "message": error.message}})
}
