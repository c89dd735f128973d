//! What the generator itself takes, and whether it was in the way of what it measured.

use std::time::Duration;

use super::sums::Sums;
use crate::report::result::{ClientUse, Metric};

/// From this share of the machine's cores on, the generator has no room left.
const BUSY_SHARE: f64 = 0.9;
/// Lag at the 99th percentile is of account from here on, in milliseconds …
const MIN_LAG_MS: f64 = 5.0;
/// … if it is more than this share of the median latency.
const MIN_LAG_SHARE: f64 = 0.05;

/// Counts the processor time of this process.
pub(crate) struct Meter {
    cpu_at_start: Duration,
}

impl Meter {
    pub(crate) fn start() -> Self {
        Self { cpu_at_start: own_use().0 }
    }

    /// What was taken since the start, `elapsed` ago.
    pub(crate) fn stop(self, elapsed: Duration, sums: &Sums) -> ClientUse {
        let (cpu, max_rss_bytes) = own_use();
        let cpu_seconds = cpu.saturating_sub(self.cpu_at_start).as_secs_f64();
        let cpu_share = cpu_seconds / elapsed.as_secs_f64().max(1e-9);
        let (p99_lag_ms, max_lag_ms) =
            (sums.lag.percentile_ms(99.0), sums.lag.percentile_ms(100.0));
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let times = sums.all.times(Metric::E2el);
        let median_ms = (!times.is_empty()).then(|| times.percentile_ms(50.0));
        let bottleneck = bottleneck(cpu_share, cores, p99_lag_ms, median_ms);
        ClientUse { cpu_seconds, cpu_share, max_rss_bytes, p99_lag_ms, max_lag_ms, bottleneck }
    }
}

/// Why the figures are the generator's rather than the server's; none when they aren't.
fn bottleneck(
    cpu_share: f64,
    cores: usize,
    p99_lag_ms: f64,
    median_ms: Option<f64>,
) -> Option<String> {
    if cpu_share >= BUSY_SHARE * cores as f64 {
        return Some(format!(
            "the generator took {cpu_share:.2} of this machine's {cores} cores: \
             it could hardly have sent more"
        ));
    }
    let median_ms = median_ms?;
    (p99_lag_ms > MIN_LAG_MS && p99_lag_ms > MIN_LAG_SHARE * median_ms).then(|| {
        format!(
            "one request in a hundred was sent {p99_lag_ms:.1} ms or more after it was due, \
             which is {:.0} % of the median latency of {median_ms:.1} ms",
            p99_lag_ms / median_ms * 100.0
        )
    })
}

/// Raises this process's limit of open files as far as it may, and returns it; none where there
/// is no such limit.
pub fn raise_file_limit() -> Option<u64> {
    #[cfg(unix)]
    {
        use nix::sys::resource::{Resource, getrlimit, setrlimit};
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
        let raised = soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok();
        Some(if raised { hard } else { soft })
    }
    #[cfg(not(unix))]
    None
}

/// Processor time of this process, and its peak resident memory in bytes; 0 where the system
/// doesn't tell.
fn own_use() -> (Duration, u64) {
    #[cfg(unix)]
    {
        use nix::sys::resource::{UsageWho, getrusage};
        let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else { return (Duration::ZERO, 0) };
        let microseconds = [usage.user_time(), usage.system_time()]
            .map(|time| time.tv_sec() * 1_000_000 + time.tv_usec());
        let cpu =
            Duration::from_micros(u64::try_from(microseconds.iter().sum::<i64>()).unwrap_or(0));
        let unit = if cfg!(target_vendor = "apple") { 1 } else { 1024 };
        let max_rss = || u64::try_from(usage.max_rss()).unwrap_or(0) * unit;
        (cpu, peak_of_image().unwrap_or_else(max_rss))
    }
    #[cfg(not(unix))]
    (Duration::ZERO, 0)
}

/// Linux counts whoever started a process into its `ru_maxrss`: the peak since it became this
/// program is elsewhere, as a line `VmHWM:  38028 kB`.
#[cfg(unix)]
fn peak_of_image() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generator_in_the_way_says_so() {
        assert_eq!(bottleneck(1.0, 2, 1.0, Some(100.0)), None);
        let busy = bottleneck(1.85, 2, 1.0, Some(100.0)).unwrap();
        assert!(busy.contains("1.85 of this machine's 2 cores"), "{busy}");
        let late = bottleneck(0.5, 2, 20.0, Some(100.0)).unwrap();
        assert!(late.contains("20.0 ms or more after it was due, which is 20 %"), "{late}");
        assert_eq!(bottleneck(0.5, 2, 20.0, Some(1000.0)), None, "of no account");
        assert_eq!(bottleneck(0.5, 2, 4.0, Some(1.0)), None, "of no account");
    }

    #[cfg(unix)]
    #[test]
    fn this_process_has_used_something() {
        let (before, bytes) = own_use();
        let mut sum = 0_u64;
        while own_use().0 < before + Duration::from_millis(20) {
            sum = std::hint::black_box(sum.wrapping_mul(31).wrapping_add(1));
        }
        assert!(bytes > 1 << 20, "{bytes}");
        assert!(raise_file_limit().unwrap() >= 64);
    }
}
