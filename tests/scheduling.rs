//! The scheduler in virtual time: see `simulation`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use coordinator::request::Priority;
use protocol::config::{KvCacheDtype, Quantize, RunAhead};
use protocol::{
    Batch, Begin, BlockId, Input, LayerRange, ModelId, SamplingParams, SequenceId, Slice, StageId,
    StageLimits, StagePlan, TokenId,
};
use tests::simulation::scenario::When;
use tests::simulation::stage::{Output, Stage, Trouble};
use tests::simulation::{self, Scenario, Tally, cases};

/// Runs it; nothing may go wrong.
fn run(scenario: &Scenario) -> Tally {
    let outcome = simulation::run(scenario);
    if let Some(violation) = outcome.violation {
        panic!("seed {}: {violation}", scenario.seed);
    }
    outcome.tally
}

#[test]
fn whatever_happens_every_request_is_answered_once_and_nothing_idles() {
    for seed in 0..200 {
        let outcome = simulation::run(&Scenario::of_seed(seed));
        if let Some(violation) = outcome.violation {
            panic!("{}", simulation::replay(seed, &violation));
        }
    }
}

#[test]
fn a_seed_says_all_that_happens() {
    let run = |seed| simulation::run(&Scenario::of_seed(seed)).digest;
    let digests = |_| (0..10).map(run).collect::<Vec<_>>();
    let [first, again] = [0, 1].map(digests);
    assert_eq!(first, again);
    assert!(first.iter().collect::<BTreeSet<_>>().len() > 5, "{first:?}");
}

/// Every token index, every stage, one to four stages, with steps that run ahead and without: no
/// token is lost, repeated or different.
#[test]
fn a_machine_may_be_gone_at_any_token_of_any_stage() {
    for scenario in cases::crashes() {
        let tally = run(&scenario);
        let standard = &tally.priorities[Priority::Standard.index()];
        let told = (standard.num_answered, standard.num_tokens);
        assert_eq!(told, (3, cases::TOKENS_OF_FEW));
        // What had left the last stage may have been all that was missing.
        let fault = scenario.faults[0];
        let is_late = |num_tokens| num_tokens + 4 > cases::TOKENS_OF_FEW;
        let may_be_over = matches!(fault.when, When::AfterTokens(num) if is_late(num));
        assert!(tally.num_moved > 0 || may_be_over, "{fault:?}");
    }
}

/// The first stage is told what the last one samples, as a node's is, and the step that waits for
/// it is at hand then: of the way by the coordinator a hop remains, of a lone stage's none.
#[test]
fn steps_that_run_ahead_take_the_shorter_way() {
    for num_stages in 1..=3 {
        let bubble = |run_ahead, hop| {
            let mut scenario = cases::backlog(&[1], num_stages);
            scenario.cost.hop = Duration::from_micros(hop);
            scenario.bodies.truncate(100);
            scenario.config.scheduler.run_ahead = run_ahead;
            run(&scenario).bubble()
        };
        let [with, without] = [RunAhead::On, RunAhead::Off].map(|it| bubble(it, 1000));
        assert!(with < without - 0.06, "{num_stages} stages: {with} with, {without} without");
        assert!(num_stages > 1 || with < 0.01, "{with}");
        // Where that is worth it, and nowhere else.
        let auto = bubble(RunAhead::Auto, 1000);
        assert!(auto < with + 0.02, "{num_stages} stages: {auto}, {with} with");
        let [auto, without] = [RunAhead::Auto, RunAhead::Off].map(|it| bubble(it, 20));
        assert!((auto - without).abs() < 1e-3, "{num_stages} stages: {auto}, {without} without");
    }
}

#[test]
fn tenants_get_what_their_weights_say() {
    for (weights, run_ahead) in
        [(&[1, 1, 1][..], RunAhead::Off), (&[1, 3], RunAhead::On), (&[1, 2, 5], RunAhead::Auto)]
    {
        let mut scenario = cases::backlog(weights, 2);
        scenario.config.scheduler.run_ahead = run_ahead;
        let tally = run(&scenario);
        let computed: BTreeMap<_, _> = tally.computed.iter().collect();
        let all: u64 = tally.computed.values().sum();
        let sum: u32 = weights.iter().sum();
        assert!(all > 10_000, "{all}");
        for ((tenant, num), weight) in computed.into_iter().zip(weights) {
            let (share, expected) = (*num as f64 / all as f64, f64::from(*weight) / f64::from(sum));
            assert!((share / expected - 1.0).abs() < 0.05, "{tenant}: {share} of {expected}");
        }
    }
}

