//! What is kept of a run, and what is made of kept runs.

pub mod result;
