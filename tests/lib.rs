//! What the tests share: goldens, clusters of real processes, and a proxy that does harm.

pub mod cluster;
pub mod golden;
pub mod proxy;
