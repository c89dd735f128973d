//! The autoscaler in virtual time: pipelines that take time to load and end what they began before
//! they go, under load of every shape.

use super::*;

use proptest::prelude::*;

/// Between two looks, in milliseconds.
const TICK_MS: u64 = 500;

/// How long a pipeline takes to load, in ticks.
const LOADING: u32 = 40;

/// Of every request: tokens of its prompt, and of its answer.
const PROMPT: usize = 200;
const ANSWER: usize = 100;

/// Tokens that a sequence gains in a tick, and sequences that a pipeline runs.
const SPEED: usize = 5;
const MAX_NUM_SEQS: usize = 16;

struct Pipeline {
    // Ticks until it serves.
    loading: u32,
    is_draining: bool,
    // Tokens of each answer so far.
    running: Vec<usize>,
}

/// A cluster as the autoscaler sees it.
struct Model {
    autoscaler: Autoscaler,
    now: Instant,
    pipelines: Vec<Pipeline>,
    waiting: VecDeque<Instant>,
    arriving: f64,
    num_arrived: usize,
    num_answered: usize,
    longest_wait: Duration,
    decisions: Vec<Rescale>,
}

fn config(change: impl FnOnce(&mut config::Autoscaler)) -> Config {
    let mut config = Config::default();
    config.scheduler.max_num_seqs = MAX_NUM_SEQS as u32;
    config.autoscaler.max_pipelines = 6;
    config.autoscaler.target_tokens = 2500;
    change(&mut config.autoscaler);
    config.check().unwrap();
    config
}

impl Model {
    fn new(change: impl FnOnce(&mut config::Autoscaler)) -> Self {
        Self {
            autoscaler: Autoscaler::new(&config(change)),
            now: Instant::now(),
            pipelines: Vec::new(),
            waiting: VecDeque::new(),
            arriving: 0.0,
            num_arrived: 0,
            num_answered: 0,
            longest_wait: Duration::ZERO,
            decisions: Vec::new(),
        }
    }

    /// A tick in which so many requests arrive.
    fn tick(&mut self, per_second: f64) {
        self.now += Duration::from_millis(TICK_MS);
        self.arriving += per_second * TICK_MS as f64 / 1000.0;
        while self.arriving >= 1.0 {
            self.arriving -= 1.0;
            self.num_arrived += 1;
            self.waiting.push_back(self.now);
        }
        let kept = self.pipelines.iter().filter(|it| !it.is_draining).count();
        let wanted = self.autoscaler.wanted();
        for _ in kept..wanted {
            self.pipelines.push(Pipeline { loading: LOADING, is_draining: false, running: vec![] });
        }
        let last = self.pipelines.iter_mut().rev().filter(|it| !it.is_draining);
        last.take(kept.saturating_sub(wanted)).for_each(|it| it.is_draining = true);
        for pipeline in &mut self.pipelines {
            if pipeline.loading > 0 {
                pipeline.loading -= 1;
                continue;
            }
            while !pipeline.is_draining && pipeline.running.len() < MAX_NUM_SEQS {
                let Some(since) = self.waiting.pop_front() else { break };
                self.longest_wait = self.longest_wait.max(self.now - since);
                pipeline.running.push(0);
            }
            let before = pipeline.running.len();
            pipeline.running.iter_mut().for_each(|tokens| *tokens += SPEED);
            pipeline.running.retain(|tokens| *tokens < ANSWER);
            self.num_answered += before - pipeline.running.len();
        }
        self.pipelines.retain(|it| !it.is_draining || !it.running.is_empty());

        let running: Vec<_> = self.pipelines.iter().flat_map(|it| &it.running).collect();
        let tokens_running: usize = running.iter().map(|tokens| PROMPT + **tokens).sum();
        let num_sequences = running.len() + self.waiting.len();
        let serves = |it: &&Pipeline| it.loading == 0 && !it.is_draining;
        let seen = Observation {
            num_serving: self.pipelines.iter().filter(serves).count(),
            num_tokens: tokens_running + PROMPT * self.waiting.len(),
            num_sequences,
            longest_wait: self.waiting.front().map_or(Duration::ZERO, |since| self.now - *since),
            num_open: num_sequences,
        };
        self.decisions.extend(self.autoscaler.decide(seen, self.now));
    }

    fn run(&mut self, seconds: u64, per_second: impl Fn(f64) -> f64) {
        for tick in 0..seconds * 1000 / TICK_MS {
            self.tick(per_second((tick * TICK_MS) as f64 / 1000.0));
        }
    }

    fn decided(&self) -> Vec<(usize, usize)> {
        self.decisions.iter().map(|it| (it.from, it.to)).collect()
    }

