//! The event loop: the real core, what it asks of the world, and what the world does to it.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use coordinator::cluster::{Action, Cluster, Input};
use coordinator::model::Model;
use coordinator::placement::ModelCost;
use coordinator::request::Priority;
use protocol::{Digest, Epoch, Frame, ModelId, RequestId, SessionId, StageId, StagePlan, StepId};

use super::clients::{Clients, Moment};
use super::machines::{Arrived, Machine};
use super::random::{Random, mix};
use super::report::Tally;
use super::scenario::{Ask, Fault, Scenario};
use super::watch::Watch;

/// Of the model that is served.
pub const HIDDEN_SIZE: u32 = 64;

/// How often the actor says that time has passed.
const TICK: Duration = Duration::from_millis(500);

/// What may be left to do once everybody has been answered.
const SETTLING: Duration = Duration::from_secs(5);

/// Whoever isn't answered so long after the last has come never will be.
const LONGEST: Duration = Duration::from_secs(600);

/// What becomes of a run.
#[derive(Debug, Default)]
pub struct Outcome {
    pub tally: Tally,
    /// The first thing that went wrong.
    pub violation: Option<String>,
    /// Of everything that was told, and when: equal runs have equal ones.
    pub digest: u64,
}

#[derive(Debug)]
pub(super) enum Happening {
    Tick,
    /// A body is sent.
    Body(usize),
    /// A client has gone away.
    Leave(RequestId),
    Fault(usize),
    /// News for the core.
    Input(Input),
    /// A frame for the core, with what was wrong in it.
    Frame(Box<FromStage>),
    /// For a machine, if it is in this session still.
    Order(usize, SessionId, Order),
    /// A machine's process begins.
    Rise(usize),
}

#[derive(Clone, Debug)]
pub(super) struct FromStage {
    pub(super) frame: Frame,
    pub(super) batch: Arc<protocol::Carried<protocol::Batch>>,
    /// What no stage may find, while somebody waits for the step.
    pub(super) wrong: Option<String>,
}

#[derive(Debug)]
pub(super) enum Order {
    Load(Box<StagePlan>),
    Loaded(Box<StagePlan>),
    Unload(protocol::PipelineId, Epoch),
    Link(StageId),
    Step(Arrived),
    /// What the last stage says of a step, for the first.
    Hear(StageId, StepId, protocol::Body),
    Computed(Arrived),
    Reconnect,
}

/// When something happens: of two at once, what was decided first.
#[derive(Debug)]
struct Due {
    at: Duration,
    number: u64,
    what: Happening,
}

/// A plan that was made.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Machines, by stage.
    pub(super) machines: Vec<usize>,
    /// What its bits hang on.
    pub(super) class: u64,
    /// Nothing that its last stage says arrives any more.
    pub(super) is_silent: bool,
    /// Steps that a stage could not compute.
    pub(super) failed: BTreeSet<StepId>,
}

/// A run under way.
#[derive(Debug)]
pub struct World<'a> {
    pub(super) scenario: &'a Scenario,
    pub(super) cluster: Cluster,
    start: Instant,
    pub(super) now: Duration,
    queue: BinaryHeap<Due>,
    num_due: u64,
    pub(super) machines: Vec<Machine>,
    pub(super) random: Random,
    pub(super) plans: BTreeMap<Epoch, Plan>,
    // When the last frame of each link arrives: none overtakes another.
    pub(super) links: BTreeMap<(Epoch, u32, u32), Duration>,
    // Pairs of machines that can't reach each other, and until when.
    pub(super) cuts: Vec<(usize, usize, Duration)>,
    pub(super) num_sessions: u64,
    pub(super) num_loads_to_fail: u32,
    pub(super) clients: Clients,
    held: VecDeque<Ask>,
    num_requests: u64,
    num_bodies_left: usize,
    faults: Vec<Option<Fault>>,
    unserved_since: Option<Duration>,
    has_classes: bool,
    // Stages of pipelines in which something runs.
    num_active: usize,
    watch: Watch,
    pub(super) tally: Tally,
    digest: u64,
}

