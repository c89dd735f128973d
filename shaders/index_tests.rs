//! The choice of positions against plain loops.

use std::mem::offset_of;

use super::*;
use crate::inputs::StepInputs;
use crate::kv_cache::HeadShape;
use crate::rotary::{self, inverse_frequencies};
use crate::testing::{self, Random};

const SHAPE: IndexShape = IndexShape { num_heads: 3, head_dim: 12, rope: 8, top_k: 9 };
const NUM_TOKENS: usize = 70;

#[test]
fn params_are_the_shader_s() {
    let Some(gpu) = testing::gpu() else { return };
    for (images, kv) in [(false, KvFormat::F16), (true, KvFormat::F32), (true, KvFormat::F16)] {
        let caps = Caps { images, ..gpu.caps() };
        let source = store_source(caps, kv);
        testing::assert_kernel(&source);
        let fields = [
            ("num_tokens", offset_of!(StoreParams, num_tokens)),
            ("tables_at", offset_of!(StoreParams, tables_at)),
            ("num_heads", offset_of!(StoreParams, num_heads)),
            ("head_vec4s", offset_of!(StoreParams, head_vec4s)),
            ("rope_vec4s", offset_of!(StoreParams, rope_vec4s)),
        ];
        testing::assert_params(&source, &fields);
        let source = score_source(caps, SHAPE, kv);
        testing::assert_kernel(&source);
        let fields = [
            ("num_tokens", offset_of!(ScoreParams, num_tokens)),
            ("tables_at", offset_of!(ScoreParams, tables_at)),
            ("first_token", offset_of!(ScoreParams, first_token)),
            ("head_vec4s", offset_of!(ScoreParams, head_vec4s)),
            ("stride", offset_of!(ScoreParams, stride)),
            ("query_scale", offset_of!(ScoreParams, query_scale)),
            ("head_scale", offset_of!(ScoreParams, head_scale)),
        ];
        testing::assert_params(&source, &fields);
    }
    let source = choose_source(gpu.caps(), SHAPE);
    testing::assert_kernel(&source);
    let fields = [
        ("num_tokens", offset_of!(ChooseParams, num_tokens)),
        ("first_token", offset_of!(ChooseParams, first_token)),
        ("stride", offset_of!(ChooseParams, stride)),
    ];
    testing::assert_params(&source, &fields);
}

#[test]
fn reference_by_hand() {
    assert_eq!(reference(2, &[1.0, 3.0, 3.0, 3.0]), [1, 2]);
    assert_eq!(reference(3, &[-0.0, -1.0, 0.0, 5.0]), [0, 2, 3]);
}

/// All tokens of a sequence in one step, scored some at a time.
#[test]
fn positions_with_the_highest_scores_are_chosen() {
    let mut random = Random::new(5);
    let queries = random.normal(NUM_TOKENS * 36);
    let keys = random.normal(NUM_TOKENS * 12);
    let norm = random.normal(24);
    let weights = random.normal(NUM_TOKENS * 3);
    let inv_freq = inverse_frequencies(10_000.0, SHAPE.rope);
    for gpu in testing::both_layouts() {
        let step = StepInputs {
            token_ids: vec![0; NUM_TOKENS],
            positions: (0..NUM_TOKENS as u32).collect(),
            table_starts: vec![0; NUM_TOKENS],
            output_rows: Vec::new(),
            tables: vec![3, 1, 4, 0, 2],
            copies: Vec::new(),
        };
        let (inputs, step) = testing::inputs(&gpu, &step);
        let rotary = Rotary::new(&gpu, &inv_freq, 4096).unwrap();
        let cache = LatentCache::new(&gpu, 12, KvFormat::F32, 5).unwrap();
        let mut choice = Choice::new(&gpu, SHAPE.top_k, (NUM_TOKENS, 4096)).unwrap();
        choice.scores = gpu.alloc_f32(32 * 4096).unwrap();
        let tensors = IndexTensors {
            queries: &gpu.upload(&queries).unwrap(),
            keys: &gpu.upload(&keys).unwrap(),
            norm: &gpu.upload(&norm).unwrap(),
            weights: &gpu.upload(&weights).unwrap(),
        };
        let on = (&inputs, &rotary, &cache);
        let bound = BoundIndex::new(&gpu, SHAPE, on, tensors, &choice).unwrap();
        let mut pass = Pass::new();
        bound.record(&mut pass, step);
        gpu.run(&pass).unwrap();
        let found = gpu.read_u32(&choice.chosen).unwrap();

        let one = HeadShape { num_heads: 1, num_kv_heads: 0, head_dim: 12 };
        let turned = |at, values: &[f32]| rotary::reference(one, &inv_freq, at, values);
        let normed = |row: &[f32]| -> Vec<f32> {
            let mean = row.iter().sum::<f32>() / 12.0;
            let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / 12.0;
            let scale = (variance + 1e-6).sqrt().recip();
            let all = row.iter().zip(&norm).zip(&norm[12..]);
            all.map(|((x, weight), bias)| (x - mean) * scale * weight + bias).collect()
        };
        let rows: Vec<Vec<f32>> = keys
            .chunks_exact(12)
            .enumerate()
            .map(|(position, key)| turned(position, &normed(key)))
            .collect();
        for token in 0..NUM_TOKENS {
            let heads: Vec<Vec<f32>> = queries[token * 36..][..36]
                .chunks_exact(12)
                .map(|query| turned(token, query))
                .collect();
            let score = |row: &Vec<f32>| -> f32 {
                let of_head = |(head, weight): (&Vec<f32>, &f32)| {
                    let dot: f32 = head.iter().zip(row).map(|(q, k)| q * k).sum();
                    weight / 3f32.sqrt() * (dot / 12f32.sqrt()).max(0.0)
                };
                heads.iter().zip(&weights[token * 3..]).map(of_head).sum()
            };
            let scores: Vec<f32> = rows[..=token].iter().map(score).collect();
            let expected = reference(SHAPE.top_k, &scores);
            let row = &found[token * 10..][..10];
            assert_eq!(row[0] as usize, expected.len());
            let chosen: Vec<usize> =
                row[1..=expected.len()].iter().map(|at| *at as usize).collect();
            assert_eq!(chosen, expected, "token {token}");
        }
    }
}
