//! Which tensors a model consists of, and what each kind of file calls them.
//!
//! A [`Layout`] is a table from a tensor's role to its names. Another architecture or another
//! source of files is another table.

use std::fmt;

use crate::chatglm;
use crate::config::ModelConfig;
use crate::spec::{Attention, Dense, LayerSpec, Mla, Mlp};

/// What can be computed. Displayed as Hugging Face's class name.
///
/// All: pre-norm decoder layers, rotation of pairs of the first
/// [`rotary_dim`](crate::Gqa::rotary_dim) dimensions of a head, SiLU-gated MLPs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// GLM-4-9B-chat, GLM-Edge; Llama and Qwen2 models that were brought into its form.
    Glm,
    /// GLM-4-0414, GLM-Z1: a norm also behind the attention and behind the MLP.
    Glm4,
    /// GLM-4.5, GLM-4.6, GLM-4.7: layers with experts after the first ones.
    Glm4Moe,
    /// GLM-4.7-Flash: the same with latent attention.
    Glm4MoeLite,
    /// GLM-5: the same, attending to chosen positions.
    GlmMoeDsa,
}

impl Architecture {
    /// Whether layers after the first ones have experts.
    pub(crate) fn has_experts(self) -> bool {
        matches!(self, Self::Glm4Moe | Self::Glm4MoeLite | Self::GlmMoeDsa)
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Glm => "GlmForCausalLM",
            Self::Glm4 => "Glm4ForCausalLM",
            Self::Glm4Moe => "Glm4MoeForCausalLM",
            Self::Glm4MoeLite => "Glm4MoeLiteForCausalLM",
            Self::GlmMoeDsa => "GlmMoeDsaForCausalLM",
        })
    }
}

/// What a tensor, or several that are stacked row upon row, does in the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Role {
    Embedding,
    FinalNorm,
    LmHead,
    InputNorm,
    Qkv,
    QkvBias,
    Output,
    PostSelfAttnNorm,
    PostAttentionNorm,
    GateUp,
    Down,
    PostMlpNorm,
    QueryNorm,
    KeyNorm,
    Router,
    RouterBias,
    ExpertsGateUp,
    ExpertsDown,
    SharedGateUp,
    SharedDown,
    QueryDown,
    QueryLatentNorm,
    QueryUp,
    LatentDown,
    LatentNorm,
    LatentKeys,
    LatentValues,
    IndexQueries,
    IndexKeys,
    IndexNorm,
    IndexBias,
    IndexWeights,
}

