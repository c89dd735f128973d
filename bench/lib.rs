//! Measures OpenAI-compatible servers: sends requests, times every token of the answers, and
//! reports what it saw. It knows a server by its API only and must never name the coordinator or
//! the node: what it says about ours, it can say about any.
//!
//! [`load`] decides when requests start, [`client`] sends one and times its answer, [`sse`]
//! reads the stream, [`metrics`] adds the times up, [`report`] writes them down. [`kernels`] knows
//! no server: it times the kernels on this machine's adapter.

pub mod client;
pub mod failure;
pub mod kernels;
pub mod load;
pub mod metrics;
pub mod prompts;
pub mod report;
pub mod request;
pub mod sse;
