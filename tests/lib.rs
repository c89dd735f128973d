//! What the tests share: goldens, models in fp8, clusters of real processes, and a proxy that does
//! harm.

pub mod cluster;
pub mod fp8;
pub mod collector;
pub mod golden;
pub mod proxy;
