//! Weights by what they do, whatever files call them.

use crate::architecture::Role;

/// A weight matrix. `[rows, cols]`: row r gives value r of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Matrix {
    /// `[vocab_size, hidden_size]`
    Embedding,
    /// `[vocab_size, hidden_size]`; the embedding where the model ties them.
    LmHead,
    /// Of a layer: q, k and v one below the other, `[(num_heads + 2 num_kv_heads) head_dim,
    /// hidden_size]`. Rotated pairs of q and k are neighbours, whatever the file does.
    Qkv(usize),
    /// Of a layer: from the heads back, `[hidden_size, num_heads head_dim]`.
    Output(usize),
    /// Of a layer: the gate, below it the up projection, `[2 intermediate_size, hidden_size]`.
    GateUp(usize),
    /// Of a layer: `[hidden_size, intermediate_size]`.
    Down(usize),
    /// Of a layer with latent attention: the row that queries are made of, `[q_lora_rank,
    /// hidden_size]`.
    QueryDown(usize),
    /// Of a layer with latent attention: queries, `[num_heads (nope_dim + rope_dim), q_lora_rank]`.
    QueryUp(usize),
    /// Of a layer with latent attention: the latent row, and the key that rotates, `[kv_lora_rank +
    /// rope_dim, hidden_size]`.
    LatentDown(usize),
    /// Of a layer with latent attention: for each head, from a query to what it is multiplied with
    /// in latent rows, `[num_heads kv_lora_rank, nope_dim]`.
    LatentKeys(usize),
    /// Of a layer with latent attention: for each head, from latent rows to values, `[num_heads
    /// value_dim, kv_lora_rank]`.
    LatentValues(usize),
    /// Of a layer that chooses positions: queries for that, `[num_heads head_dim, q_lora_rank]`.
    IndexQueries(usize),
    /// Of a layer that chooses positions: keys for that, `[head_dim, hidden_size]`.
    IndexKeys(usize),
    /// Of a layer that chooses positions: weights of heads, `[num_heads, hidden_size]`.
    IndexWeights(usize),
    /// Of a layer with experts: what scores them, `[num_experts, hidden_size]`. Never rounded: what
    /// is chosen hangs on it.
    Router(usize),
    /// Of a layer with experts: the gates of all of them, below them their up projections, `[2
    /// num_experts width, hidden_size]`.
    ExpertsGateUp(usize),
    /// Of a layer with experts: `[num_experts hidden_size, width]`.
    ExpertsDown(usize),
    /// Of a layer with experts: as [`GateUp`](Self::GateUp), of the MLP that all tokens have.
    SharedGateUp(usize),
    /// Of a layer with experts: as [`Down`](Self::Down), of the MLP that all tokens have.
    SharedDown(usize),
}

impl Matrix {
    pub(crate) fn role(self) -> (Role, Option<usize>) {
        match self {
            Self::Embedding => (Role::Embedding, None),
            Self::LmHead => (Role::LmHead, None),
            Self::Qkv(layer) => (Role::Qkv, Some(layer)),
            Self::Output(layer) => (Role::Output, Some(layer)),
            Self::GateUp(layer) => (Role::GateUp, Some(layer)),
            Self::Down(layer) => (Role::Down, Some(layer)),
            Self::QueryDown(layer) => (Role::QueryDown, Some(layer)),
            Self::QueryUp(layer) => (Role::QueryUp, Some(layer)),
            Self::LatentDown(layer) => (Role::LatentDown, Some(layer)),
            Self::LatentKeys(layer) => (Role::LatentKeys, Some(layer)),
            Self::LatentValues(layer) => (Role::LatentValues, Some(layer)),
            Self::IndexQueries(layer) => (Role::IndexQueries, Some(layer)),
            Self::IndexKeys(layer) => (Role::IndexKeys, Some(layer)),
            Self::IndexWeights(layer) => (Role::IndexWeights, Some(layer)),
            Self::Router(layer) => (Role::Router, Some(layer)),
            Self::ExpertsGateUp(layer) => (Role::ExpertsGateUp, Some(layer)),
            Self::ExpertsDown(layer) => (Role::ExpertsDown, Some(layer)),
            Self::SharedGateUp(layer) => (Role::SharedGateUp, Some(layer)),
            Self::SharedDown(layer) => (Role::SharedDown, Some(layer)),
        }
    }
}

