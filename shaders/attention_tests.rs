//! Attention against its reference, and bit for bit against itself in other batches.

use std::mem::offset_of;

use super::*;
use crate::attention_beside::{MergeParams, merge_source};
use crate::attention_variant::{CPU_KEYS, Exchange, Order, SHORT_HEAD_CPU_KEYS, Within};
use crate::gpu::Caps;
use crate::inputs::{BLOCK_TOKENS, StepInputs};
use crate::matmul::{Matmul, Output, Products, Qkv};
use crate::rotary::{Rotary, inverse_frequencies};
use crate::testing::{self, Random, assert_bits_eq, assert_close};
use crate::weights::{Format, RowOrder, WeightMatrix};

#[path = "attention_cooperative_tests.rs"]
mod cooperative;

const SMALL: HeadShape = HeadShape { num_heads: 4, num_kv_heads: 2, head_dim: 16 };
const SHAPES: [HeadShape; 5] = [
    SMALL,
    HeadShape { num_heads: 9, num_kv_heads: 3, head_dim: 64 },
    HeadShape { num_heads: 2, num_kv_heads: 2, head_dim: 80 },
    HeadShape { num_heads: 4, num_kv_heads: 1, head_dim: 128 },
    HeadShape { num_heads: 1, num_kv_heads: 1, head_dim: 256 },
];

/// Ways of laying the work out with the bits of `chosen`.
fn variants(shape: HeadShape, chosen: Variant) -> Vec<Variant> {
    let shared = (shape.num_heads / shape.num_kv_heads) as u32;
    let (memory, subgroup) = (Exchange::Memory, Exchange::Subgroup);
    let plain = Variant { tokens: 1, queries: 1, exchange: memory, ..chosen };
    match chosen.order.within {
        Within::Steps { .. } => vec![
            Variant { tokens: 3, ..plain },
            Variant { queries: shared, ..plain },
            Variant { exchange: subgroup, ..plain },
            Variant { tokens: 2, queries: shared, exchange: subgroup, ..plain },
        ],
        Within::Matrices { .. } => Vec::new(),
        Within::Whole => vec![
            Variant { tokens: 3, queries: shared, ..plain },
            Variant { lanes: 16, exchange: Exchange::MemoryParted, ..plain },
        ],
    }
}

/// As orders are, of another number of positions: of steps, and of wholes as GPUs take them.
fn orders(partition: u32) -> [Variant; 2] {
    let steps = Within::Steps { lanes: 8, keys: 2 };
    let order = Order { partition, within: steps };
    let narrow = Variant { order, lanes: 8, tokens: 1, queries: 1, exchange: Exchange::Memory };
    [narrow, Variant { order: Order { partition, within: Within::Whole }, ..narrow }]
}

/// What GPUs get.
fn gpu_caps() -> Caps {
    Caps {
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
    }
}

#[test]
fn params_are_the_shader_s() {
    for shape in SHAPES {
        let narrow = [4, 8].map(|lanes| {
            [CPU_KEYS, SHORT_HEAD_CPU_KEYS].map(|keys| {
                let within = Within::Steps { lanes, keys };
                Variant { lanes, order: Order { partition: 64, within }, ..orders(64)[0] }
            })
        });
        let narrow = narrow.concat().into_iter().chain(orders(32));
        let of_orders = narrow.flat_map(|narrow| variants(shape, narrow));
        for (number, variant) in of_orders.chain(Variant::plain(gpu_caps(), shape)).enumerate() {
            // GPUs have no images.
            let layouts: &[bool] = if variant.lanes > 16 { &[false] } else { &[false, true] };
            let caches = layouts.iter().flat_map(|it| KvFormat::ALL.map(|format| (*it, format)));
            // A cache is read by the same text for all heads: each for one shape, then in turn.
            let (first, step) = if shape == SMALL { (0, 1) } else { (number % 2, 3) };
            for (images, format) in caches.skip(first).step_by(step) {
                let source = variant.source(shape, format, images);
                testing::assert_kernel(&source);
                testing::assert_params(
                    &source,
                    &[
                        ("num_tokens", offset_of!(Params, num_tokens)),
                        ("tables_at", offset_of!(Params, tables_at)),
                        ("num_heads", offset_of!(Params, num_heads)),
                        ("num_kv_heads", offset_of!(Params, num_kv_heads)),
                        ("scale", offset_of!(Params, scale)),
                        ("first_token", offset_of!(Params, first_token)),
                        ("num_partitions", offset_of!(Params, num_partitions)),
                    ],
                );
            }
        }
        for images in [false, true] {
            let source = merge_source(Caps { images, ..gpu_caps() }, parts(shape, 128));
            testing::assert_kernel(&source);
            testing::assert_params(
                &source,
                &[
                    ("num_tokens", offset_of!(MergeParams, num_tokens)),
                    ("first_token", offset_of!(MergeParams, first_token)),
                    ("num_partitions", offset_of!(MergeParams, num_partitions)),
                    ("num_heads", offset_of!(MergeParams, num_heads)),
                ],
            );
        }
    }
}

