//! What ctrl-c and SIGTERM do.

use std::process::ExitCode;

use anyhow::Result;

/// What a shell says of a process that ctrl-c ended.
const INTERRUPTED: u8 = 130;

/// Resolves at ctrl-c or SIGTERM.
pub(crate) async fn interrupted() {
    #[cfg(unix)]
    let terminated = async {
        use tokio::signal::unix::{SignalKind, signal};
        match signal(SignalKind::terminate()) {
            Ok(mut signal) => signal.recv().await,
            Err(_) => std::future::pending().await,
        }
    };
    #[cfg(not(unix))]
    let terminated = std::future::pending::<Option<()>>();
    tokio::select! {
        // Without the signal's handler ctrl-c just ends us.
        Ok(()) = tokio::signal::ctrl_c() => {}
        _ = terminated => {}
    }
}

/// Does `work`. Interrupted, it is dropped, and the servers that it started end with it.
pub(crate) async fn unless_interrupted(
    work: impl Future<Output = Result<ExitCode>>,
) -> Result<ExitCode> {
    tokio::select! {
        ended = work => ended,
        () = interrupted() => Ok(ExitCode::from(INTERRUPTED)),
    }
}
