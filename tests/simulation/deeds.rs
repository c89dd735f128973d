//! What the world does: carries out what the core asks, computes, and breaks.

use std::sync::Arc;
use std::time::Duration;

use coordinator::cluster::{Action, Input};
use node::samples::tokens_of;
use protocol::message::StageFailed;
use protocol::{
    Blame, Body, Epoch, Failed, Frame, Sampled, SessionId, StageId, StageIndex, StepId,
};

use super::machines::{Arrived, NotComputed};
use super::scenario::What;
use super::stage::{Output, Trouble};
use super::world::{FromStage, Happening, Order, World};

/// The coordinator, as the end of a link.
const COORDINATOR: u32 = u32::MAX;

impl World<'_> {
    /// What the core asks of the world.
    pub(super) fn act(&mut self, action: Action) {
        match action {
            Action::Unload(node, pipeline, epoch) => {
                self.order(node.0 as usize, Order::Unload(pipeline, epoch));
            }
            Action::Connect(node, stage) => self.order(node.0 as usize, Order::Link(stage)),
            Action::Disconnect(session) => {
                let of_session = self.machines.iter().position(|it| it.session == session);
                if let Some(machine) = of_session {
                    self.order(machine, Order::Reconnect);
                }
            }
            Action::Send(frame) => {
                let Body::Step(step) = frame.body else { return };
                let arrived = Arrived {
                    stage: frame.stage,
                    step: frame.step,
                    batch: Arc::new(step.batch),
                    since: self.now,
                    takes: Duration::ZERO,
                    timings: Vec::new(),
                    rows: Ok(None),
                };
                self.send_step(arrived, COORDINATOR);
            }
            _ => {}
        }
    }

    /// To a machine, in the session that it has now.
    pub(super) fn order(&mut self, machine: usize, order: Order) {
        let (session, pause) = (self.machines[machine].session, self.hop());
        self.after(pause, Happening::Order(machine, session, order));
    }

    /// When a frame arrives that leaves now.
    fn arrival(&mut self, epoch: Epoch, from: u32, to: u32) -> Duration {
        let arrives = self.now + self.hop();
        let last = self.links.entry((epoch, from, to)).or_default();
        *last = arrives.max(*last);
        *last
    }

    fn send_step(&mut self, arrived: Arrived, from: u32) {
        self.send(arrived.stage, from, Order::Step(arrived));
    }

    /// To the machine of a stage, behind whatever goes the same way.
    fn send(&mut self, to: StageId, from: u32, order: Order) {
        let StageId { epoch, stage, .. } = to;
        let machine = self.plans[&epoch].machines[stage.index()];
        if from != COORDINATOR {
            let sender = self.plans[&epoch].machines[from as usize];
            if self.is_cut(sender, machine) {
                return;
            }
        }
        let at = self.arrival(epoch, from, stage.0);
        let session = self.machines[machine].session;
        self.at(at, Happening::Order(machine, session, order));
    }

    fn tell(&mut self, input: Input) {
        let pause = self.hop();
        self.after(pause, Happening::Input(input));
    }

    fn link_lost(&mut self, stage: StageId, after: Duration) {
        let input = Input::LinkLost { stage, cause: "a link broke".into() };
        self.after(after, Happening::Input(input));
    }

    /// A machine's process begins, and says so.
    pub(super) fn rise(&mut self, number: usize) -> Result<(), String> {
        if self.machines[number].is_up {
            return Ok(());
        }
        self.connect(number);
        Ok(())
    }

    fn connect(&mut self, number: usize) {
        self.num_sessions += 1;
        let (session, now) = (SessionId(self.num_sessions), self.now);
        self.machines[number].rise(session, now);
        let node = self.machines[number].node;
        self.tell(Input::Connected { node, session, wire_version: protocol::WIRE_VERSION });
        let report = self.machines[number].report();
        let pause = self.scenario.cost.hop * 40;
        self.after(pause, Happening::Input(Input::Joined(report)));
    }

    /// What a machine does with what reaches it.
    pub(super) fn obey(&mut self, number: usize, order: Order) -> Result<(), String> {
        let node = self.machines[number].node;
        match order {
            Order::Load(plan) => {
                let takes = self.scenario.cost.load.mul_f64(0.5 + self.random.unit());
                let session = self.machines[number].session;
                self.after(takes, Happening::Order(number, session, Order::Loaded(plan)));
            }
            Order::Loaded(plan) if self.num_loads_to_fail > 0 => {
                self.num_loads_to_fail -= 1;
                self.tell(Input::Failed(StageFailed {
                    node,
                    id: plan.id,
                    cause: "bad luck".into(),
                    blame: Blame::Own,
                }));
            }
            Order::Loaded(plan) => {
                let class = self.machines[number].class();
                let echo = self.machines[number].load(*plan).echo(node, class);
                self.tell(Input::Ready(echo));
            }
            Order::Unload(pipeline, epoch) => self.machines[number].unload(pipeline, epoch),
            Order::Link(stage) => self.link(number, stage),
            Order::Step(mut arrived) => {
                let stage = arrived.stage;
                (arrived.since, arrived.takes) = (self.now, Duration::ZERO);
                self.machines[number].arrive(arrived);
                self.go_on(number, stage);
            }
            Order::Hear(first, step, said) => {
                self.machines[number].hear(first, step, &said);
                self.go_on(number, first);
            }
            Order::Computed(arrived) => self.computed(number, arrived),
            Order::Reconnect => {
                self.machines[number].fall();
                self.connect(number);
            }
        }
        Ok(())
    }

    /// A stage computes whatever it can.
    fn go_on(&mut self, number: usize, stage: StageId) {
        let (cost, now, session) = (self.scenario.cost, self.now, self.machines[number].session);
        while let Some((at, arrived)) = self.machines[number].take(stage, &cost, now) {
            self.tally.busy += arrived.takes;
            self.at(at, Happening::Order(number, session, Order::Computed(arrived)));
        }
    }

    fn link(&mut self, number: usize, stage: StageId) {
        let node = self.machines[number].node;
        // The last one's link, over which the first hears what was sampled.
        if self.machines[number].has_first_of(stage) {
            return;
        }
        let Some(held) = self.machines[number].stage(stage) else {
            self.link_lost(stage, Duration::from_millis(1));
            return;
        };
        let next = held.plan().next.map(|peer| peer.node.0 as usize);
        self.tell(Input::Linked(node, stage));
        match next {
            Some(next) if self.is_cut(number, next) => {
                let cause = "the next stage can't be reached".to_owned();
                let failed = StageFailed { node, id: stage, cause, blame: Blame::Next };
                self.after(Duration::from_secs(1), Happening::Input(Input::Failed(failed)));
            }
            Some(next) => self.order(next, Order::Link(stage.next())),
            None => {}
        }
    }

    fn is_cut(&self, one: usize, other: usize) -> bool {
        self.cuts.iter().any(|(a, b, until)| {
            *until > self.now && [(one, other), (other, one)].contains(&(*a, *b))
        })
    }

    /// Two machines can't reach each other: the stages there notice, the first first.
    fn part(&mut self, first: StageId, stage: usize, noticed: Duration, back: Duration) {
        let machines = &self.plans[&first.epoch].machines;
        let (here, next) = (stage % machines.len(), (stage + 1) % machines.len());
        let (one, other) = (machines[here], machines[next]);
        if one == other {
            return;
        }
        self.cuts.push((one, other, self.now + back));
        let ends = [(here, Blame::Next, noticed), (next, Blame::Before, noticed * 2)];
        for (stage, blame, after) in ends {
            let id = StageId { stage: StageIndex(stage as u32), ..first };
            let failed = Failed { cause: "the link ended".into(), fatal: true, blame };
            let input = Input::Frame(frame(id, StepId(0), Body::Failed(failed)));
            self.after(after, Happening::Input(input));
        }
    }

    /// A process does nothing for a while; whoever doesn't hear of it for too long gives it up.
    fn freeze(&mut self, number: usize, noticed: Duration, back: Duration) {
        if !self.machines[number].is_up {
            return;
        }
        self.machines[number].frozen_until = self.now + back;
        let (node, session) = (self.machines[number].node, self.machines[number].session);
        if noticed < back {
            let cause = "it is silent".to_owned();
            self.after(noticed, Happening::Input(Input::Lost { node, session, cause }));
        }
    }

    fn computed(&mut self, number: usize, arrived: Arrived) {
        let (id, class) = (arrived.stage, self.plans[&arrived.stage.epoch].class);
        let Some(computed) = self.machines[number].compute(&arrived, class) else {
            return;
        };
        let is_unlucky = self.random.chance(self.scenario.noise.fail_step);
        let failed = |cause: String, is_wrong| NotComputed { cause, is_wrong };
        let computed = match computed {
            Err(Trouble::NotComputed(before)) => Err(before),
            _ if is_unlucky => Err(failed("bad luck".into(), false)),
            Err(Trouble::NotFinite) => Err(failed("not finite".into(), false)),
            Err(Trouble::Refused(cause)) => {
                Err(failed(format!("stage {} refuses: {cause}", id.stage), true))
            }
            Ok((Output::Rows(_), Some(wrong))) => Err(failed(wrong, true)),
            Ok(computed) => Ok(computed),
        };
        if computed.is_err() {
            self.failed(&arrived);
        }
        let samples = self.machines[number].stage(id).is_some_and(|it| it.plan().samples());
        let (body, wrong) = match computed {
            Ok((Output::Sampled(sampled), wrong)) => {
                let timings = arrived.timings(self.now);
                (Body::Sampled(Sampled { timings, ..sampled }), wrong)
            }
            Ok((Output::Rows(rows), _)) => {
                let (stage, rows, timings) = (id.next(), Ok(Some(rows)), arrived.timings(self.now));
                self.send_step(Arrived { stage, rows, timings, ..arrived }, id.stage.0);
                return;
            }
            // As a step that was computed goes, so that results come in the order of their steps.
            Err(why) if !samples => {
                let (stage, rows) = (id.next(), Err(why));
                self.send_step(Arrived { stage, rows, ..arrived }, id.stage.0);
                return;
            }
            Err(why) => {
                let wrong = why.is_wrong.then(|| why.cause.clone());
                (Body::Failed(stage_failed(&why.cause, false)), wrong)
            }
        };
        let first = StageId { stage: StageIndex(0), ..id };
        let (told, step) = (tokens_of(&body), arrived.step);
        if id == first {
            self.machines[number].hear(first, step, &told);
            self.go_on(number, first);
        } else {
            self.send(first, id.stage.0, Order::Hear(first, step, told));
        }
        if self.random.chance(self.scenario.noise.lose) {
            self.plans.entry(id.epoch).or_default().is_silent = true;
        }
        if self.plans[&id.epoch].is_silent {
            return;
        }
        self.report(&arrived, body, wrong);
    }

    /// The stages behind this one hear nothing of the step.
    fn failed(&mut self, arrived: &Arrived) {
        let StageId { epoch, .. } = arrived.stage;
        let mut lanes = self.cluster.lanes();
        let is_awaited =
            lanes.any(|(of, lane)| of.epoch == epoch && lane.is_under_way(arrived.step));
        drop(lanes);
        if is_awaited {
            self.plans.entry(epoch).or_default().failed.insert(arrived.step);
        }
    }

    /// What a stage says to the coordinator.
    fn report(&mut self, arrived: &Arrived, body: Body, wrong: Option<String>) {
        let frame = frame(arrived.stage, arrived.step, body);
        let from = FromStage { frame, batch: Arc::clone(&arrived.batch), wrong };
        let StageId { epoch, stage, .. } = arrived.stage;
        let at = self.arrival(epoch, stage.0, COORDINATOR);
        if self.random.chance(self.scenario.noise.repeat) {
            let late = Duration::from_millis(self.random.between(0, 4000));
            self.at(at + late, Happening::Frame(Box::new(from.clone())));
        }
        self.at(at, Happening::Frame(Box::new(from)));
    }

    /// Something breaks.
    pub(super) fn break_down(&mut self, what: What) {
        let serving: Vec<_> = self.cluster.lanes().map(|(first, _)| first).collect();
        let of = |index: usize| serving.get(index % serving.len().max(1)).copied();
        match what {
            What::Kill { node, noticed, back } => self.kill(node, noticed, back),
            What::KillStage { stage, noticed, back } => {
                if let Some(first) = of(0) {
                    let machines = &self.plans[&first.epoch].machines;
                    self.kill(machines[stage % machines.len()], noticed, back);
                }
            }
            What::Freeze { node, noticed, back } => self.freeze(node, noticed, back),
            What::Part { stage, noticed, back } => {
                if let Some(first) = of(0) {
                    self.part(first, stage, noticed, back);
                }
            }
            What::Unlink { pipeline } => {
                if let Some(first) = of(pipeline) {
                    self.link_lost(first, Duration::ZERO);
                }
            }
            What::Fatal { pipeline, stage } => {
                let Some(first) = of(pipeline) else { return };
                let stage = stage % self.plans[&first.epoch].machines.len();
                let id = StageId { stage: StageIndex(stage as u32), ..first };
                let body = Body::Failed(stage_failed("device lost", true));
                let frame = frame(id, StepId(0), body);
                self.tell(Input::Frame(frame));
            }
            What::FailLoads { num } => self.num_loads_to_fail += num,
        }
    }

    /// A process is gone: its neighbours may notice first, or it may be back before anybody does.
    fn kill(&mut self, number: usize, noticed: Duration, back: Duration) {
        if !self.machines[number].is_up {
            return;
        }
        let (node, session) = (self.machines[number].node, self.machines[number].session);
        let held = self.machines[number].fall();
        let cause = "killed".to_owned();
        for stage in held {
            if self.random.chance(0.3) {
                self.link_lost(stage, noticed / 4);
            }
        }
        let input = if self.random.chance(0.3) {
            Input::Exited { pid: Some(self.machines[number].report().pid), cause }
        } else {
            Input::Lost { node, session, cause }
        };
        // A process that has ended is another than the one that has come back.
        let noticed = match input {
            Input::Exited { .. } => noticed.min(back),
            _ => noticed,
        };
        self.after(noticed, Happening::Input(input));
        self.after(back, Happening::Rise(number));
    }
}

fn stage_failed(cause: &str, fatal: bool) -> Failed {
    Failed { cause: cause.into(), fatal, blame: Blame::Own }
}

fn frame(stage: StageId, step: StepId, body: Body) -> Frame {
    Frame { model: protocol::ModelId([7; 16]), stage, step, body }
}
