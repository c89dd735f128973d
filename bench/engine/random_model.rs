//! Models of published shapes with random weights, as GGUF files: what speed is measured on where
//! no weights are at hand. llama.cpp reads them too.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use shaders::kv_cache::HeadShape;

/// A model's shape, in the words of GGUF.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shape {
    /// What it is called on the command line.
    pub name: &'static str,
    layers: u32,
    hidden: u32,
    feed_forward: u32,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    rotary_dim: u32,
    vocabulary: u32,
    context: u32,
    bias: bool,
    tied: bool,
}

/// GLM-Edge and GLM-4 as published (config.json of `glm-edge-1.5b`, `glm-4-9b-chat` and
/// `GLM-4-32B-0414`, the last without its two further norms a layer), SmolLM2, and two small ones.
pub const SHAPES: [Shape; 6] = [
    Shape {
        name: "glm-30m",
        layers: 15,
        hidden: 384,
        feed_forward: 1024,
        heads: 6,
        kv_heads: 2,
        head_dim: 64,
        rotary_dim: 64,
        vocabulary: 16384,
        context: 8192,
        bias: false,
        tied: true,
    },
    Shape {
        name: "smollm2-135m",
        layers: 30,
        hidden: 576,
        feed_forward: 1536,
        heads: 9,
        kv_heads: 3,
        head_dim: 64,
        rotary_dim: 64,
        vocabulary: 49152,
        context: 8192,
        bias: false,
        tied: true,
    },
    Shape {
        name: "glm-0.3b",
        layers: 24,
        hidden: 1024,
        feed_forward: 3072,
        heads: 16,
        kv_heads: 4,
        head_dim: 64,
        rotary_dim: 64,
        vocabulary: 32000,
        context: 8192,
        bias: false,
        tied: true,
    },
    Shape {
        name: "glm-edge-1.5b",
        layers: 28,
        hidden: 2048,
        feed_forward: 6144,
        heads: 16,
        kv_heads: 4,
        head_dim: 128,
        rotary_dim: 128,
        vocabulary: 59264,
        context: 8192,
        bias: false,
        tied: true,
    },
    Shape {
        name: "glm-4-9b",
        layers: 40,
        hidden: 4096,
        feed_forward: 13696,
        heads: 32,
        kv_heads: 2,
        head_dim: 128,
        rotary_dim: 64,
        vocabulary: 151_552,
        context: 32768,
        bias: true,
        tied: false,
    },
    Shape {
        name: "glm-4-32b",
        layers: 61,
        hidden: 6144,
        feed_forward: 23040,
        heads: 48,
        kv_heads: 2,
        head_dim: 128,
        rotary_dim: 64,
        vocabulary: 151_552,
        context: 32768,
        bias: false,
        tied: false,
    },
];

/// How the weights of matrices are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Storage {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// The upper half of 32-bit floats.
    Bf16,
    /// Blocks of 32 bytes with a scale.
    #[value(name = "q8_0")]
    Q8_0,
    /// Blocks of 32 nibbles with a scale; the embedding is Q8_0.
    #[value(name = "q4_0")]
    Q4_0,
    /// Blocks of 32 nibbles with a scale and a minimum; the embedding is Q8_0.
    #[value(name = "q4_1")]
    Q4_1,
    /// Blocks of 256 nibbles, and of 256 six-bit codes where llama.cpp's mixture of this name has
    /// such: values and down projections of half the layers, and the head.
    #[value(name = "q4_k_m")]
    Q4KM,
    /// Blocks of 256 six-bit codes.
    #[value(name = "q6_k")]
    Q6K,
}

impl Storage {
    /// Its number in `enum ggml_type`.
    fn ggml_type(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q8_0 => 8,
            Self::Q4KM => 12,
            Self::Q6K => 14,
            Self::Bf16 => 30,
        }
    }

    /// Weights and bytes of what is written at a time.
    fn block(self) -> (u64, u64) {
        match self {
            Self::F32 => (32, 128),
            Self::F16 | Self::Bf16 => (32, 64),
            Self::Q8_0 => (32, 34),
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q4KM => (256, 144),
            Self::Q6K => (256, 210),
        }
    }

    fn of_table(self, is_head: bool) -> Self {
        match self {
            Self::Q4_0 | Self::Q4_1 => Self::Q8_0,
            Self::Q4KM if is_head => Self::Q6K,
            _ => self,
        }
    }

    /// Of values and down projections of a layer: llama.cpp's `use_more_bits`.
    fn of_more_bits(self, layer: u32, layers: u32) -> Self {
        let eighth = layers / 8;
        let has_more = layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2;
        if self == Self::Q4KM && has_more { Self::Q6K } else { self }
    }

    /// A block of weights, spread evenly about zero with [`DEVIATION`].
    fn write_block(self, random: &mut Random, out: &mut Vec<u8>) {
        // A uniform distribution over n steps has a deviation of n / sqrt(12) of them.
        let step = |steps: f32| half::f16::from_f32(DEVIATION * 12f32.sqrt() / steps);
        match self {
            Self::F32 => (0..32).for_each(|_| out.extend(random.weight().to_le_bytes())),
            Self::F16 => {
                (0..32).for_each(|_| out.extend(half::f16::from_f32(random.weight()).to_le_bytes()))
            }
            Self::Bf16 => (0..32)
                .for_each(|_| out.extend(half::bf16::from_f32(random.weight()).to_le_bytes())),
            Self::Q8_0 => {
                out.extend(step(256.0).to_le_bytes());
                (0..4).for_each(|_| out.extend(random.next().to_le_bytes()));
            }
            Self::Q4_0 | Self::Q4_1 => {
                let scale = step(16.0);
                out.extend(scale.to_le_bytes());
                if self == Self::Q4_1 {
                    out.extend(half::f16::from_f32(-7.5 * scale.to_f32()).to_le_bytes());
                }
                (0..2).for_each(|_| out.extend(random.next().to_le_bytes()));
            }
            Self::Q4KM => {
                // Scales and minimums of 48 of their units.
                let scale = step(16.0).to_f32() / 48.0;
                out.extend(half::f16::from_f32(scale).to_le_bytes());
                out.extend(half::f16::from_f32(7.5 * scale).to_le_bytes());
                out.extend([48 | 3 << 6; 8]);
                out.extend([0; 4]);
                (0..16).for_each(|_| out.extend(random.next().to_le_bytes()));
            }
            Self::Q6K => {
                (0..24).for_each(|_| out.extend(random.next().to_le_bytes()));
                out.extend([64; 16]);
                out.extend(half::f16::from_f32(step(64.0).to_f32() / 64.0).to_le_bytes());
            }
        }
    }
}

