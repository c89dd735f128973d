//! What happens in a run: a cluster, who asks what and when, and what breaks.

use std::sync::Arc;
use std::time::Duration;

use coordinator::request::{Priority, Tenant};
use protocol::TokenId;
use protocol::config::{Config, RunAhead};

use super::random::Random;

/// Tokens of one sequence, prompt and answer.
pub const MAX_MODEL_LEN: u32 = 256;

/// A run, decided.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// What it was made of; chance goes on from it.
    pub seed: u64,
    pub config: Config,
    pub max_model_len: u32,
    pub nodes: Vec<NodeSpec>,
    pub cost: Cost,
    pub noise: Noise,
    pub bodies: Vec<Body>,
    pub faults: Vec<Fault>,
    /// Offline requests that a plain server would run at once; `None`: the queue decides.
    pub max_offline: Option<usize>,
    /// When the run ends, whatever is still open: `None` when all must have ended.
    pub until: Option<Duration>,
    /// Whether everything that the core hears and says is printed.
    pub log: bool,
}

/// A machine.
#[derive(Clone, Copy, Debug)]
pub struct NodeSpec {
    pub num_blocks: u32,
    /// Of equal classes come equal bits.
    pub class: u8,
    pub joins_at: Duration,
}

/// What a step costs at a stage that holds the whole model; a stage has its share of it.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    pub fixed: Duration,
    pub per_token: Duration,
    /// For a thousand positions that attention reads.
    pub per_context: Duration,
    pub hop: Duration,
    pub load: Duration,
}

/// How often the network does what it may do.
#[derive(Clone, Copy, Debug, Default)]
pub struct Noise {
    /// A frame comes again, much later.
    pub repeat: f64,
    /// A step fails for no reason of its own.
    pub fail_step: f64,
    /// What a step sampled never arrives, nor anything after it.
    pub lose: f64,
    /// A hop takes up to so many times as long.
    pub jitter: f64,
}

/// What a client sends at once.
#[derive(Clone, Debug)]
pub struct Body {
    pub at: Duration,
    pub asks: Vec<Ask>,
}

/// A request.
#[derive(Clone, Debug)]
pub struct Ask {
    pub prompt: Arc<[TokenId]>,
    pub max_tokens: u32,
    pub num_choices: u32,
    pub priority: Priority,
    /// Under which priority it is sent, where the policy knows no others.
    pub sent_as: Option<Priority>,
    pub tenant: Tenant,
    pub weight: u32,
    pub deadline: Option<Duration>,
    pub require_exact: bool,
    pub scores_prompt: bool,
    pub logprobs: bool,
    /// Tokens that end an answer.
    pub stop_tokens: Arc<[TokenId]>,
    /// Whether every so many tokens are a stop string; 0: none.
    pub stop_every: u32,
    /// The client goes away after so many events.
    pub leaves_after: Option<u32>,
    /// No stage can compute it past this position.
    pub fails_at: Option<u32>,
}

/// When something breaks.
#[derive(Clone, Copy, Debug)]
pub enum When {
    At(Duration),
    /// When so many tokens were told.
    AfterTokens(u64),
}

/// What breaks.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    pub when: When,
    pub what: What,
}

/// How it breaks. Stages and pipelines are counted over what is there then.
#[derive(Clone, Copy, Debug)]
pub enum What {
    /// A node's process is gone; it is noticed after a while, and comes back after another.
    Kill { node: usize, noticed: Duration, back: Duration },
    /// The node of a stage of the first pipeline that serves.
    KillStage { stage: usize, noticed: Duration, back: Duration },
    /// A process is frozen and goes on as if nothing had been; it may count as gone by then.
    Freeze { node: usize, noticed: Duration, back: Duration },
    /// The node of a stage and that of the next can't reach each other for a while.
    Part { stage: usize, noticed: Duration, back: Duration },
    /// A link breaks while its nodes live.
    Unlink { pipeline: usize },
    /// A stage says that it is of no more use.
    Fatal { pipeline: usize, stage: usize },
    /// The next loads fail.
    FailLoads { num: u32 },
}

impl Ask {
    /// Positions that its sequence takes: the last token is never computed.
    pub fn num_tokens(&self) -> usize {
        (self.prompt.len() + self.max_tokens as usize - 1).max(self.prompt.len())
    }

    /// A plain request.
    pub fn new(prompt: Arc<[TokenId]>, max_tokens: u32) -> Self {
        Self {
            prompt,
            max_tokens,
            num_choices: 1,
            priority: Priority::Standard,
            sent_as: None,
            tenant: "".into(),
            weight: 1,
            deadline: None,
            require_exact: false,
            scores_prompt: false,
            logprobs: false,
            stop_tokens: Arc::new([]),
            stop_every: 0,
            leaves_after: None,
            fails_at: None,
        }
    }
}

impl Scenario {
    /// A calm cluster of one class: `num_pipelines` of `num_stages`, and so many nodes more.
    pub fn calm(seed: u64, num_stages: u32, num_pipelines: u32, num_spare: u32) -> Self {
        let mut config = Config::default();
        config.coordinator.stages = num_stages;
        config.coordinator.pipelines = num_pipelines;
        let node = NodeSpec { num_blocks: 256, class: 1, joins_at: Duration::ZERO };
        Self {
            seed,
            config,
            max_model_len: MAX_MODEL_LEN,
            nodes: vec![node; (num_stages * num_pipelines + num_spare) as usize],
            cost: Cost {
                fixed: Duration::from_millis(4),
                per_token: Duration::from_micros(100),
                per_context: Duration::from_micros(50),
                hop: Duration::from_micros(200),
                load: Duration::from_millis(500),
            },
            noise: Noise::default(),
            bodies: Vec::new(),
            faults: Vec::new(),
            max_offline: None,
            until: None,
            log: false,
        }
    }

