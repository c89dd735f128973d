//! One binary, one module per area.

mod answers;
mod api;
mod bad_input;
mod failover;
mod faults;
mod hops;
mod install;
mod invariance;
mod keys;
mod measurements;
mod monitoring;
mod openai_python;
mod products;
mod scheduling;
mod sessions;
mod stages;
mod tidy;
mod traces;
mod verification;
