//! What a decoder layer is: the one description from which its tensors, its memory, its kernels
//! and its cost follow.

use crate::Part;
use crate::config::ModelConfig;
use crate::weight::{Matrix, Vector, Weight};

/// A decoder layer.
#[derive(Clone, Copy, Debug, PartialEq)]
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
    /// Heads whose keys and values are made of one short row of each token, which is cached.
    Mla(Mla),
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
    /// Are heads of q and k normalised before they rotate?
    pub qk_norm: bool,
}

/// Multi-head latent attention.
///
/// Keys are never made: the part of a query that doesn't rotate is multiplied with what makes keys
/// of the latent row, and what a head attends to with what makes values of it. So one form serves
/// prefill and decode, bit for bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mla {
    /// Of queries: all share the latent row.
    pub num_heads: usize,
    /// Values of the row that queries are made of.
    pub q_lora_rank: usize,
    /// Values of the latent row that keys and values are made of.
    pub kv_lora_rank: usize,
    /// Values of a head's query and key that don't rotate.
    pub nope_dim: usize,
    /// Values of a head's query that rotate, in adjacent pairs; those of the key are the same for
    /// all heads.
    pub rope_dim: usize,
    /// Values of a head's value.
    pub value_dim: usize,
    /// How the positions are chosen that a token attends to, where not all.
    pub index: Option<Index>,
}

/// The choice of the positions that a token attends to: those to which a small attention of its own
/// gives the highest scores; of equal ones the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Index {
    /// Heads that score.
    pub num_heads: usize,
    /// Values of one, and of a position's key; the first `rope_dim` rotate.
    pub head_dim: usize,
    /// Most positions that are chosen.
    pub top_k: usize,
    /// Is the choice that of the layer before?
    pub shared: bool,
}

/// The MLP of a layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mlp {
    /// One for all tokens.
    Dense(Dense),
    /// Of many, each token has some.
    Moe(Moe),
}

/// A SiLU-gated MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Dense {
    /// Rows of the gate, and of the up projection.
    pub width: usize,
}

/// A mixture of experts, each a SiLU-gated MLP.
///
/// A router scores them for each token: the sigmoid of a product. Groups of neighbours compete
/// first, by the sum of the two best of each; then the best of those in the best groups are
/// chosen, of equal ones the first. A bias is added for the choice alone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Moe {
    /// Experts to choose from.
    pub num_experts: usize,
    /// Experts of a token.
    pub top_k: usize,
    /// Rows of an expert's gate.
    pub width: usize,
    /// Rows of the gate of the MLP that all tokens have beside their experts; 0: there is none.
    pub shared_width: usize,
    /// Groups of neighbouring experts; divides `num_experts`.
    pub num_groups: usize,
    /// Groups whose experts can be chosen.
    pub top_groups: usize,
    /// Are the scores of a token's experts made to add up to 1?
    pub normalized: bool,
    /// What they are multiplied with before they weigh their experts.
    pub scale: f32,
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
    pub(crate) fn qkv_rows(&self) -> usize {
        self.q_rows() + 2 * self.kv_rows()
    }
}

impl Mla {
    /// Added to the mean square in the norms of both latent rows, whatever the model adds in its
    /// others: as transformers has it.
    pub const NORM_EPS: f32 = 1e-6;

    /// Values of a token in the cache: the latent row, and the key that rotates.
    pub fn latent(&self) -> usize {
        self.kv_lora_rank + self.rope_dim
    }

    /// Values of a head's query.
    pub fn head_dim(&self) -> usize {
        self.nope_dim + self.rope_dim
    }

    /// The choice that a layer makes itself.
    pub fn own_index(&self) -> Option<Index> {
        self.index.filter(|index| !index.shared)
    }

    /// What all heads give.
    pub(crate) fn value_rows(&self) -> usize {
        self.num_heads * self.value_dim
    }
}

