//! What a placement will take and bring, said before anything is loaded.

use std::fmt;

use super::cost::Costs;
use super::{Links, ModelCost, Place, Placed};

/// What is expected of a pipeline.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Prediction {
    /// Each stage.
    pub stages: Vec<StagePrediction>,
    /// Seconds of a token, while one sequence is computed.
    pub token_s: f64,
    /// Sequences at once for which `tokens_per_s` is.
    pub concurrency: usize,
    /// Tokens a second of all of them.
    pub tokens_per_s: f64,
    /// Tokens for which its KV cache has room.
    pub cache: CacheRoom,
}

/// Tokens for which a KV cache has room, and for which it would have to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheRoom {
    /// So many, where the stage that has least room for them decides.
    pub num_tokens: u64,
    /// All sequences that may run at once, of full length, or as many as are configured.
    pub of_tokens: u64,
    /// One sequence of full length.
    pub sequence_tokens: u64,
}

impl fmt::Display for CacheRoom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { num_tokens, of_tokens, sequence_tokens } = self;
        let sequences = |tokens: u64| tokens as f64 / (*sequence_tokens).max(1) as f64;
        write!(f, "KV cache: {num_tokens} tokens, ")?;
        if num_tokens >= of_tokens {
            return write!(f, "all that are wanted");
        }
        write!(
            f,
            "{:.1} of {:.1} sequences of full length; others wait (lower scheduler.max_num_seqs or \
             model.max_model_len, or add memory)",
            sequences(*num_tokens),
            sequences(*of_tokens)
        )
    }
}

/// What is expected of a stage.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StagePrediction {
    /// Bytes that it takes with the shortest KV cache.
    pub memory_bytes: u64,
    /// Seconds of a step of one sequence.
    pub compute_s: f64,
    /// Seconds of the way to it.
    pub hop_s: f64,
}

impl Prediction {
    /// Of these stages on these places, with at most so many sequences at once.
    pub fn new(
        model: &ModelCost,
        places: &[Place],
        links: &Links,
        stages: &[Placed],
        max_concurrency: usize,
    ) -> Self {
        let costs = Costs::new(model, places, links);
        // Several stages of a place take turns there.
        let num_sharing =
            |stage: &Placed| stages.iter().filter(|it| it.place == stage.place).count();
        let range = |stage: &Placed| stage.layers.first as usize..stage.layers.end as usize;
        let compute = |stage: &Placed, rows| costs.compute(stage.place, range(stage), rows);
        let before = |number: usize| number.checked_sub(1).map(|number| stages[number].place);
        let hop = |number: usize, rows| costs.hop(before(number), Some(stages[number].place), rows);
        let host = |stage: &Placed| places[stage.place].host_s;
        // Each stage's host takes in a frame; the way back is its sender's.
        let last = stages.last();
        let back = costs.hop(last.map(|stage| stage.place), None, 1.0) + last.map_or(0.0, host);
        let way = |rows: f64| {
            let busy: f64 = stages.iter().map(|it| compute(it, rows)).sum();
            let times = stages.iter().enumerate();
            let moving: f64 = times.map(|(at, it)| hop(at, rows) + host(it)).sum();
            busy + (moving + back).max(0.0)
        };
        // As many groups of sequences as stages are under way. One comes back when it has been all
        // around, or when the slowest stage has served all of them.
        let tokens_per_s = |concurrency: usize| {
            let num_groups = stages.len().min(concurrency).max(1);
            let rows = concurrency as f64 / num_groups as f64;
            let busy = stages.iter().map(|it| compute(it, rows) * num_sharing(it) as f64);
            let slowest = busy.fold(0.0, f64::max);
            concurrency as f64 / way(rows).max(slowest * num_groups as f64)
        };
        let powers = (0..usize::BITS).map(|shift| 1 << shift);
        let tried = powers.take_while(|it| *it < max_concurrency).chain([max_concurrency.max(1)]);
        let rates = tried.map(|concurrency| (concurrency, tokens_per_s(concurrency)));
        let best = rates.max_by(|a, b| a.1.total_cmp(&b.1));
        let (concurrency, tokens_per_s) = best.unwrap_or_default();
        let predicted = stages.iter().enumerate().map(|(number, it)| StagePrediction {
            memory_bytes: model.memory(range(it)),
            compute_s: compute(it, 1.0),
            hop_s: hop(number, 1.0),
        });
        let room = stages.iter().map(|it| {
            let memory = places[it.place].memory / num_sharing(it) as u64;
            costs.cache_room(it.place, memory, range(it))
        });
        let of_tokens = model.cache_tokens;
        let cache = CacheRoom {
            num_tokens: room.min().unwrap_or(0).min(of_tokens),
            of_tokens,
            sequence_tokens: model.least_cache_tokens,
        };
        Self { stages: predicted.collect(), token_s: way(1.0), concurrency, tokens_per_s, cache }
    }

    /// Tokens a second of one sequence.
    pub fn tokens_per_s_alone(&self) -> f64 {
        if self.token_s > 0.0 { self.token_s.recip() } else { 0.0 }
    }
}

/// What a stage's step of so many sequences should take, where it is placed.
pub fn step_seconds(model: &ModelCost, place: &Place, stage: Placed, rows: f64) -> f64 {
    let (places, links) = ([place.clone()], Links::default());
    let layers = stage.layers.first as usize..stage.layers.end as usize;
    Costs::new(model, &places, &links).compute(0, layers, rows)
}
