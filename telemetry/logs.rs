//! Log lines on standard error.

use std::io::IsTerminal;

use protocol::config::{Log, LogFormat};
use tracing_subscriber::EnvFilter;

/// Begins to log as configured; RUST_LOG wins over the configured level.
pub fn init_logs(log: &Log) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(&log.level));
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match log.format {
        LogFormat::Text => lines.init(),
        LogFormat::Json => lines.json().flatten_event(true).init(),
    }
}
