//! The class of a device: equal classes compute equal bits.
//!
//! One small layer is computed through every kernel that a model of a given shape uses, once with
//! all tokens in one batch and once in batches of other sizes, which other variants of the kernels
//! compute. Its bits, the text of the kernels and the names of adapter and driver make the class.
//! It also compiles those kernels, before a request waits.

use std::ops::Range;

use crate::attention::{Attention, BoundAttention};
use crate::attention_variant::{LARGEST_PARTITION, Variant};
use crate::embed::BoundEmbed;
use crate::error::GpuError;
use crate::gather_rows::BoundGatherRows;
use crate::gpu::{Caps, Gpu};
use crate::inputs::{BLOCK_TOKENS, InputLimits, Inputs, StepInputs};
use crate::kernel::{KernelSource, Pass};
use crate::kv_cache::{HeadShape, KvCache, KvFormat};
use crate::matmul::{BoundMatmul, Matmul, Norm, Operand, Output, Qkv};
use crate::matmul_class::Class;
use crate::matmul_variant::{Form, Kind};
use crate::quantize_rows::QuantizedRows;
use crate::rms_norm::{BoundRmsNorm, RmsNorm};
use crate::rotary::{Rotary, inverse_frequencies};
use crate::tensor::Tensor;
use crate::weights::{Format, RowOrder, WeightMatrix};

/// What a class is told from others by before anything is computed: the names of adapter and
/// driver, and the text of the kernels.
pub fn name(gpu: &Gpu, format: Format, shape: HeadShape, kv: KvFormat) -> [u8; 32] {
    name_of(gpu, &sources(gpu.caps(), format, shape, kv))
}

/// The same of these kernels.
pub(crate) fn name_of(gpu: &Gpu, sources: &[KernelSource]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    let info = gpu.info();
    for text in [&info.name, &info.driver, &info.backend] {
        hash(&mut hasher, text.as_bytes());
    }
    for source in sources {
        hash(&mut hasher, source.wgsl.as_bytes());
    }
    hasher.finalize().into()
}

/// The class of what has this name and gives these bytes.
pub(crate) fn class_of(name: &[u8; 32], result: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hash(&mut hasher, name);
    hash(&mut hasher, result);
    hasher.finalize().into()
}

/// The test of layers with weights of one format, whose kernels may be compiled with others before
/// it runs ([`Gpu::compile`]).
pub struct SelfTest {
    name: [u8; 32],
    /// One for each way of laying products out.
    layers: Vec<Layer>,
    /// By plain products and attention, where the class is of others.
    plain: Option<Layer>,
    /// Whether those are packed dot products.
    packs: bool,
}

impl SelfTest {
    /// Of layers with weights of type `format`, heads of `shape` and a cache of type `kv`.
    pub fn new(
        gpu: &Gpu,
        format: Format,
        shape: HeadShape,
        kv: KvFormat,
    ) -> Result<Self, GpuError> {
        let (caps, stored) = (gpu.caps(), format.stored(gpu.caps()));
        let (chosen, plain) = (Class::choose(caps, stored), Class::plain(caps, stored));
        let attention = Variant::choose(caps, shape, kv);
        let is_plain = chosen == plain && !attention[0].is_cooperative();
        let of = |class, attention| Layer::new(gpu, format, (shape, kv), (class, attention));
        let plain = (!is_plain).then(|| of(plain, Variant::plain(caps, shape)));
        let ways = chosen.ways().into_iter().map(|class| of(class, attention.clone()));
        Ok(Self {
            name: name(gpu, format, shape, kv),
            packs: chosen.is_packed(),
            plain: plain.transpose()?,
            layers: ways.collect::<Result<_, _>>()?,
        })
    }

    /// The class of this device for such layers. An error if a row depends on its batch here, which
    /// no device should do.
    pub fn run(mut self, gpu: &Gpu) -> Result<[u8; 32], GpuError> {
        let mut first_way = None;
        for layer in &mut self.layers {
            let together = layer.run(gpu, 0..NUM_TOKENS)?;
            let expected = first_way.get_or_insert(together);
            let mut first = 0;
            for num_tokens in [NUM_TOKENS, 20, 8, 4, 1, 2] {
                first %= NUM_TOKENS;
                let rows = layer.run(gpu, first..first + num_tokens)?;
                let row_bytes = expected.len() / NUM_TOKENS;
                if rows != expected[first * row_bytes..][..num_tokens * row_bytes] {
                    return Err(GpuError::Failed(format!(
                        "{} computes a row differently in another batch",
                        gpu.info().name
                    )));
                }
                first += num_tokens;
            }
        }
        let result = first_way.unwrap_or_default();
        if let Some(mut plain) = self.plain {
            check_near(gpu, self.packs, &result, &plain.run(gpu, 0..NUM_TOKENS)?)?;
        }
        Ok(class_of(&self.name, &result))
    }
}