    /// What holds whatever the load was.
    fn check(&self) {
        let config = &self.autoscaler.config;
        let (min, max) = (config.min_pipelines as usize, config.max_pipelines as usize);
        let mut wanted = min.max(1);
        for decision in &self.decisions {
            assert_eq!(decision.from, wanted, "{decision:?}");
            assert!((min..=max).contains(&decision.to) && decision.to != wanted, "{decision:?}");
            wanted = decision.to;
        }
        for pair in self.decisions.windows(2) {
            let after = (pair[1].at - pair[0].at).as_millis() as u64;
            let is_up = |it: &Rescale| it.to > it.from;
            match (is_up(&pair[0]), is_up(&pair[1]), pair[1].cause) {
                (true, false, Cause::Idle) => assert!(after >= config.idle_ms, "{pair:?}"),
                (true, false, _) => assert!(after >= config.downscale_delay_ms, "{pair:?}"),
                (false, true, Cause::Woken) => assert_eq!(pair[0].to, 0, "{pair:?}"),
                (false, true, _) => assert!(after >= config.upscale_delay_ms, "{pair:?}"),
                _ => {}
            }
        }
        let num_running: usize = self.pipelines.iter().map(|it| it.running.len()).sum();
        let num_open = num_running + self.waiting.len();
        assert_eq!(self.num_arrived, self.num_answered + num_open, "nothing is lost");
    }
}

/// Sequences in flight at so many requests a second that nobody waits for.
fn in_flight(per_second: f64) -> f64 {
    per_second * (ANSWER / SPEED) as f64 * TICK_MS as f64 / 1000.0
}

/// Requests a second that so many pipelines are meant for.
fn rate(pipelines: f64) -> f64 {
    // 250 tokens are in flight for a sequence that is half done.
    pipelines * 10.0 / in_flight(1.0)
}

#[test]
fn after_a_step_the_number_is_right_and_stays() {
    for (pipelines, expected) in [(0.5, 1), (1.8, 2), (2.5, 3), (4.6, 5), (9.0, 6)] {
        let mut model = Model::new(|_| {});
        model.run(60, |_| 0.0);
        model.run(3600, |_| rate(pipelines));
        assert_eq!(model.autoscaler.wanted(), expected, "{pipelines}: {:?}", model.decided());
        let last = model.decisions.last().map_or(0, |it| (model.now - it.at).as_secs());
        assert!(expected == 1 || last > 1800, "{last} s ago: {:?}", model.decided());
        model.run(900, |_| 0.0);
        assert_eq!(model.autoscaler.wanted(), 1, "{:?}", model.decided());
        model.check();
    }
}

#[test]
fn a_ramp_is_followed_up_and_down_without_a_step_back() {
    let mut model = Model::new(|_| {});
    model.run(1800, |at| rate(5.0 * at / 1800.0));
    model.run(1800, |at| rate(5.0 * (1.0 - at / 1800.0)));
    model.run(600, |_| 0.0);
    model.check();
    let reversals = |pair: &&[Rescale]| (pair[0].to > pair[0].from) != (pair[1].to > pair[1].from);
    assert_eq!(model.decisions.windows(2).filter(reversals).count(), 1, "{:?}", model.decided());
    assert_eq!(model.decisions.iter().map(|it| it.to).max(), Some(5), "{:?}", model.decided());
    assert_eq!(model.autoscaler.wanted(), 1);
    let longest = model.longest_wait;
    assert!(longest < Duration::from_secs(10), "pipelines come in time: {longest:?}");
}

/// Shorter than the upscale delay: what is there takes it.
#[test]
fn a_burst_that_is_over_before_the_delay_changes_nothing() {
    let mut model = Model::new(|_| {});
    model.run(60, |_| rate(0.3));
    for _ in 0..20 {
        model.run(4, |_| rate(3.0));
        model.run(56, |_| rate(0.3));
    }
    assert_eq!(model.decided(), []);
    model.check();
}

/// Load goes up and down faster than pipelines could follow: their number stays at what the peaks
/// need.
#[test]
fn a_sawtooth_within_the_downscale_delay_is_answered_once() {
    let mut model = Model::new(|_| {});
    model.run(4 * 3600, |at| rate(3.7 * (at % 120.0) / 120.0));
    model.check();
    let is_up = |decision: &Rescale| decision.to > decision.from;
    let has_risen = !model.decisions.is_empty() && model.decisions.iter().all(is_up);
    assert!(has_risen, "{:?}", model.decided());
    let last = model.decisions.last().unwrap().at;
    assert!((model.now - last).as_secs() > 3 * 3600, "{:?}", model.decided());
}

/// Goal: no flapping where load is what a number of pipelines is meant for, more or less. Method:
/// load that wavers around each edge within the tolerance, for a day.
#[test]
fn load_at_the_edge_changes_nothing() {
    for edge in 1..6 {
        let mut model = Model::new(|config| config.max_pipelines = 8);
        let wavers = |at: f64| rate(edge as f64 * (1.0 + 0.08 * (at / 700.0).sin()));
        model.run(3600, wavers);
        let settled = model.decisions.len();
        model.run(24 * 3600, wavers);
        assert_eq!(model.decisions.len(), settled, "{edge}: {:?}", model.decided());
        model.check();
    }
}

