//! A server that computes nothing: it answers as OpenAI's API does, in deterministic words and at
//! times that follow a stated law. What a measurement should find is known beforehand.

mod http;
mod text;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use rand::rngs::StdRng;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::alarm::Alarm;
use crate::distribution::{Delays, Lengths, Purpose, random};

/// How a mock server answers.
#[derive(Clone, Debug)]
pub struct Mock {
    /// From a request's arrival, or from when it got its slot, to the first token.
    pub ttft: Delays,
    /// From one token to the next.
    pub itl: Delays,
    /// Tokens of an answer, unless the request's `max_tokens` is less or it ignores ends.
    pub tokens: Lengths,
    /// Decides every time; the texts come from the requests alone.
    pub seed: u64,
    /// Requests that are answered at once; the others wait in the order in which they came.
    pub slots: Option<usize>,
    /// Delays in which nothing is sent.
    pub stalls: Vec<Stall>,
    /// The model's name.
    pub model: String,
}

/// A time in which a server sends nothing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stall {
    /// When it begins, since the server's start.
    pub at: Duration,
    /// How long it lasts.
    pub length: Duration,
}

/// A mock server that is running.
struct Running {
    mock: Mock,
    start: Instant,
    alarm: Alarm,
    num_requests: AtomicU64,
    slots: Semaphore,
}

/// When the tokens of one answer are due.
struct Schedule {
    running: Arc<Running>,
    random: StdRng,
    due: Instant,
    is_first: bool,
}

/// Answers on `listener` until it is dropped.
///
/// # Errors
/// When the listener breaks.
pub async fn serve(listener: TcpListener, mock: Mock) -> Result<()> {
    let slots = mock.slots.unwrap_or(Semaphore::MAX_PERMITS).min(Semaphore::MAX_PERMITS);
    let running = Running {
        mock,
        start: Instant::now(),
        alarm: Alarm::new(),
        num_requests: AtomicU64::new(0),
        slots: Semaphore::new(slots),
    };
    http::serve(listener, Arc::new(running)).await.context("the mock server ended")
}

impl std::str::FromStr for Stall {
    type Err = String;

    /// As in `1s@10s`: for one second, ten seconds after the start.
    fn from_str(text: &str) -> Result<Self, String> {
        let (length, at) = text
            .split_once('@')
            .ok_or_else(|| format!("{text:?} is no stall: write LENGTH@START, as in 1s@10s"))?;
        Ok(Self {
            at: crate::numbers::parse_time(at)?,
            length: crate::numbers::parse_time(length)?,
        })
    }
}

impl Schedule {
    /// The times of the next request, which begins now.
    fn new(running: Arc<Running>) -> Self {
        let number = running.num_requests.fetch_add(1, Ordering::Relaxed);
        let random = random(Purpose::MockTimes, running.mock.seed, number);
        Self { running, random, due: Instant::now(), is_first: true }
    }

    /// Waits until the next token is due.
    async fn next(&mut self) {
        let mock = &self.running.mock;
        let law = if std::mem::take(&mut self.is_first) { &mock.ttft } else { &mock.itl };
        self.due += law.sample(&mut self.random);
        for stall in &mock.stalls {
            let (begin, end) = (stall.at, stall.at + stall.length);
            if (begin..end).contains(&(self.due - self.running.start)) {
                self.due = self.running.start + end;
            }
        }
        self.running.alarm.at(self.due).await;
    }
}
