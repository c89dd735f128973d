//! Which layers go where: the cut whose slowest stage is fastest, within every stage's memory.
//!
//! Pure. A stage's cost is the bytes of weights that one token reads: its layers, and for the last
//! stage the LM head, which weighs as much as several layers. Looking up an embedding costs
//! nothing, but its table takes memory. Every adapter that it is given gets a stage: which nodes
//! share a pipeline is decided before.

use std::ops::Range;

use protocol::LayerRange;

/// What the parts of a model weigh, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelCost {
    /// Weights of each layer.
    pub layers: Vec<u64>,
    /// The embedding table, held by the first stage.
    pub embedding: u64,
    /// The final norm and LM head, held and read by the last stage.
    pub head: u64,
    /// Whether embedding and head are one table, held once where one stage needs both.
    pub tied: bool,
    /// KV cache of one layer for the shortest cache that can serve: one sequence of full length.
    pub kv_per_layer: u64,
    /// Hidden states and scratch of any stage.
    pub activations: u64,
}

/// Where a stage may go, in the pipeline's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Bytes that the stage may take.
    pub memory: u64,
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
        "the model doesn't fit: it needs {needed} of memory and {num_stages} stages offer {held}; \
         {missing}with {most} per node it would fit on {num_nodes}"
    )]
    TooSmall {
        /// Weights, shortest KV cache and scratch.
        needed: Size,
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

impl ModelCost {
    /// Bytes of so many layers that weigh `weights`, with what the ends of a pipeline hold.
    fn memory(&self, weights: u64, num_layers: usize, is_first: bool, is_last: bool) -> u64 {
        let ends = match (is_first, is_last) {
            (true, true) if self.tied => self.head.max(self.embedding),
            (first, last) => {
                (if first { self.embedding } else { 0 }) + (if last { self.head } else { 0 })
            }
        };
        weights + ends + self.kv_per_layer * num_layers as u64 + self.activations
    }

    fn memory_of(&self, layers: Range<usize>) -> u64 {
        let (is_first, is_last) = (layers.start == 0, layers.end == self.layers.len());
        let weights = self.layers[layers.clone()].iter().sum();
        self.memory(weights, layers.len(), is_first, is_last)
    }

    /// Bytes of memory that the model needs on one stage.
    pub fn total(&self) -> u64 {
        self.memory_of(0..self.layers.len())
    }
}

/// Cuts the model's layers over `slots`, one stage each.
///
/// # Errors
/// When there are more slots than layers, or no cut fits.
pub fn place(model: &ModelCost, slots: &[Slot]) -> Result<Vec<LayerRange>, PlacementError> {
    let (num_layers, num_stages) = (model.layers.len(), slots.len());
    if num_stages > num_layers || num_stages == 0 {
        return Err(PlacementError::TooManyStages { num_stages, num_layers });
    }
    cut(model, slots).ok_or_else(|| too_small(model, slots))
}

/// The best cut of at least as many layers as slots, if one fits.
fn cut(model: &ModelCost, slots: &[Slot]) -> Option<Vec<LayerRange>> {
    let (num_layers, num_stages) = (model.layers.len(), slots.len());
    // slowest[s][l]: cost of the slowest of the first s stages when they hold the first l layers;
    // start[s][l]: where the last of them begins.
    let mut slowest = vec![vec![None::<u64>; num_layers + 1]; num_stages + 1];
    let mut start = vec![vec![0; num_layers + 1]; num_stages + 1];
    slowest[0][0] = Some(0);
    for stage in 0..num_stages {
        let (is_first, is_last) = (stage == 0, stage + 1 == num_stages);
        for end in stage + 1..=num_layers {
            let mut weights = 0;
            for first in (stage..end).rev() {
                weights += model.layers[first];
                let memory = model.memory(weights, end - first, is_first, is_last);
                if memory > slots[stage].memory {
                    // More layers take more.
                    break;
                }
                let Some(before) = slowest[stage][first] else { continue };
                let cost = before.max(weights + if is_last { model.head } else { 0 });
                if slowest[stage + 1][end].is_none_or(|best| cost <= best) {
                    slowest[stage + 1][end] = Some(cost);
                    start[stage + 1][end] = first;
                }
            }
        }
    }
    slowest[num_stages][num_layers]?;
    let mut stages = Vec::with_capacity(num_stages);
    let mut end = num_layers;
    for stage in (1..=num_stages).rev() {
        let first = start[stage][end];
        stages.push(LayerRange { first: first as u32, end: end as u32 });
        end = first;
    }
    stages.reverse();
    Some(stages)
}

fn too_small(model: &ModelCost, slots: &[Slot]) -> PlacementError {
    let needed = model.total() + model.activations * (slots.len() as u64 - 1);
    let held = slots.iter().map(|slot| slot.memory).sum();
    let most = slots.iter().map(|slot| slot.memory).max().unwrap_or(0);
    PlacementError::TooSmall {
        needed: Size(needed),
        num_stages: slots.len(),
        held: Size(held),
        missing: match needed.checked_sub(held) {
            Some(0) | None => "one part is too large for its node; ".into(),
            Some(missing) => format!("{} are missing; ", Size(missing)),
        },
        most: Size(most),
        num_nodes: fewest_stages(model, most)
            .map_or("no number of nodes: one part is larger".into(), |n| format!("{n} nodes")),
    }
}

/// The fewest stages of so much memory each that hold the model, if any number does: each takes as
/// many layers as fit, which leaves the fewest to the last one, beside the head.
fn fewest_stages(model: &ModelCost, memory: u64) -> Option<usize> {
    let fits = |layers| model.memory_of(layers) <= memory;
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn model(num_layers: usize) -> ModelCost {
        ModelCost {
            layers: vec![10; num_layers],
            embedding: 40,
            head: 40,
            tied: true,
            kv_per_layer: 1,
            activations: 5,
        }
    }

    fn lengths(model: &ModelCost, memory: &[u64]) -> Result<Vec<usize>, PlacementError> {
        let slots: Vec<_> = memory.iter().map(|&memory| Slot { memory }).collect();
        place(model, &slots).map(|cut| cut.into_iter().map(LayerRange::len).collect())
    }

    #[test]
    fn the_head_counts_as_layers() {
        // 12 layers of 10 and a head of 40: 80 each.
        assert_eq!(lengths(&model(12), &[1000, 1000]), Ok(vec![8, 4]));
        assert_eq!(lengths(&model(12), &[1000]), Ok(vec![12]));
    }

    #[test]
    fn memory_moves_the_cut() {
        // The first node holds the table (40), 5 of scratch and 3 layers of 11.
        assert_eq!(lengths(&model(12), &[80, 1000]), Ok(vec![3, 9]));
    }

    #[test]
    fn what_is_missing_is_said_with_the_number_of_nodes_that_would_do() {
        let error = lengths(&model(12), &[100]).unwrap_err().to_string();
        assert_eq!(
            error,
            "the model doesn't fit: it needs 0 KiB of memory and 1 stages offer 0 KiB; 0 KiB are \
             missing; with 0 KiB per node it would fit on 3 nodes"
        );
        assert!(lengths(&model(12), &[5]).unwrap_err().to_string().contains("no number of nodes"));
    }

    #[test]
    fn a_large_model_that_fits_on_no_number_of_nodes_is_told_at_once() {
        let started = std::time::Instant::now();
        let error = lengths(&model(200), &[50; 3]).unwrap_err().to_string();
        assert!(error.contains("no number of nodes"), "{error}");
        // As many layers as a checkpoint may have: all fit, the head nowhere.
        let mut model = model(4096);
        model.head = 100_000;
        assert!(lengths(&model, &[90_000; 3]).is_err());
        assert!(started.elapsed().as_secs() < 5, "{:?}", started.elapsed());
    }

    #[test]
    fn more_stages_than_layers_are_refused() {
        let error = lengths(&model(2), &[1000; 3]).unwrap_err();
        assert_eq!(error, PlacementError::TooManyStages { num_stages: 3, num_layers: 2 });
    }

    proptest! {
        #[test]
        fn every_layer_is_placed_once_within_memory(
            num_layers in 1usize..40,
            memory in proptest::collection::vec(50u64..400, 1..6),
        ) {
            let model = model(num_layers);
            let most = *memory.iter().max().unwrap();
            let fewest = (1..=num_layers)
                .find(|&n| cut(&model, &vec![Slot { memory: most }; n]).is_some());
            prop_assert_eq!(fewest_stages(&model, most), fewest);
            if let Ok(lengths) = lengths(&model, &memory) {
                prop_assert_eq!(lengths.iter().sum::<usize>(), num_layers);
                let mut first = 0;
                for (len, memory) in lengths.iter().zip(&memory) {
                    prop_assert!(*len > 0);
                    prop_assert!(model.memory_of(first..first + len) <= *memory);
                    first += len;
                }
            }
        }
    }
}
