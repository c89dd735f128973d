//! What a decoder layer is: the one description from which its tensors, its memory, its kernels
//! and its cost follow.

use crate::Part;
use crate::config::ModelConfig;
use crate::matrix::{Matrix, Vector, Weight};

/// A decoder layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LayerSpec {
    /// How tokens attend to those before them.
    pub attention: Attention,
    /// What is computed of each token by itself.
    pub mlp: Mlp,
    /// Are the outputs of attention and MLP normalised before they are added?
    pub sandwich_norms: bool,
}

/// Attention of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Attention {
    /// Query heads that share key and value heads.
    Gqa(Gqa),
}

/// Grouped-query attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Gqa {
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; divides `num_heads`. Query head h uses kv head
    /// h / (`num_heads` / `num_kv_heads`).
    pub num_kv_heads: usize,
    /// Values of one head. `num_heads` × `head_dim` need not be the hidden size.
    pub head_dim: usize,
    /// First dimensions of each head that rotate, in adjacent pairs; even, at most `head_dim`.
    pub rotary_dim: usize,
    /// Do q, k and v have a bias?
    pub bias: bool,
}

/// The MLP of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mlp {
    /// One for all tokens.
    Dense(Dense),
}

/// A SiLU-gated MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Dense {
    /// Rows of the gate, and of the up projection.
    pub width: usize,
}

impl Gqa {
    /// Rows of q: all heads.
    pub fn q_rows(&self) -> usize {
        self.num_heads * self.head_dim
    }

    /// Rows of k, and of v.
    pub fn kv_rows(&self) -> usize {
        self.num_kv_heads * self.head_dim
    }

    /// Rows of q, k and v one below the other.
    pub fn qkv_rows(&self) -> usize {
        self.q_rows() + 2 * self.kv_rows()
    }
}

/// A tensor with a row for each token that a stage computes with, overwritten layer by layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Row {
    /// The residual stream between layers.
    Hidden,
    /// The residual stream between the sublayers of a layer.
    Middle,
    /// A sublayer's output before its norm, where it has one.
    Sublayer,
    /// Queries, rotated.
    Queries,
    /// What attention gives.
    Attended,
    /// An MLP between its two products.
    Gated,
}

impl Row {
    /// Whether kernels take it four values at a time.
    pub fn is_vec4s(self) -> bool {
        self != Self::Sublayer
    }
}

impl LayerSpec {
    /// The tensors of a layer, in the order of computation.
    pub fn weights(&self, layer: usize) -> Vec<Weight> {
        let after = |norm: Vector| self.sandwich_norms.then_some(Weight::Vector(norm));
        let mut weights = vec![Vector::InputNorm(layer).into()];
        weights.extend(self.attention.weights(layer));
        weights.extend(after(Vector::PostSelfAttnNorm(layer)));
        weights.push(Vector::PostAttentionNorm(layer).into());
        weights.extend(self.mlp.weights(layer));
        weights.extend(after(Vector::PostMlpNorm(layer)));
        weights
    }

    /// The rows of one token that it computes with, and their widths.
    fn rows(&self, hidden_size: usize) -> Vec<(Row, usize)> {
        let mut rows = self.attention.rows();
        rows.extend(self.mlp.rows());
        rows.extend(self.sandwich_norms.then_some((Row::Sublayer, hidden_size)));
        rows
    }
}

impl Attention {
    fn weights(&self, layer: usize) -> Vec<Weight> {
        match self {
            Self::Gqa(gqa) => {
                let mut weights = vec![Matrix::Qkv(layer).into()];
                weights.extend(gqa.bias.then_some(Weight::Vector(Vector::QkvBias(layer))));
                weights.push(Matrix::Output(layer).into());
                weights
            }
        }
    }

    fn rows(&self) -> Vec<(Row, usize)> {
        match self {
            Self::Gqa(gqa) => vec![(Row::Queries, gqa.q_rows()), (Row::Attended, gqa.q_rows())],
        }
    }

    /// Dimensions that rotate.
    pub fn rotary_dim(&self) -> usize {
        match self {
            Self::Gqa(gqa) => gqa.rotary_dim,
        }
    }

    /// What is cached of one token.
    pub fn kv_values(&self) -> u64 {
        let values = match self {
            Self::Gqa(gqa) => 2 * gqa.kv_rows(),
        };
        values as u64
    }
}

impl Mlp {
    fn weights(&self, layer: usize) -> Vec<Weight> {
        match self {
            Self::Dense(_) => vec![Matrix::GateUp(layer).into(), Matrix::Down(layer).into()],
        }
    }

    fn rows(&self) -> Vec<(Row, usize)> {
        match self {
            Self::Dense(Dense { width }) => vec![(Row::Gated, *width)],
        }
    }
}

impl ModelConfig {
    /// What a part is made of, in the order of computation.
    pub(crate) fn part(&self, part: Part) -> Vec<Weight> {
        match part {
            Part::Embedding => vec![Matrix::Embedding.into()],
            Part::Layer(layer) => self.layer(layer).weights(layer),
            Part::Head => vec![Vector::FinalNorm.into(), Matrix::LmHead.into()],
        }
    }

    /// Every tensor that the files hold: the head's, where it is the embedding, isn't there.
    pub(crate) fn weights(&self) -> impl Iterator<Item = Weight> {
        let layers = (0..self.num_layers()).map(Part::Layer);
        let parts = [Part::Embedding].into_iter().chain(layers).chain([Part::Head]);
        let head = Weight::from(Matrix::LmHead);
        parts
            .flat_map(|part| self.part(part))
            .filter(move |weight| !self.tie_word_embeddings || *weight != head)
    }

    /// The rows of one token that a stage computes with, each with its width: as much as the layer
    /// that takes most.
    pub fn rows(&self) -> Vec<(Row, usize)> {
        let mut rows = vec![(Row::Hidden, self.hidden_size), (Row::Middle, self.hidden_size)];
        for layer in &self.layers {
            for (row, width) in layer.rows(self.hidden_size) {
                match rows.iter_mut().find(|(other, _)| *other == row) {
                    Some((_, widest)) => *widest = width.max(*widest),
                    None => rows.push((row, width)),
                }
            }
        }
        rows
    }
}
