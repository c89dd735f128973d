//! Measures OpenAI-compatible servers: sends requests, times every token of the answers, and
//! reports what it saw. It knows a server by its API only and must never name a crate of the
//! cluster: what it says about ours, it can say about any.
//!
//! [`load`] decides when requests start, [`client`] sends one and times its answer, [`sse`]
//! reads the stream, [`metrics`] adds the times up, [`report`] writes them down.

pub mod client;
pub mod failure;
pub mod load;
pub mod metrics;
pub mod prompts;
pub mod report;
pub mod request;
pub mod sse;
