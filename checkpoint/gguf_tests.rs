//! Whole GGUF files, written here byte by byte and opened.

use proptest::prelude::*;

use crate::gguf_writer::{HEAD, HIDDEN, Writer, string, tiny};
use crate::*;

impl Writer {
    pub(crate) fn open(&self) -> Result<Checkpoint, CheckpointError> {
        open(&self.bytes())
    }

    /// What `open` says to this file.
    fn refusal(&self) -> String {
        self.open().unwrap_err().to_string()
    }
}

fn open(bytes: &[u8]) -> Result<Checkpoint, CheckpointError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny.gguf");
    std::fs::write(&path, bytes).unwrap();
    Checkpoint::open(&path)
}

fn values(file: &Writer, name: &str) -> Vec<f32> {
    let tensor = file.clone().find(name).clone();
    tensor.data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

pub(crate) fn all_rows(view: &MatrixView<'_>) -> Vec<f32> {
    let mut out = vec![0.0; view.rows() * view.cols()];
    for (row, out) in out.chunks_exact_mut(view.cols()).enumerate() {
        view.row_f32(row, out).unwrap();
    }
    out
}

#[test]
fn a_llama_file_is_in_order_as_it_is() {
    let file = tiny("llama");
    let checkpoint = file.open().unwrap();
    assert_eq!(checkpoint.name(), "tiny");
    let gqa = Gqa {
        num_heads: 4,
        num_kv_heads: 2,
        head_dim: 16,
        rotary_dim: 16,
        bias: false,
        qk_norm: false,
    };
    let spec = LayerSpec {
        attention: Attention::Gqa(gqa),
        mlp: Mlp::Dense(Dense { width: 32 }),
        sandwich_norms: false,
    };
    assert_eq!(
        *checkpoint.config(),
        ModelConfig {
            architecture: Architecture::Glm,
            layers: vec![spec; 2],
            hidden_size: 64,
            vocab_size: 6,
            max_position_embeddings: 128,
            rope_theta: 1e6,
            rms_norm_eps: 1e-6,
            tie_word_embeddings: true,
            eos_token_ids: vec![5, 4],
            bos_token_id: Some(3),
            pad_token_id: None,
        }
    );
    let stacked = |names: &[&str]| names.map_values(&file);
    assert_eq!(
        all_rows(&checkpoint.matrix(Matrix::Qkv(1)).unwrap()),
        stacked(&["blk.1.attn_q.weight", "blk.1.attn_k.weight", "blk.1.attn_v.weight"])
    );
    assert_eq!(
        all_rows(&checkpoint.matrix(Matrix::GateUp(0)).unwrap()),
        stacked(&["blk.0.ffn_gate.weight", "blk.0.ffn_up.weight"])
    );
    assert_eq!(
        all_rows(&checkpoint.matrix(Matrix::LmHead).unwrap()),
        stacked(&["token_embd.weight"])
    );
    assert_eq!(checkpoint.vector(Vector::FinalNorm).unwrap(), stacked(&["output_norm.weight"]));
    assert_eq!(
        checkpoint.vector(Vector::QkvBias(0)).unwrap_err().to_string(),
        "QkvBias(0) was asked for, this GlmForCausalLM has none"
    );
}

trait Stacked {
    fn map_values(&self, file: &Writer) -> Vec<f32>;
}

impl Stacked for [&str] {
    fn map_values(&self, file: &Writer) -> Vec<f32> {
        self.iter().flat_map(|name| values(file, name)).collect()
    }
}

#[test]
fn a_qwen2_file_is_reordered() {
    let file = tiny("qwen2");
    let checkpoint = file.open().unwrap();
    let Attention::Gqa(gqa) = checkpoint.config().layers[0].attention else { panic!() };
    assert!(gqa.bias);
    let view = checkpoint.matrix(Matrix::Qkv(1)).unwrap();
    assert_eq!((view.rows(), view.cols(), view.format()), (128, 64, Format::F32));
    let bias = checkpoint.vector(Vector::QkvBias(1)).unwrap();
    let read = all_rows(&view);
    let head = HEAD as usize;
    let mut first = 0;
    for (name, rows, is_reordered) in [("q", 64, true), ("k", 32, true), ("v", 32, false)] {
        let stored = values(&file, &format!("blk.1.attn_{name}.weight"));
        let stored_bias = values(&file, &format!("blk.1.attn_{name}.bias"));
        for h in 0..rows / head {
            for i in 0..head / 2 {
                // New row 2i is old row i, new row 2i + 1 is old row i + half.
                let pairs = if is_reordered {
                    [(2 * i, i), (2 * i + 1, i + head / 2)]
                } else {
                    [(i, i), (i + head / 2, i + head / 2)]
                };
                for (new, old) in pairs.map(|(new, old)| (h * head + new, h * head + old)) {
                    let at = (first + new) * 64;
                    assert_eq!(read[at..at + 64], stored[old * 64..old * 64 + 64]);
                    assert_eq!(bias[first + new], stored_bias[old]);
                }
            }
        }
        first += rows;
    }
    // Any cut of the rows reads the same bytes, across the borders of q, k and v.
    let all: Vec<u8> = read.iter().flat_map(|value| value.to_le_bytes()).collect();
    for (start, end) in [(0, 128), (0, 1), (60, 70), (63, 97), (95, 128), (128, 128), (5, 5)] {
        let mut out = vec![0; (end - start) * view.row_bytes()];
        view.read_rows(start..end, &mut out).unwrap();
        assert_eq!(out, all[start * view.row_bytes()..end * view.row_bytes()]);
    }
    for (rows, len) in [(0..129, 129 * 256), (0..2, 511), (200..201, 256)] {
        let error = view.read_rows(rows, &mut vec![0; len]).unwrap_err();
        assert!(matches!(error, CheckpointError::Rows { .. }), "{error}");
    }
    assert!(view.row_f32(128, &mut [0.0; 64]).is_err());
    assert!(view.row_f32(0, &mut [0.0; 63]).is_err());
}

#[test]
fn glm_files_with_fused_tensors() {
    let file = tiny("glm4");
    let checkpoint = file.open().unwrap();
    assert_eq!(checkpoint.config().architecture, Architecture::Glm4);
    assert_eq!(checkpoint.config().eos_token_ids, [5, 3, 4]);
    assert_eq!(
        all_rows(&checkpoint.matrix(Matrix::GateUp(1)).unwrap()),
        values(&file, "blk.1.ffn_up.weight")
    );
    let norm = checkpoint.vector(Vector::PostMlpNorm(0)).unwrap();
    assert_eq!(norm, values(&file, "blk.0.post_ffw_norm.weight"));

    let mut fused = tiny("chatglm");
    for layer in 0..2 {
        fused.tensors.retain(|tensor| {
            !["q", "k", "v"]
                .iter()
                .any(|n| tensor.name.starts_with(&format!("blk.{layer}.attn_{n}.")))
        });
        fused.tensor(&format!("blk.{layer}.attn_qkv.weight"), &[128, HIDDEN]);
        fused.tensor(&format!("blk.{layer}.attn_qkv.bias"), &[128]);
    }
    fused.u32("chatglm.rope.dimension_count", 8);
    let checkpoint = fused.open().unwrap();
    assert_eq!(checkpoint.config().rotary_dim(), 8);
    assert_eq!(checkpoint.config().architecture, Architecture::Glm);
    let bias = checkpoint.vector(Vector::QkvBias(1)).unwrap();
    assert_eq!(bias, values(&fused, "blk.1.attn_qkv.bias"));
}

#[test]
fn the_tokenizer_of_a_gguf_file() {
    let mut file = tiny("qwen2");
    file.text("tokenizer.chat_template", "{{ messages }}");
    let source = file.open().unwrap().tokenizer().unwrap();
    assert_eq!(source.chat_template(), Some("{{ messages }}"));
    let TokenizerSource::Gguf { model, pre, tokens, token_types, merges, eos, add_bos, .. } =
        source
    else {
        panic!("a GGUF file has a GGUF tokenizer");
    };
    assert_eq!((model.as_str(), pre.as_str(), eos, add_bos), ("gpt2", "qwen2", Some(5), false));
    assert_eq!((tokens.len(), &tokens[2][..], &merges[..]), (6, "ab", &["a b".to_owned()][..]));
    assert_eq!(token_types, [1, 1, 1, 3, 3, 3]);

    let says = |file: &Writer| file.open().unwrap().tokenizer().unwrap_err().to_string();
    let mut short = file.clone();
    short.i32s("tokenizer.ggml.token_type", &[1, 1]);
    assert!(says(&short).ends_with("token_type has 2 elements, there are 6 tokens"));
    let mut wrong = file.clone();
    wrong.i32s("tokenizer.ggml.tokens", &[1, 1]);
    assert!(says(&wrong).ends_with("tokenizer.ggml.tokens is damaged or of the wrong type"));
    let mut unknown = file.clone();
    unknown.text("tokenizer.ggml.model", "rwkv");
    assert!(says(&unknown).ends_with("model is \"rwkv\", supported are \"gpt2\" and \"llama\""));
    file.keys.retain(|(key, ..)| !key.starts_with("tokenizer.ggml.tokens"));
    assert!(says(&file).ends_with("tokens is missing, it should hold the tokenizer"));
}

#[test]
fn keys_that_ask_for_something_else_are_refused() {
    type Change = fn(&mut Writer);
    let cases: &[(Change, &str)] = &[
        (
            |f| f.text("general.architecture", "mamba"),
            "architecture mamba is not supported, supported are llama, qwen2, chatglm, glm4",
        ),
        (|f| f.keys.clear(), "architecture (general.architecture is missing) is not supported"),
        (|f| f.text("llama.rope.scaling.type", "yarn"), "is \"yarn\", supported is \"none\""),
        (|f| f.tensor("rope_freqs.weight", &[8]), "asks for scaled rope frequencies"),
        (|f| f.u32("llama.expert_count", 8), "asks for a mixture of experts"),
        (|f| f.u32("llama.attention.sliding_window", 64), "is 64, supported is attention to"),
        (|f| f.bool("llama.attention.causal", false), "must be true or missing"),
        (|f| f.u32("llama.block_count", 0), "is 0, it must be a number from 1 to 4096"),
        (|f| f.u32("llama.block_count", 5000), "is 5000, it must be a number from 1 to 4096"),
        (|f| f.u32("llama.block_count", 3), "tensor blk.2.attn_norm.weight is missing"),
        (|f| f.text("llama.block_count", "2"), "must be one number"),
        (|f| f.i32s("llama.attention.head_count", &[4, 4]), "must be one number"),
        (|f| f.u32("llama.attention.head_count_kv", 3), "multiple of the 3 key-value heads"),
        (|f| f.u32("llama.attention.head_count", 7), "7 heads do not divide 64"),
        (|f| f.u32("llama.attention.value_length", 8), "is 8, it must be the key length, 16"),
        (|f| f.u32("llama.rope.dimension_count", 7), "is 7, it must be even and 2 to 16"),
        (|f| f.u32("llama.rope.dimension_count", 32), "is 32, it must be even and 2 to 16"),
        (|f| f.f32("llama.rope.freq_base", f32::NAN), "rope theta is NaN, it must be a positive"),
        (|f| f.f32("llama.rope.freq_base", -1.0), "rope theta is -1, it must be a positive"),
        (
            |f| f.f32("llama.attention.layer_norm_rms_epsilon", 2.0),
            "rms norm epsilon is 2, it must be at least 0 and below 1",
        ),
        (|f| f.u32("tokenizer.ggml.eos_token_id", 6), "eos token is 6, the vocabulary has 6"),
        (|f| f.u32("split.count", 2), "must be called NAME-00001-of-00002.gguf"),
        (|f| f.u32("general.alignment", 3), "general.alignment must be a power of two"),
        (
            |f| f.u32("llama.embedding_length", 128),
            "tensor token_embd.weight has shape [6, 64], the configuration asks for [6, 128]",
        ),
        (
            |f| f.find("blk.1.attn_k.weight").shape = vec![64, 32],
            "tensor blk.1.attn_k.weight has shape [64, 32], the configuration asks for [32, 64]",
        ),
        (|f| f.find("blk.1.ffn_norm.weight").shape = vec![1, 64], "has shape [1, 64]"),
        (
            |f| f.tensor("blk.1.attn_output.bias", &[64]),
            "tensor blk.1.attn_output.bias does not belong to a GlmForCausalLM",
        ),
        (
            |f| f.tensors.retain(|t| t.name != "token_embd.weight"),
            "tensor token_embd.weight has 0 rows",
        ),
        (
            |f| f.find("blk.0.ffn_down.weight").kind = 11,
            "tensor blk.0.ffn_down.weight is stored as Q3_K, readable are F32, F16",
        ),
    ];
    for (change, expected) in cases {
        let mut file = tiny("llama");
        change(&mut file);
        let message = file.refusal();
        assert!(message.contains(expected), "{message} / {expected}");
        assert!(message.contains("tiny.gguf"), "{message}");
        assert!(!message.ends_with('.') && !message.contains('\n'), "{message}");
    }
}

#[test]
fn layers_past_the_last_are_ignored() {
    let mut file = tiny("llama");
    file.tensor("blk.2.nextn.eh_proj.weight", &[64, 128]);
    file.open().unwrap();
}

/// Oddities that nothing asks for.
#[test]
fn empty_tensors_and_arrays_of_arrays_are_passed_over() {
    let mut file = tiny("llama");
    let one_by_one = [9u32.to_le_bytes().as_slice(), &2u64.to_le_bytes()].concat();
    let empty = [4u32.to_le_bytes().as_slice(), &0u64.to_le_bytes()].concat();
    file.set("x", 9, [one_by_one, empty.clone(), empty].concat());
    file.tensor("of.no.dimension", &[]);
    file.tensor("of.no.rows", &[64, 0]);
    file.open().unwrap();
}

#[test]
fn damaged_files_are_refused() {
    let good = tiny("llama").bytes();
    let says = |bytes: &[u8]| open(bytes).unwrap_err().to_string();
    let with = |at: usize, patch: &[u8]| {
        let mut bytes = good.clone();
        bytes[at..at + patch.len()].copy_from_slice(patch);
        says(&bytes)
    };
    assert!(says(b"").contains("4 bytes are claimed at 0, the header ends at 0"));
    assert!(with(0, b"GGML").contains("does not start with GGUF"));
    assert!(with(4, &[1]).contains("GGUF version 1, readable are 2 and 3"));
    assert!(with(4, &[0, 0, 0, 3]).contains("readable are 2 and 3"));
    assert!(with(8, &u64::MAX.to_le_bytes()).contains("tensors, at most 100000 fit"));
    assert!(with(16, &u64::MAX.to_le_bytes()).contains("keys, at most 65536 fit"));
    assert!(with(24, &u64::MAX.to_le_bytes()).contains("18446744073709551615 bytes are claimed"));
    assert!(says(&good[..good.len() - 1]).contains("it is truncated or damaged"));

    // The last bytes of a tensor's description are its type and its offset.
    let name = string("blk.0.ffn_down.weight");
    let at = good.windows(name.len()).position(|bytes| bytes == name).unwrap() + name.len();
    let (dimensions, kind, offset) = (at, at + 20, at + 24);
    assert!(with(dimensions, &[200]).contains("has 200 dimensions, it must have at most 4"));
    assert!(with(dimensions + 4, &0u64.to_le_bytes()).contains("ffn_down"));
    assert!(with(dimensions + 4, &u64::MAX.to_le_bytes()).contains("claims a shape of"));
    assert!(with(kind, &[12]).contains("has rows of 32 values, Q4_K needs a multiple of 256"));
    assert!(with(kind, &[16]).contains("is stored as IQ2_XXS"));
    assert!(with(kind, &[39]).contains("is stored as MXFP4"));
    for number in [4, 38, 99] {
        assert!(with(kind, &[number]).contains(&format!("is stored as ggml type {number}")));
    }
    assert!(with(offset, &1u64.to_le_bytes()).contains("it must be a multiple of 32"));
    assert!(with(offset, &0u64.to_le_bytes()).contains("overlaps with tensor"));
    let far = (u64::MAX - 31).to_le_bytes();
    assert!(with(offset, &far).contains("it is truncated or damaged"));

    let mut nested = tiny("llama");
    let array = |depth: usize| {
        let level = [9u32.to_le_bytes().as_slice(), &1u64.to_le_bytes()].concat();
        [level.repeat(depth), 4u32.to_le_bytes().to_vec(), vec![0; 8]].concat()
    };
    nested.set("x", 9, array(30));
    assert!(nested.refusal().contains("key x: arrays lie more than 8 deep"));
    let mut long = tiny("llama");
    long.set("x", 9, [10u32.to_le_bytes().as_slice(), &[0xff; 8]].concat());
    assert!(long.refusal().contains("18446744073709551615 bytes are claimed"));
    let mut twice = tiny("llama");
    twice.keys.push(twice.keys[0].clone());
    assert!(twice.refusal().contains("key general.architecture appears twice"));
    let mut binary = tiny("llama");
    binary.set("x", 8, vec![1, 0, 0, 0, 0, 0, 0, 0, 0xff]);
    assert!(binary.refusal().contains("is no UTF-8"));
}

#[test]
fn digests_see_what_changes() {
    let digests = |file: &Writer| {
        let checkpoint = file.open().unwrap();
        let parts = [Part::Embedding, Part::Layer(0), Part::Layer(1), Part::Head];
        (parts.map(|part| checkpoint.digest(part).unwrap()), checkpoint.model_digest().unwrap())
    };
    let file = tiny("llama");
    let (parts, model) = digests(&file);
    assert_eq!(digests(&file), (parts, model));

    let mut weight = file.clone();
    weight.find("blk.1.attn_v.weight").data[4095] ^= 1;
    let (other_parts, other_model) = digests(&weight);
    let same: Vec<bool> = parts.iter().zip(&other_parts).map(|(a, b)| a == b).collect();
    assert_eq!((same, other_model == model), (vec![true, true, false, true], false));

    let mut theta = file.clone();
    theta.f32("llama.rope.freq_base", 5e5);
    let (other_parts, other_model) = digests(&theta);
    assert_eq!((other_parts == parts, other_model == model), (true, false));

    let mut template = file.clone();
    template.text("tokenizer.chat_template", "x");
    let (other_parts, other_model) = digests(&template);
    assert_eq!((other_parts == parts, other_model == model), (true, false));
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let mut file = b"GGUF\x03\0\0\0".to_vec();
        file.extend(&bytes);
        let _ = gguf::parse(&bytes);
        let _ = gguf::parse(&file);
    }

    #[test]
    fn changed_files_never_panic(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
        cuts in any::<bool>(),
    ) {
        // Small, so that most changes hit the header.
        let mut bytes = tiny("qwen2").bytes();
        let header = 3000.min(bytes.len());
        for (at, byte) in changes {
            bytes[at.index(header)] = byte;
        }
        if cuts {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(checkpoint) = open(&bytes) {
            // What opens can be read.
            for layer in 0..checkpoint.config().num_layers() {
                let view = checkpoint.matrix(Matrix::Qkv(layer)).unwrap();
                let mut out = vec![0; view.rows() * view.row_bytes()];
                let _ = view.read_rows(0..view.rows(), &mut out);
                checkpoint.vector(Vector::QkvBias(layer)).ok();
            }
            let _ = checkpoint.tokenizer();
            let _ = checkpoint.model_digest();
        }
    }
}
