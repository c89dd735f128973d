//! What a thread has computed, as the system counts it.

#[cfg(not(unix))]
use std::sync::LazyLock;
use std::time::Duration;
#[cfg(not(unix))]
use std::time::Instant;

/// Of this thread, from some moment on: a software driver's threads may have its processor for a
/// while.
#[cfg(unix)]
pub(crate) fn processor_time() -> Duration {
    let clock = nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID;
    nix::time::clock_gettime(clock).map(Duration::from).unwrap_or_default()
}

/// Where there is no such clock, time that passes.
#[cfg(not(unix))]
pub(crate) fn processor_time() -> Duration {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed()
}
