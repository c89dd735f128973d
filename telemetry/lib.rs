//! What a process says of itself: log lines, and spans for an OpenTelemetry collector.
//!
//! Coordinator and nodes share it, and neither may depend on the other. It is the only place that
//! names OpenTelemetry's crates. It decides nothing about requests: which are traced, and what
//! their spans are called, is said by whoever knows them.

mod logs;
mod tracer;

pub use logs::init_logs;
pub use opentelemetry::{Array, KeyValue, StringValue, Value};
pub use tracer::{Kind, Service, Span, Tracer};
