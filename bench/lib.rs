//! Measures OpenAI-compatible servers: sends requests, times every token of the answers, and
//! reports what it saw. That part knows a server by its API only and must never name the
//! coordinator: what it says about ours, it can say about any.
//!
//! [`load`] decides when requests start and adds up their times, [`client`] sends one and times
//! its answer, [`report`] is what is kept of a run, and what is made of kept runs.
//!
//! [`mock`] is a server that follows a stated law of times, to measure the measuring.
//!
//! [`experiments`] measures two configurations in turn and says whether they differ.
//!
//! [`hops`] starts clusters of ours, to see what a hop between their stages costs.
//!
//! [`overhead`] starts clusters of ours to measure what a configuration costs.
//!
//! [`cluster`] starts clusters of ours for what is measured of them: [`interference`], whether work
//! that can wait stays out of the way of what can't; [`overload`], what is left when more is asked
//! than can be done; [`scaling`], what a second stage brings.
//!
//! [`alarm`] wakes them all, more exactly than the runtime's timers.
//!
//! [`engine`] knows no server: it times kernels and whole models on this machine's adapter.

pub mod alarm;
pub mod client;
pub mod cluster;
pub mod distribution;
pub mod engine;
pub mod experiments;
pub mod hops;
pub mod interference;
pub mod load;
pub mod mock;
pub mod numbers;
pub mod overhead;
pub mod overload;
pub mod report;
pub mod scaling;
pub mod users;
