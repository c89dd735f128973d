//! What is measured of ours: clusters, models, kernels. Servers are asked by [`loadgen`], which
//! knows them by their API only.
//!
//! [`cluster`] starts clusters of ours, [`users`] ask them: [`hops`] for what a hop between stages
//! costs, [`interference`] for whether work that can wait stays out of the way of what can't,
//! [`overload`] for what is left when more is asked than can be done, [`scaling`] for what a second
//! stage brings, [`structured`] for what it costs that answers keep to a schema.
//!
//! [`engine`] knows no server: it times kernels and whole models on this machine's adapter.

pub mod cluster;
pub mod engine;
pub mod hops;
pub mod interference;
pub mod overload;
pub mod placement;
mod processes;
pub mod scaling;
pub mod structured;
pub mod users;
