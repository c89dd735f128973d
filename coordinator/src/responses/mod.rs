//! OpenAI's Responses as data: a body becomes a chat's, what a chat says becomes output items.
//! <https://platform.openai.com/docs/api-reference/responses>

mod request;
mod stream;

pub(crate) use request::{NAMES, chat};
pub(crate) use stream::{Stream, response};