/// Compares what the adapter was opened to compute with what plain kernels did. A fault of the
/// driver costs far more than rounding does: to f16 2^-11 of each operand, to eight bits 2^-8 of
/// the largest of a group of x, at each of five products one after another.
pub(crate) fn check_near(
    gpu: &Gpu,
    packs: bool,
    result: &[u8],
    plain: &[u8],
) -> Result<(), GpuError> {
    let (how, max_error) = match packs {
        true => ("packed dot products", 0.15),
        false => ("cooperative matrices", 0.02),
    };
    let floats = |bytes: &[u8]| -> Vec<f32> { bytemuck::pod_collect_to_vec(bytes) };
    let (result, plain) = (floats(result), floats(plain));
    let size = plain.iter().fold(0.0, |size: f32, value| size.max(value.abs()));
    let error = result.iter().zip(&plain).fold(0.0, |worst: f32, (a, b)| worst.max((a - b).abs()));
    // Whatever isn't a number fails, too.
    if error <= max_error * size && result.iter().all(|value| value.is_finite()) {
        return Ok(());
    }
    Err(GpuError::Failed(format!(
        "{} multiplies wrongly by {how} (off by {error} in {size}): use it without them",
        gpu.info().name
    )))
}

/// The class of layers with weights of several formats, from the class of each.
pub fn of_several(classes: &[[u8; 32]]) -> [u8; 32] {
    match classes {
        [one] => *one,
        _ => blake3::hash(classes.as_flattened()).into(),
    }
}

/// The kernels of a layer and of sampling, as this device runs them.
fn sources(caps: Caps, format: Format, shape: HeadShape, kv: KvFormat) -> Vec<KernelSource> {
    let images = caps.images;
    let own = format;
    let format = format.stored(caps);
    let mut sources = vec![
        crate::embed::source(format, images),
        crate::gather_rows::source(images),
        crate::rms_norm::source(images),
        crate::qk_norm::source(caps, kv),
    ];
    let attention = Variant::choose(caps, shape, kv);
    let parts = crate::attention::parts(shape, attention[0].order.partition);
    sources.push(crate::attention_beside::merge_source(caps, parts));
    for variant in attention {
        sources.push(variant.source(shape, kv, images));
    }
    let products = Class::choose(caps, format);
    for kind in Kind::all(kv) {
        for norm in [false, true] {
            sources.extend(products.sources(Form { format, norm, kind }, images));
            if own == Format::Bf16 && own != format {
                // A matrix whose values are no halves stays as it is.
                let plain = Class::choose(caps, own);
                sources.extend(plain.sources(Form { format: own, norm, kind }, images));
            }
        }
    }
    let lanes = crate::sampler::lanes(caps);
    sources.push(crate::logprobs::source(lanes));
    sources.extend(crate::mask::sources());
    sources.extend(crate::penalize::sources());
    sources.extend(crate::sample::sources(lanes));
    sources
}