    /// Anything that can happen, as the seed decides.
    pub fn of_seed(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let (num_stages, num_pipelines) = (random.between(1, 4), random.between(1, 3));
        let num_spare = random.between(0, 2);
        let mut scenario =
            Self::calm(seed, num_stages as u32, num_pipelines as u32, num_spare as u32);
        configure(&mut scenario.config, &mut random.fork());
        let num_blocks = random.pick(&[17, 20, 32, 64, 200]);
        let has_classes = random.chance(0.3);
        for node in &mut scenario.nodes {
            node.num_blocks = num_blocks;
            if random.chance(0.1) {
                node.num_blocks = random.between(17, 100) as u32;
            }
            node.class = if has_classes { random.between(1, 2) as u8 } else { 1 };
            node.joins_at = Duration::from_millis(random.between(0, 900));
        }
        let step = random.between(1, 20) as f64 / 4.0;
        scenario.cost = Cost {
            fixed: Duration::from_secs_f64(step * 1e-3),
            per_token: Duration::from_micros(random.between(1, 200)),
            per_context: Duration::from_micros(random.between(0, 200)),
            hop: Duration::from_micros(random.between(20, 3000)),
            load: Duration::from_millis(random.between(10, 2000)),
        };
        if random.chance(0.5) {
            scenario.noise = Noise {
                repeat: random.pick(&[0.0, 0.01, 0.1]),
                fail_step: random.pick(&[0.0, 0.0, 0.01, 0.05]),
                lose: random.pick(&[0.0, 0.0, 0.0, 0.001]),
                jitter: random.pick(&[0.0, 1.0, 10.0]),
            };
        }
        scenario.bodies = super::load::random(&mut random.fork());
        scenario.faults = faults(&scenario, &mut random.fork());
        scenario
    }
}

fn configure(config: &mut Config, random: &mut Random) {
    let scheduler = &mut config.scheduler;
    scheduler.max_num_seqs = random.pick(&[1, 2, 4, 8, 16]);
    scheduler.max_batched_tokens = random.pick(&[16, 40, 64, 256]);
    scheduler.reserved_tokens = random.pick(&[1, 8, 16, 64, 256]);
    scheduler.target_step_ms = random.pick(&[0, 5, 20, 100]);
    scheduler.aging_ms = random.pick(&[0, 200, 1000, 15_000]);
    scheduler.offline_aging_ms = random.pick(&[0, 1000, 5000, 3_600_000]);
    scheduler.min_share = random.pick(&[0.0, 0.0, 0.02, 0.25]);
    scheduler.max_passed = random.pick(&[0, 1, 4, 64]);
    scheduler.max_queued_requests = random.pick(&[4, 20, 1000]);
    scheduler.max_pipeline_wait_ms = random.pick(&[1000, 5000, 60_000]);
    scheduler.run_ahead = random.pick(&[RunAhead::Auto, RunAhead::On, RunAhead::Off]);
    config.coordinator.settle_ms = random.pick(&[100, 1000]);
    config.coordinator.step_timeout_ms = 2000;
    config.coordinator.load_timeout_ms = 10_000;
    config.transport.connect_timeout_ms = 1000;
}

fn faults(scenario: &Scenario, random: &mut Random) -> Vec<Fault> {
    let last = scenario.bodies.last().map_or(Duration::ZERO, |body| body.at).as_millis() as u64;
    let millis = |random: &mut Random, max| Duration::from_millis(random.between(0, max));
    let num = random.pick(&[0, 0, 1, 2, 4, 8]);
    let mut faults: Vec<_> = (0..num)
        .map(|_| {
            let when = if random.chance(0.5) {
                When::At(millis(random, last + 2000))
            } else {
                When::AfterTokens(random.between(0, 400))
            };
            let (noticed, back) = (millis(random, 1500), millis(random, 6000));
            let pipeline = random.between(0, 2) as usize;
            let what = match random.between(0, 13) {
                0..=3 => {
                    let node = random.bits() as usize % scenario.nodes.len();
                    What::Kill { node, noticed, back }
                }
                4..=5 => What::KillStage { stage: random.between(0, 3) as usize, noticed, back },
                6..=7 => What::Unlink { pipeline },
                8 => What::Fatal { pipeline, stage: random.between(0, 3) as usize },
                9 => What::FailLoads { num: random.between(1, 4) as u32 },
                10..=11 => {
                    let node = random.bits() as usize % scenario.nodes.len();
                    What::Freeze { node, noticed: noticed.max(BEFORE_DEATH), back: back / 2 }
                }
                _ => What::Part { stage: random.between(0, 3) as usize, noticed, back },
            };
            Fault { when, what }
        })
        .collect();
    // A second kill while the others recover from the first; a node that doesn't stay up.
    let (first, node) = (millis(random, last + 2000), random.bits() as usize);
    let again = random.pick(&[0, 0, 0, 1, 6]);
    for number in 0..=again {
        let (noticed, back) = (millis(random, 400), millis(random, 600));
        let node = if again == 1 { node.wrapping_add(number) } else { node };
        let what = What::Kill { node: node % scenario.nodes.len(), noticed, back };
        let when = When::At(first + Duration::from_millis(700) * number as u32);
        faults.extend((again > 0).then_some(Fault { when, what }));
    }
    faults
}

/// A frozen process isn't noticed by anything but its silence.
const BEFORE_DEATH: Duration = Duration::from_millis(1000);
