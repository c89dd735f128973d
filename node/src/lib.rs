//! A node: joins a coordinator, loads the layers that it is given, computes their part of every
//! step and passes activations on. It never sees HTTP or text.

pub mod actor;
pub mod cache;
mod choice;
mod courier;
pub mod device_thread;
pub mod devices;
pub mod doctor;
pub mod error;
pub mod fetch;
mod fetching;
pub mod identity;
pub mod joining;
pub mod kept;
pub mod links;
pub mod memory;
pub mod model;
pub mod parent;
pub mod progress;
mod proven;
pub mod rows;
pub mod run;
pub mod samples;
pub mod sequences;
pub mod session;
#[cfg(test)]
mod session_tests;
pub mod stage;
mod trace;
pub mod weights;
