//! Models of published shapes with random weights, as GGUF files: what speed is measured on where
//! no weights are at hand. llama.cpp reads them too.

mod storage;

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use checkpoint::{Attention, Dense, Gqa, LayerSpec, Mlp, Moe};
use shaders::kv_cache::HeadShape;

use self::storage::Random;
pub use self::storage::Storage;

/// A model's shape: its last layer, and what isn't said by that.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shape {
    /// What it is called on the command line.
    pub name: &'static str,
    layers: u32,
    hidden: u32,
    layer: LayerSpec,
    /// Of the first layer, where the others have experts.
    dense: Dense,
    vocabulary: u32,
    context: u32,
    tied: bool,
}

/// GLM-Edge and GLM-4 as published (config.json of `glm-edge-1.5b`, `glm-4-9b-chat` and
/// `GLM-4-32B-0414`, the last without its two further norms a layer), SmolLM2, two small ones, and
/// one of experts in the proportions of `GLM-4.5-Air`, a quarter as wide; and one as wide as those
/// experts of it that a token has.
pub const SHAPES: [Shape; 8] = [
    Shape {
        layers: 15,
        vocabulary: 16384,
        ..Shape::dense("glm-30m", (384, 1024), heads((6, 2, 64), 64))
    },
    Shape {
        layers: 30,
        vocabulary: 49152,
        ..Shape::dense("smollm2-135m", (576, 1536), heads((9, 3, 64), 64))
    },
    Shape {
        layers: 24,
        vocabulary: 32000,
        ..Shape::dense("glm-0.3b", (1024, 3072), heads((16, 4, 64), 64))
    },
    Shape {
        layers: 28,
        vocabulary: 59264,
        ..Shape::dense("glm-edge-1.5b", (2048, 6144), heads((16, 4, 128), 128))
    },
    Shape {
        layers: 40,
        vocabulary: 151_552,
        context: 32768,
        tied: false,
        ..Shape::dense("glm-4-9b", (4096, 13696), Gqa { bias: true, ..heads((32, 2, 128), 64) })
    },
    Shape {
        layers: 61,
        vocabulary: 151_552,
        context: 32768,
        tied: false,
        ..Shape::dense("glm-4-32b", (6144, 23040), heads((48, 2, 128), 64))
    },
    Shape {
        layers: 11,
        vocabulary: 32000,
        tied: false,
        ..Shape::dense("glm-moe-0.5b", (1024, 2752), AIR).with(Moe {
            num_experts: 32,
            top_k: 4,
            width: 352,
            shared_width: 352,
            num_groups: 1,
            top_groups: 1,
            normalized: true,
            scale: 1.0,
        })
    },
    Shape {
        layers: 11,
        vocabulary: 32000,
        tied: false,
        ..Shape::dense("glm-moe-0.5b-active", (1024, 5 * 352), AIR)
    },
];

/// Of `GLM-4.5-Air`, a quarter as many.
const AIR: Gqa = Gqa { bias: true, ..heads((24, 2, 128), 64) };

/// Heads of queries, of keys and values, values of one, and how many of them rotate.
const fn heads((num_heads, num_kv_heads, head_dim): (usize, usize, usize), rotary: usize) -> Gqa {
    Gqa { num_heads, num_kv_heads, head_dim, rotary_dim: rotary, bias: false, qk_norm: false }
}

/// A tensor to be written: its name, its shape from the outside in, its storage.
struct Tensor {
    name: String,
    shape: Vec<u64>,
    storage: Storage,
    is_norm: bool,
}

impl Tensor {
    fn num_bytes(&self) -> u64 {
        let num_values: u64 = self.shape.iter().product();
        let (values, bytes) = self.storage.block();
        num_values / values * bytes
    }
}