impl<'a> World<'a> {
    /// Nothing has happened yet.
    pub fn new(scenario: &'a Scenario) -> Self {
        let start = Instant::now();
        let model = model(scenario.max_model_len);
        let first = scenario.nodes.first().map(|node| node.class);
        let machines = scenario.nodes.iter().enumerate();
        let mut world = Self {
            scenario,
            cluster: Cluster::new(scenario.config.clone(), model, 1, start),
            start,
            now: Duration::ZERO,
            queue: BinaryHeap::new(),
            num_due: 0,
            machines: machines.map(|(number, spec)| Machine::new(number, *spec)).collect(),
            random: Random::new(mix(scenario.seed, 0xfa17)),
            plans: BTreeMap::new(),
            links: BTreeMap::new(),
            cuts: Vec::new(),
            num_sessions: 0,
            num_loads_to_fail: 0,
            clients: Clients::default(),
            held: VecDeque::new(),
            num_requests: 0,
            num_bodies_left: scenario.bodies.len(),
            faults: scenario.faults.iter().copied().map(Some).collect(),
            unserved_since: None,
            has_classes: scenario.nodes.iter().any(|node| Some(node.class) != first),
            num_active: 0,
            watch: Watch::default(),
            tally: Tally::default(),
            digest: 0,
        };
        for (number, node) in scenario.nodes.iter().enumerate() {
            world.at(node.joins_at, Happening::Rise(number));
        }
        for (number, body) in scenario.bodies.iter().enumerate() {
            world.at(body.at, Happening::Body(number));
        }
        for (number, fault) in scenario.faults.iter().enumerate() {
            if let super::scenario::When::At(at) = fault.when {
                world.at(at, Happening::Fault(number));
            }
        }
        world.at(TICK, Happening::Tick);
        world
    }

    /// Everything happens.
    pub fn run(mut self) -> Outcome {
        let violation = self.until_settled().err();
        let violation = violation.map(|what| format!("at {:?}: {what}", self.now));
        self.tally.duration = self.now;
        Outcome { tally: self.tally, violation, digest: self.digest }
    }

    fn until_settled(&mut self) -> Result<(), String> {
        let last = self.scenario.bodies.last().map_or(Duration::ZERO, |body| body.at);
        let mut answered_at = None;
        while let Some(due) = self.queue.pop() {
            let passed = due.at.saturating_sub(self.now);
            self.tally.offered += passed * self.num_active as u32;
            self.now = due.at;
            if self.scenario.until.is_some_and(|until| self.now >= until) {
                return Ok(());
            }
            self.happen(due.what)?;
            self.release();
            self.break_what_is_due();
            let is_done = self.num_bodies_left == 0 && self.clients.num_open() == 0;
            if !is_done {
                answered_at = None;
            } else if self.now > *answered_at.get_or_insert(self.now) + SETTLING {
                break;
            }
            if self.now > last + LONGEST {
                let open = self.clients.open();
                return Err(format!("requests that are never answered: {open:?}"));
            }
        }
        Watch::is_empty(&self.cluster)
    }

    pub(super) fn at(&mut self, at: Duration, what: Happening) {
        let number = self.num_due;
        self.num_due += 1;
        self.queue.push(Due { at, number, what });
    }

    pub(super) fn after(&mut self, pause: Duration, what: Happening) {
        self.at(self.now + pause, what);
    }

    /// The time that a hop takes.
    pub(super) fn hop(&mut self) -> Duration {
        let jitter = self.scenario.noise.jitter;
        self.scenario.cost.hop.mul_f64(1.0 + jitter * self.random.unit())
    }