impl Role {
    /// Rows of each tensor that this role is made of, and their columns; no columns: they are
    /// vectors. `layer` is the layer that it is of; outside of layers any.
    pub(crate) fn shape(self, config: &ModelConfig, layer: usize) -> (Vec<usize>, Option<usize>) {
        let hidden = config.hidden_size;
        let LayerSpec { attention, mlp, .. } = *config.layer(layer);
        match (self, attention, mlp) {
            (Self::Embedding | Self::LmHead, ..) => (vec![config.vocab_size], Some(hidden)),
            (Self::Qkv, Attention::Gqa(gqa), _) => {
                (vec![gqa.q_rows(), gqa.kv_rows(), gqa.kv_rows()], Some(hidden))
            }
            (Self::QkvBias, Attention::Gqa(gqa), _) => {
                (vec![gqa.q_rows(), gqa.kv_rows(), gqa.kv_rows()], None)
            }
            (Self::Output, Attention::Gqa(gqa), _) => (vec![hidden], Some(gqa.q_rows())),
            (Self::Output, Attention::Mla(mla), _) => (vec![hidden], Some(mla.value_rows())),
            (Self::QueryDown, Attention::Mla(mla), _) => (vec![mla.q_lora_rank], Some(hidden)),
            (Self::QueryLatentNorm, Attention::Mla(mla), _) => (vec![mla.q_lora_rank], None),
            (Self::QueryUp, Attention::Mla(mla), _) => {
                (vec![mla.num_heads * mla.head_dim()], Some(mla.q_lora_rank))
            }
            (Self::LatentDown, Attention::Mla(mla), _) => (vec![mla.latent()], Some(hidden)),
            (Self::LatentNorm, Attention::Mla(mla), _) => (vec![mla.kv_lora_rank], None),
            (Self::LatentKeys, Attention::Mla(mla), _) => {
                (vec![mla.num_heads * mla.kv_lora_rank], Some(mla.nope_dim))
            }
            (Self::LatentValues, Attention::Mla(mla), _) => {
                (vec![mla.value_rows()], Some(mla.kv_lora_rank))
            }
            (
                Self::IndexQueries
                | Self::IndexKeys
                | Self::IndexNorm
                | Self::IndexBias
                | Self::IndexWeights,
                Attention::Mla(Mla { q_lora_rank, index: Some(index), .. }),
                _,
            ) => match self {
                Self::IndexQueries => (vec![index.num_heads * index.head_dim], Some(q_lora_rank)),
                Self::IndexKeys => (vec![index.head_dim], Some(hidden)),
                Self::IndexWeights => (vec![index.num_heads], Some(hidden)),
                _ => (vec![index.head_dim], None),
            },
            (Self::QueryNorm | Self::KeyNorm, Attention::Gqa(gqa), _) => (vec![gqa.head_dim], None),
            (Self::GateUp, _, Mlp::Dense(Dense { width })) => (vec![width; 2], Some(hidden)),
            (Self::Down, _, Mlp::Dense(Dense { width })) => (vec![hidden], Some(width)),
            (Self::Router, _, Mlp::Moe(moe)) => (vec![moe.num_experts], Some(hidden)),
            (Self::RouterBias, _, Mlp::Moe(moe)) => (vec![moe.num_experts], None),
            (Self::ExpertsGateUp, _, Mlp::Moe(moe)) => {
                (vec![moe.num_experts * moe.width; 2], Some(hidden))
            }
            (Self::ExpertsDown, _, Mlp::Moe(moe)) => {
                (vec![moe.num_experts * hidden], Some(moe.width))
            }
            (Self::SharedGateUp, _, Mlp::Moe(moe)) => (vec![moe.shared_width; 2], Some(hidden)),
            (Self::SharedDown, _, Mlp::Moe(moe)) => (vec![hidden], Some(moe.shared_width)),
            (
                Self::FinalNorm
                | Self::InputNorm
                | Self::PostSelfAttnNorm
                | Self::PostAttentionNorm
                | Self::PostMlpNorm,
                ..,
            ) => (vec![hidden], None),
            _ => unreachable!("a layer has the tensors of its kind"),
        }
    }

    /// How many matrices of one shape it is.
    pub(crate) fn stack(self, config: &ModelConfig, layer: usize) -> usize {
        let LayerSpec { attention, mlp, .. } = *config.layer(layer);
        match (self, attention, mlp) {
            (Self::ExpertsGateUp | Self::ExpertsDown, _, Mlp::Moe(moe)) => moe.num_experts,
            (Self::LatentKeys | Self::LatentValues, Attention::Mla(mla), _) => mla.num_heads,
            _ => 1,
        }
    }

    /// Part of what digests cover: must never change.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Embedding => "embedding",
            Self::FinalNorm => "final_norm",
            Self::LmHead => "lm_head",
            Self::InputNorm => "input_norm",
            Self::Qkv => "qkv",
            Self::QkvBias => "qkv_bias",
            Self::Output => "output",
            Self::PostSelfAttnNorm => "post_self_attn_norm",
            Self::PostAttentionNorm => "post_attention_norm",
            Self::GateUp => "gate_up",
            Self::Down => "down",
            Self::PostMlpNorm => "post_mlp_norm",
            Self::QueryNorm => "query_norm",
            Self::KeyNorm => "key_norm",
            Self::Router => "router",
            Self::RouterBias => "router_bias",
            Self::ExpertsGateUp => "experts_gate_up",
            Self::ExpertsDown => "experts_down",
            Self::SharedGateUp => "shared_gate_up",
            Self::SharedDown => "shared_down",
            Self::QueryDown => "query_down",
            Self::QueryLatentNorm => "query_latent_norm",
            Self::QueryUp => "query_up",
            Self::LatentDown => "latent_down",
            Self::LatentNorm => "latent_norm",
            Self::LatentKeys => "latent_keys",
            Self::LatentValues => "latent_values",
            Self::IndexQueries => "index_queries",
            Self::IndexKeys => "index_keys",
            Self::IndexNorm => "index_norm",
            Self::IndexBias => "index_bias",
            Self::IndexWeights => "index_weights",
        }
    }
}

