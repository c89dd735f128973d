//! Clients that stream answers one after another, and look at each.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::Options;
use crate::cluster::Cluster;
use crate::said::Said;
use crate::simulation::random::Random;

/// How often it is looked whether all streams go on.
const POLL: Duration = Duration::from_millis(20);

/// Requests, and what each is answered when nothing happens.
pub struct Streams {
    cluster: Arc<Cluster>,
    requests: Vec<(Value, Said)>,
    num_streams: usize,
}

/// What became of all of them.
#[derive(Debug, Default)]
pub struct Ended {
    pub num_answers: usize,
    /// One sentence each.
    pub lost: Vec<String>,
    pub different: Vec<String>,
}

/// How long clients waited for a token in the course of a fault.
#[derive(Debug, Default)]
pub struct Gaps {
    /// One for each stream that went on.
    pub longest: Vec<Duration>,
    /// Tokens of prompts and answers that were there before, of streams that went on.
    pub num_recomputed: usize,
    pub num_stuck: usize,
}

#[derive(Clone, Copy, Debug)]
struct At {
    /// When its last token came, or it was sent.
    since: Instant,
    /// What the longest pause since the fault began was, and what was known before it.
    longest: Duration,
    num_known: usize,
    num_recomputed: usize,
    is_over: bool,
}

impl Streams {
    /// Asks for each undisturbed.
    pub async fn new(cluster: &Arc<Cluster>, options: &Options, random: &mut Random) -> Self {
        let mut requests = Vec::new();
        for number in 0..options.num_streams.min(64) as u64 {
            let max_tokens =
                random.between(u64::from(options.max_tokens / 2), options.max_tokens.into());
            let more = json!({
                "max_tokens": max_tokens, "ignore_eos": true, "stream": true, "logprobs": 3,
                "return_token_ids": true, "stream_options": {"include_usage": true},
                "temperature": if random.chance(0.5) { 0.0 } else { 1.0 }, "seed": number,
                "frequency_penalty": if random.chance(0.3) { 0.5 } else { 0.0 },
            });
            let num_prompt = random.between(3, 32);
            let prompt: Vec<_> = (0..num_prompt).map(|_| random.between(5, 500) as u32).collect();
            requests.push(cluster.request(&prompt, more).await);
        }
        let answers = requests.iter().map(async |request| {
            let stream = cluster.stream("/v1/completions", request).await;
            Said::of(&stream.text().await.unwrap())
        });
        let answers = futures::future::join_all(answers).await;
        Self {
            cluster: Arc::clone(cluster),
            requests: requests.into_iter().zip(answers).collect(),
            num_streams: options.num_streams,
        }
    }

    /// Every client asks, again and again.
    pub fn start(self) -> Running {
        let now = Instant::now();
        let at = At {
            since: now,
            longest: Duration::ZERO,
            num_known: 0,
            num_recomputed: 0,
            is_over: false,
        };
        let shared = Arc::new(Shared {
            at: (0..self.num_streams).map(|_| Mutex::new(at)).collect(),
            streams: self,
            fault: Mutex::new(now),
            ended: Mutex::default(),
            num_next: AtomicUsize::new(0),
            is_over: AtomicBool::new(false),
        });
        let mut clients = JoinSet::new();
        for number in 0..shared.at.len() {
            clients.spawn(Arc::clone(&shared).client(number));
        }
        Running { shared, clients }
    }
}

struct Shared {
    streams: Streams,
    at: Vec<Mutex<At>>,
    /// When the newest fault began.
    fault: Mutex<Instant>,
    ended: Mutex<Ended>,
    num_next: AtomicUsize,
    is_over: AtomicBool,
}