/// What transformers initialises weights with.
const DEVIATION: f32 = 0.02;

/// SplitMix64 (Steele, Lea and Flood, 2014): the same weights on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn weight(&mut self) -> f32 {
        let unit = (self.next() >> 40) as f32 / (1 << 24) as f32;
        (unit - 0.5) * DEVIATION * 12f32.sqrt()
    }
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
    /// The shape of this name.
    pub fn named(name: &str) -> Option<Self> {
        SHAPES.into_iter().find(|shape| shape.name == name)
    }

    /// Heads of attention.
    pub(crate) fn head_shape(&self) -> HeadShape {
        let [num_heads, num_kv_heads, head_dim] =
            [self.heads, self.kv_heads, self.head_dim].map(|size| size as usize);
        HeadShape { num_heads, num_kv_heads, head_dim }
    }

    /// The matrices of a layer, as products take them: values of a row, rows. Queries, keys and
    /// values; output; gate and up; down.
    pub fn layer_matrices(&self) -> [(usize, usize); 4] {
        let [hidden, width] = [self.hidden, self.feed_forward].map(|size| size as usize);
        let heads = self.head_shape();
        [(hidden, heads.qkv_size()), (heads.q_size(), hidden), (hidden, 2 * width), (width, hidden)]
    }

    /// The matrix of the head, in the same way.
    pub fn head_matrix(&self) -> (usize, usize) {
        (self.hidden as usize, self.vocabulary as usize)
    }

    /// Writes a GGUF file of this shape, architecture `llama`, or `qwen2` where it has biases, with
    /// a tokenizer of bytes that answers in made-up words. `progress` hears how many bytes of how
    /// many are written.
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
        let [hidden, ffn, vocabulary] =
            [self.hidden, self.feed_forward, self.vocabulary].map(u64::from);
        let queries = u64::from(self.heads * self.head_dim);
        let keys = u64::from(self.kv_heads * self.head_dim);
        let mut tensors = Vec::new();
        let mut add = |name: String, shape: &[u64], storage, is_norm| {
            tensors.push(Tensor { name, shape: shape.to_vec(), storage, is_norm });
        };
        let table = storage.of_table(self.tied);
        add("token_embd.weight".to_owned(), &[vocabulary, hidden], table, false);
        add("output_norm.weight".to_owned(), &[hidden], Storage::F32, true);
        if !self.tied {
            let head = storage.of_table(true);
            add("output.weight".to_owned(), &[vocabulary, hidden], head, false);
        }
        for layer in 0..self.layers {
            let name = |name: &str| format!("blk.{layer}.{name}");
            add(name("attn_norm.weight"), &[hidden], Storage::F32, true);
            add(name("ffn_norm.weight"), &[hidden], Storage::F32, true);
            let more = storage.of_more_bits(layer, self.layers);
            let parts = [("q", queries, storage), ("k", keys, storage), ("v", keys, more)];
            for (part, rows, storage) in parts {
                add(name(&format!("attn_{part}.weight")), &[rows, hidden], storage, false);
                if self.bias {
                    add(name(&format!("attn_{part}.bias")), &[rows], Storage::F32, false);
                }
            }
            add(name("attn_output.weight"), &[hidden, queries], storage, false);
            add(name("ffn_gate.weight"), &[ffn, hidden], storage, false);
            add(name("ffn_up.weight"), &[ffn, hidden], storage, false);
            add(name("ffn_down.weight"), &[hidden, ffn], more, false);
        }
        tensors
    }

    /// Everything before the weights (ggml's `docs/gguf.md`).
    fn header(&self, tensors: &[Tensor]) -> Vec<u8> {
        let architecture = if self.bias { "qwen2" } else { "llama" };
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
        for (name, value) in [
            ("block_count", self.layers),
            ("context_length", self.context),
            ("embedding_length", self.hidden),
            ("feed_forward_length", self.feed_forward),
            ("attention.head_count", self.heads),
            ("attention.head_count_kv", self.kv_heads),
            ("attention.key_length", self.head_dim),
            ("attention.value_length", self.head_dim),
            ("rope.dimension_count", self.rotary_dim),
            ("vocab_size", self.vocabulary),
        ] {
            key(&format!("{architecture}.{name}"), U32, value.to_le_bytes().to_vec());
        }
        for (name, value) in [("attention.layer_norm_rms_epsilon", 1e-5), ("rope.freq_base", 1e4)] {
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