    fn happen(&mut self, what: Happening) -> Result<(), String> {
        self.tally.num_events += 1;
        match what {
            Happening::Tick => {
                self.after(TICK, Happening::Tick);
                self.handle(Input::Tick, None)
            }
            Happening::Body(number) => {
                self.num_bodies_left -= 1;
                let scenario = self.scenario;
                self.submit(&scenario.bodies[number].asks)
            }
            Happening::Leave(id) if !self.clients.is_open(id) => Ok(()),
            Happening::Leave(id) => {
                self.tally.left(self.clients.ask_of(id).priority);
                self.clients.close(id);
                self.handle(Input::Cancel(id), None)
            }
            Happening::Fault(number) => {
                if let Some(fault) = self.faults[number].take() {
                    self.break_down(fault.what);
                }
                Ok(())
            }
            Happening::Input(input) => self.handle(input, None),
            Happening::Frame(from) => self.frame(*from),
            Happening::Rise(machine) => self.rise(machine),
            Happening::Order(machine, session, order) => {
                // Whatever reaches a frozen process is there when it goes on.
                let frozen_until = self.machines[machine].frozen_until;
                if frozen_until > self.now {
                    self.at(frozen_until, Happening::Order(machine, session, order));
                } else if self.machines[machine].session == session && self.machines[machine].is_up
                {
                    self.obey(machine, order)?;
                }
                Ok(())
            }
        }
    }

    fn frame(&mut self, from: FromStage) -> Result<(), String> {
        let epoch = from.frame.stage.epoch;
        let lane = self.cluster.lanes().find(|(of, _)| of.epoch == epoch);
        if let Some((_, lane)) = lane
            && lane.is_under_way(from.frame.step)
        {
            // Later stages may not have heard of a step that failed before, of which the core will
            // hear, too: what they make of those behind it says nothing.
            let failed = self.plans.get(&epoch).map(|plan| &plan.failed);
            let is_first = failed.and_then(|it| it.first()).is_none_or(|it| *it >= from.frame.step);
            if let Some(wrong) = from.wrong
                && is_first
            {
                return Err(wrong);
            }
            if let protocol::Body::Failed(_) = &from.frame.body {
                let is_alone = is_first && from.batch.slices.len() == 1;
                for slice in &from.batch.slices {
                    let running = lane.running().iter().find(|it| it.id == slice.sequence);
                    if let Some(sequence) = running {
                        self.clients.step_failed(sequence.request_id(), is_alone);
                    }
                }
                // Everything is computed anew.
                self.plans.entry(epoch).or_default().failed.clear();
            }
        }
        let class = self.plans.get(&epoch).map(|plan| plan.class);
        self.handle(Input::Frame(from.frame), class)
    }

    /// The core hears of something, and does what it must.
    pub(super) fn handle(&mut self, input: Input, class: Option<u64>) -> Result<(), String> {
        let now = self.start + self.now;
        if self.scenario.log && !matches!(input, Input::Tick) {
            eprintln!("{:?} <- {input:?}", self.now);
        }
        let actions = self.cluster.handle(input, now);
        if self.scenario.log {
            actions.iter().for_each(|action| eprintln!("{:?} -> {action:?}", self.now));
        }
        let max_wait = Duration::from_millis(self.scenario.config.scheduler.max_pipeline_wait_ms);
        let is_over = |since: Duration| self.now >= since + max_wait;
        let lanes = self.cluster.lanes();
        let serving: Vec<_> = lanes
            .map(|(of, lane)| (self.plans[&of.epoch].class, lane.capacity().num_blocks))
            .collect();
        let moment = Moment {
            now: self.now,
            class,
            may_give_up: self.unserved_since.is_some_and(is_over),
            has_classes: self.has_classes,
            serving: &serving,
            max_pipeline_wait: max_wait,
        };
        let mut new_plans = Vec::new();
        for action in actions {
            match action {
                Action::Submitted(ids, result) => {
                    for id in ids.into_iter().filter(|_| result.is_err()) {
                        self.tally.refused(self.clients.ask_of(id).priority);
                        self.clients.close(id);
                    }
                }
                Action::Tell(id, event) => {
                    self.digest = mix(self.digest, mix(id.0, self.now.as_nanos() as u64));
                    let heard = self.clients.hear(id, &event, moment, &mut self.tally);
                    if heard.map_err(|what| format!("request {id}: {what}"))? {
                        let pause = self.hop();
                        self.after(pause, Happening::Leave(id));
                    }
                }
                Action::Preempted(_) => self.tally.num_preempted += 1,
                Action::Moved { num_sequences, .. } => {
                    self.tally.num_moved += num_sequences as u64;
                }
                Action::Measured { .. } => self.tally.num_steps += 1,
                Action::Load(node, plan) => {
                    self.plan(node.0 as usize, &plan);
                    new_plans.push((node.0 as usize, plan));
                }
                other => self.act(other),
            }
        }
        for (machine, plan) in new_plans {
            self.order(machine, Order::Load(plan));
        }
        let active = self.cluster.lanes().filter(|(_, lane)| !lane.is_idle());
        self.num_active = active.map(|(_, lane)| lane.capacity().num_stages).sum();
        let is_serving = self.cluster.lanes().next().is_some();
        self.unserved_since =
            if is_serving { None } else { self.unserved_since.or(Some(self.now)) };
        self.watch.look(&self.cluster, &self.scenario.config.scheduler, now)
    }

