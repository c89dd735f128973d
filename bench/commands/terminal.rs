//! What is shown while something runs, and what is kept of it.

use std::convert::Infallible;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;

use loadgen::load::{Extent, Progress};

/// Shows how far a load is on one line of the terminal, for as long as it is polled. Without a
/// terminal it shows nothing.
pub(crate) async fn show(progress: Arc<Progress>, extent: Extent) -> Infallible {
    if !std::io::stderr().is_terminal() {
        return std::future::pending().await;
    }
    let (start, _line) = (Instant::now(), Line);
    let (mut before, mut rate) = ((start, 0), 0.0);
    loop {
        let (ended, failed) = (progress.num_ended(), progress.num_failed());
        let (now, pieces) = (Instant::now(), progress.num_pieces());
        if now >= before.0 + Duration::from_secs(1) {
            rate = (pieces - before.1) as f64 / (now - before.0).as_secs_f64();
            before = (now, pieces);
        }
        let time = start.elapsed().as_secs();
        let time = match extent.end() {
            Some(end) => format!("{time} of {} s", end.as_secs()),
            None => format!("{time} s"),
        };
        let of = extent.requests.map_or(String::new(), |requests| format!("/{requests}"));
        let failed = if failed > 0 { format!(" · {failed} failed") } else { String::new() };
        eprint!(
            "\r\x1b[2K  {time} · {ended}{of} ended{failed} · {} running · {rate:.0} tokens/s",
            progress.num_running(),
        );
        let _ = std::io::stderr().flush();
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Prints `text` at once. Nobody listening any more is no reason to panic.
pub(crate) fn say(text: &str) {
    let mut stdout = std::io::stdout().lock();
    let _ = stdout.write_all(text.as_bytes());
    let _ = stdout.flush();
}

/// Keeps what was measured as JSON, where a file is named for it.
pub(crate) fn write_json(path: Option<&Path>, value: &impl Serialize) -> Result<()> {
    let Some(path) = path else { return Ok(()) };
    let json = serde_json::to_string_pretty(value).context("a result that is no JSON")?;
    write(path, &format!("{json}\n"))
}

pub(crate) fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("can't write {}", path.display()))
}

/// `text` in a faint colour, where there are colours.
pub(crate) fn dim(text: &str) -> String {
    let coloured = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    if coloured { format!("\x1b[2m{text}\x1b[0m") } else { text.to_string() }
}

/// The line that is cleared when nothing is shown any more.
struct Line;

impl Drop for Line {
    fn drop(&mut self) {
        eprint!("\r\x1b[2K");
        let _ = std::io::stderr().flush();
    }
}
