//! What the parts of a model weigh and what a token asks of them: the one place where it is said.

use std::collections::HashMap;

use crate::{
    Attention, Checkpoint, CheckpointError, LayerSpec, Matrix, Mlp, ModelConfig, Part, Weight,
};

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
    /// Values of each token's keys and values in its cache.
    pub kv_values: u64,
}

impl std::ops::AddAssign for PartCost {
    fn add_assign(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.read_bytes += other.read_bytes;
        self.multiply_adds += other.multiply_adds;
        self.num_kernels += other.num_kernels;
        self.kv_values += other.kv_values;
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
        let mut bytes = HashMap::new();
        for weight in self.part(part)? {
            if let Weight::Matrix(matrix) = weight {
                bytes.insert(matrix, self.matrix(matrix)?.device_bytes());
            }
        }
        Ok(self.config().cost(part, |matrix, _| bytes[&matrix]))
    }
}

impl ModelConfig {
    /// What a part costs whose matrices, of so many rows and columns, take these bytes on an
    /// adapter; there is such a part.
    pub(crate) fn cost(
        &self,
        part: Part,
        device_bytes: impl Fn(Matrix, (usize, usize)) -> u64,
    ) -> PartCost {
        let mut cost = PartCost::default();
        for weight in self.part(part) {
            let (role, layer) = weight.role();
            let (rows, cols) = role.shape(self, layer.unwrap_or(0));
            let rows: usize = rows.iter().sum();
            let (Weight::Matrix(matrix), Some(cols)) = (weight, cols) else {
                cost.bytes += (rows * size_of::<f32>()) as u64;
                cost.read_bytes += (rows * size_of::<f32>()) as u64;
                continue;
            };
            let (chosen, of) = match part {
                Part::Layer(layer) => self.layer(layer).mlp.chosen(matrix),
                Part::Embedding | Part::Head => (1, 1),
            };
            let bytes = device_bytes(matrix, (rows, cols));
            cost.bytes += bytes;
            cost.read_bytes += bytes / of as u64 * chosen as u64;
            cost.multiply_adds += rows as u64 * cols as u64 / of as u64 * chosen as u64;
        }
        match part {
            // One row of it is looked up.
            Part::Embedding => PartCost { bytes: cost.bytes, num_kernels: 1, ..Default::default() },
            Part::Layer(layer) => {
                let spec = self.layer(layer);
                let (num_kernels, kv_values) = (spec.num_kernels(), spec.attention.kv_values());
                PartCost { num_kernels, kv_values, ..cost }
            }
            Part::Head => PartCost { num_kernels: HEAD_KERNELS, ..cost },
        }
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
