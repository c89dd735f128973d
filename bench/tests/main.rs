//! The client and the binary against a server that can misbehave.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod browser;
mod connections;
mod experiments;
mod fake_server;
mod honesty;
mod loads;
mod pages;
mod qualities;
mod ratios;
mod requests;
mod verification;
