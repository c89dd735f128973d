//! What two processes compare to know that they hold the same model.

use blake3::Hasher;

use crate::Digest;
use crate::architecture::Role;
use crate::config::ModelConfig;
use crate::dtype::DType;
use crate::packed::Groups;
use crate::spec::{Attention, Dense, Gqa, Index, LayerSpec, Mla, Mlp, Moe};
use crate::tensors::Weights;
use crate::tokenizer::{SpecialTokens, TokenizerSource};

/// Bytes of each tensor that are looked at: one page.
const SAMPLE_BYTES: usize = 4096;

/// Everything that is hashed goes through here: a tag or a length before each thing, so that no
/// two lists of things have the same bytes.
pub(crate) struct Sum(Hasher);

impl Sum {
    pub(crate) fn new(what: &str) -> Self {
        let mut sum = Self(Hasher::new());
        sum.text(what);
        sum
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.update(bytes);
    }

    fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    fn number(&mut self, number: u64) {
        self.0.update(&number.to_le_bytes());
    }

    fn option<T>(&mut self, value: Option<T>, add: impl FnOnce(&mut Self, T)) {
        self.number(value.is_some().into());
        if let Some(value) = value {
            add(self, value);
        }
    }

    fn texts(&mut self, texts: &[String]) {
        self.number(texts.len() as u64);
        for text in texts {
            self.text(text);
        }
    }

    pub(crate) fn end(self) -> Digest {
        *self.0.finalize().as_bytes()
    }

    /// A role's tensors: name, type, order, shape and a sample of each and of its factors.
    pub(crate) fn role(&mut self, weights: &Weights, role: Role, layer: usize) {
        for piece in weights.pieces(role, layer) {
            self.text(role.name());
            self.number(dtype_number(piece.dtype).into());
            self.number(piece.order.number());
            self.number(piece.rows as u64);
            self.number(piece.cols as u64);
            let bytes = weights.bytes(piece);
            self.bytes(&bytes[..bytes.len().min(SAMPLE_BYTES)]);
            for side in piece.groups.iter().flat_map(Groups::sides) {
                let bytes = weights.side_bytes(side);
                self.bytes(&bytes[..bytes.len().min(SAMPLE_BYTES)]);
            }
            if let Some(scales) = &piece.scales {
                self.number(scales.block.0 as u64);
                self.number(scales.block.1 as u64);
                let bytes = weights.scale_bytes(scales);
                self.bytes(&bytes[..bytes.len().min(SAMPLE_BYTES)]);
            }
        }
    }

    pub(crate) fn config(&mut self, config: &ModelConfig) {
        // Taken apart, so that a new field can't be forgotten here.
        let ModelConfig {
            architecture,
            layers,
            hidden_size,
            vocab_size,
            max_position_embeddings,
            rope_theta,
            rms_norm_eps,
            tie_word_embeddings,
            eos_token_ids,
            bos_token_id,
            pad_token_id,
        } = config;
        self.text(&architecture.to_string());
        for number in [layers.len(), *hidden_size, *vocab_size, *max_position_embeddings] {
            self.number(number as u64);
        }
        for layer in layers {
            self.layer(layer);
        }
        self.number(rope_theta.to_bits().into());
        self.number(rms_norm_eps.to_bits().into());
        self.number((*tie_word_embeddings).into());
        self.number(eos_token_ids.len() as u64);
        for id in eos_token_ids.iter() {
            self.number((*id).into());
        }
        self.option(*bos_token_id, |sum, id| sum.number(id.into()));
        self.option(*pad_token_id, |sum, id| sum.number(id.into()));
    }

    fn layer(&mut self, layer: &LayerSpec) {
        let LayerSpec { attention, mlp, sandwich_norms } = layer;
        match attention {
            Attention::Gqa(Gqa {
                num_heads,
                num_kv_heads,
                head_dim,
                rotary_dim,
                bias,
                qk_norm,
            }) => {
                self.text("gqa");
                for number in [num_heads, num_kv_heads, head_dim, rotary_dim] {
                    self.number(*number as u64);
                }
                self.number((*bias).into());
                self.number((*qk_norm).into());
            }
            Attention::Mla(Mla {
                num_heads,
                q_lora_rank,
                kv_lora_rank,
                nope_dim,
                rope_dim,
                value_dim,
                index,
            }) => {
                self.text("mla");
                for number in [num_heads, q_lora_rank, kv_lora_rank, nope_dim, rope_dim, value_dim]
                {
                    self.number(*number as u64);
                }
                self.option(*index, |sum, Index { num_heads, head_dim, top_k, shared }| {
                    for number in [num_heads, head_dim, top_k, shared.into()] {
                        sum.number(number as u64);
                    }
                });
            }
        }
        match mlp {
            Mlp::Dense(Dense { width }) => {
                self.text("dense");
                self.number(*width as u64);
            }
            Mlp::Moe(Moe {
                num_experts,
                top_k,
                width,
                shared_width,
                num_groups,
                top_groups,
                normalized,
                scale,
            }) => {
                self.text("moe");
                for number in [num_experts, top_k, width, shared_width, num_groups, top_groups] {
                    self.number(*number as u64);
                }
                self.number((*normalized).into());
                self.number(scale.to_bits().into());
            }
        }
        self.number((*sandwich_norms).into());
    }

    pub(crate) fn tokenizer(&mut self, source: &TokenizerSource) {
        match source {
            TokenizerSource::Json { tokenizer, special, chat_template } => {
                self.text("json");
                self.bytes(tokenizer);
                let SpecialTokens { bos, eos, unk, pad, add_bos, add_eos } = special;
                for text in [bos, eos, unk, pad, chat_template] {
                    self.option(text.as_deref(), Self::text);
                }
                for flag in [add_bos, add_eos] {
                    self.option(*flag, |sum, flag| sum.number(flag.into()));
                }
            }
            TokenizerSource::Gguf {
                model,
                pre,
                tokens,
                token_types,
                scores,
                merges,
                bos,
                eos,
                unk,
                pad,
                add_bos,
                add_eos,
                add_space_prefix,
                chat_template,
            } => {
                self.text("gguf");
                self.text(model);
                self.text(pre);
                self.texts(tokens);
                self.bytes(bytemuck::cast_slice(token_types));
                self.bytes(bytemuck::cast_slice(scores));
                self.texts(merges);
                for id in [bos, eos, unk, pad] {
                    self.option(*id, |sum, id| sum.number(id.into()));
                }
                for flag in [add_bos, add_eos, add_space_prefix] {
                    self.number((*flag).into());
                }
                self.option(chat_template.as_deref(), Self::text);
            }
        }
    }
}

/// What stands for a type in digests, and so must never change: its number in `enum ggml_type`, or
/// one far above those.
fn dtype_number(dtype: DType) -> u8 {
    match dtype {
        DType::F32 => 0,
        DType::F16 => 1,
        DType::Q4_0 => 2,
        DType::Q4_1 => 3,
        DType::Q5_0 => 6,
        DType::Q8_0 => 8,
        DType::Q5_1 => 7,
        DType::Q4_K => 12,
        DType::Q5_K => 13,
        DType::Q6_K => 14,
        DType::IQ3_XXS => 18,
        DType::IQ4_NL => 20,
        DType::IQ4_XS => 23,
        DType::BF16 => 30,
        DType::F8_E4M3 => 200,
        DType::I4 => 201,
    }
}
