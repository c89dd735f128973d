//! What a stage takes: memory, time of a step, and the way to it.

use std::collections::HashMap;
use std::ops::{Range, RangeInclusive};

use checkpoint::PartCost;
use protocol::{BLOCK_TOKENS, LinkSpeed, NodeId};

use super::Place;

/// What the parts of a model weigh, and what a token asks of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelCost {
    /// Each layer.
    pub layers: Vec<PartCost>,
    /// The embedding table, held by the first stage.
    pub embedding: PartCost,
    /// The final norm and LM head, held and read by the last stage.
    pub head: PartCost,
    /// Whether embedding and head are one table, held once where one stage needs both.
    pub tied: bool,
    /// Bytes of one value of a KV cache.
    pub kv_value_bytes: u64,
    /// Tokens of the shortest cache that can serve: one sequence of full length.
    pub least_cache_tokens: u64,
    /// Tokens of the cache that is wanted: all sequences that may run at once, of full length, or
    /// as many as are configured.
    pub cache_tokens: u64,
    /// Hidden states and scratch of any stage.
    pub activations: u64,
    /// A token's row between two stages.
    pub row_bytes: u64,
}

/// Tokens whose keys and values a token attends to, where time is predicted.
pub const CONTEXT_TOKENS: u64 = 128;

impl ModelCost {
    /// A model whose parts are so many bytes, all of them read by every step.
    pub fn of_bytes(layers: &[u64], embedding: u64, head: u64) -> Self {
        let part = |&bytes: &u64| PartCost { bytes, read_bytes: bytes, ..PartCost::default() };
        Self {
            layers: layers.iter().map(part).collect(),
            embedding: PartCost { read_bytes: 0, ..part(&embedding) },
            head: part(&head),
            ..Self::default()
        }
    }

    /// Bytes of memory that these layers need on one stage, with what the ends of a pipeline hold
    /// and the shortest cache.
    pub fn memory(&self, layers: Range<usize>) -> u64 {
        let all = self.of(layers.clone());
        self.memory_beside_cache(&all, layers) + self.cache_bytes(&all, self.least_cache_tokens)
    }

    /// What these layers weigh together.
    pub(super) fn of(&self, layers: Range<usize>) -> PartCost {
        let mut sum = PartCost::default();
        self.layers[layers].iter().for_each(|layer| sum += *layer);
        sum
    }

    /// Bytes that these layers, which weigh `all`, need beside their cache.
    pub(super) fn memory_beside_cache(&self, all: &PartCost, layers: Range<usize>) -> u64 {
        let (embedding, head) = (self.embedding.bytes, self.head.bytes);
        let ends = match (layers.start == 0, layers.end == self.layers.len()) {
            (true, true) if self.tied => head.max(embedding),
            (first, last) => (if first { embedding } else { 0 }) + (if last { head } else { 0 }),
        };
        all.bytes + ends + self.activations
    }

    /// Bytes of a cache of so many tokens for layers that weigh `all`.
    pub(super) fn cache_bytes(&self, all: &PartCost, num_tokens: u64) -> u64 {
        all.kv_values.saturating_mul(self.kv_value_bytes).saturating_mul(num_tokens)
    }

    /// Bytes of a cache of so many tokens for all layers.
    #[cfg(test)]
    pub(crate) fn whole_cache_bytes(&self, num_tokens: u64) -> u64 {
        self.cache_bytes(&self.of(0..self.layers.len()), num_tokens)
    }

    /// Bytes of memory that the model needs on one stage.
    pub fn total(&self) -> u64 {
        self.memory(0..self.layers.len())
    }
}

/// So slowly what is known of a round trip follows one that has become longer.
const RISE: f64 = 256.0;

/// Either end of a link: a node, or the coordinator.
pub type End = Option<NodeId>;

/// What is known of the ways between processes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Links(HashMap<(End, End), LinkSpeed>);

impl Links {
    /// A way has been measured; both directions are taken for alike.
    pub fn set(&mut self, ends: (End, End), speed: LinkSpeed) {
        self.0.insert(Self::key(ends), speed.checked());
    }

    /// A connection says what its round trip is now. One that is idle, or full, has long ones: the
    /// least that was heard lately is the way's own.
    pub fn heard(&mut self, ends: (End, End), rtt_us: f64) {
        let known = self.between(ends.0, ends.1);
        let least = self.measured(ends).map_or(rtt_us, |it| it.rtt_us);
        let rtt_us = if rtt_us < least { rtt_us } else { least + (rtt_us - least) / RISE };
        self.set(ends, LinkSpeed { rtt_us, ..known });
    }

