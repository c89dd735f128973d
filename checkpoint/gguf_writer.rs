//! Writes GGUF files for tests, right ones and wrong ones.

/// A file to be: its keys and tensors.
#[derive(Clone, Default)]
pub(crate) struct Writer {
    /// Name, value type, value.
    pub(crate) keys: Vec<(String, u32, Vec<u8>)>,
    pub(crate) tensors: Vec<Tensor>,
}

#[derive(Clone)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    /// Outermost dimension first.
    pub(crate) shape: Vec<u64>,
    pub(crate) kind: u32,
    pub(crate) data: Vec<u8>,
}

pub(crate) fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

impl Writer {
    pub(crate) fn set(&mut self, key: &str, kind: u32, value: Vec<u8>) {
        self.keys.retain(|(name, ..)| name != key);
        self.keys.push((key.to_owned(), kind, value));
    }

    pub(crate) fn u32(&mut self, key: &str, value: u32) {
        self.set(key, 4, value.to_le_bytes().to_vec());
    }

    pub(crate) fn f32(&mut self, key: &str, value: f32) {
        self.set(key, 6, value.to_le_bytes().to_vec());
    }

    pub(crate) fn bool(&mut self, key: &str, value: bool) {
        self.set(key, 7, vec![value.into()]);
    }

    pub(crate) fn text(&mut self, key: &str, value: &str) {
        self.set(key, 8, string(value));
    }

    pub(crate) fn texts(&mut self, key: &str, values: &[&str]) {
        let mut bytes = 8u32.to_le_bytes().to_vec();
        bytes.extend((values.len() as u64).to_le_bytes());
        values.iter().for_each(|value| bytes.extend(string(value)));
        self.set(key, 9, bytes);
    }

    pub(crate) fn i32s(&mut self, key: &str, values: &[i32]) {
        let mut bytes = 5u32.to_le_bytes().to_vec();
        bytes.extend((values.len() as u64).to_le_bytes());
        values.iter().for_each(|value| bytes.extend(value.to_le_bytes()));
        self.set(key, 9, bytes);
    }

    /// Number n of all the tensors' f32 values is n / 8, so that each is unlike all others.
    pub(crate) fn tensor(&mut self, name: &str, shape: &[u64]) {
        let first: usize = self.tensors.iter().map(|tensor| tensor.data.len() / 4).sum();
        let count = shape.iter().product::<u64>() as usize;
        let data = (first..first + count).flat_map(|n| (n as f32 / 8.0).to_le_bytes()).collect();
        let tensor = Tensor { name: name.to_owned(), shape: shape.to_vec(), kind: 0, data };
        self.tensors.push(tensor);
    }

    pub(crate) fn find(&mut self, name: &str) -> &mut Tensor {
        self.tensors.iter_mut().find(|tensor| tensor.name == name).unwrap()
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3u32.to_le_bytes());
        bytes.extend((self.tensors.len() as u64).to_le_bytes());
        bytes.extend((self.keys.len() as u64).to_le_bytes());
        for (key, kind, value) in &self.keys {
            bytes.extend(string(key));
            bytes.extend(kind.to_le_bytes());
            bytes.extend(value);
        }
        let mut offset = 0u64;
        for Tensor { name, shape, kind, data } in &self.tensors {
            bytes.extend(string(name));
            bytes.extend((shape.len() as u32).to_le_bytes());
            shape.iter().rev().for_each(|n| bytes.extend(n.to_le_bytes()));
            bytes.extend(kind.to_le_bytes());
            bytes.extend(offset.to_le_bytes());
            offset += (data.len() as u64).next_multiple_of(32);
        }
        for tensor in &self.tensors {
            bytes.resize(bytes.len().next_multiple_of(32), 0);
            bytes.extend(&tensor.data);
        }
        bytes
    }
}

pub(crate) const HIDDEN: u64 = 64;
pub(crate) const HEAD: u64 = 16;
pub(crate) const FFN: u64 = 32;
pub(crate) const VOCAB: u64 = 6;

/// Two layers, 4 heads and 2 kv heads of 16, tied.
pub(crate) fn tiny(architecture: &str) -> Writer {
    let mut file = Writer::default();
    file.text("general.architecture", architecture);
    for (key, value) in [
        ("block_count", 2),
        ("context_length", 128),
        ("embedding_length", HIDDEN as u32),
        ("feed_forward_length", FFN as u32),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
    ] {
        file.u32(&format!("{architecture}.{key}"), value);
    }
    file.f32(&format!("{architecture}.attention.layer_norm_rms_epsilon"), 1e-6);
    file.f32(&format!("{architecture}.rope.freq_base"), 1e6);
    file.text("tokenizer.ggml.model", "gpt2");
    file.text("tokenizer.ggml.pre", "qwen2");
    file.texts("tokenizer.ggml.tokens", &["a", "b", "ab", "<|user|>", "<|im_end|>", "<|end|>"]);
    file.i32s("tokenizer.ggml.token_type", &[1, 1, 1, 3, 3, 3]);
    file.texts("tokenizer.ggml.merges", &["a b"]);
    file.u32("tokenizer.ggml.eos_token_id", 5);
    file.u32("tokenizer.ggml.bos_token_id", 3);
    file.bool("tokenizer.ggml.add_bos_token", false);
    file.tensor("token_embd.weight", &[VOCAB, HIDDEN]);
    file.tensor("output_norm.weight", &[HIDDEN]);
    let is_glm = matches!(architecture, "glm4" | "chatglm");
    for layer in 0..2 {
        let mut tensor =
            |name: &str, shape: &[u64]| file.tensor(&format!("blk.{layer}.{name}"), shape);
        tensor("attn_norm.weight", &[HIDDEN]);
        tensor("ffn_norm.weight", &[HIDDEN]);
        for (name, rows) in [("q", 4 * HEAD), ("k", 2 * HEAD), ("v", 2 * HEAD)] {
            tensor(&format!("attn_{name}.weight"), &[rows, HIDDEN]);
            if architecture != "llama" {
                tensor(&format!("attn_{name}.bias"), &[rows]);
            }
        }
        tensor("attn_output.weight", &[HIDDEN, 4 * HEAD]);
        if is_glm {
            tensor("ffn_up.weight", &[2 * FFN, HIDDEN]);
        } else {
            tensor("ffn_gate.weight", &[FFN, HIDDEN]);
            tensor("ffn_up.weight", &[FFN, HIDDEN]);
        }
        tensor("ffn_down.weight", &[HIDDEN, FFN]);
        if architecture == "glm4" {
            tensor("post_attention_norm.weight", &[HIDDEN]);
            tensor("post_ffw_norm.weight", &[HIDDEN]);
        }
    }
    file
}
