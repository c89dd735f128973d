//! Clients that leave, in every state that a request can be in: nothing is kept for them.

use std::collections::{BTreeMap, HashMap, HashSet};

use protocol::{Body, Epoch, Frame, RequestId, SequenceId};

use crate::cluster::{Action, Input};
use crate::cluster_tests::{Test, two_stages};
use crate::request::{Event, Priority, Request};
use crate::testing::{Pipeline, request};

/// What a request was doing when its client left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    Waiting,
    Prefilling,
    Decoding,
    /// It had given way, and waited again.
    Preempted,
    /// Its pipeline was lost, and it waited again.
    Moved,
}

/// Two pipelines of two stages, and clients that come and go.
struct Crowd {
    test: Test,
    random: u64,
    open: Vec<u64>,
    num_submitted: u64,
    num_nodes: u64,
    // What the stages of each pipeline remember.
    begun: HashMap<Epoch, HashSet<SequenceId>>,
    is_moving: bool,
    left: BTreeMap<State, usize>,
    gone: HashSet<u64>,
    // Of each request whether it ran, and whether it has begun to answer.
    progress: HashMap<u64, bool>,
}

impl Crowd {
    fn new() -> Self {
        let mut test = Test::new(|config| {
            two_stages(config);
            config.coordinator.pipelines = 2;
            let scheduler = &mut config.scheduler;
            (scheduler.max_num_seqs, scheduler.max_batched_tokens) = (6, 16);
            (scheduler.max_queued_requests, scheduler.reserved_tokens) = (40, 0);
        });
        (1..=4).for_each(|node| test.join(node, 1000));
        test.load();
        Self {
            test,
            random: 7,
            open: Vec::new(),
            num_submitted: 0,
            num_nodes: 4,
            begun: HashMap::new(),
            is_moving: false,
            left: BTreeMap::new(),
            gone: HashSet::new(),
            progress: HashMap::new(),
        }
    }

    fn below(&mut self, end: u64) -> u64 {
        // Numerical Recipes' generator; its high bits are good.
        self.random = self
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % end
    }

    fn handle(&mut self, input: Input) {
        let before = self.test.sent.len();
        self.test.handle(input);
        for frame in &self.test.sent[before..] {
            let Body::Step(step) = &frame.body else { panic!("{frame:?}") };
            let begun = self.begun.entry(frame.stage.epoch).or_default();
            step.batch.finished.iter().for_each(|id| _ = begun.remove(id));
            let new = step.batch.slices.iter().filter(|slice| slice.begin.is_some());
            begun.extend(new.map(|slice| slice.sequence));
        }
        for (request, event) in self.test.told.drain(..) {
            assert!(!self.gone.contains(&request), "{request} has left and hears {event:?}");
            match event {
                Event::Admitted { .. } => _ = self.progress.entry(request).or_default(),
                Event::Token { .. } => _ = self.progress.insert(request, true),
                _ => {}
            }
        }
    }

    fn submit(&mut self) {
        let num_prompts = 1 + self.below(2);
        let mut body = Vec::new();
        for turn in 0..num_prompts {
            self.num_submitted += 1;
            let id = self.num_submitted;
            let priority = Priority::ALL[self.below(4) as usize];
            let (num_prompt, num_choices) = (1 + self.below(60) as u32, 1 + self.below(2) as u32);
            let request = request(id, num_prompt, 1 + self.below(40) as u32);
            body.push(Request { priority, num_choices, turn: turn as u32, ..request });
            self.open.push(id);
        }
        self.handle(Input::Submit(body));
        if self.test.submitted.pop().unwrap().is_err() {
            self.open.truncate(self.open.len() - num_prompts as usize);
        }
    }

    /// The oldest steps come back; some of them twice.
    fn answer(&mut self, num: usize) {
        for frame in self.test.sent.drain(..num.min(self.test.sent.len())).collect::<Vec<_>>() {
            for _ in 0..=self.below(20) / 19 {
                let Body::Step(step) = &frame.body else { panic!("{frame:?}") };
                let body = Body::Sampled(Pipeline::sampled(&step.batch));
                self.handle(Input::Frame(Frame { body, ..frame.clone() }));
            }
        }
    }