#[test]
fn reference_by_hand() {
    // Scores ln 1 and ln 3: weights 1/4 and 3/4.
    let out = reference(1.0, &[1.0, 0.0], &[0.0, 5.0, 3f32.ln(), 7.0], &[4.0, 0.0, 8.0, 4.0]);
    assert_close(&out, &[7.0, 3.0], 1e-6);
}

/// A sequence and where its keys and values are.
struct Sequence {
    qkv: Vec<f32>, // [num_tokens, qkv_size]
    table: Vec<u32>,
}

impl Sequence {
    fn random(shape: HeadShape, num_tokens: usize, seed: u64) -> Self {
        Self { qkv: Random::new(seed).normal(num_tokens * shape.qkv_size()), table: Vec::new() }
    }
}

/// As many as `testing::inputs` allows.
const MAX_POSITIONS: usize = 4096;

/// One layer: rotation, cache, attention.
struct Layer<'a> {
    gpu: &'a Gpu,
    shape: HeadShape,
    attention: Attention,
    matmul: Matmul,
    identity: WeightMatrix,
    rotary: Rotary,
    cache: KvCache,
}

/// Weights whose product is what they are multiplied with.
fn identity(gpu: &Gpu, size: usize) -> WeightMatrix {
    let row = |row| (0..size).map(move |col| f32::from(u8::from(row == col)));
    let bytes = Format::F32.encode(size, &(0..size).flat_map(row).collect::<Vec<_>>());
    WeightMatrix::from_bytes(gpu, (size, size), (Format::F32, RowOrder::Plain), &bytes).unwrap()
}

impl<'a> Layer<'a> {
    fn new(gpu: &'a Gpu, shape: HeadShape, format: KvFormat, variant: Option<Variant>) -> Self {
        let variants = variant.map(|variant| vec![variant]);
        let chosen = || Variant::choose(gpu.caps(), shape, format);
        Self::of(gpu, shape, format, variants.unwrap_or_else(chosen))
    }

    fn of(gpu: &'a Gpu, shape: HeadShape, format: KvFormat, variants: Vec<Variant>) -> Self {
        let attention = Attention::with_variants(gpu, shape, format, MAX_POSITIONS, variants);
        let inv_freq = inverse_frequencies(10_000.0, shape.head_dim / 2);
        Self {
            gpu,
            shape,
            attention: attention.unwrap(),
            matmul: Matmul::new(gpu),
            identity: identity(gpu, shape.qkv_size()),
            rotary: Rotary::new(gpu, &inv_freq, MAX_POSITIONS).unwrap(),
            cache: KvCache::new(gpu, shape, format, 64).unwrap(),
        }
    }

