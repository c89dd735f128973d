//! What a model is, in one form whatever file says it.

use crate::architecture::Architecture;

/// The shape and constants of a model. Whoever holds one can rely on it: all numbers are within
/// limits and fit together.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// What is computed.
    pub architecture: Architecture,
    /// Decoder layers, at least 1.
    pub num_layers: usize,
    /// Values of one token between two layers.
    pub hidden_size: usize,
    /// Rows of the MLP's gate, and of its up projection.
    pub intermediate_size: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; divides `num_heads`. Query head h uses kv head
    /// h / (`num_heads` / `num_kv_heads`).
    pub num_kv_heads: usize,
    /// Values of one head. `num_heads` × `head_dim` need not be `hidden_size`.
    pub head_dim: usize,
    /// Rows of the embedding and of the head: may be more than the tokenizer has tokens.
    pub vocab_size: usize,
    /// Tokens of one sequence that the model was made for.
    pub max_position_embeddings: usize,
    /// First dimensions of each head that rotate, in adjacent pairs; even, at most `head_dim`.
    pub rotary_dim: usize,
    /// Base of the rotation: pair i turns by position × theta^(-2i / `rotary_dim`).
    pub rope_theta: f32,
    /// Added to the mean square in every norm.
    pub rms_norm_eps: f32,
    /// Do q, k and v have a bias?
    pub attention_bias: bool,
    /// Are the outputs of attention and MLP normalised before they are added?
    pub sandwich_norms: bool,
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
pub(crate) const MAX_VOCABULARY: usize = 1 << 24;
pub(crate) const MAX_POSITIONS: usize = 1 << 30;

impl ModelConfig {
    /// Rows of q: all heads.
    pub fn q_rows(&self) -> usize {
        self.num_heads * self.head_dim
    }

    /// Rows of k, and of v.
    pub fn kv_rows(&self) -> usize {
        self.num_kv_heads * self.head_dim
    }

    /// What both kinds of files must keep to. Each number by itself is already within its limit.
    pub(crate) fn check(self) -> Result<Self, Refused> {
        if !self.num_heads.is_multiple_of(self.num_kv_heads) {
            return Err(Refused::new(
                "number of attention heads",
                format!(
                    "is {}, it must be a multiple of the {} key-value heads",
                    self.num_heads, self.num_kv_heads
                ),
            ));
        }
        if self.rotary_dim == 0
            || !self.rotary_dim.is_multiple_of(2)
            || self.rotary_dim > self.head_dim
        {
            return Err(Refused::new(
                "number of rotary dimensions",
                format!("is {}, it must be even and 2 to {}", self.rotary_dim, self.head_dim),
            ));
        }
        for (key, width) in [
            ("hidden size", self.hidden_size),
            ("intermediate size", self.intermediate_size),
            ("head dimension", self.head_dim),
            ("number of rotary dimensions", self.rotary_dim),
        ] {
            // Kernels take four values at a time; no published model has other widths.
            if !width.is_multiple_of(4) {
                return Err(Refused::new(key, format!("is {width}, supported are multiples of 4")));
            }
        }
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
