//! What the core itself costs: a step's schedule, and a request that waits.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use coordinator::lane::{self, Capacity, Lane, Told};
use coordinator::queue::Queue;
use coordinator::request::{Priority, Request};
use coordinator::text::TextStream;
use coordinator::tokenizer::Tokenizer;
use protocol::config::Scheduler;
use protocol::{ModelId, RequestId, Sampled, SamplingParams, SliceOutput, TokenId};

use super::report::percentile;

/// Sequences that run while schedules are measured.
pub const NUM_RUNNING: u32 = 256;

/// Of an answer: none ends while they are measured.
const MAX_TOKENS: u32 = 10_000;

/// How long schedules took.
#[derive(Clone, Debug)]
pub struct Schedules {
    /// Nobody ends, nobody begins.
    pub steady: Vec<Duration>,
    /// One ends before each, so that one of the waiting begins.
    pub admitting: Vec<Duration>,
}

impl Schedules {
    /// For people.
    pub fn line(&self, num_waiting: usize) -> String {
        let micros = |of: &[Duration], share| percentile(of, share).as_secs_f64() * 1e6;
        let (steady, admitting) = (&self.steady, &self.admitting);
        format!(
            "{NUM_RUNNING} run, {num_waiting} wait: median {:.1} us, p99 {:.1} us; with one that \
             ends and one that begins: {:.1} us, {:.1} us",
            micros(steady, 0.5),
            micros(steady, 0.99),
            micros(admitting, 0.5),
            micros(admitting, 0.99),
        )
    }
}

/// Requests as the API makes them, with a real text.
#[derive(Debug)]
pub struct Requests {
    tokenizer: Arc<Tokenizer>,
    stop: Arc<[String]>,
    stop_tokens: Arc<[TokenId]>,
    prompt: Arc<[TokenId]>,
    tenants: Vec<Arc<str>>,
}

impl Requests {
    /// # Errors
    /// When there is no tokenizer among the fixtures.
    pub fn new() -> Result<Self> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/glm4/f32");
        let source = checkpoint::Checkpoint::open(&path)?.tokenizer()?;
        Ok(Self {
            tokenizer: Arc::new(Tokenizer::from_source(&source).context("the tokenizer")?),
            stop: Arc::new([]),
            stop_tokens: Arc::new([TokenId(1), TokenId(2)]),
            prompt: (0..32).map(TokenId).collect(),
            tenants: (0..10).map(|i| format!("tenant-{i}").into()).collect(),
        })
    }

    /// The next one.
    pub fn make(&self, id: u64, max_tokens: u32) -> Request {
        let text = TextStream::new(Arc::clone(&self.tokenizer), Arc::clone(&self.stop));
        Request {
            id: RequestId(id),
            model: ModelId::default(),
            prompt: Arc::clone(&self.prompt),
            num_choices: 1,
            sampling: SamplingParams::default(),
            max_tokens,
            stop_tokens: Arc::clone(&self.stop_tokens),
            text: Box::new(text),
            trace: None,
            priority: Priority::ALL[id as usize % 3],
            tenant: Arc::clone(&self.tenants[id as usize % self.tenants.len()]),
            weight: 1,
            deadline: None,
            require_exact: false,
            constraint: None,
            tells_hidden: false,
            turn: 0,
            resumed: None,
        }
    }
}

/// A lane in which everybody decodes, and a queue of so many behind it.
struct Rig {
    queue: Queue,
    lane: Lane,
    told: Told,
    now: Instant,
}

/// How long it takes to decide on a step.
///
/// # Errors
/// When there is no tokenizer among the fixtures.
pub fn schedules(num_waiting: usize, num_steps: usize) -> Result<Schedules> {
    let requests = Requests::new()?;
    let config = Scheduler {
        max_num_seqs: NUM_RUNNING,
        max_queued_requests: usize::MAX,
        target_step_ms: 0,
        ..Scheduler::default()
    };
    let capacity = Capacity { num_blocks: 1 << 18, num_stages: 1, class: 1, takes_masks: true };
    let mut rig = Rig {
        queue: Queue::new(config.clone()),
        lane: Lane::new(config, capacity),
        told: Told::default(),
        now: Instant::now(),
    };
    for id in 0..num_waiting as u64 + u64::from(NUM_RUNNING) {
        rig.queue.submit(requests.make(id, MAX_TOKENS), rig.now);
    }
    // Until everybody's prompt is computed.
    for _ in 0..64 {
        rig.step(None);
    }
    let steady = (0..num_steps).map(|_| rig.step(None)).collect();
    let mut next = 1 << 40;
    let admitting = (0..num_steps).map(|i| {
        let running = rig.lane.running();
        let ends = running[i * 7 % running.len()].request_id();
        rig.queue.submit(requests.make(next, MAX_TOKENS), rig.now);
        next += 1;
        rig.step(Some(ends))
    });
    let admitting = admitting.collect();
    Ok(Schedules { steady, admitting })
}

impl Rig {
    /// One step: what deciding on it took. Its tokens come at once.
    fn step(&mut self, ends: Option<RequestId>) -> Duration {
        if let Some(request) = ends {
            self.lane.cancel(request);
        }
        self.now += Duration::from_millis(20);
        let start = Instant::now();
        lane::admit(&mut self.queue, &mut [&mut self.lane], self.now, &mut self.told);
        let scheduled = self.lane.schedule(&mut self.queue, self.now, &mut self.told);
        let took = start.elapsed();
        let scheduled = scheduled.expect("somebody runs");
        let outputs = scheduled.batch.slices.iter().map(|slice| SliceOutput {
            sequence: slice.sequence,
            position: slice.start + slice.num_tokens() as u32,
            token: slice.sample.then_some(TokenId(7)),
            logprobs: None,
            prompt_logprobs: Vec::new(),
        });
        let sampled = Sampled { outputs: outputs.collect(), ..Sampled::default() };
        self.lane.update(scheduled.step, sampled, self.now, &mut self.told);
        self.told = Told::default();
        took
    }
}

/// Bytes of memory that this process holds.
///
/// # Errors
/// Where the system doesn't tell.
fn resident() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("no VmRSS")?;
    let kib = line.split_whitespace().nth(1).context("no VmRSS")?;
    Ok(kib.parse::<u64>()? * 1024)
}

/// What so many waiting requests take beside their prompts, in bytes, and how long it takes to put
/// one in and to take the next one out.
///
/// # Errors
/// Where the system doesn't tell, or there is no tokenizer among the fixtures.
pub fn waiting(num: u64) -> Result<(u64, Duration, Duration)> {
    let requests = Requests::new()?;
    let mut queue = Queue::new(Scheduler::default());
    let (before, now) = (resident()?, Instant::now());
    let start = Instant::now();
    for id in 0..num {
        queue.submit(requests.make(id, 100), now);
    }
    let put = start.elapsed() / num.max(1) as u32;
    let taken = resident()?.saturating_sub(before);
    let start = Instant::now();
    let num_popped = num.min(10_000);
    for _ in 0..num_popped {
        queue.pop(now, |_| coordinator::queue::Fit::Now).context("somebody waits")?;
    }
    Ok((taken, put, start.elapsed() / num_popped.max(1) as u32))
}

/// How this program was compiled, as far as it matters here.
pub fn build() -> &'static str {
    if cfg!(debug_assertions) { "a development build that asserts" } else { "an optimised build" }
}
