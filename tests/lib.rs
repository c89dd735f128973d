//! What the tests share: goldens, models in fp8 and packed integers, clusters of real processes,
//! machines on a network, a collector of spans, a proxy and a wire that do harm, and the scheduler
//! in virtual time.

pub mod batch_load;
pub mod batch_runs;
pub mod browser;
pub mod chaos;
pub mod cluster;
pub mod collector;
pub mod fp8;
pub mod golden;
pub mod namespaces;
pub mod packed;
pub mod proxy;
pub mod readers;
pub mod said;
pub mod simulation;
pub mod wire;
