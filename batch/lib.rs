//! From data to data: rows of a file, a table or a store become requests of a template, a running
//! cluster answers them, and rows with answers go where they are wanted, each exactly once.

pub mod address;
mod database;
pub mod http;
mod lines;
pub mod object;
pub mod row;
pub mod source;

#[cfg(test)]
mod testing;
