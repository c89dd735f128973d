//! A job that runs: which line is next, which are with the scheduler, which are durable.
//!
//! Pure. A line counts only once it is durable; whatever else is known of it may be lost at any
//! moment, and is then found out again. A line that is durable is never computed again.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use protocol::config;

use super::line::Asks;

/// Lines of which something is known, by their numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Numbers {
    bits: Vec<u64>,
    len: u32,
}

impl Numbers {
    pub(crate) fn insert(&mut self, number: u32) {
        let at = number as usize / 64;
        if self.bits.len() <= at {
            self.bits.resize(at + 1, 0);
        }
        let bit = 1 << (number % 64);
        self.len += u32::from(self.bits[at] & bit == 0);
        self.bits[at] |= bit;
    }

    pub(crate) fn contains(&self, number: u32) -> bool {
        self.bits.get(number as usize / 64).is_some_and(|bits| bits & (1 << (number % 64)) != 0)
    }

    pub(crate) fn len(&self) -> u32 {
        self.len
    }
}

/// A line that asks for something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    pub number: u32,
    pub asks: Asks,
    /// How often it was tried in vain.
    pub num_tries: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Every line has been answered.
    Completed,
    /// Its time was up before.
    Expired,
    /// Somebody didn't want it any more.
    Cancelled,
}

/// What became of a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Setback {
    /// There is no pipeline, no place, or its tenant has used up its tokens: the line stands where
    /// it stood. Where it is known how long that takes, so long.
    Later(Option<Duration>),
    /// The answer was lost on its way: the line may be tried again, a few times.
    Lost,
}

#[derive(Debug)]
pub(crate) struct Job {
    config: config::Jobs,
    num_lines: u32,
    done: Numbers,
    // In the order in which they are computed.
    waiting: VecDeque<Line>,
    is_reading: bool,
    has_read_all: bool,
    // With the scheduler.
    num_computing: usize,
    // Known, and not durable yet.
    num_open: usize,
    deadline: Instant,
    end: Option<End>,
    resumes: Option<Instant>,
    num_pauses: u32,
}

impl Job {
    /// A job of so many lines, of which `done` are durable.
    pub(crate) fn new(
        config: &config::Jobs,
        num_lines: u32,
        done: Numbers,
        deadline: Instant,
    ) -> Self {
        Self {
            config: config.clone(),
            num_lines,
            done,
            waiting: VecDeque::new(),
            is_reading: false,
            has_read_all: false,
            num_computing: 0,
            num_open: 0,
            deadline,
            end: None,
            resumes: None,
            num_pauses: 0,
        }
    }

    /// Whether more lines should be read; then they are.
    pub(crate) fn reads(&mut self) -> bool {
        let has_enough = self.waiting.len() > self.config.window_lines as usize / 4;
        let reads = !(self.is_reading || self.has_read_all || has_enough || self.end.is_some());
        self.is_reading |= reads;
        reads
    }

    /// Lines were read, in the order in which they are to be computed.
    pub(crate) fn read(&mut self, lines: Vec<Line>, is_last: bool) {
        (self.is_reading, self.has_read_all) = (false, is_last);
        let done = &self.done;
        self.waiting.extend(lines.into_iter().filter(|line| !done.contains(line.number)));
    }

    /// Whether a line waits that could be computed now.
    pub(crate) fn wants_place(&self, now: Instant) -> bool {
        // What is computed faster than it becomes durable waits in memory.
        let is_full = self.num_open >= 4 * self.config.max_commit_rows as usize;
        let is_paused = self.resumes.is_some_and(|at| now < at);
        !self.waiting.is_empty() && !is_full && !is_paused && self.end.is_none()
    }

    /// The next line, which is with the scheduler from now on.
    pub(crate) fn next(&mut self, now: Instant) -> Option<Line> {
        if !self.wants_place(now) {
            return None;
        }
        let line = self.waiting.pop_front()?;
        self.num_computing += 1;
        Some(line)
    }

    /// A line is answered, or failed for good; it isn't durable yet.
    pub(crate) fn answered(&mut self) {
        self.num_computing -= 1;
        self.num_open += 1;
        (self.num_pauses, self.resumes) = (0, None);
    }

    /// A line was read that is no request; it isn't durable yet.
    pub(crate) fn found_wrong(&mut self) {
        self.num_open += 1;
    }

    /// A try was in vain. Whether the line is tried again; otherwise it has failed for good, and is
    /// [`answered`](Self::answered) with that.
    pub(crate) fn tries_again(&mut self, mut line: Line, trouble: Setback, now: Instant) -> bool {
        // Whoever has had enough, or no time left, doesn't try.
        let wait = match trouble {
            Setback::Later(wait) => wait,
            Setback::Lost if line.num_tries >= self.config.max_line_retries => return false,
            Setback::Lost => {
                line.num_tries += 1;
                None
            }
        };
        self.num_computing -= 1;
        if self.end.is_some() {
            return true;
        }
        self.waiting.push_front(line);
        // Of those that failed together the first has said so.
        if self.resumes.is_none_or(|at| at <= now) {
            let most = Duration::from_millis(self.config.max_retry_ms);
            let factor = 1 << self.num_pauses.min(16);
            let pause = Duration::from_millis(self.config.retry_ms).saturating_mul(factor);
            self.resumes = Some(now + wait.unwrap_or_default().max(pause).min(most));
            self.num_pauses += 1;
        }
        true
    }

    /// These lines are durable.
    pub(crate) fn committed(&mut self, numbers: &[u32]) {
        for number in numbers {
            debug_assert!(!self.done.contains(*number), "a line is recorded once");
            self.done.insert(*number);
        }
        self.num_open -= numbers.len();
    }

    /// Nobody wants it any more.
    pub(crate) fn cancel(&mut self) {
        self.end.get_or_insert(End::Cancelled);
        self.waiting.clear();
    }

    /// Looks at the clock.
    pub(crate) fn tick(&mut self, now: Instant) {
        if now >= self.deadline {
            self.end.get_or_insert(End::Expired);
            self.waiting.clear();
        }
    }

    /// Whether what is with the scheduler is of no more use.
    pub(crate) fn is_given_up(&self) -> bool {
        self.end.is_some()
    }

    /// What was with the scheduler is no more.
    pub(crate) fn abandoned(&mut self) {
        self.num_computing = 0;
    }

    /// How it has ended, once everything that is known is durable.
    pub(crate) fn ended(&self) -> Option<End> {
        if self.num_open > 0 || self.num_computing > 0 {
            return None;
        }
        if self.done.len() == self.num_lines { Some(End::Completed) } else { self.end }
    }

    /// Whether nothing more of it will be known.
    pub(crate) fn is_known(&self) -> bool {
        self.has_read_all && self.waiting.is_empty() && self.num_computing == 0
    }

    /// When it has something to do, if nothing else happens.
    pub(crate) fn next_timer(&self, now: Instant) -> Instant {
        let resumes = self.resumes.filter(|at| *at > now);
        resumes.map_or(self.deadline, |at| at.min(self.deadline))
    }

    /// Lines that are durable.
    #[cfg(test)]
    fn num_done(&self) -> u32 {
        self.done.len()
    }
}

#[cfg(test)]
#[path = "job_tests.rs"]
mod tests;