/// How the rows of q and k are ordered within a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RowOrder {
    /// Rotated pairs are neighbours, as GLM computes them.
    Adjacent,
    /// Rotated pairs are half of the rotated dimensions apart: to be reordered while reading.
    HalfSplit,
}

/// Stands for an expert's number.
pub(crate) const EXPERT: &str = "{}";

/// The names of a source's tensors.
#[derive(Debug)]
pub(crate) struct Layout {
    /// As the source names it: the class in config.json, or `general.architecture`.
    pub(crate) source: &'static str,
    pub(crate) architecture: Architecture,
    pub(crate) row_order: RowOrder,
    /// What the names of a layer's tensors start with; the layer's number follows.
    pub(crate) layer_prefix: &'static str,
    /// Ways to store each role. A way is a list of names, stacked row upon row; the first way
    /// whose first name exists is taken. The names in a layer follow the prefix, number and dot;
    /// one with [`EXPERT`] in it is that of a tensor for each expert.
    pub(crate) tensors: &'static [(Role, &'static [&'static [&'static str]])],
    /// Suffixes of tensors that older files carry and nobody needs.
    pub(crate) ignored: &'static [&'static str],
}

impl Layout {
    /// Ways to name the tensors of a role in full.
    pub(crate) fn names(&self, role: Role, layer: Option<usize>) -> Vec<Vec<String>> {
        let ways = self.tensors.iter().find(|(r, _)| *r == role).map_or(&[][..], |(_, ways)| ways);
        let full = |name: &&str| match layer {
            Some(layer) => format!("{}{layer}.{name}", self.layer_prefix),
            None => (*name).to_owned(),
        };
        ways.iter().map(|way| way.iter().map(full).collect()).collect()
    }

    /// May a tensor that no role has claimed be ignored?
    pub(crate) fn ignores(&self, name: &str, config: &ModelConfig) -> bool {
        if self.ignored.iter().any(|suffix| name.ends_with(suffix)) {
            return true;
        }
        // Layers past the last are those that guess several tokens ahead (MTP).
        let layer = name.strip_prefix(self.layer_prefix).and_then(|rest| rest.split('.').next());
        if layer.and_then(|n| n.parse().ok()).is_some_and(|n: usize| n >= config.num_layers()) {
            return true;
        }
        // A layer that takes another's choice may have what makes one, too.
        let number = layer.and_then(|layer| layer.parse().ok());
        if name.contains(".indexer.") && number.is_some_and(|n| config.takes_choice(n)) {
            return true;
        }
        // A tied head may be stored all the same; like transformers, we take the embedding.
        config.tie_word_embeddings
            && self.names(Role::LmHead, None).iter().flatten().any(|head| head == name)
    }
}

