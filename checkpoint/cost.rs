//! What the parts of a model weigh and what a token asks of them: the one place where it is said.

use crate::{Attention, Checkpoint, CheckpointError, LayerSpec, Mlp, ModelConfig, Part, Weight};

/// What a part of a model weighs, and what computing one token asks of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PartCost {
    /// Bytes that it takes.
    pub bytes: u64,
    /// Bytes of weights that a step of one token reads. Of those of experts each token may read
    /// others.
    pub read_bytes: u64,
    /// Multiply-adds of each token.
    pub multiply_adds: u64,
    /// Kernels that a step runs one after another.
    pub num_kernels: u32,
}

impl std::ops::AddAssign for PartCost {
    fn add_assign(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.read_bytes += other.read_bytes;
        self.multiply_adds += other.multiply_adds;
        self.num_kernels += other.num_kernels;
    }
}

/// Kernels of a head: the rows whose logits are wanted, their product, and the sampler's.
const HEAD_KERNELS: u32 = 6;

impl Checkpoint {
    /// What a part costs, in the form in which its weights are handed over.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::NoSuchLayer`].
    pub fn cost(&self, part: Part) -> Result<PartCost, CheckpointError> {
        let bytes = self.bytes(part)?;
        let (mut read_bytes, mut multiply_adds) = (0, 0);
        for weight in self.part(part)? {
            let Weight::Matrix(matrix) = weight else {
                read_bytes += self.weight_bytes(weight)?;
                continue;
            };
            let (chosen, of) = match part {
                Part::Layer(layer) => self.config().layer(layer).mlp.chosen(matrix),
                Part::Embedding | Part::Head => (1, 1),
            };
            let view = self.matrix(matrix)?;
            read_bytes += view.device_bytes() / of as u64 * chosen as u64;
            multiply_adds += view.rows() as u64 * view.cols() as u64 / of as u64 * chosen as u64;
        }
        Ok(match part {
            // One row of it is looked up.
            Part::Embedding => PartCost { bytes, num_kernels: 1, ..PartCost::default() },
            Part::Layer(layer) => {
                let num_kernels = self.config().layer(layer).num_kernels();
                PartCost { bytes, read_bytes, multiply_adds, num_kernels }
            }
            Part::Head => PartCost { bytes, read_bytes, multiply_adds, num_kernels: HEAD_KERNELS },
        })
    }
}

impl LayerSpec {
    /// Kernels that a step runs one after another: products, attention, and the norms that stand
    /// for themselves.
    fn num_kernels(&self) -> u32 {
        let attention = match self.attention {
            Attention::Gqa(gqa) => 3 + u32::from(gqa.qk_norm),
            // Of those that choose positions three products and three kernels more.
            Attention::Mla(mla) => {
                if mla.own_index().is_some() {
                    15
                } else {
                    9
                }
            }
        };
        let mlp = match self.mlp {
            Mlp::Dense(_) => 2,
            // Scores, the choice, two products, their sum.
            Mlp::Moe(moe) => {
                if moe.shared_width > 0 {
                    7
                } else {
                    5
                }
            }
        };
        attention + mlp + if self.sandwich_norms { 2 } else { 0 }
    }
}

impl ModelConfig {
    /// Values of one token in the cache of the layer that has most.
    pub fn kv_values(&self) -> u64 {
        self.layers.iter().map(|layer| layer.attention.kv_values()).max().unwrap_or(0)
    }

    /// Values of one token that a stage computes with, each tensor of them kept once.
    pub fn scratch_values(&self) -> u64 {
        let rows: u64 = self.rows().iter().map(|(_, width)| *width as u64).sum();
        rows + self.index().map_or(0, |index| 1 + index.top_k as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn a_part_costs_what_its_matrices_do() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/models/glass-en");
        let files = Checkpoint::open(Path::new(path)).unwrap();
        let config = files.config();
        let layer = files.cost(Part::Layer(0)).unwrap();
        let Attention::Gqa(gqa) = config.layers[0].attention else { panic!() };
        let Mlp::Dense(mlp) = config.layers[0].mlp else { panic!() };
        let by_hand = config.hidden_size * (gqa.qkv_rows() + gqa.q_rows() + 3 * mlp.width);
        assert_eq!(layer.multiply_adds, by_hand as u64);
        assert_eq!(layer.bytes, files.bytes(Part::Layer(0)).unwrap());
        let head = files.cost(Part::Head).unwrap();
        assert_eq!(head.multiply_adds, (config.vocab_size * config.hidden_size) as u64);
        let embedding = files.cost(Part::Embedding).unwrap();
        assert_eq!((embedding.read_bytes, embedding.multiply_adds), (0, 0));
        assert!(files.cost(Part::Layer(config.num_layers())).is_err());
    }
}