    fn cancel(&mut self, request: u64) {
        let cluster = &self.test.cluster;
        let waits = cluster.queue().has(RequestId(request));
        let state = match (waits, self.progress.get(&request)) {
            (true, None) => State::Waiting,
            (true, Some(_)) if self.is_moving => State::Moved,
            (true, Some(_)) => State::Preempted,
            (false, None | Some(false)) => State::Prefilling,
            (false, Some(true)) => State::Decoding,
        };
        *self.left.entry(state).or_default() += 1;
        self.gone.insert(request);
        self.handle(Input::Cancel(RequestId(request)));
    }

    /// A node of a pipeline is killed; another takes its place later.
    fn lose(&mut self) {
        let oldest = self.num_nodes - 3 + self.below(4);
        self.handle(Input::Exited { pid: Some(oldest as u32), cause: "killed".into() });
    }

    fn replace(&mut self) {
        self.num_nodes += 1;
        self.test.join(self.num_nodes, 1000);
        self.test.load();
        self.handle(Input::Tick);
    }
}

/// Goal: whoever leaves, whenever, leaves nothing behind: no place, no block, nothing that a stage
/// remembers, and nothing is said to it. Method: 10,000 cancels of random requests among others
/// that go on, in random states, while steps come back late and twice and pipelines are lost.
#[test]
fn ten_thousand_clients_that_leave_leave_no_block_and_no_place_taken() {
    let mut crowd = Crowd::new();
    let mut num_left = 0;
    while num_left < 10_000 {
        match crowd.below(16) {
            0..5 => crowd.submit(),
            5..11 => {
                let num = 1 + crowd.below(3) as usize;
                crowd.answer(num);
            }
            11..15 if !crowd.open.is_empty() => {
                let number = crowd.below(crowd.open.len() as u64) as usize;
                let request = crowd.open.swap_remove(number);
                num_left += 1;
                crowd.cancel(request);
            }
            // From the half on pipelines are lost, too.
            _ if num_left > 5000 && crowd.below(8) == 0 => {
                crowd.is_moving = true;
                crowd.lose();
                crowd.replace();
            }
            _ => crowd.handle(Input::Tick),
        }
    }
    println!("{:?}, {} submitted", crowd.left, crowd.num_submitted);
    let preempted = |action: &Action| matches!(action, Action::Preempted(_));
    assert!(crowd.test.others.iter().any(preempted));
    for state in
        [State::Waiting, State::Prefilling, State::Decoding, State::Preempted, State::Moved]
    {
        let num = crowd.left.get(&state).copied().unwrap_or_default();
        assert!(num >= 50, "{num} left while {state:?}");
    }

    // Nobody is left, though steps that name those who ran are still under way.
    for request in std::mem::take(&mut crowd.open) {
        crowd.cancel(request);
    }
    let load = crowd.test.cluster.load();
    assert_eq!((load.num_waiting, load.lanes.num_running), ([0; 4], 0));
    assert_eq!(load.lanes.num_used_blocks, 0, "of {}", load.lanes.num_blocks);
    while !crowd.test.sent.is_empty() {
        crowd.answer(1);
    }
    // Every place is there for others, and the stages are told to forget.
    while !crowd.test.is_ready() || crowd.test.cluster.load().lanes.num_blocks < 32 {
        crowd.replace();
    }
    let last: Vec<_> = (0..12).map(|id| 1_000_000 + id).collect();
    for id in &last {
        crowd.handle(Input::Submit(vec![request(*id, 4, 20)]));
        assert_eq!(crowd.test.submitted.pop().unwrap(), Ok(()));
    }
    let mut most = 0;
    while crowd.test.cluster.load().lanes.num_running > 0 {
        most = crowd.test.cluster.load().lanes.num_running.max(most);
        crowd.answer(1);
    }
    assert_eq!(most, 12, "ran at once");
    // What ended last is told with the next step, which doesn't come.
    let epochs: Vec<_> = crowd.test.cluster.lanes().map(|(first, _)| first.epoch).collect();
    for epoch in epochs {
        let remembered = crowd.begun.get(&epoch).map_or(0, HashSet::len);
        assert!(remembered <= 6, "{remembered} sequences are remembered in {epoch}");
    }
}
