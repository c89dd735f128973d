//! How far a run is, for a person who watches.

use std::io::IsTerminal as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use crate::journal::Counts;

/// How often a terminal is drawn, and how often a log gets a line.
const DRAW: Duration = Duration::from_millis(250);
const LOG: Duration = Duration::from_secs(10);

/// What a run has done since it began.
#[derive(Debug)]
pub struct Progress {
    start: Instant,
    counts: Mutex<Counts>,
    /// Rows of an earlier run.
    before: AtomicU64,
    tokens: AtomicU64,
    cut: AtomicU64,
    /// The share of the input that was read, now and at first, as bits; below zero: unknown.
    share: AtomicU64,
    share_before: AtomicU64,
}

impl Default for Progress {
    fn default() -> Self {
        let unknown = || AtomicU64::new((-1.0_f64).to_bits());
        Self {
            start: Instant::now(),
            counts: Mutex::default(),
            before: AtomicU64::default(),
            tokens: AtomicU64::default(),
            cut: AtomicU64::default(),
            share: unknown(),
            share_before: unknown(),
        }
    }
}

impl Progress {
    /// What an earlier run has done.
    pub(crate) fn resume(&self, counts: Counts) {
        self.before.store(counts.total(), Relaxed);
        self.set_counts(counts);
    }

    pub(crate) fn set_counts(&self, counts: Counts) {
        *self.counts.lock().expect("nobody panics with it") = counts;
    }

    pub(crate) fn set_share(&self, share: f64) {
        let unknown = f64::from_bits(self.share_before.load(Relaxed)) < 0.0;
        if unknown {
            self.share_before.store(share.to_bits(), Relaxed);
        }
        self.share.store(share.to_bits(), Relaxed);
    }

    pub(crate) fn answered(&self, answer: &Value) {
        let tokens = answer["usage"]["completion_tokens"].as_u64().unwrap_or(0);
        self.tokens.fetch_add(tokens, Relaxed);
        if answer["choices"][0]["finish_reason"] == "length" {
            self.cut.fetch_add(1, Relaxed);
        }
    }

    /// How rows ended, those of earlier runs included.
    pub fn counts(&self) -> Counts {
        *self.counts.lock().expect("nobody panics with it")
    }

    /// Answers that ended at `max_tokens`, in this run.
    pub fn num_cut(&self) -> u64 {
        self.cut.load(Relaxed)
    }

    /// Time until all is read at the speed so far, if that can be told.
    fn left(&self) -> Option<Duration> {
        let share = f64::from_bits(self.share.load(Relaxed));
        let before = f64::from_bits(self.share_before.load(Relaxed));
        let done = share - before;
        (done > 0.0).then(|| self.start.elapsed().mul_f64((1.0 - share).max(0.0) / done))
    }

    /// One line that says all.
    pub fn line(&self) -> String {
        let (counts, seconds) = (self.counts(), self.start.elapsed().as_secs_f64().max(0.001));
        let new = counts.total().saturating_sub(self.before.load(Relaxed));
        let tokens = self.tokens.load(Relaxed);
        let mut line = format!(
            "{} rows, {:.0} rows/s, {:.0} tokens/s, {} errors",
            counts.total(),
            new as f64 / seconds,
            tokens as f64 / seconds,
            counts.failed + counts.unreadable,
        );
        if counts.dropped > 0 {
            line += &format!(", {} dropped", counts.dropped);
        }
        if let Some(left) = self.left() {
            let left = Duration::from_secs(left.as_secs());
            line += &format!(", {} left", indicatif::HumanDuration(left));
        }
        line
    }

    /// Shows it until it is dropped: a bar where somebody watches, or else a line now and then.
    pub async fn show(&self) {
        if !std::io::stderr().is_terminal() {
            loop {
                tokio::time::sleep(LOG).await;
                eprintln!("{}", self.line());
            }
        }
        let bar = ProgressBar::new(1000);
        let style = ProgressStyle::with_template("{spinner} [{bar:30}] {msg}");
        bar.set_style(style.expect("it is a template").progress_chars("=> "));
        loop {
            let share = f64::from_bits(self.share.load(Relaxed)).max(0.0);
            bar.set_position((share * 1000.0) as u64);
            bar.set_message(self.line());
            bar.tick();
            tokio::time::sleep(DRAW).await;
        }
    }
}