/// A tensor with a row for each token that a stage computes with, overwritten layer by layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ScratchRow {
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
    /// What latent queries are made of.
    QueryLatent,
    /// Queries of heads, of which a part is still to be multiplied and a part to be rotated.
    HeadQueries,
    /// A latent row before its norm, and the key before it rotates.
    Latent,
    /// What heads give before it is made values.
    LatentAttended,
    /// Queries of the heads that choose positions.
    IndexQueries,
    /// Keys of the heads that choose positions.
    IndexKeys,
    /// Weights of the heads that choose positions.
    IndexWeights,
    /// Queries, keys and values before their norm, where they have one.
    Unnormed,
    /// What a router says of each expert, before it is a score.
    Router,
    /// The experts of a token between their two products.
    ExpertsGated,
    /// What the experts of a token give.
    Experts,
    /// The residual stream with what the experts gave, where another MLP follows.
    Mixed,
}

impl ScratchRow {
    /// Whether kernels that choose how a tensor is stored take it four values at a time.
    pub fn is_vec4s(self) -> bool {
        !matches!(
            self,
            Self::Sublayer
                | Self::Unnormed
                | Self::Latent
                | Self::IndexQueries
                | Self::IndexKeys
                | Self::IndexWeights
                | Self::Router
                | Self::Experts
        )
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
    fn rows(&self, hidden_size: usize) -> Vec<(ScratchRow, usize)> {
        let mut rows = self.attention.rows();
        rows.extend(self.mlp.rows(hidden_size));
        rows.extend(self.sandwich_norms.then_some((ScratchRow::Sublayer, hidden_size)));
        rows
    }
}

impl Attention {
    fn weights(&self, layer: usize) -> Vec<Weight> {
        match self {
            Self::Gqa(gqa) => {
                let mut weights = vec![Matrix::Qkv(layer).into()];
                weights.extend(gqa.bias.then_some(Weight::Vector(Vector::QkvBias(layer))));
                if gqa.qk_norm {
                    weights.extend(
                        [Vector::QueryNorm(layer), Vector::KeyNorm(layer)].map(Weight::from),
                    );
                }
                weights.push(Matrix::Output(layer).into());
                weights
            }
            Self::Mla(mla) => {
                let mut weights = vec![
                    Matrix::QueryDown(layer).into(),
                    Vector::QueryLatentNorm(layer).into(),
                    Matrix::QueryUp(layer).into(),
                    Matrix::LatentDown(layer).into(),
                    Vector::LatentNorm(layer).into(),
                    Matrix::LatentKeys(layer).into(),
                    Matrix::LatentValues(layer).into(),
                ];
                if mla.own_index().is_some() {
                    weights.extend([
                        Weight::Matrix(Matrix::IndexQueries(layer)),
                        Matrix::IndexKeys(layer).into(),
                        Vector::IndexNorm(layer).into(),
                        Vector::IndexBias(layer).into(),
                        Matrix::IndexWeights(layer).into(),
                    ]);
                }
                weights.push(Matrix::Output(layer).into());
                weights
            }
        }
    }

    fn rows(&self) -> Vec<(ScratchRow, usize)> {
        match self {
            Self::Gqa(gqa) => {
                let mut rows =
                    vec![(ScratchRow::Queries, gqa.q_rows()), (ScratchRow::Attended, gqa.q_rows())];
                rows.extend(gqa.qk_norm.then_some((ScratchRow::Unnormed, gqa.qkv_rows())));
                rows
            }
            Self::Mla(mla) => {
                let mut rows = vec![
                    (ScratchRow::QueryLatent, mla.q_lora_rank),
                    (ScratchRow::HeadQueries, mla.num_heads * mla.head_dim()),
                    (ScratchRow::Latent, mla.latent()),
                    (ScratchRow::Queries, mla.num_heads * mla.latent()),
                    (ScratchRow::LatentAttended, mla.num_heads * mla.kv_lora_rank),
                    (ScratchRow::Attended, mla.value_rows()),
                ];
                if let Some(index) = mla.own_index() {
                    rows.extend([
                        (ScratchRow::IndexQueries, index.num_heads * index.head_dim),
                        (ScratchRow::IndexKeys, index.head_dim),
                        (ScratchRow::IndexWeights, index.num_heads),
                    ]);
                }
                rows
            }
        }
    }

