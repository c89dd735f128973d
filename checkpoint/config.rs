//! What a model is, in one form whatever file says it.

use crate::architecture::Architecture;
use crate::spec::{Attention, Dense, Gqa, LayerSpec, Mla, Mlp, Moe};

/// The shape and constants of a model. Whoever holds one can rely on it: all numbers are within
/// limits and fit together.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// What is computed.
    pub architecture: Architecture,
    /// Decoder layers, at least 1, from the first to the last.
    pub layers: Vec<LayerSpec>,
    /// Values of one token between two layers.
    pub hidden_size: usize,
    /// Rows of the embedding and of the head: may be more than the tokenizer has tokens.
    pub vocab_size: usize,
    /// Tokens of one sequence that the model was made for.
    pub max_position_embeddings: usize,
    /// Base of the rotation: pair i of `rotary_dim` dimensions turns by position ×
    /// theta^(-2i / `rotary_dim`).
    pub rope_theta: f32,
    /// Added to the mean square in every norm.
    pub rms_norm_eps: f32,
    /// Is the head the embedding?
    pub tie_word_embeddings: bool,
    /// Tokens that end an answer; below `vocab_size`, each once, may be none.
    pub eos_token_ids: Vec<u32>,
    /// Token that starts a text, for models that have one.
    pub bos_token_id: Option<u32>,
    /// Token that stands for no token, for models that have one.
    pub pad_token_id: Option<u32>,
}

/// A field that can't be, and why: the caller adds the file.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) key: String,
    pub(crate) problem: String,
}

impl Refused {
    pub(crate) fn new(key: &str, problem: impl Into<String>) -> Self {
        Self { key: key.to_owned(), problem: problem.into() }
    }
}

/// Far above any model, and low enough that no product of three of them overflows.
pub(crate) const MAX_LAYERS: usize = 1 << 12;
pub(crate) const MAX_HEADS: usize = 1 << 12;
pub(crate) const MAX_HEAD_DIM: usize = 1 << 12;
pub(crate) const MAX_WIDTH: usize = 1 << 20;
/// What one lane of a kernel that chooses them has room for, many times over.
pub(crate) const MAX_EXPERTS: usize = 1 << 10;
pub(crate) const MAX_VOCABULARY: usize = 1 << 24;
pub(crate) const MAX_POSITIONS: usize = 1 << 30;

impl ModelConfig {
    /// How many layers there are.
    pub fn num_layers(&self) -> usize {
        self.layers.len()
    }

    /// What a layer is; there is one of this number.
    pub(crate) fn layer(&self, layer: usize) -> &LayerSpec {
        &self.layers[layer]
    }

    /// Values of a token's row between two stages.
    pub fn row_values(&self) -> usize {
        self.hidden_size
    }

    /// Dimensions of a head that rotate, in all layers alike.
    pub fn rotary_dim(&self) -> usize {
        self.layers.first().map_or(0, |layer| layer.attention.rotary_dim())
    }

    /// What both kinds of files must keep to. Each number by itself is already within its limit.
    pub(crate) fn check(self) -> Result<Self, Refused> {
        for layer in &self.layers {
            layer.check()?;
        }
        whole_vec4s("hidden size", self.hidden_size)?;
        if !(self.rope_theta.is_finite() && self.rope_theta > 0.0) {
            return Err(Refused::new(
                "rope theta",
                format!("is {}, it must be a positive number", self.rope_theta),
            ));
        }
        if !(self.rms_norm_eps >= 0.0 && self.rms_norm_eps < 1.0) {
            return Err(Refused::new(
                "rms norm epsilon",
                format!("is {}, it must be at least 0 and below 1", self.rms_norm_eps),
            ));
        }
        let named = [("eos token", &self.eos_token_ids[..])].into_iter().chain([
            ("bos token", self.bos_token_id.as_slice()),
            ("pad token", self.pad_token_id.as_slice()),
        ]);
        for (key, ids) in named {
            if let Some(id) = ids.iter().find(|&&id| id as usize >= self.vocab_size) {
                return Err(Refused::new(
                    key,
                    format!("is {id}, the vocabulary has {} tokens", self.vocab_size),
                ));
            }
        }
        Ok(self)
    }
}