    /// Runs one step of `slices` (sequence, positions) and returns the rows of attention of each
    /// token.
    fn step(&self, slices: &[(&Sequence, std::ops::Range<usize>)]) -> Vec<Vec<f32>> {
        let mut step = StepInputs::default();
        let mut qkv = Vec::new();
        for (sequence, positions) in slices {
            for position in positions.clone() {
                step.token_ids.push(0);
                step.positions.push(position as u32);
                step.table_starts.push(step.tables.len() as u32);
                qkv.extend_from_slice(
                    &sequence.qkv[position * self.shape.qkv_size()..][..self.shape.qkv_size()],
                );
            }
            step.tables.extend_from_slice(&sequence.table);
        }
        let num_tokens = step.token_ids.len();
        let (inputs, step) = testing::inputs(self.gpu, &step);
        let qkv = self.gpu.upload_vec4s(&qkv).unwrap();
        let q = self.gpu.alloc_vec4s(num_tokens * self.shape.q_size()).unwrap();
        let out = self.gpu.alloc_vec4s(num_tokens * self.shape.q_size()).unwrap();
        let mut pass = Pass::new();
        let scale = 1.0 / (self.shape.head_dim as f32).sqrt();
        let to = Qkv {
            bias: None,
            inputs: &inputs,
            rotary: &self.rotary,
            cache: &self.cache,
            queries: &q,
        };
        self.matmul
            .bind(self.gpu, (&qkv).into(), &self.identity, Output::Qkv(to))
            .unwrap()
            .record_step(&mut pass, step);
        self.attention
            .bind(self.gpu, &inputs, &self.cache, scale, (&q, &out))
            .unwrap()
            .record(&mut pass, step);
        self.gpu.run(&pass).unwrap();
        let out = self.gpu.read_f32(&out).unwrap();
        out.chunks(self.shape.q_size()).map(<[f32]>::to_vec).collect()
    }
}

/// What attention reads: rotated queries, and keys and values as the cache has them, which may be
/// either neighbour of a number that has to be rounded.
fn rotated(layer: &Layer<'_>, sequence: &Sequence) -> Vec<Vec<f32>> {
    let Layer { shape, cache, .. } = layer;
    let [keys, values] = cache.read(layer.gpu);
    let inv_freq = inverse_frequencies(10_000.0, shape.head_dim / 2);
    let within = if cache.format == KvFormat::F16 { 1.0 / 1024.0 } else { 2e-6 };
    let rows = sequence.qkv.chunks(shape.qkv_size()).enumerate();
    rows.map(|(position, row)| {
        let mut row = crate::rotary::reference(*shape, &inv_freq, position, row);
        let (block, slot) =
            (sequence.table[position / BLOCK_TOKENS] as usize, position % BLOCK_TOKENS);
        let (key, value) = row[shape.q_size()..].split_at_mut(shape.num_kv_heads * shape.head_dim);
        for (at, (key, value)) in key.iter_mut().zip(value).enumerate() {
            let (head, d) = (at / shape.head_dim, at % shape.head_dim);
            let start = (block * shape.num_kv_heads + head) * BLOCK_TOKENS * shape.head_dim;
            let stored = (
                keys[start + (d / 4 * BLOCK_TOKENS + slot) * 4 + d % 4],
                values[start + slot * shape.head_dim + d],
            );
            for (exact, stored) in [(*key, stored.0), (*value, stored.1)] {
                assert!((exact - stored).abs() <= exact.abs() * within + 2e-6, "{exact} {stored}");
            }
            (*key, *value) = stored;
        }
        row
    })
    .collect()
}

fn expected(shape: HeadShape, rotated: &[Vec<f32>]) -> Vec<Vec<f32>> {
    let head =
        |row: &Vec<f32>, head: usize| row[head * shape.head_dim..][..shape.head_dim].to_vec();
    (0..rotated.len())
        .map(|position| {
            (0..shape.num_heads)
                .flat_map(|h| {
                    let key_head = shape.num_heads + h / (shape.num_heads / shape.num_kv_heads);
                    let value_head = key_head + shape.num_kv_heads;
                    let keys: Vec<f32> =
                        rotated[..=position].iter().flat_map(|row| head(row, key_head)).collect();
                    let values: Vec<f32> =
                        rotated[..=position].iter().flat_map(|row| head(row, value_head)).collect();
                    reference(
                        1.0 / (shape.head_dim as f32).sqrt(),
                        &head(&rotated[position], h),
                        &keys,
                        &values,
                    )
                })
                .collect()
        })
        .collect()
}