    /// Dimensions that rotate.
    pub fn rotary_dim(&self) -> usize {
        match self {
            Self::Gqa(gqa) => gqa.rotary_dim,
            Self::Mla(mla) => mla.rope_dim,
        }
    }

    /// What is cached of one token.
    pub fn kv_values(&self) -> u64 {
        let values = match self {
            Self::Gqa(gqa) => 2 * gqa.kv_rows(),
            Self::Mla(mla) => mla.latent() + mla.own_index().map_or(0, |index| index.head_dim),
        };
        values as u64
    }
}

impl Mlp {
    /// How many of the stacked matrices of a layer a token is multiplied with, and of how many.
    pub(crate) fn chosen(&self, matrix: Matrix) -> (usize, usize) {
        match (self, matrix) {
            (Self::Moe(moe), Matrix::ExpertsGateUp(_) | Matrix::ExpertsDown(_)) => {
                (moe.top_k, moe.num_experts)
            }
            _ => (1, 1),
        }
    }

    fn weights(&self, layer: usize) -> Vec<Weight> {
        match self {
            Self::Dense(_) => vec![Matrix::GateUp(layer).into(), Matrix::Down(layer).into()],
            Self::Moe(moe) => {
                let mut weights = vec![
                    Matrix::Router(layer).into(),
                    Vector::RouterBias(layer).into(),
                    Matrix::ExpertsGateUp(layer).into(),
                    Matrix::ExpertsDown(layer).into(),
                ];
                if moe.shared_width > 0 {
                    let shared = [Matrix::SharedGateUp(layer), Matrix::SharedDown(layer)];
                    weights.extend(shared.map(Weight::from));
                }
                weights
            }
        }
    }

    fn rows(&self, hidden_size: usize) -> Vec<(ScratchRow, usize)> {
        match *self {
            Self::Dense(Dense { width }) => vec![(ScratchRow::Gated, width)],
            Self::Moe(Moe { num_experts, top_k, width, shared_width, .. }) => {
                let mut rows = vec![
                    (ScratchRow::Router, num_experts),
                    (ScratchRow::ExpertsGated, top_k * width),
                    (ScratchRow::Experts, top_k * hidden_size),
                ];
                if shared_width > 0 {
                    rows.extend([
                        (ScratchRow::Gated, shared_width),
                        (ScratchRow::Mixed, hidden_size),
                    ]);
                }
                rows
            }
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

    /// The choice of positions in the layers of a model that choose them: all of them choose as
    /// many, in the same way.
    pub fn index(&self) -> Option<Index> {
        self.layers.iter().find_map(|layer| match layer.attention {
            Attention::Mla(mla) => mla.index,
            Attention::Gqa(_) => None,
        })
    }

    /// Whether a layer takes what the one before it has chosen.
    pub fn takes_choice(&self, layer: usize) -> bool {
        self.layers.get(layer).is_some_and(|layer| match layer.attention {
            Attention::Mla(mla) => mla.index.is_some_and(|index| index.shared),
            Attention::Gqa(_) => false,
        })
    }

    /// Words of a token that go on to the next stage beside its row, at most: how many positions it
    /// has chosen, and which.
    pub fn side_words(&self) -> usize {
        let any = (0..self.num_layers()).any(|layer| self.takes_choice(layer));
        self.index().filter(|_| any).map_or(0, |index| 1 + index.top_k)
    }

    /// The rows of one token that a stage computes with, each with its width: as much as the layer
    /// that takes most.
    pub fn rows(&self) -> Vec<(ScratchRow, usize)> {
        let mut rows =
            vec![(ScratchRow::Hidden, self.hidden_size), (ScratchRow::Middle, self.hidden_size)];
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