impl LayerSpec {
    /// Each number by itself is already within its limit.
    fn check(&self) -> Result<(), Refused> {
        match self.attention {
            Attention::Gqa(gqa) => gqa.check()?,
            Attention::Mla(mla) => mla.check()?,
        }
        match self.mlp {
            Mlp::Dense(Dense { width }) => whole_vec4s("intermediate size", width),
            Mlp::Moe(moe) => moe.check(),
        }
    }
}

impl Gqa {
    fn check(&self) -> Result<(), Refused> {
        let Self { num_heads, num_kv_heads, head_dim, rotary_dim, .. } = *self;
        if !num_heads.is_multiple_of(num_kv_heads) {
            return Err(Refused::new(
                "number of attention heads",
                format!(
                    "is {num_heads}, it must be a multiple of the {num_kv_heads} key-value heads"
                ),
            ));
        }
        if rotary_dim == 0 || !rotary_dim.is_multiple_of(2) || rotary_dim > head_dim {
            return Err(Refused::new(
                "number of rotary dimensions",
                format!("is {rotary_dim}, it must be even and 2 to {head_dim}"),
            ));
        }
        whole_vec4s("head dimension", head_dim)?;
        whole_vec4s("number of rotary dimensions", rotary_dim)
    }
}

impl Mla {
    fn check(&self) -> Result<(), Refused> {
        let Self { q_lora_rank, kv_lora_rank, nope_dim, rope_dim, value_dim, .. } = *self;
        for (key, width) in [
            ("rank of queries", q_lora_rank),
            ("rank of keys and values", kv_lora_rank),
            ("head dimension that doesn't rotate", nope_dim),
            ("number of rotary dimensions", rope_dim),
            ("head dimension of values", value_dim),
        ] {
            whole_vec4s(key, width)?;
        }
        let Some(index) = self.index else { return Ok(()) };
        if index.head_dim < rope_dim {
            let problem = format!("is {}, of which {rope_dim} dimensions rotate", index.head_dim);
            return Err(Refused::new("head dimension of the index", problem));
        }
        whole_vec4s("head dimension of the index", index.head_dim)?;
        whole_vec4s("heads of the index times their dimension", index.num_heads * index.head_dim)
    }
}

impl Moe {
    fn check(&self) -> Result<(), Refused> {
        let Self { num_experts, top_k, num_groups, top_groups, scale, .. } = *self;
        if top_k > num_experts {
            let problem =
                format!("is {top_k}, it must be 1 to {num_experts}, as there are experts");
            return Err(Refused::new("number of experts of a token", problem));
        }
        if !num_experts.is_multiple_of(num_groups) {
            let problem = format!("is {num_groups}, it must divide the {num_experts} experts");
            return Err(Refused::new("number of groups of experts", problem));
        }
        // Two of each group are added.
        if num_groups > 1 && num_experts / num_groups < 2 {
            let problem = format!("is {num_groups}, each must have 2 of the {num_experts} experts");
            return Err(Refused::new("number of groups of experts", problem));
        }
        if top_groups > num_groups || top_k > num_experts / num_groups * top_groups {
            let problem = format!(
                "is {top_groups}, it must be at most {num_groups}, and so many that they hold the \
                 {top_k} experts of a token"
            );
            return Err(Refused::new("number of groups that are chosen", problem));
        }
        if !(scale.is_finite() && scale > 0.0) {
            let problem = format!("is {scale}, it must be a positive number");
            return Err(Refused::new("factor of experts", problem));
        }
        whole_vec4s("intermediate size of experts", self.width)?;
        whole_vec4s("intermediate size of shared experts", self.shared_width)
    }
}

/// Kernels take four values at a time; no published model has other widths.
fn whole_vec4s(key: &str, width: usize) -> Result<(), Refused> {
    if width.is_multiple_of(4) {
        return Ok(());
    }
    Err(Refused::new(key, format!("is {width}, supported are multiples of 4")))
}