/// With its length, so that texts can't run into each other.
fn hash(hasher: &mut blake3::Hasher, bytes: &[u8]) {
    hasher.update(&(bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
}

/// More than any variant of a product takes but those for any number, and more positions than
/// attention takes at a time.
const NUM_TOKENS: usize = 35;
/// The position of the first, so that attention's partitions end among them. What is before it was
/// never computed: zeros.
const FIRST_POSITION: usize = LARGEST_PARTITION - 17;
const NUM_POSITIONS: usize = FIRST_POSITION + NUM_TOKENS;
const NUM_BLOCKS: usize = NUM_POSITIONS.div_ceil(BLOCK_TOKENS);
/// More than one chunk of a product, and not a multiple of what kernels take at a time.
const HIDDEN_SIZE: usize = 324;
const FFN_SIZE: usize = 100;
const VOCAB_SIZE: usize = 70;
const EPS: f32 = 1e-5;

/// A model of one layer, from tokens to logits.
struct Layer {
    inputs: Inputs,
    embed: BoundEmbed,
    qkv: BoundMatmul,
    attention: BoundAttention,
    attention_out: BoundMatmul,
    gate_up: BoundMatmul,
    down: BoundMatmul,
    post_norm: BoundRmsNorm,
    gather: BoundGatherRows,
    head: BoundMatmul,
    logits: Tensor,
}

impl Layer {
    fn new(
        gpu: &Gpu,
        format: Format,
        (shape, kv): (HeadShape, KvFormat),
        (class, attention): (Class, Vec<Variant>),
    ) -> Result<Self, GpuError> {
        let limits = InputLimits {
            max_tokens: NUM_TOKENS,
            max_outputs: NUM_TOKENS,
            max_table_entries: NUM_BLOCKS,
            max_copies: 0,
            max_positions: NUM_POSITIONS,
            num_blocks: NUM_BLOCKS,
            vocab_size: VOCAB_SIZE,
        };
        let inputs = Inputs::new(gpu, limits)?;
        let mut numbers = Numbers(1);
        let mut weights = |rows, cols, order| {
            let bytes = format.encode(cols, &numbers.take(rows * cols));
            WeightMatrix::from_bytes(gpu, (rows, cols), (format, order), &bytes)
        };
        let table = weights(VOCAB_SIZE, HIDDEN_SIZE, RowOrder::Plain)?;
        let qkv_weights = weights(shape.qkv_size(), HIDDEN_SIZE, RowOrder::Plain)?;
        let out_weights = weights(HIDDEN_SIZE, shape.q_size(), RowOrder::Plain)?;
        let gate_up_weights = weights(2 * FFN_SIZE, HIDDEN_SIZE, RowOrder::Paired)?;
        let down_weights = weights(HIDDEN_SIZE, FFN_SIZE, RowOrder::Plain)?;
        let norm_weight = gpu.upload_vec4s(&numbers.take(HIDDEN_SIZE))?;
        let bias = gpu.upload_vec4s(&numbers.take(shape.qkv_size()))?;

        let hidden = gpu.alloc_vec4s(NUM_TOKENS * HIDDEN_SIZE)?;
        let attended_hidden = gpu.alloc_vec4s(NUM_TOKENS * HIDDEN_SIZE)?;
        let sublayer = gpu.alloc_f32(NUM_TOKENS * HIDDEN_SIZE)?;
        let queries = gpu.alloc_vec4s(NUM_TOKENS * shape.q_size())?;
        let attended = gpu.alloc_vec4s(NUM_TOKENS * shape.q_size())?;
        let gated = gpu.alloc_vec4s(NUM_TOKENS * FFN_SIZE)?;
        let rows = gpu.alloc_vec4s(NUM_TOKENS * HIDDEN_SIZE)?;
        let logits = gpu.alloc_f32(NUM_TOKENS * VOCAB_SIZE)?;

        let cache = KvCache::new(gpu, shape, kv, NUM_BLOCKS)?;
        // The largest part of a head that is rotated in whole vec4s of pairs.
        let inv_freq = inverse_frequencies(10_000.0, shape.head_dim / 8 * 8);
        let rotary = Rotary::new(gpu, &inv_freq, NUM_POSITIONS)?;
        let scale = 1.0 / (shape.head_dim as f32).sqrt();
        let quantized = QuantizedRows::new(gpu, NUM_TOKENS, HIDDEN_SIZE.max(shape.q_size()))?;
        let quantized = class.is_packed().then_some(&quantized);
        let matmul = Matmul::with_class(class);
        let operand = |x| Operand { x, norm: None, quantized };
        let norm = Norm { weight: &norm_weight, eps: EPS };
        let normed = |x| Operand { norm: Some(norm), ..operand(x) };
        let qkv = Qkv {
            bias: Some(&bias),
            inputs: &inputs,
            rotary: &rotary,
            cache: &cache,
            queries: &queries,
        };
        let attention = Attention::with_variants(gpu, shape, kv, NUM_POSITIONS, attention)?;
        let attention_out = Output::Residual { residual: &hidden, out: &attended_hidden };
        Ok(Self {
            embed: BoundEmbed::new(gpu, &inputs, &table, &hidden)?,
            qkv: matmul.bind(gpu, normed(&hidden), &qkv_weights, Output::Qkv(qkv))?,
            attention: attention.bind(gpu, &inputs, &cache, scale, (&queries, &attended))?,
            attention_out: matmul.bind(gpu, operand(&attended), &out_weights, attention_out)?,
            gate_up: matmul.bind(
                gpu,
                normed(&attended_hidden),
                &gate_up_weights,
                Output::Swiglu(&gated),
            )?,
            down: matmul.bind(gpu, operand(&gated), &down_weights, Output::Store(&sublayer))?,
            post_norm: RmsNorm::new(gpu)?.bind(
                gpu,
                EPS,
                &sublayer,
                &norm_weight,
                (&attended_hidden, &hidden),
            )?,
            gather: BoundGatherRows::new(gpu, HIDDEN_SIZE, &inputs, &hidden, &rows)?,
            head: matmul.bind(gpu, normed(&rows), &table, Output::Store(&logits))?,
            inputs,
            logits,
        })
    }

    /// The bytes of the logits of these tokens. Those before them have been run.
    fn run(&mut self, gpu: &Gpu, tokens: Range<usize>) -> Result<Vec<u8>, GpuError> {
        let num_tokens = tokens.len();
        let step = StepInputs {
            token_ids: tokens.clone().map(|token| (token * 7 % VOCAB_SIZE) as u32).collect(),
            positions: tokens.map(|at| (FIRST_POSITION + at) as u32).collect(),
            table_starts: vec![0; num_tokens],
            output_rows: (0..num_tokens as u32).collect(),
            tables: (0..NUM_BLOCKS as u32).collect(),
            copies: Vec::new(),
        };
        let step =
            self.inputs.write(gpu, &step).map_err(|error| GpuError::Failed(error.to_string()))?;
        let mut pass = Pass::new();
        self.embed.record(&mut pass, step);
        self.qkv.record_step(&mut pass, step);
        self.attention.record(&mut pass, step);
        self.attention_out.record(&mut pass, num_tokens);
        self.gate_up.record(&mut pass, num_tokens);
        self.down.record(&mut pass, num_tokens);
        self.post_norm.record(&mut pass, num_tokens);
        self.gather.record(&mut pass, step, 0..step.num_outputs);
        self.head.record(&mut pass, num_tokens);
        let logits = (&self.logits, 0..num_tokens * VOCAB_SIZE);
        gpu.wait(gpu.submit(&pass, Some(logits))?, <[u8]>::to_vec)
    }
}

/// The same values on every machine, between -1 and 1.
pub(crate) struct Numbers(pub(crate) u32);

impl Numbers {
    pub(crate) fn take(&mut self, len: usize) -> Vec<f32> {
        let mut next = || {
            self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (self.0 >> 8) as f32 / (1u32 << 23) as f32 - 1.0
        };
        (0..len).map(|_| next()).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::gpu::GpuOptions;
    use crate::matmul::Products;
    use crate::testing;

    #[test]
    fn a_class_is_stable_and_knows_its_format() {
        let Some(gpu) = testing::gpu() else { return };
        let shape = HeadShape { num_heads: 4, num_kv_heads: 2, head_dim: 16 };
        let fingerprint = |gpu: &Gpu, format, shape, kv| -> Result<[u8; 32], GpuError> {
            SelfTest::new(gpu, format, shape, kv)?.run(gpu)
        };
        let class = fingerprint(&gpu, Format::F16, shape, KvFormat::F32).unwrap();
        assert_eq!(fingerprint(&gpu, Format::F16, shape, KvFormat::F32).unwrap(), class);
        assert_ne!(fingerprint(&gpu, Format::F16, shape, KvFormat::F16).unwrap(), class);
        let other = fingerprint(&gpu, Format::Fp8, shape, KvFormat::F32).unwrap();
        assert_ne!(other, class);
        assert_eq!(of_several(&[class]), class);
        assert!(![class, other].contains(&of_several(&[class, other])));
    }

    /// Every kernel that a device gets, on devices with as little as Vulkan allows.
    #[test]
    fn kernels_fit_the_workgroup_memory_that_they_are_chosen_under() {
        let gpu = Caps {
            subgroups: true,
            min_subgroup_size: 32,
            max_subgroup_size: 32,
            max_binding_bytes: 1 << 27,
            max_workgroup_bytes: 16 << 10,
            max_workgroup_lanes: 1024,
            images: false,
            is_cpu: false,
            products: Products::Plain,
            cooperative_side: None,
            packs: false,
        };
        let side =
            |side| Caps { products: Products::Cooperative, cooperative_side: Some(side), ..gpu };
        let devices = [
            gpu,
            Caps { subgroups: false, ..gpu },
            gpu.with_products(Products::PackedDot),
            side(16),
            side(8),
            Caps { max_workgroup_bytes: 48 << 10, ..side(16) },
            Caps { min_subgroup_size: 8, max_subgroup_size: 8, is_cpu: true, images: true, ..gpu },
            Caps { subgroups: false, is_cpu: true, images: true, ..gpu },
        ];
        let heads =
            |num_heads, num_kv_heads, head_dim| HeadShape { num_heads, num_kv_heads, head_dim };
        let shapes = [heads(9, 3, 64), heads(32, 2, 128), heads(8, 1, 256)];
        let mut sizes = BTreeMap::new();
        for (number, caps) in devices.into_iter().enumerate() {
            for (format, shape) in [Format::Fp8, Format::Int4, Format::Bf16].into_iter().zip(shapes)
            {
                for source in sources(caps, format, shape, KvFormat::F16) {
                    let limit = caps.max_workgroup_bytes;
                    let bytes = *sizes
                        .entry(source.wgsl.clone())
                        .or_insert_with(|| testing::workgroup_bytes(&source));
                    assert!(
                        bytes <= limit,
                        "device {number}: {} takes {bytes} of {limit} bytes",
                        source.name
                    );
                }
            }
        }
        assert!(sizes.values().any(|bytes| *bytes > 8 << 10), "none is counted");
    }

    #[test]
    fn halves_by_cooperative_matrices_have_a_class_of_their_own() {
        let Some(plain) = testing::gpu() else { return };
        let shape = HeadShape { num_heads: 2, num_kv_heads: 1, head_dim: 16 };
        let Some(gpu) = testing::cooperative_gpus().into_iter().next() else { return };
        let gpu = gpu.with_caps(|caps| Caps { packs: true, ..caps });
        let texts = |gpu: &Gpu, format| -> Vec<String> {
            let sources = sources(gpu.caps(), format, shape, KvFormat::F32);
            sources.into_iter().map(|source| source.wgsl).collect()
        };
        let is_cooperative = |text: &String| text.contains("&weights[");
        for format in [Format::F16, Format::Bf16] {
            assert!(texts(&gpu, format).iter().any(is_cooperative), "{format:?}");
        }
        // Integers are packed; others are as everywhere.
        for format in [Format::Int4, Format::F32] {
            assert!(!texts(&gpu, format).iter().any(is_cooperative), "{format:?}");
        }
        assert!(texts(&gpu, Format::Int4).iter().any(|text| text.contains("dot4I8Packed")));
        assert!(!texts(&plain, Format::Bf16).iter().any(is_cooperative));
    }

    #[test]
    fn packed_dot_products_have_a_class_of_their_own() {
        let Some(plain) = testing::gpu() else { return };
        let options = GpuOptions { products: Products::PackedDot, ..GpuOptions::default() };
        let packed = Gpu::open_with(None, options).unwrap();
        let shape = HeadShape { num_heads: 4, num_kv_heads: 2, head_dim: 16 };
        SelfTest::new(&packed, Format::Int4, shape, KvFormat::F32).unwrap().run(&packed).unwrap();
        let texts = |gpu: &Gpu, format| -> Vec<String> {
            let sources = sources(gpu.caps(), format, shape, KvFormat::F32);
            sources.into_iter().map(|source| source.wgsl).collect()
        };
        assert_ne!(texts(&packed, Format::Int4), texts(&plain, Format::Int4));
        // They are for integers.
        assert_eq!(texts(&packed, Format::F16), texts(&plain, Format::F16));

        let bytes = |values: [f32; 3]| bytemuck::cast_slice::<f32, u8>(&values).to_vec();
        let right = bytes([-8.0, 1.0, 0.0]);
        check_near(&packed, true, &bytes([-8.0, 1.9, 0.1]), &right).unwrap();
        for wrong in [[8.0, 1.0, 0.0], [-8.0, 2.5, 0.0], [-8.0, 1.0, f32::NAN]] {
            let cause = check_near(&packed, true, &bytes(wrong), &right).unwrap_err().to_string();
            assert!(cause.contains("packed dot products"), "{cause}");
        }
    }

    #[test]
    fn both_layouts_compute_the_same_bits() {
        let shape = HeadShape { num_heads: 4, num_kv_heads: 2, head_dim: 16 };
        let results: Vec<_> = testing::both_layouts()
            .map(|gpu| {
                Layer::new(
                    &gpu,
                    Format::F32,
                    (shape, KvFormat::F16),
                    (Class::plain(gpu.caps(), Format::F32), Variant::plain(gpu.caps(), shape)),
                )
                .unwrap()
                .run(&gpu, 0..NUM_TOKENS)
                .unwrap()
            })
            .collect();
        assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
    }
}
