//! Which layers go where: the stages of which the slowest is fastest, within every node's memory.
//!
//! Pure. What a stage takes is predicted from what its layers ask for, how fast its node is, and
//! the way to it; the first stage holds the embedding, the last the LM head, which asks for as much
//! as several layers. Unequal nodes get unequal layers. A pipeline has as many stages as it is
//! asked to have; who takes part, and in which order, is found here. Nodes that hold layers already
//! keep them, unless the slowest stage becomes so much faster without.

mod cost;
mod cut;
mod order;
pub mod predict;
#[cfg(test)]
mod tests;

use std::ops::Range;

use protocol::{LayerRange, NodeId, Speed};

use self::cost::Costs;
pub use self::cost::{CONTEXT_TOKENS, End, Links, ModelCost};

/// An adapter that a stage may go to.
#[derive(Clone, Debug, PartialEq)]
pub struct Place {
    /// Whose adapter. Within a node a way costs nothing.
    pub node: NodeId,
    /// Bytes that the stage may take.
    pub memory: u64,
    /// The most that a cache takes of them, unless one sequence needs more.
    pub max_cache_bytes: Option<u64>,
    /// How fast it is.
    pub speed: Speed,
    /// What each further sequence of a step takes, as a share of what one alone does, where that
    /// was measured.
    pub row_share: Option<f64>,
    /// Seconds that its host takes of a step beside the adapter: frames, tasks, hand-offs. Other
    /// steps are computed meanwhile.
    pub host_s: f64,
    /// Which parts of the model it holds already: embedding, layers, head. What isn't said it
    /// doesn't.
    pub held: Vec<bool>,
}

/// A stage, and where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Which of the places.
    pub place: usize,
    /// Its layers.
    pub layers: LayerRange,
}

/// What a placement is to be like.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Wish<'a> {
    /// Stages.
    pub num_stages: usize,
    /// So many layers each, in order, where that is given.
    pub lengths: &'a [u32],
    /// Where a stage that is slower by up to this share of the slowest spares nodes from giving up
    /// what they hold, they keep it.
    pub keep: f64,
}

/// Why a model can't be placed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlacementError {
    /// Every stage needs a layer.
    #[error("{num_stages} stages can't share {num_layers} layers: use at most {num_layers} stages")]
    TooManyStages {
        /// Stages that were asked for.
        num_stages: usize,
        /// Layers that there are.
        num_layers: usize,
    },
    /// The cut that was asked for is none of this model.
    #[error(
        "coordinator.layers = {lengths:?}: must be a number of layers for each of {num_stages} \
         stages, {num_layers} together"
    )]
    OtherLayers {
        /// What was asked for.
        lengths: Vec<u32>,
        /// Stages that there are to be.
        num_stages: usize,
        /// Layers that there are.
        num_layers: usize,
    },
    /// Every step under way must find room where frames wait.
    #[error("{num_stages} stages need transport.max_buffered_frames to be {needed}, not {max}")]
    TooFewFrames {
        /// Stages that were asked for, or adapters that there are.
        num_stages: usize,
        /// Steps that may be under way.
        needed: usize,
        /// What the configuration says.
        max: u32,
    },
    /// Some stage doesn't fit whichever way the layers are cut.
    #[error(
        "the model doesn't fit: it needs {needed} of memory, {cache} of it for the KV cache of one \
         sequence (model.max_model_len), and {num_stages} stages offer {held}; {missing}with \
         {most} per node it would fit on {num_nodes}"
    )]
    TooSmall {
        /// Weights, shortest KV cache and scratch.
        needed: Size,
        /// The cache, of that.
        cache: Size,
        /// Stages that were tried.
        num_stages: usize,
        /// What they have together.
        held: Size,
        /// How much is missing, where the sum says it.
        missing: String,
        /// The largest node's memory.
        most: Size,
        /// Nodes of that size that would hold it, or what else would help.
        num_nodes: String,
        /// How many those are, if any number does.
        fewest: Option<usize>,
    },
}

/// Bytes, printed for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const MIB: f64 = 1024.0 * 1024.0;
        let mib = self.0 as f64 / MIB;
        if mib < 1.0 {
            write!(f, "{:.0} KiB", mib * 1024.0)
        } else if mib < 1024.0 {
            write!(f, "{mib:.0} MiB")
        } else {
            write!(f, "{:.1} GiB", mib / 1024.0)
        }
    }
}

/// Finds stages for the model among `places`, in their order. Where the cache that is wanted
/// doesn't fit beside the weights, there is room for a half of it, or a fourth, and so on.
///
/// # Errors
/// When there are more stages than layers, or none fits with the shortest cache that can serve.
pub fn place(
    model: &ModelCost,
    places: &[Place],
    links: &Links,
    wish: Wish<'_>,
) -> Result<Vec<Placed>, PlacementError> {
    let Wish { num_stages, lengths, keep } = wish;
    let num_layers = model.layers.len();
    if num_stages > num_layers || num_stages == 0 || places.is_empty() {
        return Err(PlacementError::TooManyStages { num_stages, num_layers });
    }
    let sum: u64 = lengths.iter().map(|length| u64::from(*length)).sum();
    let is_cut = lengths.len() == num_stages && sum == num_layers as u64 && !lengths.contains(&0);
    if !lengths.is_empty() && !is_cut {
        let lengths = lengths.to_vec();
        return Err(PlacementError::OtherLayers { lengths, num_stages, num_layers });
    }
    let found = caches(model).find_map(|cache_tokens| {
        let costs = |places| Costs::new(model, places, links).with_cache(cache_tokens);
        if num_stages > places.len() {
            let shared: Vec<_> = (0..num_stages).map(|it| share(places, num_stages, it)).collect();
            sharing(&costs(&shared).cut_into(lengths), places.len(), num_stages)
        } else {
            apart(&costs(places).cut_into(lengths), num_stages, keep)
        }
    });
    found.ok_or_else(|| too_small(model, places, num_stages))
}