    /// Nothing is known of a node any more.
    pub fn forget(&mut self, node: NodeId) {
        self.0.retain(|(a, b), _| *a != Some(node) && *b != Some(node));
    }

    /// What was measured between these two, if it was.
    pub fn measured(&self, ends: (End, End)) -> Option<LinkSpeed> {
        self.0.get(&Self::key(ends)).copied()
    }

    /// What was measured between a node and others.
    pub fn of(&self, node: NodeId) -> Vec<(NodeId, LinkSpeed)> {
        let other = |(a, b): (End, End)| match (a, b) {
            (Some(a), Some(b)) if a == node => Some(b),
            (Some(a), Some(b)) if b == node => Some(a),
            _ => None,
        };
        let found = self.0.iter().filter_map(|(ends, speed)| Some((other(*ends)?, *speed)));
        let mut found: Vec<_> = found.collect();
        found.sort_by_key(|(node, _)| *node);
        found
    }

    /// What lies between these two. Two nodes between which nothing was measured are taken to be
    /// as far from each other as both of them from the coordinator together.
    pub fn between(&self, a: End, b: End) -> LinkSpeed {
        if a == b {
            return LinkSpeed { rtt_us: 0.0, bytes_per_s: f64::INFINITY };
        }
        if let Some(measured) = self.measured((a, b)) {
            return measured;
        }
        match [a, b].map(|end| end.and_then(|_| self.measured((end, None)))) {
            [Some(a), Some(b)] => LinkSpeed {
                rtt_us: a.rtt_us + b.rtt_us,
                bytes_per_s: a.bytes_per_s.min(b.bytes_per_s),
            },
            _ => LinkSpeed::default(),
        }
    }

    fn key((a, b): (End, End)) -> (End, End) {
        if a <= b { (a, b) } else { (b, a) }
    }
}

/// The model on places that are given: sums that searches ask for again and again.
pub(super) struct Costs<'a> {
    pub(super) model: &'a ModelCost,
    pub(super) places: &'a [Place],
    links: &'a Links,
    // Tokens for which there is to be room in the cache.
    cache_tokens: u64,
    // Where stages end, if that is given.
    cut: Vec<usize>,
    // Of the first so many layers.
    sums: Vec<PartCost>,
}

impl<'a> Costs<'a> {
    pub(super) fn new(model: &'a ModelCost, places: &'a [Place], links: &'a Links) -> Self {
        let mut sum = PartCost::default();
        let mut sums = vec![sum];
        for layer in &model.layers {
            sum += *layer;
            sums.push(sum);
        }
        Self { model, places, links, cache_tokens: model.least_cache_tokens, cut: Vec::new(), sums }
    }

    /// With a cache of so many tokens, not the shortest.
    pub(super) fn with_cache(self, cache_tokens: u64) -> Self {
        Self { cache_tokens, ..self }
    }

    /// With stages of so many layers each, where any are given.
    pub(super) fn cut_into(self, lengths: &[u32]) -> Self {
        let mut end = 0;
        let ends = lengths.iter().map(|length| {
            end += *length as usize;
            end
        });
        Self { cut: ends.collect(), ..self }
    }

    /// Where a stage may end, so that each after it has a layer.
    pub(super) fn ends(&self, stage: usize, num_stages: usize) -> RangeInclusive<usize> {
        let (num_layers, behind) = (self.num_layers(), num_stages - stage - 1);
        match self.cut.get(stage) {
            Some(&end) => end..=end,
            None if behind == 0 => num_layers..=num_layers,
            None => stage + 1..=num_layers - behind,
        }
    }

    /// What these layers weigh together.
    fn of(&self, layers: Range<usize>) -> PartCost {
        let (from, to) = (&self.sums[layers.start], &self.sums[layers.end]);
        PartCost {
            bytes: to.bytes - from.bytes,
            read_bytes: to.read_bytes - from.read_bytes,
            multiply_adds: to.multiply_adds - from.multiply_adds,
            num_kernels: to.num_kernels - from.num_kernels,
            kv_values: to.kv_values - from.kv_values,
        }
    }

    pub(super) fn num_layers(&self) -> usize {
        self.model.layers.len()
    }

    /// Whether a place has the memory for these layers.
    pub(super) fn fits(&self, place: usize, layers: Range<usize>) -> bool {
        let all = self.of(layers.clone());
        let cache = self.model.cache_bytes(&all, self.cache_tokens);
        let cache = cache.min(self.most_cache(place, &all));
        self.model.memory_beside_cache(&all, layers).saturating_add(cache)
            <= self.places[place].memory
    }

