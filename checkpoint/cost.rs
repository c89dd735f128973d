//! What the parts of a model weigh and what a token asks of them: the one place where it is said.

use crate::{Checkpoint, CheckpointError, Matrix, ModelConfig, Part};

/// What a part of a model weighs, and what computing one token asks of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PartCost {
    /// Bytes that it takes.
    pub bytes: u64,
    /// Bytes of weights that a step reads, however many tokens it has.
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

impl Part {
    /// The matrices of a part.
    pub fn matrices(self) -> Vec<Matrix> {
        match self {
            Self::Embedding => vec![Matrix::Embedding],
            Self::Layer(layer) => [Matrix::Qkv, Matrix::Output, Matrix::GateUp, Matrix::Down]
                .map(|matrix| matrix(layer))
                .into(),
            Self::Head => vec![Matrix::LmHead],
        }
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
        let mut multiply_adds = 0;
        for matrix in part.matrices() {
            let view = self.matrix(matrix)?;
            multiply_adds += view.rows() as u64 * view.cols() as u64;
        }
        Ok(match part {
            // One row of it is looked up.
            Part::Embedding => PartCost { bytes, num_kernels: 1, ..PartCost::default() },
            Part::Layer(_) => {
                // Its products, attention, and the norms that stand for themselves.
                let num_kernels = if self.config().sandwich_norms { 7 } else { 5 };
                PartCost { bytes, read_bytes: bytes, multiply_adds, num_kernels }
            }
            Part::Head => {
                PartCost { bytes, read_bytes: bytes, multiply_adds, num_kernels: HEAD_KERNELS }
            }
        })
    }
}

impl ModelConfig {
    /// Keys and values of one token in one layer.
    pub fn kv_values(&self) -> u64 {
        (self.num_kv_heads * self.head_dim) as u64 * 2
    }

    /// Values of one token that a stage computes with, each tensor of them kept once: the residual
    /// stream between layers and between sublayers, queries and what they attend to, the MLP, and
    /// a sublayer's output where a norm follows it.
    pub fn scratch_values(&self) -> u64 {
        let sublayer = if self.sandwich_norms { self.hidden_size } else { 0 };
        let values = 2 * self.hidden_size
            + 2 * self.num_heads * self.head_dim
            + self.intermediate_size
            + sublayer;
        values as u64
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
        let heads = config.num_heads + 2 * config.num_kv_heads;
        let by_hand = config.hidden_size
            * (heads * config.head_dim
                + config.num_heads * config.head_dim
                + 3 * config.intermediate_size);
        assert_eq!(layer.multiply_adds, by_hand as u64);
        assert_eq!(layer.bytes, files.bytes(Part::Layer(0)).unwrap());
        let head = files.cost(Part::Head).unwrap();
        assert_eq!(head.multiply_adds, (config.vocab_size * config.hidden_size) as u64);
        let embedding = files.cost(Part::Embedding).unwrap();
        assert_eq!((embedding.read_bytes, embedding.multiply_adds), (0, 0));
        assert!(files.cost(Part::Layer(config.num_layers)).is_err());
    }
}