    fn plan(&mut self, machine: usize, plan: &StagePlan) {
        let of_epoch = self.plans.entry(plan.id.epoch).or_default();
        of_epoch.machines.push(machine);
        for _ in 0..plan.layers.len() {
            let class = self.machines[machine].spec.class;
            of_epoch.class = mix(of_epoch.class, u64::from(class));
        }
    }

    /// Clients send a body, or wait until as many offline ones as may run have been answered.
    fn submit(&mut self, asks: &[Ask]) -> Result<(), String> {
        let is_held =
            |ask: &&Ask| self.scenario.max_offline.is_some() && ask.priority == Priority::Offline;
        self.held.extend(asks.iter().filter(is_held).cloned());
        let mut requests = Vec::new();
        let mut turn = 0;
        for ask in asks.iter().filter(|ask| !is_held(ask)) {
            requests.push((ask, turn));
            turn += ask.num_choices;
        }
        if requests.is_empty() {
            return Ok(());
        }
        let mut sent = Vec::new();
        for (ask, turn) in requests {
            sent.push(self.ask(ask, turn));
        }
        self.handle(Input::Submit(sent), None)
    }

    fn ask(&mut self, ask: &Ask, turn: u32) -> coordinator::request::Request {
        self.num_requests += 1;
        let id = RequestId(self.num_requests);
        self.clients.ask(id, ask, turn, (self.now, self.start))
    }

    fn release(&mut self) {
        let Some(max) = self.scenario.max_offline else { return };
        while self.clients.num_open_of(Priority::Offline) < max {
            let Some(ask) = self.held.pop_front() else { return };
            let request = self.ask(&ask, 0);
            self.at(self.now, Happening::Input(Input::Submit(vec![request])));
        }
    }

    fn break_what_is_due(&mut self) {
        for number in 0..self.faults.len() {
            let is_due = self.faults[number].is_some_and(|fault| match fault.when {
                super::scenario::When::AfterTokens(num) => {
                    self.num_requests > 0 && self.clients.num_tokens >= num
                }
                super::scenario::When::At(_) => false,
            });
            if is_due && let Some(fault) = self.faults[number].take() {
                self.break_down(fault.what);
            }
        }
    }
}

/// Eight layers: enough for any pipeline here.
fn model(max_model_len: u32) -> Model {
    Model {
        id: ModelId([7; 16]),
        path: "/models/virtual".into(),
        cost: ModelCost { activations: 1, ..ModelCost::of_bytes(&[10; 8], 10, 10) },
        config: Digest::default(),
        digests: (0..10).map(|i| Digest([i; 32])).collect(),
        hidden_size: HIDDEN_SIZE,
        max_model_len,
        vocab_size: 640,
    }
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    /// The first to happen is the greatest.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}
