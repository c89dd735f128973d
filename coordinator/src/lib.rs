//! The coordinator: HTTP, tokenizer, scheduler, placement. It never sees a tensor.

// Requests and text.
pub mod chat_template;
pub mod grammar;
mod guard;
mod infill;
mod messages;
pub mod openai;
mod parser;
pub mod request;
mod responses;
pub mod text;
pub mod tokenizer;

// The core: pure.
mod autoscaler;
mod backoff;
pub mod block_manager;
pub mod cluster;
mod duty;
mod history;
mod known;
pub mod lane;
mod members;
mod pipeline;
pub mod placement;
pub mod queue;
mod recent;
pub mod sequence;
pub mod snapshot;
mod status;
mod step_cost;
mod trace;
mod trust;

// The shells.
mod actor;
mod admission;
mod asking;
pub mod batch_job;
mod completion;
pub mod data_dir;
pub mod doctor;
mod door;
mod durable;
mod engine;
mod events;
pub mod explain;
pub mod hand_over;
mod http;
pub mod keys;
mod local_nodes;
mod metrics;
pub mod model;
pub mod operator;
mod placed;
pub mod plan;
mod scaling;
pub mod serve;
mod sessions;
mod spans;
mod stages;
mod stamp;
mod start_number;
mod store;
pub mod tokens;
pub mod top;
mod trips;
pub mod weights;
mod whereabouts;

#[cfg(test)]
mod cancel_tests;
#[cfg(test)]
mod cluster_config_tests;
#[cfg(test)]
mod cluster_tests;
#[cfg(test)]
mod explain_tests;
#[cfg(test)]
mod failover_tests;
#[cfg(test)]
mod joining_tests;
#[cfg(test)]
mod testing;
