//! Stages driven in one process through the real frame codec, at every cut: logits, hidden states
//! and sampled tokens against the goldens, and bit for bit against each other.

use std::path::Path;
use std::sync::Mutex;

use checkpoint::{Checkpoint, Format, Matrix, Part};
use node::model::Kernels;
use node::stage::{Stage, StepOutput};
use protocol::config::{KvCacheDtype, Quantize};
use protocol::{
    BLOCK_TOKENS, Batch, Begin, BlockId, Body, Digest, Frame, Hidden, Input, LayerRange, ModelId,
    SamplingParams, SequenceId, Slice, StageId, StageIndex, StageLimits, StagePlan, Step, StepId,
    TokenId,
};
use shaders::gpu::{Gpu, GpuOptions};
use shaders::matmul::Products;
use tests::golden::{self, Golden};
use tests::{fp8, packed};

/// f32 sums in another order, over 4 layers.
const HIDDEN_TOLERANCE: f32 = 1e-4;
pub(crate) const LOGITS_TOLERANCE: f32 = 2e-4;

pub(crate) const LIMITS: StageLimits = StageLimits {
    max_batched_tokens: 160,
    max_num_seqs: 64,
    max_model_len: 256,
    max_blocks: 512,
    max_logprobs: 4,
};

pub(crate) struct Device {
    gpu: Gpu,
    kernels: Kernels,
}

impl Device {
    /// Of its own; `None` without an adapter.
    pub(crate) fn open(products: Products) -> Option<Self> {
        match Gpu::open_with(None, GpuOptions { products, ..GpuOptions::default() }) {
            Ok(gpu) => {
                let kernels = Kernels::new(&gpu).unwrap();
                Some(Self { gpu, kernels })
            }
            Err(cause) => {
                println!("skipped: stages, {products} products ({cause})");
                None
            }
        }
    }
}

/// One adapter for all tests of this file, used by one at a time.
pub(crate) fn device() -> Option<std::sync::MutexGuard<'static, Option<Device>>> {
    static DEVICE: Mutex<Option<Device>> = Mutex::new(None);
    let mut device = DEVICE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if device.is_none() {
        *device = Device::open(Products::Plain);
    }
    device.is_some().then_some(device)
}

/// A pipeline whose stages hold these layers; a first or last stage may hold none.
pub(crate) struct Pipeline<'a> {
    gpu: &'a Gpu,
    stages: Vec<Stage>,
    sequence: u64,
}

impl<'a> Pipeline<'a> {
    fn load(device: &'a Device, model: &Path, cut: &[u32]) -> Self {
        Self::of(device, &Checkpoint::open(model).unwrap(), cut)
    }

    pub(crate) fn of(device: &'a Device, files: &Checkpoint, cut: &[u32]) -> Self {
        Self::with_cache(device, files, cut, KvCacheDtype::Auto)
    }

    pub(crate) fn with_cache(
        device: &'a Device,
        files: &Checkpoint,
        cut: &[u32],
        kv_cache_dtype: KvCacheDtype,
    ) -> Self {
        let num_stages = cut.len() as u32 - 1;
        let stages = cut.windows(2).enumerate().map(|(stage, layers)| {
            let layers = LayerRange { first: layers[0], end: layers[1] };
            let mut parts: Vec<_> =
                (layers.first..layers.end).map(|layer| Part::Layer(layer as usize)).collect();
            if stage == 0 {
                parts.insert(0, Part::Embedding);
            }
            if stage as u32 + 1 == num_stages {
                parts.push(Part::Head);
            }
            let plan = StagePlan {
                id: StageId { stage: StageIndex(stage as u32), ..StageId::default() },
                num_stages,
                layers,
                adapter: 0,
                model: ModelId::default(),
                model_path: String::new(),
                digests: parts.iter().map(|part| Digest(files.digest(*part).unwrap())).collect(),
                quantize: Quantize::None,
                kv_cache_dtype,
                next: None,
                limits: LIMITS,
                memory_bytes: 1 << 30,
            };
            Stage::load(&device.gpu, &device.kernels, files, &plan, &mut |_| {}).unwrap()
        });
        Self { gpu: &device.gpu, stages: stages.collect(), sequence: 0 }
    }