/// By the class in config.json.
pub(crate) const HUGGING_FACE: &[Layout] = &[
    Layout {
        source: "GlmForCausalLM",
        architecture: Architecture::Glm,
        row_order: RowOrder::Adjacent,
        layer_prefix: "model.layers.",
        tensors: HUGGING_FACE_TENSORS,
        ignored: &["rotary_emb.inv_freq"],
    },
    Layout {
        source: "Glm4ForCausalLM",
        architecture: Architecture::Glm4,
        row_order: RowOrder::Adjacent,
        layer_prefix: "model.layers.",
        tensors: HUGGING_FACE_TENSORS,
        ignored: &["rotary_emb.inv_freq"],
    },
    Layout {
        source: "Glm4MoeForCausalLM",
        architecture: Architecture::Glm4Moe,
        row_order: RowOrder::HalfSplit,
        layer_prefix: "model.layers.",
        tensors: HUGGING_FACE_TENSORS,
        ignored: &["rotary_emb.inv_freq"],
    },
    Layout {
        source: "Glm4MoeLiteForCausalLM",
        architecture: Architecture::Glm4MoeLite,
        row_order: RowOrder::Adjacent,
        layer_prefix: "model.layers.",
        tensors: HUGGING_FACE_TENSORS,
        ignored: &["rotary_emb.inv_freq"],
    },
    Layout {
        source: "GlmMoeDsaForCausalLM",
        architecture: Architecture::GlmMoeDsa,
        row_order: RowOrder::Adjacent,
        layer_prefix: "model.layers.",
        tensors: HUGGING_FACE_TENSORS,
        ignored: &["rotary_emb.inv_freq"],
    },
    chatglm::layout("ChatGLMModel"),
    chatglm::layout("ChatGLMForConditionalGeneration"),
];

const HUGGING_FACE_TENSORS: &[(Role, &[&[&str]])] = &[
    (Role::Embedding, &[&["model.embed_tokens.weight"]]),
    (Role::FinalNorm, &[&["model.norm.weight"]]),
    (Role::LmHead, &[&["lm_head.weight"]]),
    (Role::InputNorm, &[&["input_layernorm.weight"]]),
    (
        Role::Qkv,
        &[&["self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"]],
    ),
    (
        Role::QkvBias,
        &[&["self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"]],
    ),
    (Role::Output, &[&["self_attn.o_proj.weight"]]),
    (Role::PostSelfAttnNorm, &[&["post_self_attn_layernorm.weight"]]),
    (Role::PostAttentionNorm, &[&["post_attention_layernorm.weight"]]),
    (
        Role::GateUp,
        &[&["mlp.gate_up_proj.weight"], &["mlp.gate_proj.weight", "mlp.up_proj.weight"]],
    ),
    (Role::Down, &[&["mlp.down_proj.weight"]]),
    (Role::PostMlpNorm, &[&["post_mlp_layernorm.weight"]]),
    (Role::QueryNorm, &[&["self_attn.q_norm.weight"]]),
    (Role::KeyNorm, &[&["self_attn.k_norm.weight"]]),
    (Role::Router, &[&["mlp.gate.weight"]]),
    (Role::RouterBias, &[&["mlp.gate.e_score_correction_bias"]]),
    (Role::ExpertsGateUp, &[&["mlp.experts.{}.gate_proj.weight", "mlp.experts.{}.up_proj.weight"]]),
    (Role::ExpertsDown, &[&["mlp.experts.{}.down_proj.weight"]]),
    (
        Role::SharedGateUp,
        &[&["mlp.shared_experts.gate_proj.weight", "mlp.shared_experts.up_proj.weight"]],
    ),
    (Role::SharedDown, &[&["mlp.shared_experts.down_proj.weight"]]),
    (Role::QueryDown, &[&["self_attn.q_a_proj.weight"]]),
    (Role::QueryLatentNorm, &[&["self_attn.q_a_layernorm.weight"]]),
    (Role::QueryUp, &[&["self_attn.q_b_proj.weight"]]),
    (Role::LatentDown, &[&["self_attn.kv_a_proj_with_mqa.weight"]]),
    (Role::LatentNorm, &[&["self_attn.kv_a_layernorm.weight"]]),
    (Role::LatentKeys, &[&["self_attn.kv_b_proj.weight"]]),
    (Role::LatentValues, &[&["self_attn.kv_b_proj.weight"]]),
    (Role::IndexQueries, &[&["self_attn.indexer.wq_b.weight"]]),
    (Role::IndexKeys, &[&["self_attn.indexer.wk.weight"]]),
    (Role::IndexNorm, &[&["self_attn.indexer.k_norm.weight"]]),
    (Role::IndexBias, &[&["self_attn.indexer.k_norm.bias"]]),
    (Role::IndexWeights, &[&["self_attn.indexer.weights_proj.weight"]]),
];

