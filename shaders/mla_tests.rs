//! Latent attention against its reference, and bit for bit against itself in other batches.

use std::mem::offset_of;

use super::*;
use crate::inputs::StepInputs;
use crate::kv_cache::HeadShape;
use crate::rms_norm;
use crate::rotary::{self, inverse_frequencies};
use crate::testing::{self, Random, assert_bits_eq, assert_close};

const SHAPE: LatentShape = LatentShape { num_heads: 6, lora: 36, nope: 20, rope: 8, chosen: None };
const NUM_POSITIONS: usize = 583;
const EPS: f32 = 1e-6;

#[test]
fn params_are_the_shader_s() {
    let Some(gpu) = testing::gpu() else { return };
    let wide = LatentShape { num_heads: 20, lora: 512, nope: 192, rope: 64, chosen: None };
    for (images, kv) in [(false, KvFormat::F16), (true, KvFormat::F32), (true, KvFormat::F16)] {
        for caps in [gpu.caps(), Caps { is_cpu: false, min_subgroup_size: 32, ..gpu.caps() }] {
            let caps = Caps { images, ..caps };
            let source = store_source(caps, kv);
            testing::assert_kernel(&source);
            let fields = [
                ("num_tokens", offset_of!(StoreParams, num_tokens)),
                ("tables_at", offset_of!(StoreParams, tables_at)),
                ("num_heads", offset_of!(StoreParams, num_heads)),
                ("lora_vec4s", offset_of!(StoreParams, lora_vec4s)),
                ("nope_vec4s", offset_of!(StoreParams, nope_vec4s)),
                ("rope_vec4s", offset_of!(StoreParams, rope_vec4s)),
                ("eps", offset_of!(StoreParams, eps)),
            ];
            testing::assert_params(&source, &fields);
            for shape in [SHAPE, wide, LatentShape { chosen: Some(2048), ..wide }] {
                let source = attend_source(caps, shape, kv);
                testing::assert_kernel(&source);
                let fields = [
                    ("num_tokens", offset_of!(AttendParams, num_tokens)),
                    ("tables_at", offset_of!(AttendParams, tables_at)),
                    ("num_heads", offset_of!(AttendParams, num_heads)),
                    ("scale", offset_of!(AttendParams, scale)),
                    ("first_token", offset_of!(AttendParams, first_token)),
                    ("num_partitions", offset_of!(AttendParams, num_partitions)),
                ];
                testing::assert_params(&source, &fields);
            }
        }
    }
}

/// The numbers of a sequence.
struct Case {
    latent: Vec<f32>,
    norm: Vec<f32>,
    head_queries: Vec<f32>,
    queries: Vec<f32>,
}

impl Case {
    fn new() -> Self {
        let mut random = Random::new(11);
        let heads = NUM_POSITIONS * SHAPE.num_heads;
        Self {
            latent: random.normal(NUM_POSITIONS * SHAPE.width()),
            norm: random.normal(SHAPE.lora),
            head_queries: random.normal(heads * (SHAPE.nope + SHAPE.rope)),
            queries: random.normal(heads * SHAPE.width()),
        }
    }

    /// What the last of some positions attend to, of which as many as said are computed at a time.
    fn run(&self, gpu: &Gpu, kv: KvFormat, chunks: &[usize]) -> Vec<f32> {
        self.run_chosen(gpu, kv, chunks, None, true)
    }

    /// The same where tokens have chosen their positions: all.
    fn run_chosen(
        &self,
        gpu: &Gpu,
        kv: KvFormat,
        chunks: &[usize],
        most: Option<usize>,
        side_by_side: bool,
    ) -> Vec<f32> {
        let cache = LatentCache::new(gpu, SHAPE.width(), kv, 40).unwrap();
        let inv_freq = inverse_frequencies(10_000.0, SHAPE.rope);
        let rotary = Rotary::new(gpu, &inv_freq, 4096).unwrap();
        let norm = gpu.upload(&self.norm).unwrap();
        let shape = LatentShape { chosen: most, ..SHAPE };
        let mut all = Vec::new();
        let mut start = 0;
        for &num_tokens in chunks {
            let rows = |values: &[f32]| {
                let width = values.len() / NUM_POSITIONS;
                values[start * width..(start + num_tokens) * width].to_vec()
            };
            let step = StepInputs {
                token_ids: vec![0; num_tokens],
                positions: (start as u32..(start + num_tokens) as u32).collect(),
                table_starts: vec![1; num_tokens],
                output_rows: Vec::new(),
                tables: [7]
                    .into_iter()
                    .chain((0..NUM_POSITIONS.div_ceil(16) as u32).rev())
                    .collect(),
                copies: Vec::new(),
            };
            let (inputs, step) = testing::inputs(gpu, &step);
            let chosen = most.map(|most| {
                let row = |position: usize| {
                    let mut row = vec![position as u32 + 1];
                    row.extend(0..=position as u32);
                    row.resize(1 + most, u32::MAX);
                    row
                };
                let words: Vec<u32> = (start..start + num_tokens).flat_map(row).collect();
                gpu.upload(&words).unwrap()
            });
            let tensors = LatentTensors {
                latent: &gpu.upload(&rows(&self.latent)).unwrap(),
                norm: (&norm, EPS),
                head_queries: &gpu.upload_vec4s(&rows(&self.head_queries)).unwrap(),
                queries: &gpu.upload_vec4s(&rows(&self.queries)).unwrap(),
                out: &gpu.alloc_vec4s(num_tokens * SHAPE.num_heads * SHAPE.lora).unwrap(),
                chosen: chosen.as_ref(),
            };
            let on = (&inputs, &rotary, &cache);
            let beside = Beside::new(gpu, parts(gpu, shape), NUM_POSITIONS).unwrap();
            let beside = beside.filter(|_| side_by_side);
            let bound =
                BoundLatentAttention::new(gpu, shape, on, tensors, beside.as_ref()).unwrap();
            let mut pass = Pass::new();
            bound.record(&mut pass, step);
            gpu.run(&pass).unwrap();
            all.extend(gpu.read_f32(tensors.out).unwrap());
            start += num_tokens;
        }
        all
    }