    /// Takes a batch through every stage, frame by frame. The hidden state after each stage but
    /// the last, and what that one sampled.
    pub(crate) fn step(&mut self, batch: Batch) -> (Vec<Vec<f32>>, Vec<protocol::SliceOutput>) {
        let mut hidden_states = Vec::new();
        let (mut hidden, mut side) = (Hidden::default(), None);
        for (number, stage) in self.stages.iter_mut().enumerate() {
            let step = Step { batch: batch.clone().into(), hidden, side, ..Step::default() };
            let frame = Frame {
                model: ModelId::default(),
                stage: StageId { stage: StageIndex(number as u32), ..StageId::default() },
                step: StepId(0),
                body: Body::Step(step),
            };
            let Body::Step(step) = Frame::decode(&frame.encode().concat().into()).unwrap().body
            else {
                panic!()
            };
            match stage.step(self.gpu, &step).unwrap() {
                StepOutput::Hidden(state, beside) => {
                    side = beside;
                    hidden_states.push(state.values().collect());
                    hidden = state;
                }
                StepOutput::Sampled(outputs, _) => return (hidden_states, outputs),
            }
        }
        panic!("the last stage samples");
    }

    /// Computes `tokens` from `start` on; the hidden states and the token sampled after them.
    fn compute(&mut self, start: usize, tokens: &[u32], blocks: u32) -> (Vec<Vec<f32>>, u32) {
        if start == 0 {
            self.sequence += 1;
        }
        let begin = Begin {
            sampling: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
            num_prompt_tokens: tokens.len() as u32,
            skipped: Vec::new(),
            copy_from: None,
        };
        let slice = Slice {
            sequence: SequenceId(self.sequence),
            start: start as u32,
            input: Input::Tokens(tokens.iter().copied().map(TokenId).collect()),
            first_block: 0,
            blocks: if start == 0 { (0..blocks).map(BlockId).collect() } else { Vec::new() },
            begin: (start == 0).then(|| Box::new(begin)),
            sample: true,
            next: None,
        };
        let finished = if start == 0 { vec![SequenceId(self.sequence - 1)] } else { vec![] };
        let (hidden, outputs) = self.step(Batch { finished, slices: vec![slice] });
        (hidden, outputs[0].token.unwrap().0)
    }

    /// The logits after each position of the prompts for which there are golden ones.
    pub(crate) fn logits_of(&mut self, golden: &Golden) -> Vec<f32> {
        let mut found = Vec::new();
        for (i, prompt) in golden.prompts().iter().enumerate() {
            let vocab_size = golden.tensor(&format!("logits.{i}")).width;
            let num_blocks = prompt.ids.len().div_ceil(BLOCK_TOKENS) as u32;
            let mut start = 0;
            for &position in &prompt.positions {
                self.compute(start, &prompt.ids[start..=position], num_blocks);
                start = position + 1;
                found.extend(self.last_logits(vocab_size));
            }
        }
        found
    }

    fn last_logits(&self, vocab_size: usize) -> Vec<f32> {
        let logits = self.stages.last().unwrap().logits(self.gpu).unwrap().unwrap();
        logits[..vocab_size].to_vec()
    }
}

