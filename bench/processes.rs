//! Processor time, memory and children of a process, as Linux keeps them.

use std::path::Path;

use anyhow::{Context, Result};

/// Linux counts in hundredths of a second.
const TICKS_PER_SECOND: f64 = 100.0;

/// Processor seconds that a process has taken so far, user and system.
///
/// # Errors
/// Where there is no /proc, or the process is gone.
pub(crate) fn seconds(pid: u32) -> Result<f64> {
    let ticks = |name| -> Result<u64> { Ok(stat(pid, name)?.parse()?) };
    Ok((ticks(Stat::User)? + ticks(Stat::System)?) as f64 / TICKS_PER_SECOND)
}

/// The processes that a process started and that still run, the oldest first.
///
/// # Errors
/// Where there is no /proc.
pub(crate) fn children(pid: u32) -> Result<Vec<u32>> {
    let entries = std::fs::read_dir("/proc").context("processor time is read from /proc")?;
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_child = |child: &u32| stat(*child, Stat::Parent).is_ok_and(|it| it == pid.to_string());
    let mut children: Vec<_> = pids.filter(is_child).collect();
    children.sort_unstable();
    Ok(children)
}

/// Bytes of memory that a process has in use: its resident set.
///
/// # Errors
/// Where there is no /proc, or the process is gone.
pub(crate) fn resident_bytes(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let text = std::fs::read_to_string(&path).with_context(|| format!("can't read {path}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    Ok(kib.with_context(|| format!("{path} tells no VmRSS"))? * 1024)
}

/// Fields of /proc/PID/stat, counted after the command's name, which may hold anything.
#[derive(Clone, Copy)]
enum Stat {
    Parent = 1,
    User = 11,
    System = 12,
}

fn stat(pid: u32, field: Stat) -> Result<String> {
    let path = Path::new("/proc").join(pid.to_string()).join("stat");
    let text =
        std::fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))?;
    let (_, fields) = text.rsplit_once(')').context("stat names no command")?;
    let found = fields.split_whitespace().nth(field as usize);
    Ok(found.context("stat is too short")?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn work_shows_in_the_seconds_of_its_process() {
        let before = seconds(std::process::id()).unwrap();
        let start = Instant::now();
        let mut x = 1u64;
        while start.elapsed() < Duration::from_millis(300) {
            x = std::hint::black_box(x.wrapping_mul(3));
        }
        // Others may run beside it, so it may get less than it asked for.
        assert!(seconds(std::process::id()).unwrap() - before >= 0.01);
    }

    #[test]
    fn children_are_found() {
        let mut child = std::process::Command::new("sleep").arg("5").spawn().unwrap();
        assert!(children(std::process::id()).unwrap().contains(&child.id()));
        assert!(resident_bytes(child.id()).unwrap() > 0);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
