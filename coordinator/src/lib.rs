//! The coordinator: HTTP, tokenizer, scheduler, placement. It never sees a tensor.

pub mod engine;
pub mod request;
pub mod status;
pub mod text;
