//! What can become of a request other than an answer.

use std::fmt;

/// Why a request got no whole answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// The sort, by which failures are counted.
    pub kind: FailureKind,
    /// One sentence for a person.
    pub message: String,
}

/// The sorts of failure that are counted apart.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum FailureKind {
    /// No connection.
    Unreachable,
    /// Answered with this HTTP status.
    Status(u16),
    /// The stream told of an error.
    ErrorEvent,
    /// The stream ended, or its connection broke, before `[DONE]`.
    Truncated,
    /// What came isn't what the API sends.
    Malformed,
    /// It took longer than it was given.
    Timeout,
}

impl Failure {
    pub(crate) fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable => f.write_str("unreachable"),
            Self::Status(status) => write!(f, "status {status}"),
            Self::ErrorEvent => f.write_str("error event"),
            Self::Truncated => f.write_str("truncated"),
            Self::Malformed => f.write_str("malformed"),
            Self::Timeout => f.write_str("timeout"),
        }
    }
}

/// The cause that says most: the others name the layers between.
pub(super) fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    let text = cause.to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_lowercase(),
        None => text,
    }
}
