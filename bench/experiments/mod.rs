//! Two configurations measured in turn, and whether they differ. The configurations that this
//! repository ships are beside this file.

pub mod configuration;
pub mod outcome;
pub mod server;
