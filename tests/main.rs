//! One binary, one module per area.

mod answers;
mod api;
mod bad_input;
mod deploy;
mod doctor;
mod explain;
mod failover;
mod faults;
mod hops;
mod install;
mod invariance;
mod keys;
mod measurements;
mod monitoring;
mod openai_python;
mod placement;
mod products;
mod repeats;
mod scaling;
mod scheduling;
mod sessions;
mod sharing;
mod stages;
mod tidy;
mod traces;
mod verification;