impl Shape {
    const fn dense(name: &'static str, (hidden, width): (u32, usize), gqa: Gqa) -> Self {
        let mlp = Mlp::Dense(Dense { width });
        let layer = LayerSpec { attention: Attention::Gqa(gqa), mlp, sandwich_norms: false };
        let (dense, vocabulary) = (Dense { width }, 0);
        Self { name, layers: 1, hidden, layer, dense, vocabulary, context: 8192, tied: true }
    }

    /// With experts in all layers but the first.
    const fn with(self, moe: Moe) -> Self {
        Self { layer: LayerSpec { mlp: Mlp::Moe(moe), ..self.layer }, ..self }
    }

    fn layer(&self, layer: u32) -> LayerSpec {
        match layer {
            0 => LayerSpec { mlp: Mlp::Dense(self.dense), ..self.layer },
            _ => self.layer,
        }
    }

    fn gqa(&self) -> Gqa {
        match self.layer.attention {
            Attention::Gqa(gqa) => gqa,
            Attention::Mla(_) => unreachable!("no shape has latent attention"),
        }
    }

    /// The shape of this name.
    pub fn named(name: &str) -> Option<Self> {
        SHAPES.into_iter().find(|shape| shape.name == name)
    }

    pub(crate) fn head_shape(&self) -> HeadShape {
        let Gqa { num_heads, num_kv_heads, head_dim, .. } = self.gqa();
        HeadShape { num_heads, num_kv_heads, head_dim }
    }

    /// The matrices of a layer that a token is multiplied with, as products take them: values of a
    /// row, rows. Queries, keys and values; output; gate and up; down. Experts and what they share
    /// count as one that is as wide as those of a token together.
    pub fn layer_matrices(&self) -> [(usize, usize); 4] {
        let hidden = self.hidden as usize;
        let width = match self.layer.mlp {
            Mlp::Dense(dense) => dense.width,
            Mlp::Moe(moe) => moe.top_k * moe.width + moe.shared_width,
        };
        let heads = self.head_shape();
        [(hidden, heads.qkv_size()), (heads.q_size(), hidden), (hidden, 2 * width), (width, hidden)]
    }

    /// The matrix of the head, in the same way.
    pub fn head_matrix(&self) -> (usize, usize) {
        (self.hidden as usize, self.vocabulary as usize)
    }

