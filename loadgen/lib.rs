//! Measures OpenAI-compatible servers: sends requests, times every token of the answers, and
//! reports what it saw. It knows a server by its API only, and nothing of ours: what it says about
//! ours, it can say about any.
//!
//! [`load`] decides when requests start and adds up their times, [`client`] sends one and times
//! its answer, [`report`] is what is kept of a run, and what is made of kept runs.
//!
//! [`mock`] is a server that follows a stated law of times, to measure the measuring.
//!
//! [`experiments`] measures two configurations in turn and says whether they differ.
//!
//! `alarm` wakes them all, more exactly than the runtime's timers.

mod alarm;
pub mod client;
pub mod distribution;
pub mod experiments;
pub mod load;
pub mod mock;
pub mod numbers;
pub mod report;
