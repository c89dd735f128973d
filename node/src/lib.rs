//! A node: joins a coordinator, loads the layers that it is given, computes their part of every
//! step and passes activations on. It never sees HTTP or text.

pub mod actor;
pub mod cache;
mod choice;
mod courier;
mod device_thread;
mod devices;
pub mod doctor;
pub mod error;
mod fetch;
mod fetching;
mod identity;
pub mod joining;
mod kept;
mod links;
pub mod memory;
pub mod model;
pub mod parent;
mod progress;
mod proven;
mod rows;
pub mod run;
pub mod samples;
pub mod sequences;
mod session;
#[cfg(test)]
mod session_tests;
pub mod stage;
mod trace;
mod weights;
