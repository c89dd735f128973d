//! Two configurations measured in turn, and whether they differ. The configurations that this
//! repository ships are in `bench/experiments/`.

pub mod configuration;
pub mod outcome;
pub mod server;