/// By `general.architecture`. llama.cpp's converter has brought q and k of `llama` files into
/// adjacent order; `qwen2` files keep the order of Hugging Face, and so do those of `glm4moe`; the
/// others are adjacent by nature (`llama_model_rope_type` in llama.cpp).
pub(crate) const GGUF: &[Layout] = &[
    gguf("llama", Architecture::Glm, RowOrder::Adjacent),
    gguf("qwen2", Architecture::Glm, RowOrder::HalfSplit),
    gguf("chatglm", Architecture::Glm, RowOrder::Adjacent),
    gguf("glm4", Architecture::Glm4, RowOrder::Adjacent),
    gguf("glm4moe", Architecture::Glm4Moe, RowOrder::HalfSplit),
    gguf("deepseek2", Architecture::Glm4MoeLite, RowOrder::Adjacent),
    gguf("glm-dsa", Architecture::GlmMoeDsa, RowOrder::Adjacent),
];

const fn gguf(source: &'static str, architecture: Architecture, row_order: RowOrder) -> Layout {
    Layout {
        source,
        architecture,
        row_order,
        layer_prefix: "blk.",
        tensors: GGUF_TENSORS,
        ignored: &[],
    }
}

/// `ffn_gate` comes before the fused way, which is called `ffn_up` alone (gate rows first).
const GGUF_TENSORS: &[(Role, &[&[&str]])] = &[
    (Role::Embedding, &[&["token_embd.weight"]]),
    (Role::FinalNorm, &[&["output_norm.weight"]]),
    (Role::LmHead, &[&["output.weight"]]),
    (Role::InputNorm, &[&["attn_norm.weight"]]),
    (Role::Qkv, &[&["attn_q.weight", "attn_k.weight", "attn_v.weight"], &["attn_qkv.weight"]]),
    (Role::QkvBias, &[&["attn_q.bias", "attn_k.bias", "attn_v.bias"], &["attn_qkv.bias"]]),
    (Role::Output, &[&["attn_output.weight"]]),
    (Role::PostSelfAttnNorm, &[&["post_attention_norm.weight"]]),
    // Files of glm4moe call it after where it stands.
    (Role::PostAttentionNorm, &[&["ffn_norm.weight"], &["post_attention_norm.weight"]]),
    (Role::GateUp, &[&["ffn_gate.weight", "ffn_up.weight"], &["ffn_up.weight"]]),
    (Role::Down, &[&["ffn_down.weight"]]),
    (Role::PostMlpNorm, &[&["post_ffw_norm.weight"]]),
    (Role::QueryNorm, &[&["attn_q_norm.weight"]]),
    (Role::KeyNorm, &[&["attn_k_norm.weight"]]),
    (Role::Router, &[&["ffn_gate_inp.weight"]]),
    (Role::RouterBias, &[&["exp_probs_b.bias"]]),
    (Role::ExpertsGateUp, &[&["ffn_gate_exps.weight", "ffn_up_exps.weight"]]),
    (Role::ExpertsDown, &[&["ffn_down_exps.weight"]]),
    (Role::SharedGateUp, &[&["ffn_gate_shexp.weight", "ffn_up_shexp.weight"]]),
    (Role::SharedDown, &[&["ffn_down_shexp.weight"]]),
    (Role::QueryDown, &[&["attn_q_a.weight"]]),
    (Role::QueryLatentNorm, &[&["attn_q_a_norm.weight"]]),
    (Role::QueryUp, &[&["attn_q_b.weight"]]),
    (Role::LatentDown, &[&["attn_kv_a_mqa.weight"]]),
    (Role::LatentNorm, &[&["attn_kv_a_norm.weight"]]),
    (Role::LatentKeys, &[&["attn_k_b.weight"]]),
    (Role::LatentValues, &[&["attn_v_b.weight"]]),
    (Role::IndexQueries, &[&["indexer.attn_q_b.weight"]]),
    (Role::IndexKeys, &[&["indexer.attn_k.weight"]]),
    (Role::IndexNorm, &[&["indexer.k_norm.weight"]]),
    (Role::IndexBias, &[&["indexer.k_norm.bias"]]),
    (Role::IndexWeights, &[&["indexer.proj.weight"]]),
];