#[test]
fn whoever_waits_too_long_gets_one_more_and_what_comes_is_given_time() {
    let mut autoscaler = Autoscaler::new(&config(|config| config.smoothing_ms = 0));
    let start = Instant::now();
    let mut seen = Observation {
        num_serving: 1,
        num_tokens: 2000,
        num_sequences: 8,
        longest_wait: Duration::from_millis(1001),
        num_open: 8,
    };
    let at = |seconds| start + Duration::from_secs(seconds);
    assert_eq!(autoscaler.decide(seen, at(0)), None);
    assert_eq!(autoscaler.decide(seen, at(9)), None, "the delay has not passed");
    let decision = autoscaler.decide(seen, at(10)).unwrap();
    assert_eq!((decision.from, decision.to, decision.cause), (1, 2, Cause::Wait));
    for seconds in 11..600 {
        assert_eq!(autoscaler.decide(seen, at(seconds)), None, "the second has yet to serve");
    }
    seen.num_serving = 2;
    assert_eq!(autoscaler.decide(seen, at(600)), None);
    assert_eq!(autoscaler.decide(seen, at(610)).unwrap().to, 3);
    // One moment without a wait begins the delay anew.
    seen.num_serving = 3;
    assert_eq!(autoscaler.decide(seen, at(620)), None);
    let calm = Observation { longest_wait: Duration::ZERO, ..seen };
    assert_eq!(autoscaler.decide(calm, at(625)), None);
    assert_eq!(autoscaler.decide(seen, at(631)), None);
    assert_eq!(autoscaler.decide(seen, at(641)).unwrap().to, 4);
}

#[test]
fn from_one_to_none_and_back_at_the_first_request() {
    let mut model = Model::new(|config| config.min_pipelines = 0);
    for _ in 0..10 {
        model.run(700, |_| 0.0);
        assert_eq!(model.autoscaler.wanted(), 0, "idle for long enough");
        assert!(model.pipelines.is_empty());
        model.run(1, |_| 1.0);
        assert_eq!(model.autoscaler.wanted(), 1, "the first request, without a delay");
        model.run(60, |_| 0.2);
    }
    model.run(100, |_| 0.0);
    model.check();
    assert_eq!(model.num_answered, model.num_arrived);
    assert!(model.num_answered >= 100);
    let causes: Vec<_> = model.decisions.iter().map(|it| it.cause).collect();
    assert_eq!(causes, [Cause::Idle, Cause::Woken].repeat(10));

    let mut never = Model::new(|_| {});
    never.run(24 * 3600, |_| 0.0);
    assert_eq!(never.decided(), [], "where at least one is wanted");
}

#[test]
fn so_many_decisions_are_kept_as_configured() {
    let mut model = Model::new(|config| (config.min_pipelines, config.max_decisions) = (0, 3));
    for _ in 0..5 {
        model.run(700, |_| 0.0);
        model.run(10, |_| 1.0);
    }
    assert_eq!(model.decisions.len(), 10);
    let kept: Vec<_> = model.autoscaler.decisions().copied().collect();
    assert_eq!(kept, model.decisions[7..]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Goal: bounds, delays and answers hold whatever the load; once it is steady, so is the
    /// number of pipelines, and it is what the load asks for. Method: load of random pieces, with
    /// random settings, then an hour of steady load.
    #[test]
    fn any_load_is_followed_within_bounds_and_delays(
        pieces in prop::collection::vec((1_u64..900, 0.0..9.0_f64), 1..8),
        steady in 0.0..7.0_f64,
        (min, more) in (0_u32..3, 1_u32..6),
        upscale_delay_s in 0_u64..60,
        downscale_delay_s in 10_u64..400,
        smoothing_ms in 0_u64..20_000,
        tolerance in 0.05..0.3_f64,
    ) {
        let mut model = Model::new(|config| {
            config.min_pipelines = min;
            config.max_pipelines = min + more;
            config.upscale_delay_ms = 1000 * upscale_delay_s;
            config.downscale_delay_ms = 1000 * downscale_delay_s;
            config.smoothing_ms = smoothing_ms;
            config.tolerance = tolerance;
        });
        for (seconds, pipelines) in pieces {
            model.run(seconds, |_| rate(pipelines));
        }
        model.run(7200, |_| rate(steady));
        model.check();
        let settled = model.decisions.len();
        let wanted = model.autoscaler.wanted();
        if steady > 0.1 {
            model.run(1800, |_| rate(steady));
            prop_assert_eq!(settled, model.decisions.len(), "{:?}", model.decided());
            let [fewest, most] = [1.0 + tolerance, 1.0 - tolerance].map(|share| {
                // Arrivals come one by one.
                let slack = if share > 1.0 { -0.4 } else { 0.4 };
                ((steady + slack).max(0.0) / share).ceil() as usize
            });
            let bounded = |num: usize| num.clamp(min.max(1) as usize, (min + more) as usize);
            prop_assert!((bounded(fewest)..=bounded(most)).contains(&wanted),
                "{wanted} for {steady}: {:?}", model.decided());
        }
    }
}