#[test]
fn agrees_with_the_reference_in_every_variant() {
    for gpu in testing::both_layouts() {
        let f32s = SHAPES.map(|shape| (shape, KvFormat::F32));
        let f16s = SHAPES[..2].iter().map(|shape| (*shape, KvFormat::F16));
        for (shape, format) in f32s.into_iter().chain(f16s) {
            // Compiling is what takes time here, most of all with buffers.
            if !gpu.caps().images && gpu.caps().is_cpu && shape.head_dim > 64 {
                continue;
            }
            let mut sequence = Sequence::random(shape, 70, 31);
            sequence.table = vec![9, 3, 0, 8, 1];
            let layer = Layer::new(&gpu, shape, format, None);
            let all = [(&sequence, 0..70)];
            let chosen = layer.step(&all);
            let rotated = rotated(&layer, &sequence);
            let expected = expected(shape, &rotated);
            let is_right = |rows: &[Vec<f32>]| {
                for (actual, expected) in rows.iter().zip(&expected) {
                    // 70 weighted values, exp good to a few units in the last place.
                    assert_close(actual, expected, 2e-5);
                }
            };
            is_right(&chosen);
            // Compiled by a software driver, each way is proven once in each layout, format and
            // width of the heads, not in each of their combinations.
            let proven = match (gpu.caps().images, format) {
                (true, KvFormat::F32) => SHAPES[1],
                _ => SMALL,
            };
            let is_twice = !gpu.caps().images && format != KvFormat::F32;
            if gpu.caps().is_cpu && (shape != proven || is_twice) {
                continue;
            }
            let first = Variant::choose(gpu.caps(), shape, format)[0];
            let run = |variant| Layer::new(&gpu, shape, format, Some(variant)).step(&all);
            for variant in variants(shape, first) {
                let fits = gpu.caps().subgroups && gpu.caps().min_subgroup_size >= variant.lanes;
                if variant.exchange != Exchange::Subgroup || fits {
                    assert_bits_eq(&run(variant).concat(), &chosen.concat());
                }
            }
            // What other devices get: processors with short vectors, GPUs; several partitions.
            let others = if shape == SMALL { orders(32).to_vec() } else { Vec::new() };
            for other in others {
                let expected = run(other);
                is_right(&expected);
                for variant in variants(shape, other) {
                    if variant.exchange != Exchange::Subgroup {
                        assert_bits_eq(&run(variant).concat(), &expected.concat());
                    }
                }
            }
        }
    }
}

#[test]
fn what_a_later_token_holds_changes_nothing() {
    let Some(gpu) = testing::gpu() else { return };
    for format in KvFormat::ALL {
        let layer = Layer::new(&gpu, SMALL, format, None);
        let mut sequence = Sequence::random(SMALL, 40, 36);
        sequence.table = vec![2, 0, 1];
        let sound = layer.step(&[(&sequence, 0..40)]);
        // In the middle of whatever tokens share.
        sequence.qkv[21 * SMALL.qkv_size()] = f32::INFINITY;
        let broken = layer.step(&[(&sequence, 0..40)]);
        assert_bits_eq(&broken[..21].concat(), &sound[..21].concat());
        assert!(broken[39].iter().any(|value| value.is_nan()), "it shows in later ones");
    }
}

#[test]
fn chunks_batches_and_blocks_change_nothing() {
    let Some(gpu) = testing::gpu() else { return };
    for format in KvFormat::ALL {
        change_nothing(&Layer::new(&gpu, SMALL, format, None));
    }
}