pub(crate) fn worst(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Every way of cutting four layers into consecutive stages, and one that shows the residual
/// stream after the embedding and after each layer.
fn cuts() -> Vec<Vec<u32>> {
    let mut cuts = vec![vec![0, 0, 1, 2, 3, 4, 4]];
    for inner in 0..8u32 {
        let mut cut = vec![0];
        cut.extend((1..4).filter(|layer| inner & (1 << (layer - 1)) != 0));
        cut.push(4);
        cuts.push(cut);
    }
    cuts
}

fn fixture_computes_its_golden(name: &str, dtype: &str) {
    let Some(device) = device() else { return };
    let device = device.as_ref().unwrap();
    let folder = golden::fixture(name);
    let golden = Golden::open(&folder);
    let mut bits: Option<Vec<Vec<f32>>> = None;
    for cut in cuts() {
        let mut pipeline = Pipeline::load(device, &folder.join(dtype), &cut);
        let mut all_logits = Vec::new();
        for (i, prompt) in golden.prompts().iter().enumerate() {
            let logits = golden.tensor(&format!("logits.{i}"));
            let num_blocks = (prompt.ids.len() + 64).div_ceil(BLOCK_TOKENS) as u32;
            // In chunks that end at the stored positions: the last row's logits are the golden's.
            let mut start = 0;
            for (row, &position) in prompt.positions.iter().enumerate() {
                pipeline.compute(start, &prompt.ids[start..=position], num_blocks);
                start = position + 1;
                let found = pipeline.last_logits(logits.width);
                let error = worst(&found, logits.row(row));
                assert!(
                    error < LOGITS_TOLERANCE,
                    "{name} {cut:?} prompt {i} at {position}: {error}"
                );
                all_logits.push(found);
            }
            let (hidden, mut token) = pipeline.compute(0, &prompt.ids, num_blocks);
            if i == 1 && cut.len() == 7 {
                for (layer, found) in hidden.iter().enumerate() {
                    let expected = golden.tensor(&format!("hidden.1.{layer}"));
                    let error = worst(found, &expected.values);
                    assert!(error < HIDDEN_TOLERANCE, "{name} after layer {layer}: {error}");
                }
            }
            let mut greedy = vec![token];
            while greedy.len() < prompt.greedy.len() {
                let start = prompt.ids.len() + greedy.len() - 1;
                token = pipeline.compute(start, &[token], 0).1;
                greedy.push(token);
            }
            assert_eq!(greedy, prompt.greedy, "{name} {cut:?} prompt {i}");
            // Decoded one by one, and all at once: the same bits.
            let decoded = pipeline.last_logits(logits.width);
            let whole: Vec<_> = prompt.ids.iter().chain(&greedy[..63]).copied().collect();
            let fits = whole.len() <= 160;
            if fits {
                pipeline.compute(0, &whole, num_blocks);
                assert!(decoded == pipeline.last_logits(logits.width), "{name} {cut:?} prompt {i}");
            }
        }
        assert!(*bits.get_or_insert_with(|| all_logits.clone()) == all_logits, "{name} {cut:?}");
    }
}

#[test]
fn glm_computes_its_golden_at_every_cut() {
    fixture_computes_its_golden("glm", "bf16");
}

#[test]
fn glm_edge_computes_its_golden_at_every_cut() {
    fixture_computes_its_golden("glm-edge", "bf16");
}

#[test]
fn glm4_computes_its_golden_at_every_cut() {
    fixture_computes_its_golden("glm4", "f32");
    fixture_computes_its_golden("glm4", "bf16");
}

#[test]
fn glm4_moe_computes_its_golden_at_every_cut() {
    fixture_computes_its_golden("glm4-moe", "bf16");
}

#[test]
fn glm4_moe_with_groups_of_experts_computes_its_golden_at_every_cut() {
    fixture_computes_its_golden("glm4-moe-groups", "bf16");
}

#[test]
fn glm4_moe_lite_computes_its_golden_at_every_cut() {
    fixture_computes_its_golden("glm4-moe-lite", "bf16");
}

#[test]
fn glm_moe_dsa_computes_its_golden_at_every_cut() {
    fixture_computes_its_golden("glm-moe-dsa", "bf16");
}

/// Writes the fixture `glm-moe-dsa` with its second and third choice taken away.
pub(crate) fn sharing_model(folder: &Path) {
    let source = golden::fixture("glm-moe-dsa").join("bf16");
    let config = std::fs::read(source.join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    config["indexer_types"] = serde_json::json!(["full", "shared", "shared", "full"]);
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let bytes = std::fs::read(source.join("model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let is_kept = |name: &str| {
        let has_none = ["layers.1.", "layers.2."].iter().any(|layer| name.contains(layer));
        !(has_none && name.contains(".indexer."))
    };
    let kept = tensors.iter().filter(|(name, _)| is_kept(name));
    safetensors::serialize_to_file(kept, None, &folder.join("model.safetensors")).unwrap();
}

/// Goal: layers that take what the one before them has chosen compute the same wherever the model
/// is cut, also between them and that one. Method: bits are compared at all cuts, and with the
/// fixture's own, which differ once there are more positions than are chosen.
#[test]
fn what_a_layer_has_chosen_goes_over_a_cut_to_those_that_share_it() {
    let Some(device) = device() else { return };
    let device = device.as_ref().unwrap();
    let source = golden::fixture("glm-moe-dsa").join("bf16");
    let folder = tempfile::tempdir().unwrap();
    sharing_model(folder.path());
    let golden = Golden::open(&golden::fixture("glm-moe-dsa"));
    let logits = |path: &Path, cut: &[u32]| Pipeline::load(device, path, cut).logits_of(&golden);
    let whole = logits(folder.path(), &[0, 4, 4]);
    for cut in [&[0, 1, 4][..], &[0, 2, 4], &[0, 3, 4], &[0, 1, 2, 3, 4], &[0, 0, 2, 4, 4]] {
        assert!(logits(folder.path(), cut) == whole, "{cut:?}");
    }
    let own = logits(&source, &[0, 4, 4]);
    assert!(worst(&own, &whole) > LOGITS_TOLERANCE, "the choices matter");
    let vocab_size = 640;
    assert!(own[..7 * vocab_size] == whole[..7 * vocab_size], "7 tokens attend to all");
}

/// Goal: experts change nothing where all of them are the same. Method: the model is `glass-en`
/// with half of each MLP for all tokens and the other half in each of its experts.
#[test]
fn a_trained_mixture_of_experts_writes_the_text_of_the_dense_model_that_it_was_made_of() {
    let Some(device) = device() else { return };
    let device = device.as_ref().unwrap();
    let folder = golden::model("glass-en-moe");
    let golden = Golden::open(&golden::model("glass-en"));
    let mut bits: Option<Vec<f32>> = None;
    for cut in [[0, 4, 4], [0, 1, 4], [0, 3, 4]] {
        let mut pipeline = Pipeline::load(device, &folder, &cut);
        let mut last = Vec::new();
        for prompt in golden.json.as_array().unwrap() {
            let [ids, expected] = ["ids", "greedy"].map(|key| golden::numbers(&prompt[key]));
            let num_blocks = (ids.len() + expected.len()).div_ceil(BLOCK_TOKENS);
            let (_, mut token) = pipeline.compute(0, &ids, num_blocks as u32);
            let mut greedy = vec![token];
            while greedy.len() < expected.len() {
                token = pipeline.compute(ids.len() + greedy.len() - 1, &[token], 0).1;
                greedy.push(token);
            }
            assert_eq!(greedy, expected, "{cut:?}");
            last.extend(pipeline.last_logits(1024));
        }
        assert!(*bits.get_or_insert_with(|| last.clone()) == last, "{cut:?}");
    }
}

/// Layers in fp8 between an embedding and a head in bf16, against the same numbers in f32.
#[test]
fn fp8_weights_compute_what_they_stand_for() {
    let Some(device) = device() else { return };
    let device = device.as_ref().unwrap();
    for name in ["glm", "glm4"] {
        let fixture = golden::fixture(name);
        let folder = tempfile::tempdir().unwrap();
        let (model, floats) = fp8::models(&fixture.join("bf16"), folder.path());
        let [model, floats] = [model, floats].map(|path| Checkpoint::open(&path).unwrap());
        let format = |matrix| model.matrix(matrix).unwrap().format();
        assert_eq!(format(Matrix::GateUp(1)), Format::Fp8);
        assert_eq!([Matrix::Embedding, Matrix::LmHead].map(format), [Format::BF16; 2]);
        let vocab_size = model.config().vocab_size;
        let mut pipelines = [(&model, [0, 2, 4]), (&floats, [0, 4, 4])]
            .map(|(files, cut)| Pipeline::of(device, files, &cut));
        for (i, prompt) in Golden::open(&fixture).prompts().iter().enumerate() {
            let num_blocks = (prompt.ids.len() + 16).div_ceil(BLOCK_TOKENS) as u32;
            // The prompt at once, and some tokens one by one.
            let mut ids = prompt.ids.clone();
            for start in [0].into_iter().chain(ids.len()..ids.len() + 8) {
                let num_blocks = if start == 0 { num_blocks } else { 0 };
                let sampled = pipelines
                    .each_mut()
                    .map(|pipeline| pipeline.compute(start, &ids[start..], num_blocks).1);
                let [found, expected] =
                    pipelines.each_mut().map(|pipeline| pipeline.last_logits(vocab_size));
                let error = worst(&found, &expected);
                assert!(error < LOGITS_TOLERANCE, "{name} prompt {i} at {start}: {error}");
                ids.push(sampled[1]);
            }
        }
    }
}

/// Goal: weights that are packed as two libraries pack them are computed as what they stand for,
/// in every format of theirs, experts too. Method: logits, against the same numbers in f32.
#[test]
fn packed_weights_compute_what_they_stand_for() {
    let Some(device) = device() else { return };
    let device = device.as_ref().unwrap();
    for (name, way) in [
        ("glm", packed::Way::Awq),
        ("glm4", packed::Way::Asymmetric),
        ("glm", packed::Way::Symmetric),
        ("glm4-moe", packed::Way::Awq),
        ("glm4-moe", packed::Way::Symmetric),
    ] {
        let fixture = golden::fixture(name);
        let golden = Golden::open(&fixture);
        let folder = tempfile::tempdir().unwrap();
        let (model, floats) = packed::models(&fixture.join("bf16"), folder.path(), way);
        let [model, floats] = [model, floats].map(|path| Checkpoint::open(&path).unwrap());
        let format = |matrix| model.matrix(matrix).unwrap().format();
        assert_eq!(format(Matrix::Down(0)), Format::Int4Zero);
        let [found, expected] = [(&model, [0, 2, 4]), (&floats, [0, 4, 4])]
            .map(|(files, cut)| Pipeline::of(device, files, &cut).logits_of(&golden));
        let error = worst(&found, &expected);
        assert!(error < LOGITS_TOLERANCE, "{name} {way:?}: {error}");
        let stored = (0..golden.prompts().len()).map(|i| golden.tensor(&format!("logits.{i}")));
        let stored: Vec<f32> = stored.flat_map(|logits| logits.values).collect();
        assert!(worst(&found, &stored) > 100.0 * LOGITS_TOLERANCE, "{name} {way:?} was rounded");
    }
}

/// What half precision of keys and values may change a logit by, of the fixtures' size of 1 to 10.
const F16_CACHE_TOLERANCE: f32 = 5e-2;

#[test]
fn an_f16_cache_changes_logits_within_its_bound() {
    let Some(device) = device() else { return };
    let device = device.as_ref().unwrap();
    for name in ["glm", "glm-edge", "glm4"] {
        let folder = golden::fixture(name);
        let golden = Golden::open(&folder);
        let files = Checkpoint::open(&folder.join("bf16")).unwrap();
        let mut pipeline = Pipeline::with_cache(device, &files, &[0, 2, 4], KvCacheDtype::F16);
        let logits = (0..golden.prompts().len()).map(|i| golden.tensor(&format!("logits.{i}")));
        let expected: Vec<f32> = logits.flat_map(|logits| logits.values).collect();
        let most = worst(&pipeline.logits_of(&golden), &expected);
        println!("{name}: {most}");
        // Nothing changed would mean that it isn't used.
        assert!((LOGITS_TOLERANCE..F16_CACHE_TOLERANCE).contains(&most), "{name}: {most}");
    }
}

/// Bytes on the adapter of a pipeline, which are those that its stages say.
pub(crate) fn bytes_taken(
    device: &Device,
    files: &Checkpoint,
    cut: &[u32],
    kv: KvCacheDtype,
) -> u64 {
    // The first load tries the kernels, once for each form of layer.
    Pipeline::with_cache(device, files, cut, kv);
    let before = device.gpu.usage().allocated_bytes;
    let pipeline = Pipeline::with_cache(device, files, cut, kv);
    let taken = device.gpu.usage().allocated_bytes - before;
    let said: u64 = pipeline.stages.iter().map(|stage| stage.held().memory_bytes).sum();
    assert!(taken <= said, "{taken} bytes were taken, {said} were said");
    assert!(said < taken + taken / 100, "{taken} bytes were taken, {said} were said");
    taken
}

#[test]
fn a_stage_takes_the_memory_that_it_says() {
    let Some(device) = device() else { return };
    let device = device.as_ref().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let bf16 = |name| golden::fixture(name).join("bf16");
    let (fp8, _) = fp8::models(&bf16("glm4"), folder.path());
    let mut cache_bytes = Vec::new();
    for (model, cut, kv) in [
        (bf16("glm-edge"), &[0, 2, 4], KvCacheDtype::F32),
        (bf16("glm-edge"), &[0, 2, 4], KvCacheDtype::F16),
        (bf16("glm4"), &[0, 4, 4], KvCacheDtype::Auto),
        (fp8, &[0, 2, 4], KvCacheDtype::Auto),
        (bf16("glm4-moe"), &[0, 1, 4], KvCacheDtype::Auto),
        (bf16("glm4-moe-groups"), &[0, 4, 4], KvCacheDtype::Auto),
        (bf16("glm4-moe-lite"), &[0, 2, 4], KvCacheDtype::F16),
        (bf16("glm-moe-dsa"), &[0, 2, 4], KvCacheDtype::Auto),
    ] {
        let files = Checkpoint::open(&model).unwrap();
        cache_bytes.push(bytes_taken(device, &files, cut, kv));
    }
    // 4 layers of 2 heads of 16 values, keys and values, 512 blocks of 16 tokens: 2 bytes less.
    // Where they are images, each may have a row more, which is half as long with 2 bytes, and so
    // may the blocks that are being copied, once in each of two stages.
    let less = 4 * 2 * 16 * 2 * 512 * 16 * 2;
    let saved = cache_bytes[0] - cache_bytes[1];
    assert!((less..=less + less / 4).contains(&saved), "{saved} bytes, {less} of values");
}