/// Tokens of caches that will do, the largest first.
fn caches(model: &ModelCost) -> impl Iterator<Item = u64> {
    let least = model.least_cache_tokens;
    let halves = (0..u64::BITS).map(move |shift| (model.cache_tokens >> shift).max(least));
    let num = halves.clone().position(|it| it == least).unwrap_or(0);
    halves.take(num + 1)
}

/// Each stage on a place of its own.
fn apart(costs: &Costs<'_>, num_stages: usize, keep: f64) -> Option<Vec<Placed>> {
    let fastest = order::best(costs, num_stages)?;
    let least = cut::slowest(costs, &fastest)?;
    // Who holds everything may stand anywhere.
    let holds = |place: &usize| costs.places[*place].held.contains(&true);
    let holds_all = |place: &usize| holds(place) && !costs.places[*place].held.contains(&false);
    let is_bound = |place: &usize| holds(place) && !holds_all(place);
    let (mut holders, rest): (Vec<usize>, Vec<usize>) = (0..costs.places.len()).partition(is_bound);
    if !holders.is_empty() || rest.iter().any(holds_all) {
        // Who holds most stays; whoever is faster comes first among the others.
        let first_held = |place: &usize| costs.places[*place].held.iter().position(|held| *held);
        let num_held = |place: &usize| costs.places[*place].held.iter().filter(|it| **it).count();
        holders.sort_by_key(|place| std::cmp::Reverse(num_held(place)));
        holders.truncate(num_stages);
        holders.sort_by_key(first_held);
        let (chosen, spare): (Vec<usize>, Vec<usize>) =
            rest.into_iter().partition(|place| fastest.contains(place));
        let mut others: Vec<_> = chosen.into_iter().chain(spare).collect();
        others.sort_by_key(|place| !holds_all(place));
        others.truncate(num_stages - holders.len());
        let kept = cut::best(costs, (&holders, &others), least * (1.0 + keep));
        if kept.is_some() {
            return kept;
        }
    }
    // As they came, where no other order is faster.
    let as_they_came: Vec<_> = (0..num_stages).collect();
    let is_as_good = |it: &f64| *it <= least * (1.0 + 2.0 * order::PRECISION);
    match cut::slowest(costs, &as_they_came).filter(is_as_good) {
        Some(slowest) => cut::best(costs, (&[], &as_they_came), slowest),
        None => cut::best(costs, (&[], &fastest), least),
    }
}

/// More stages than places: neighbours share one, its memory and its time.
fn sharing(costs: &Costs<'_>, num_places: usize, num_stages: usize) -> Option<Vec<Placed>> {
    let order: Vec<_> = (0..num_stages).collect();
    let least = cut::slowest(costs, &order)?;
    let stages = cut::best(costs, (&[], &order), least)?.into_iter();
    let place_of = |stage: usize| stage * num_places / num_stages;
    Some(stages.map(|it| Placed { place: place_of(it.place), ..it }).collect())
}

/// What a stage has of the place that it shares.
fn share(places: &[Place], num_stages: usize, stage: usize) -> Place {
    let place_of = |stage: usize| stage * places.len() / num_stages;
    let num = (0..num_stages).filter(|it| place_of(*it) == place_of(stage)).count();
    let place = &places[place_of(stage)];
    let (memory, speed) = (place.memory / num as u64, place.speed.slowed(num as f64));
    Place { memory, speed, ..place.clone() }
}

fn layers(range: Range<usize>) -> LayerRange {
    LayerRange { first: range.start as u32, end: range.end as u32 }
}

fn too_small(model: &ModelCost, places: &[Place], num_stages: usize) -> PlacementError {
    let needed = model.total() + model.activations * (num_stages as u64 - 1);
    let mut memory: Vec<_> = places.iter().map(|place| place.memory).collect();
    memory.sort_unstable_by_key(|bytes| std::cmp::Reverse(*bytes));
    let held = memory.iter().take(num_stages).sum();
    let most = memory[0];
    let cache = model.cache_bytes(&model.of(0..model.layers.len()), model.least_cache_tokens);
    let fewest = fewest_stages(model, most);
    PlacementError::TooSmall {
        needed: Size(needed),
        cache: Size(cache),
        num_stages,
        held: Size(held),
        missing: match needed.checked_sub(held) {
            Some(0) | None => "one part is too large for its node; ".into(),
            Some(missing) => format!("{} are missing; ", Size(missing)),
        },
        most: Size(most),
        num_nodes: fewest
            .map_or("no number of nodes: one part is larger".into(), |n| format!("{n} nodes")),
        fewest,
    }
}

/// The fewest stages of so much memory each that hold the model, if any number does: each takes as
/// many layers as fit, which leaves the fewest to the last one, beside the head.
fn fewest_stages(model: &ModelCost, memory: u64) -> Option<usize> {
    let fits = |layers| model.memory(layers) <= memory;
    let num_layers = model.layers.len();
    let (mut num_stages, mut first) = (1, 0);
    for last in 0..num_layers {
        if last > first && !fits(first..last + 1) {
            (num_stages, first) = (num_stages + 1, last);
        }
        // The last layer brings the head along.
        if !fits(first..last + 1) {
            return None;
        }
    }
    Some(num_stages)
}
