//! From data to data: rows of a file, a table or a store become requests of a template, a running
//! cluster answers them, and rows with answers go where they are wanted, each exactly once.

pub mod address;
pub mod answerer;
pub mod arguments;
pub mod asking;
pub mod clean;
mod database;
mod guard;
pub mod http;
pub mod journal;
pub mod object;
pub mod progress;
mod reading;
pub mod run;
pub mod sink;
pub mod source;
pub mod template;
mod writing;

#[cfg(test)]
mod run_tests;
#[cfg(test)]
mod servers_tests;
#[cfg(test)]
mod testing;