/// What is multiplied or added value by value, and never quantised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Vector {
    /// Norm before the head, `[hidden_size]`.
    FinalNorm,
    /// Of a layer: norm before the attention, `[hidden_size]`.
    InputNorm(usize),
    /// Of a layer: norm before the MLP (its name is Hugging Face's), `[hidden_size]`.
    PostAttentionNorm(usize),
    /// Of a layer: norm of what the attention adds, `[hidden_size]`; with `sandwich_norms`.
    PostSelfAttnNorm(usize),
    /// Of a layer: norm of what the MLP adds, `[hidden_size]`; with `sandwich_norms`.
    PostMlpNorm(usize),
    /// Of a layer: `[(num_heads + 2 num_kv_heads) head_dim]`, in the order of
    /// [`Matrix::Qkv`]'s rows; with a bias.
    QkvBias(usize),
    /// Of a layer: norm of each head of q, `[head_dim]`, in the order of its rows; with `qk_norm`.
    QueryNorm(usize),
    /// Of a layer: norm of each head of k, in the same way.
    KeyNorm(usize),
    /// Of a layer with latent attention: norm of the row that queries are made of.
    QueryLatentNorm(usize),
    /// Of a layer with latent attention: norm of the latent row.
    LatentNorm(usize),
    /// Of a layer that chooses positions: weight of the keys' norm, which takes their mean away.
    IndexNorm(usize),
    /// Of a layer that chooses positions: what is added to keys after their norm.
    IndexBias(usize),
    /// Of a layer with experts: what is added to scores for the choice, `[num_experts]`.
    RouterBias(usize),
}

impl Vector {
    pub(crate) fn role(self) -> (Role, Option<usize>) {
        match self {
            Self::FinalNorm => (Role::FinalNorm, None),
            Self::InputNorm(layer) => (Role::InputNorm, Some(layer)),
            Self::PostAttentionNorm(layer) => (Role::PostAttentionNorm, Some(layer)),
            Self::PostSelfAttnNorm(layer) => (Role::PostSelfAttnNorm, Some(layer)),
            Self::PostMlpNorm(layer) => (Role::PostMlpNorm, Some(layer)),
            Self::QkvBias(layer) => (Role::QkvBias, Some(layer)),
            Self::QueryNorm(layer) => (Role::QueryNorm, Some(layer)),
            Self::KeyNorm(layer) => (Role::KeyNorm, Some(layer)),
            Self::QueryLatentNorm(layer) => (Role::QueryLatentNorm, Some(layer)),
            Self::LatentNorm(layer) => (Role::LatentNorm, Some(layer)),
            Self::IndexNorm(layer) => (Role::IndexNorm, Some(layer)),
            Self::IndexBias(layer) => (Role::IndexBias, Some(layer)),
            Self::RouterBias(layer) => (Role::RouterBias, Some(layer)),
        }
    }
}

/// A matrix or a vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Weight {
    /// Multiplied with.
    Matrix(Matrix),
    /// Added, or multiplied with value by value.
    Vector(Vector),
}

impl From<Matrix> for Weight {
    fn from(matrix: Matrix) -> Self {
        Self::Matrix(matrix)
    }
}

impl From<Vector> for Weight {
    fn from(vector: Vector) -> Self {
        Self::Vector(vector)
    }
}

impl Weight {
    pub(crate) fn role(self) -> (Role, Option<usize>) {
        match self {
            Self::Matrix(matrix) => matrix.role(),
            Self::Vector(vector) => vector.role(),
        }
    }
}
