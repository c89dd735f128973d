//! What the tests share: goldens, and clusters of real processes.

pub mod cluster;
pub mod golden;
