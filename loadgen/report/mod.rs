//! What is kept of a run, and what is made of kept runs: a page ([`html`]), a table over time
//! ([`compare`]).

pub mod answers;
pub mod compare;
pub mod html;
pub mod provenance;
pub mod result;
pub mod statistics;