    /// The same in plain loops, for one position.
    fn expected(&self, position: usize) -> Vec<f32> {
        let inv_freq = inverse_frequencies(10_000.0, SHAPE.rope);
        let turned = |position: usize, values: &[f32]| {
            let one = HeadShape { num_heads: 1, num_kv_heads: 0, head_dim: SHAPE.rope };
            rotary::reference(one, &inv_freq, position, values)
        };
        let rows: Vec<f32> = self
            .latent
            .chunks_exact(SHAPE.width())
            .take(position + 1)
            .enumerate()
            .flat_map(|(position, row)| {
                let (latent, key) = row.split_at(SHAPE.lora);
                [rms_norm::reference(EPS, latent, &self.norm), turned(position, key)].concat()
            })
            .collect();
        let scale = ((SHAPE.nope + SHAPE.rope) as f32).sqrt().recip();
        (0..SHAPE.num_heads)
            .flat_map(|head| {
                let pair = position * SHAPE.num_heads + head;
                let q = &self.queries[pair * SHAPE.width()..][..SHAPE.lora];
                let width = SHAPE.nope + SHAPE.rope;
                let rotates = &self.head_queries[pair * width + SHAPE.nope..][..SHAPE.rope];
                reference(scale, SHAPE.lora, &[q, &turned(position, rotates)].concat(), &rows)
            })
            .collect()
    }
}

#[test]
fn agrees_with_the_reference_and_a_row_is_the_same_in_any_batch() {
    let case = Case::new();
    let mut both = Vec::new();
    for gpu in testing::both_layouts() {
        let found = case.run(&gpu, KvFormat::F32, &[NUM_POSITIONS]);
        let width = SHAPE.num_heads * SHAPE.lora;
        for position in [0, 1, 15, 16, 31, 32, 33, 64, 255, 256, 300, 511, 512, NUM_POSITIONS - 1] {
            // Up to 583 positions and 44 values are added in another order.
            let row = &found[position * width..][..width];
            assert_close(row, &case.expected(position), 1e-4);
        }
        for kv in KvFormat::ALL {
            let together = case.run(&gpu, kv, &[NUM_POSITIONS]);
            // Few tokens have their partitions side by side, many one after another.
            let chunks = [1, 30, 1, 1, 16, 400, 1, 2, NUM_POSITIONS - 453, 1];
            assert_bits_eq(&together, &case.run(&gpu, kv, &chunks));
            for (most, beside) in [(None, false), (Some(NUM_POSITIONS + 5), true)] {
                let other = case.run_chosen(&gpu, kv, &chunks, most, beside);
                assert_bits_eq(&together, &other);
            }
            both.push(together);
        }
    }
    // Whatever kind of storage tensors have.
    if let [one, halves, other, other_halves] = &both[..] {
        assert_bits_eq(one, other);
        assert_bits_eq(halves, other_halves);
        assert_close(one, halves, 1e-2);
    }
}

/// What a GPU would run, on whatever there is.
#[test]
fn partitions_of_a_gpu_are_the_same_side_by_side() {
    let Some(gpu) = testing::new_gpu().map(Gpu::with_gpu_kernels) else { return };
    let case = Case::new();
    let together = case.run_chosen(&gpu, KvFormat::F16, &[NUM_POSITIONS], None, false);
    let chunks = [100, 1, 27, 1, 1, NUM_POSITIONS - 130];
    assert_bits_eq(&together, &case.run(&gpu, KvFormat::F16, &chunks));
    let width = SHAPE.num_heads * SHAPE.lora;
    let last = NUM_POSITIONS - 1;
    assert_close(&together[last * width..], &case.expected(last), 1e-2);
}