    /// Writes a GGUF file of this shape, architecture `llama`, `qwen2` where it has biases, or
    /// `glm4moe` where it has experts, with a tokenizer of bytes that answers in made-up words.
    /// `progress` hears how many bytes of how many are written.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn write(
        &self,
        storage: Storage,
        path: &Path,
        mut progress: impl FnMut(u64, u64),
    ) -> io::Result<()> {
        let tensors = self.tensors(storage);
        let total = tensors.iter().map(Tensor::num_bytes).sum();
        let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
        let header = self.header(&tensors);
        file.write_all(&header)?;
        file.write_all(&vec![0; header.len().next_multiple_of(ALIGNMENT) - header.len()])?;
        let mut random = Random(0);
        let mut done = 0;
        let mut blocks = Vec::new();
        for tensor in &tensors {
            let num_blocks: u64 = tensor.shape.iter().product::<u64>() / tensor.storage.block().0;
            for _ in 0..num_blocks {
                if tensor.is_norm {
                    (0..32).for_each(|_| blocks.extend(1f32.to_le_bytes()));
                } else {
                    tensor.storage.write_block(&mut random, &mut blocks);
                }
                if blocks.len() >= 1 << 20 {
                    file.write_all(&blocks)?;
                    done += blocks.len() as u64;
                    progress(done, total);
                    blocks.clear();
                }
            }
            let padded = tensor.num_bytes().next_multiple_of(ALIGNMENT as u64);
            blocks.resize(blocks.len() + (padded - tensor.num_bytes()) as usize, 0);
        }
        file.write_all(&blocks)?;
        file.into_inner()?.sync_data()
    }

    fn tensors(&self, storage: Storage) -> Vec<Tensor> {
        let [hidden, vocabulary] = [self.hidden, self.vocabulary].map(u64::from);
        let gqa = self.gqa();
        let [queries, keys] = [gqa.q_rows() as u64, gqa.kv_rows() as u64];
        let mut tensors = Vec::new();
        let mut add = |name: String, shape: &[u64], storage, is_norm| {
            let storage: Storage = storage;
            let storage = storage.of_rows(shape[shape.len() - 1]);
            tensors.push(Tensor { name, shape: shape.to_vec(), storage, is_norm });
        };
        let table = storage.of_table(self.tied);
        add("token_embd.weight".to_owned(), &[vocabulary, hidden], table, false);
        add("output_norm.weight".to_owned(), &[hidden], Storage::F32, true);
        if !self.tied {
            let head = storage.of_table(true);
            add("output.weight".to_owned(), &[vocabulary, hidden], head, false);
        }
        let before_mlp = match self.layer.mlp {
            Mlp::Dense(_) => "ffn_norm.weight",
            Mlp::Moe(_) => "post_attention_norm.weight",
        };
        for layer in 0..self.layers {
            let name = |name: &str| format!("blk.{layer}.{name}");
            add(name("attn_norm.weight"), &[hidden], Storage::F32, true);
            add(name(before_mlp), &[hidden], Storage::F32, true);
            let more = storage.of_more_bits(layer, self.layers);
            let parts = [("q", queries, storage), ("k", keys, storage), ("v", keys, more)];
            for (part, rows, storage) in parts {
                add(name(&format!("attn_{part}.weight")), &[rows, hidden], storage, false);
                if gqa.bias {
                    add(name(&format!("attn_{part}.bias")), &[rows], Storage::F32, false);
                }
            }
            add(name("attn_output.weight"), &[hidden, queries], storage, false);
            let mut mlp = |suffix: &str, stack: &[u64], width: usize| {
                let width = width as u64;
                let [narrow, wide] =
                    [[width, hidden], [hidden, width]].map(|shape| [stack, &shape].concat());
                add(name(&format!("ffn_gate{suffix}.weight")), &narrow, storage, false);
                add(name(&format!("ffn_up{suffix}.weight")), &narrow, storage, false);
                add(name(&format!("ffn_down{suffix}.weight")), &wide, more, false);
            };
            match self.layer(layer).mlp {
                Mlp::Dense(dense) => mlp("", &[], dense.width),
                Mlp::Moe(moe) => {
                    let experts = moe.num_experts as u64;
                    mlp("_exps", &[experts], moe.width);
                    mlp("_shexp", &[], moe.shared_width);
                    add(name("ffn_gate_inp.weight"), &[experts, hidden], Storage::F32, false);
                    add(name("exp_probs_b.bias"), &[experts], Storage::F32, false);
                }
            }
        }
        tensors
    }

    /// Everything before the weights (ggml's `docs/gguf.md`).
    fn header(&self, tensors: &[Tensor]) -> Vec<u8> {
        let gqa = self.gqa();
        let architecture = match self.layer.mlp {
            Mlp::Moe(_) => "glm4moe",
            Mlp::Dense(_) if gqa.bias => "qwen2",
            Mlp::Dense(_) => "llama",
        };
        let mut keys = Vec::new();
        let mut num_keys = 0u64;
        let mut key = |name: &str, kind: u32, value: Vec<u8>| {
            keys.extend(string(name));
            keys.extend(kind.to_le_bytes());
            keys.extend(value);
            num_keys += 1;
        };
        key("general.architecture", STRING, string(architecture));
        key("general.name", STRING, string(&format!("{} with random weights", self.name)));
        let mut numbers = vec![
            ("block_count", self.layers as usize),
            ("context_length", self.context as usize),
            ("embedding_length", self.hidden as usize),
            ("feed_forward_length", self.dense.width),
            ("attention.head_count", gqa.num_heads),
            ("attention.head_count_kv", gqa.num_kv_heads),
            ("attention.key_length", gqa.head_dim),
            ("attention.value_length", gqa.head_dim),
            ("rope.dimension_count", gqa.rotary_dim),
            ("vocab_size", self.vocabulary as usize),
        ];
        let mut floats = vec![("attention.layer_norm_rms_epsilon", 1e-5), ("rope.freq_base", 1e4)];
        if let Mlp::Moe(moe) = self.layer.mlp {
            numbers.extend([
                ("expert_count", moe.num_experts),
                ("expert_used_count", moe.top_k),
                ("expert_feed_forward_length", moe.width),
                ("expert_shared_count", moe.shared_width / moe.width),
                ("leading_dense_block_count", 1),
                // The sigmoid.
                ("expert_gating_func", 2),
            ]);
            floats.push(("expert_weights_scale", moe.scale));
            key(&format!("{architecture}.expert_weights_norm"), BOOL, vec![moe.normalized.into()]);
        }
        for (name, value) in numbers {
            key(&format!("{architecture}.{name}"), U32, (value as u32).to_le_bytes().to_vec());
        }
        for (name, value) in floats {
            key(&format!("{architecture}.{name}"), F32, f32::to_le_bytes(value).to_vec());
        }
        key("tokenizer.ggml.model", STRING, string("gpt2"));
        let tokens: Vec<_> = (0..self.vocabulary).map(token).collect();
        key("tokenizer.ggml.tokens", ARRAY, array(STRING, tokens.iter().map(|it| string(it))));
        let ordinary = tokens.iter().map(|_| 1u32.to_le_bytes().to_vec());
        key("tokenizer.ggml.token_type", ARRAY, array(I32, ordinary));
        key("tokenizer.ggml.merges", ARRAY, array(STRING, std::iter::empty()));

        let mut header = b"GGUF".to_vec();
        header.extend(3u32.to_le_bytes());
        header.extend((tensors.len() as u64).to_le_bytes());
        header.extend(num_keys.to_le_bytes());
        header.extend(keys);
        let mut offset = 0u64;
        for tensor in tensors {
            header.extend(string(&tensor.name));
            header.extend((tensor.shape.len() as u32).to_le_bytes());
            tensor.shape.iter().rev().for_each(|n| header.extend(n.to_le_bytes()));
            header.extend(tensor.storage.ggml_type().to_le_bytes());
            header.extend(offset.to_le_bytes());
            offset += tensor.num_bytes().next_multiple_of(ALIGNMENT as u64);
        }
        header
    }
}

/// GGUF's default, of each tensor's beginning.
const ALIGNMENT: usize = 32;
/// Numbers of value types.
const U32: u32 = 4;
const I32: u32 = 5;
const F32: u32 = 6;
const BOOL: u32 = 7;
const STRING: u32 = 8;
const ARRAY: u32 = 9;

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

fn array(kind: u32, values: impl ExactSizeIterator<Item = Vec<u8>>) -> Vec<u8> {
    let mut bytes = [&kind.to_le_bytes()[..], &(values.len() as u64).to_le_bytes()].concat();
    values.for_each(|value| bytes.extend(value));
    bytes
}

/// The text of a token: each byte has one, in the letters by which GPT-2 writes bytes; the others
/// are words.
fn token(id: u32) -> String {
    let is_printable = |byte: &u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    match id {
        0..=0xff if is_printable(&id) => char::from_u32(id).map(String::from).unwrap_or_default(),
        0..=0xff => {
            let number = (0..id).filter(|byte| !is_printable(byte)).count() as u32;
            char::from_u32(0x100 + number).map(String::from).unwrap_or_default()
        }
        // A space before it.
        _ => format!("\u{120}w{id}"),
    }
}

#[cfg(test)]
#[path = "random_model_tests.rs"]
mod tests;
