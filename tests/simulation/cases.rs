//! Scenarios with a question: what a crash costs, who gets how much, how long anybody waits.

use std::sync::Arc;
use std::time::Duration;

use coordinator::request::{Priority, Tenant};
use protocol::config::RunAhead;

use super::load;
use super::random::Random;
use super::scenario::{Ask, Body, Fault, Scenario, What, When};

/// Three requests of four answers, of which two begin alike.
pub fn few(num_stages: u32) -> Scenario {
    let mut scenario = Scenario::calm(u64::from(num_stages), num_stages, 1, 1);
    let mut random = Random::new(5);
    let prefix = load::prompt(&mut random, 20);
    let with_prefix = |random: &mut Random, num_tokens| {
        let own = load::prompt(random, num_tokens);
        prefix.iter().chain(own.iter()).copied().collect::<Arc<[_]>>()
    };
    let asks = [
        Ask::new(with_prefix(&mut random, 15), 6),
        Ask { num_choices: 2, logprobs: true, ..Ask::new(with_prefix(&mut random, 3), 5) },
        Ask { scores_prompt: true, ..Ask::new(load::prompt(&mut random, 40), 6) },
    ];
    scenario.bodies = vec![Body { at: Duration::from_secs(2), asks: asks.to_vec() }];
    scenario.config.scheduler.max_batched_tokens = 32;
    scenario
}

/// Tokens that [`few`] answers with.
pub const TOKENS_OF_FEW: u64 = 6 + 2 * 5 + 6;

/// Every token, every stage, one to four stages, with steps that run ahead and without.
pub fn crashes() -> impl Iterator<Item = Scenario> {
    let stages = (1..=4).flat_map(|num| (0..num as usize).map(move |stage| (num, stage)));
    let tokens = stages.flat_map(|it| (0..TOKENS_OF_FEW).map(move |num_tokens| (it, num_tokens)));
    tokens.flat_map(|((num_stages, stage), num_tokens)| {
        [RunAhead::Off, RunAhead::On].map(|run_ahead| {
            let mut scenario = crash(num_stages, stage, num_tokens);
            scenario.config.scheduler.run_ahead = run_ahead;
            scenario
        })
    })
}

/// [`few`], and the machine of a stage is gone when so many tokens were told.
fn crash(num_stages: u32, stage: usize, num_tokens: u64) -> Scenario {
    let mut scenario = few(num_stages);
    let (noticed, back) = (Duration::from_millis(40), Duration::from_secs(2));
    let what = What::KillStage { stage, noticed, back };
    scenario.faults = vec![Fault { when: When::AfterTokens(num_tokens), what }];
    scenario
}

/// These tenants, by weight, always have more waiting than can be computed.
pub fn backlog(weights: &[u32], num_stages: u32) -> Scenario {
    let mut scenario = Scenario::calm(9, num_stages, 1, 0);
    scenario.config.scheduler.max_queued_requests = 1_000_000;
    scenario.config.scheduler.max_num_seqs = 8;
    let mut random = Random::new(9);
    let tenants: Vec<Tenant> = (0..weights.len()).map(|i| format!("tenant-{i}").into()).collect();
    let asks = (0..2000).map(|i| {
        let of = i % weights.len();
        // Each asks in its own way: shorter or longer ones.
        let num_tokens = random.between(4, 20 + 30 * of as u64);
        let max_tokens = random.between(4, 70 - 10 * of as u64) as u32;
        let mut ask = Ask::new(load::prompt(&mut random, num_tokens), max_tokens);
        (ask.tenant, ask.weight) = (tenants[of].clone(), weights[of]);
        ask
    });
    let at = Duration::from_secs(2);
    scenario.bodies = asks.map(|ask| Body { at, asks: vec![ask] }).collect();
    scenario.until = Some(Duration::from_secs(20));
    scenario
}

/// Twice as much as can be computed comes for half a minute, of every priority, with several
/// choices and several prompts in a body, too.
pub fn overload(seed: u64) -> Scenario {
    let mut scenario = Scenario::calm(seed, 1, 1, 0);
    let scheduler = &mut scenario.config.scheduler;
    scheduler.max_queued_requests = 100;
    scheduler.max_num_seqs = 8;
    (scheduler.aging_ms, scheduler.offline_aging_ms) = (500, 1500);
    let mut random = Random::new(seed);
    let mut at = Duration::from_secs(2);
    while at < Duration::from_secs(30) {
        at += Duration::from_secs_f64(random.exponential(1.0 / OVERLOAD_RATE));
        let num_asks = if random.chance(0.1) { 3 } else { 1 };
        let asks = (0..num_asks).map(|_| {
            let prompt = load::prompt(&mut random, OVERLOAD_TOKENS.0);
            let mut ask = Ask::new(prompt, OVERLOAD_TOKENS.1);
            ask.priority = random.pick(&Priority::ALL);
            ask.num_choices = if random.chance(0.1) { 3 } else { 1 };
            ask
        });
        scenario.bodies.push(Body { at, asks: asks.collect() });
    }
    scenario
}

/// Tokens of a prompt and of an answer.
pub const OVERLOAD_TOKENS: (u64, u32) = (32, 32);

/// Bodies a second, of 1.2 requests of 1.2 choices each.
const OVERLOAD_RATE: f64 = 64.0;