/// As it is laid out there, on whatever device.
#[test]
fn what_gpus_get_is_proof_against_long_sequences() {
    let Some(gpu) = testing::gpu() else { return };
    let heads = |num_heads, num_kv_heads, head_dim| HeadShape { num_heads, num_kv_heads, head_dim };
    // A software driver compiles what is short.
    let shapes = match gpu.caps().is_cpu {
        true => vec![SMALL],
        false => vec![SMALL, heads(16, 4, 64), heads(32, 2, 128), heads(8, 1, 256)],
    };
    for shape in shapes {
        let mut sequence = Sequence::random(shape, 300, 38);
        sequence.table = (0..19).map(|block| block * 7 % 19).collect();
        let results = Variant::plain(gpu_caps(), shape).into_iter().map(|variant| {
            let layer = Layer::new(&gpu, shape, KvFormat::F32, Some(variant));
            let rows = layer.step(&[(&sequence, 0..300)]);
            // The last ones alone, so that their partitions are computed side by side.
            let alone = [298..299, 299..300].map(|at| layer.step(&[(&sequence, at)]).concat());
            assert_bits_eq(&alone.concat(), &rows[298..].concat());
            let expected = expected(shape, &rotated(&layer, &sequence));
            assert_close(&rows.concat(), &expected.concat(), 2e-5);
            rows.concat()
        });
        let results: Vec<_> = results.collect();
        assert_eq!(results.len(), 2, "lone tokens, and many");
        assert_bits_eq(&results[0], &results[1]);
    }
}

/// However few workgroups there are without that, or however many.
#[test]
fn partitions_side_by_side_give_the_bits_of_one_after_another() {
    let Some(gpu) = testing::gpu() else { return };
    for variant in orders(32) {
        for below in [0, u32::MAX] {
            let mut layer = Layer::new(&gpu, SMALL, KvFormat::F32, Some(variant));
            let beside = layer.attention.beside.as_mut().unwrap();
            // Of a token at the last position, and of a few at the first ones.
            (beside.below, beside.max_parts) = (below, 4);
            change_nothing(&layer);
        }
        let bits = [0, u32::MAX].map(|below| {
            let mut layer = Layer::new(&gpu, SMALL, KvFormat::F32, Some(variant));
            layer.attention.beside.as_mut().unwrap().below = below;
            let mut sequence = Sequence::random(SMALL, 100, 34);
            sequence.table = (0..7).rev().collect();
            let prompt = layer.step(&[(&sequence, 0..90)]);
            let decoded = (90..100).map(|at| layer.step(&[(&sequence, at..at + 1)]).concat());
            [prompt.concat(), decoded.collect::<Vec<_>>().concat()].concat()
        });
        assert_bits_eq(&bits[0], &bits[1]);
    }
}

fn change_nothing(layer: &Layer<'_>) {
    let mut random = Random::new(33);
    let mut a = Sequence::random(SMALL, 100, 34);
    let mut b = Sequence::random(SMALL, 40, 35);
    a.table = (0..7).collect();
    let whole = layer.step(&[(&a, 0..100)]);
    for _ in 0..5 {
        // Other blocks, in another order.
        let blocks: Vec<u32> = random.permutation(64).iter().map(|&block| block as u32).collect();
        (a.table, b.table) = (blocks[..7].to_vec(), blocks[7..10].to_vec());
        let (mut done_a, mut done_b, mut rows) = (0, 0, Vec::new());
        while done_a < 100 {
            // Decode one by one as well as chunks, with another sequence before it or not.
            let next_a = (done_a + [1, 1, 3, 17, 40][random.below(5)]).min(100);
            let next_b = (done_b + random.below(6)).min(40);
            let step = layer.step(&[(&b, done_b..next_b), (&a, done_a..next_a)]);
            rows.extend_from_slice(&step[next_b - done_b..]);
            (done_a, done_b) = (next_a, next_b);
        }
        assert_bits_eq(&rows.concat(), &whole.concat());
    }
}