impl Shared {
    async fn client(self: Arc<Self>, number: usize) {
        while !self.is_over.load(Ordering::SeqCst) {
            let next = self.num_next.fetch_add(1, Ordering::SeqCst) % self.streams.requests.len();
            let (request, expected) = &self.streams.requests[next];
            let said = self.answer(number, request).await;
            let mut ended = self.ended.lock().unwrap();
            ended.num_answers += 1;
            match said {
                Err(error) => ended.lost.push(format!("request {next}: {error}")),
                Ok(said) if said != *expected => {
                    ended.different.push(format!("request {next}: {said:?}\n  not {expected:?}"));
                }
                Ok(_) => {}
            }
        }
        self.at[number].lock().unwrap().is_over = true;
    }

    async fn answer(&self, number: usize, request: &Value) -> Result<Said, String> {
        self.token(number, 0, request["prompt"].as_array().unwrap().len(), true);
        let url = format!("{}/v1/completions", self.streams.cluster.http);
        let sent = reqwest::Client::new().post(url).json(request).send().await;
        let mut answer = sent.map_err(|cause| cause.to_string())?;
        let (mut said, mut text) = (Said::default(), Vec::new());
        while !said.is_done {
            let chunk = answer.chunk().await.map_err(|cause| cause.to_string())?;
            text.extend(chunk.ok_or("the stream broke off")?);
            while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
                let line: Vec<_> = text.drain(..=end).collect();
                let num_tokens = said.hear(String::from_utf8_lossy(&line).trim())?;
                if num_tokens > 0 {
                    self.token(number, num_tokens, 0, false);
                }
            }
        }
        Ok(said)
    }

    /// A stream has gone on, or begins.
    fn token(&self, number: usize, num_tokens: usize, num_prompt: usize, begins: bool) {
        let (now, fault) = (Instant::now(), *self.fault.lock().unwrap());
        let mut at = self.at[number].lock().unwrap();
        if begins {
            at.num_known = num_prompt;
        } else {
            let gap = now.saturating_duration_since(at.since.max(fault));
            if gap > at.longest {
                (at.longest, at.num_recomputed) = (gap, at.num_known);
            }
            at.num_known += num_tokens;
        }
        at.since = now;
    }
}

/// The clients at work.
pub struct Running {
    shared: Arc<Shared>,
    clients: JoinSet<()>,
}

impl Running {
    /// From now on pauses are counted anew.
    pub fn begin_fault(&self) -> Instant {
        let now = Instant::now();
        *self.shared.fault.lock().unwrap() = now;
        for at in &self.shared.at {
            at.lock().unwrap().longest = Duration::ZERO;
        }
        now
    }

    /// Waits until `is_over`, and every stream has gone on since: the longest pause of each.
    pub async fn recovered(&self, is_over: impl Fn() -> bool, longest: Duration) -> Gaps {
        let (began, mut over) = (Instant::now(), None);
        loop {
            tokio::time::sleep(POLL).await;
            let now = Instant::now();
            if over.is_none() && is_over() {
                over = Some(now);
            }
            let at: Vec<_> = self.shared.at.iter().map(|at| *at.lock().unwrap()).collect();
            let goes_on = |at: &&At| over.is_some_and(|over| at.since > over);
            let num_stuck = at.len() - at.iter().filter(goes_on).count();
            if num_stuck == 0 || now - began > longest {
                return Gaps {
                    longest: at.iter().map(|at| at.longest).collect(),
                    num_recomputed: at.iter().map(|at| at.num_recomputed).sum(),
                    num_stuck,
                };
            }
        }
    }

    /// No more is asked; what was asked is answered.
    pub async fn end(mut self, longest: Duration) -> Ended {
        self.shared.is_over.store(true, Ordering::SeqCst);
        let all = async { while self.clients.join_next().await.is_some() {} };
        let is_late = tokio::time::timeout(longest, all).await.is_err();
        self.clients.shutdown().await;
        let mut ended = std::mem::take(&mut *self.shared.ended.lock().unwrap());
        if is_late {
            let open = self.shared.at.iter().filter(|at| !at.lock().unwrap().is_over).count();
            ended.lost.push(format!("{open} streams never end"));
        }
        ended
    }
}