    /// Bytes that a cache of layers that weigh `all` takes at most, whatever else there is.
    fn most_cache(&self, place: usize, all: &PartCost) -> u64 {
        let least = self.model.cache_bytes(all, self.model.least_cache_tokens);
        self.places[place].max_cache_bytes.map_or(u64::MAX, |most| most.max(least))
    }

    /// Tokens for which there is room in a cache beside these layers, in whole blocks, where the
    /// stage has so much of its place's memory.
    pub(super) fn cache_room(&self, place: usize, memory: u64, layers: Range<usize>) -> u64 {
        let all = self.of(layers.clone());
        let left = memory.saturating_sub(self.model.memory_beside_cache(&all, layers));
        let left = left.min(self.most_cache(place, &all));
        let room = left.checked_div(self.model.cache_bytes(&all, 1)).unwrap_or(u64::MAX);
        room / BLOCK_TOKENS as u64 * BLOCK_TOKENS as u64
    }

    /// Seconds of a step of so many sequences' next tokens.
    pub(super) fn compute(&self, place: usize, layers: Range<usize>, rows: f64) -> f64 {
        let mut all = self.of(layers.clone());
        let ends = [
            (layers.start == 0, &self.model.embedding),
            (layers.end == self.num_layers(), &self.model.head),
        ];
        for (_, part) in ends.iter().filter(|(is_there, _)| *is_there) {
            all += **part;
        }
        let PartCost { read_bytes, multiply_adds, num_kernels, .. } = all;
        let kv_bytes = self.model.cache_bytes(&all, CONTEXT_TOKENS);
        let Place { speed, row_share, .. } = &self.places[place];
        let bandwidth = speed.weight_bytes_per_s;
        let fixed = (speed.step_us + f64::from(num_kernels) * speed.kernel_us) / 1e6;
        let of = |rows: f64| {
            let one_row = speed.one_row_s(read_bytes as f64, multiply_adds as f64);
            // What many take at least; one was measured.
            let many_rows = rows * multiply_adds as f64 / speed.multiply_adds_per_s;
            let products = if rows > 1.0 { one_row.max(many_rows) } else { one_row };
            fixed + products + rows * kv_bytes as f64 / bandwidth
        };
        match row_share {
            Some(share) if rows > 1.0 => of(1.0) * (1.0 + share * (rows - 1.0)),
            _ => of(rows),
        }
    }

    /// What lies between a place, or the coordinator, and a place.
    pub(super) fn link(&self, from: Option<usize>, to: usize) -> LinkSpeed {
        self.between(from, Some(to))
    }

    fn between(&self, from: Option<usize>, to: Option<usize>) -> LinkSpeed {
        let end = |place: Option<usize>| place.map(|place| self.places[place].node);
        self.links.between(end(from), end(to))
    }

    /// Seconds that rows of so many sequences take to a place, from the stage before it; to the
    /// first and from the last only their tokens' ids travel.
    pub(super) fn hop(&self, from: Option<usize>, to: Option<usize>, rows: f64) -> f64 {
        let link = self.between(from, to);
        let num_bytes = match (from, to) {
            (Some(_), Some(_)) => rows * self.model.row_bytes as f64,
            _ => 0.0,
        };
        link.seconds(num_bytes as u64)
    }

    /// Seconds of a stage with the way to it: what is to be small where it is largest.
    pub(super) fn stage(&self, from: Option<usize>, place: usize, layers: Range<usize>) -> f64 {
        self.hop(from, Some(place), 1.0) + self.compute(place, layers, 1.0)
    }

    /// Seconds until a place has what it lacks of these layers.
    pub(super) fn moved(&self, place: usize, layers: Range<usize>) -> f64 {
        let Place { held, node, .. } = &self.places[place];
        let lacks = |part: usize| !held.get(part).copied().unwrap_or(false);
        let mut num_bytes = 0;
        for layer in layers.clone() {
            num_bytes += if lacks(layer + 1) { self.model.layers[layer].bytes } else { 0 };
        }
        if layers.start == 0 && lacks(0) {
            num_bytes += self.model.embedding.bytes;
        }
        if layers.end == self.num_layers() && lacks(layers.end + 1) {
            num_bytes += self.model.head.bytes;
        }
        num_bytes as f64 / self.links.between(None, Some(*node)).bytes_per_s
    }
}
