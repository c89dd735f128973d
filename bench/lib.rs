//! Measures OpenAI-compatible servers: sends requests, times every token of the answers, and
//! reports what it saw. That part knows a server by its API only and must never name the
//! coordinator: what it says about ours, it can say about any.
//!
//! [`load`] decides when requests start, [`client`] sends one and times its answer, [`sse`]
//! reads the stream, [`metrics`] adds the times up, [`report`] writes them down.
//!
//! [`kernels`] and [`model`] know no server: they time the kernels, and a whole model
//! ([`engine`], perhaps a [`random_model`]), on this machine's adapter. [`quality`] compares what a
//! model says in one format and another.

pub mod client;
pub mod engine;
pub mod failure;
pub mod kernels;
pub mod load;
pub mod metrics;
pub mod model;
pub mod prompts;
pub mod quality;
pub mod random_model;
pub mod report;
pub mod request;
pub mod sse;