/// Nobody waits longer than it takes to be lifted to the top, and then to compute everybody who
/// may have come before: `max_queued_requests` requests.
#[test]
fn at_twice_the_load_nobody_waits_longer_than_is_said() {
    for seed in 0..2 {
        let scenario = cases::overload(seed);
        let tally = run(&scenario);
        let scheduler = &scenario.config.scheduler;
        let refused: u64 = tally.priorities.iter().map(|it| it.num_refused).sum();
        let answered: u64 = tally.priorities.iter().map(|it| it.num_answered).sum();
        assert!(refused > answered / 2, "that was no overload: {refused} of {answered} refused");
        let rate = answered as f64 / tally.duration.as_secs_f64();
        let to_top = scheduler.offline_aging_ms + 2 * scheduler.aging_ms;
        // Those that run, and as many requests as may wait, of up to three choices.
        let before = (scheduler.max_queued_requests + scheduler.max_num_seqs as usize) as f64;
        let bound = Duration::from_millis(to_top) + Duration::from_secs_f64(1.5 * before / rate);
        assert!(tally.longest_wait <= bound, "{:?} of {bound:?}", tally.longest_wait);
    }
}

/// The simulator sees what it is made to see: a stage whose cache another has written into, that is
/// told other tokens, or that no scheduler would tell anything like that.
#[test]
fn a_stage_that_is_told_wrongly_samples_another_token() {
    let right = |stage: &mut Stage| {
        compute(stage, slice(1, 0, &[5; 20], &[0, 1], true)).unwrap();
        compute(stage, slice(1, 20, &[9], &[], false)).unwrap()
    };
    let (expected, nothing) = right(&mut stage());
    assert_eq!(nothing, None);
    // Another sequence writes into the first one's block.
    let mut shared = stage();
    compute(&mut shared, slice(1, 0, &[5; 20], &[0, 1], true)).unwrap();
    compute(&mut shared, slice(2, 0, &[6; 3], &[1], true)).unwrap();
    let (token, wrong) = compute(&mut shared, slice(1, 20, &[9], &[], false)).unwrap();
    assert_eq!(wrong.as_deref(), Some("stage 0: block 1 holds something else"));
    assert_ne!(token, expected);
    // Another token is told than was computed: nothing is amiss but the token.
    let mut other = stage();
    compute(&mut other, slice(1, 0, &[5; 20], &[0, 1], true)).unwrap();
    assert_ne!(compute(&mut other, slice(1, 20, &[8], &[], false)).unwrap().0, expected);
    // A prefix is said to be there that nobody computed.
    let mut skipping = slice(1, 16, &[5; 4], &[0, 1], true);
    skipping.begin.as_mut().unwrap().skipped = vec![TokenId(5); 16];
    let (_, wrong) = compute(&mut stage(), skipping).unwrap();
    assert_eq!(wrong.as_deref(), Some("stage 0: block 0 holds something else"));
    for bad in [slice(1, 0, &[5; 20], &[0], true), slice(1, 0, &[5], &[0], false)] {
        assert!(matches!(compute(&mut stage(), bad), Err(Trouble::Refused(_))));
    }
}

/// The only stage of a model, with eight blocks.
fn stage() -> Stage {
    let limits = StageLimits {
        max_batched_tokens: 64,
        max_num_seqs: 4,
        max_model_len: 128,
        max_blocks: 8,
        max_logprobs: 0,
    };
    let plan = StagePlan {
        id: StageId::default(),
        num_stages: 1,
        layers: LayerRange { first: 0, end: 8 },
        adapter: 0,
        model: ModelId::default(),
        model_path: String::new(),
        digests: Vec::new(),
        quantize: Quantize::None,
        kv_cache_dtype: KvCacheDtype::F32,
        next: None,
        limits,
        memory_bytes: 1,
    };
    Stage::new(plan, 8)
}

fn slice(sequence: u64, start: u32, tokens: &[u32], blocks: &[u32], begins: bool) -> Slice {
    let begin = Begin {
        sampling: SamplingParams::default(),
        num_prompt_tokens: start + tokens.len() as u32,
        skipped: Vec::new(),
        copy_from: None,
    };
    Slice {
        sequence: SequenceId(sequence),
        start,
        input: Input::Tokens(tokens.iter().copied().map(TokenId).collect()),
        first_block: 0,
        blocks: blocks.iter().copied().map(BlockId).collect(),
        begin: begins.then(|| Box::new(begin)),
        sample: true,
        next: None,
    }
}

/// The token that is sampled, and what was wrong.
fn compute(stage: &mut Stage, slice: Slice) -> Result<(Option<TokenId>, Option<String>), Trouble> {
    let batch = Batch { finished: Vec::new(), slices: vec![slice] };
    let (output, wrong) = stage.compute(&batch, None, 1)?;
    let Output::Sampled(sampled) = output else { panic!("the only stage samples") };
    Ok((sampled.outputs[0].token, wrong))
}
