//! Queries, keys and values: what a product makes of them, and where they go.

use super::tests::{Case, classes};
use super::*;
use crate::inputs::{BLOCK_TOKENS, StepInputs};
use crate::kernel::Pass;
use crate::kv_cache::{HeadShape, KvFormat};
use crate::rotary::inverse_frequencies;
use crate::testing::{self, Random, assert_close};
use crate::weights::Format;

/// Queries, keys and values of tokens that go to known places.
#[test]
fn queries_keys_and_values_find_their_places() {
    let (positions, tables) = ([0usize, 17, 40], vec![3, 5, 1]);
    let step = StepInputs {
        token_ids: vec![0; 3],
        positions: positions.iter().map(|&position| position as u32).collect(),
        table_starts: vec![0; 3],
        output_rows: Vec::new(),
        tables: tables.clone(),
        copies: Vec::new(),
    };
    let shapes = [
        (HeadShape { num_heads: 4, num_kv_heads: 2, head_dim: 16 }, 8),
        (HeadShape { num_heads: 3, num_kv_heads: 1, head_dim: 64 }, 64),
        (HeadShape { num_heads: 1, num_kv_heads: 1, head_dim: 20 }, 12),
    ];
    for gpu in testing::both_layouts() {
        // Compiling is what takes time here, most of all with buffers.
        let some = classes(&gpu, Format::F32).skip(2).step_by(2);
        for (number, class) in some.chain([Class::plain(gpu.caps(), Format::F32)]).enumerate() {
            let matmul = Matmul::with_class(class);
            let kv = KvFormat::ALL[number % 2];
            for (shape, rotary_dim) in shapes {
                check_qkv(&gpu, &matmul, (shape, kv), rotary_dim, (&step, &positions, &tables));
            }
        }
    }
}

fn check_qkv(
    gpu: &Gpu,
    matmul: &Matmul,
    (shape, kv): (HeadShape, KvFormat),
    rotary_dim: usize,
    (step, positions, tables): (&StepInputs, &[usize], &[u32]),
) {
    let plain = (Format::F32, RowOrder::Plain);
    let case = Case::new(gpu, plain, (positions.len(), shape.qkv_size(), 36), 21);
    let mut bias_values = Random::new(22).normal(shape.qkv_size());
    // The last value of each token, too large for f16.
    bias_values[shape.qkv_size() - 1] = -1e6;
    let inv_freq = inverse_frequencies(100.0, rotary_dim);
    let rotary = Rotary::new(gpu, &inv_freq, 4096).unwrap();
    let cache = KvCache::new(gpu, shape, kv, 6).unwrap();
    let (inputs, step) = testing::inputs(gpu, step);
    let queries = gpu.alloc_vec4s(positions.len() * shape.q_size()).unwrap();
    let bias = gpu.upload_vec4s(&bias_values).unwrap();
    let x = gpu.upload_vec4s(&case.x).unwrap();
    let qkv = Qkv {
        bias: Some(&bias),
        inputs: &inputs,
        rotary: &rotary,
        cache: &cache,
        queries: &queries,
    };
    let mut pass = Pass::new();
    matmul
        .bind(gpu, (&x).into(), &case.weights, Output::Qkv(qkv))
        .unwrap()
        .record_step(&mut pass, step);
    gpu.run(&pass).unwrap();

    let queries = gpu.read_f32(&queries).unwrap();
    let [keys, values] = cache.read(gpu);
    // f16 has eleven digits, and a device may take either neighbour.
    let tolerance = if kv == KvFormat::F16 { 1e-3 } else { 2e-5 };
    let product = reference(36, &case.x, &case.decoded);
    for (token, &position) in positions.iter().enumerate() {
        let row = product[token * shape.qkv_size()..][..shape.qkv_size()].iter();
        let row: Vec<f32> = row.zip(&bias_values).map(|(a, b)| a + b).collect();
        let expected = crate::rotary::reference(shape, &inv_freq, position, &row);
        let (expected_q, expected_kv) = expected.split_at(shape.q_size());
        assert_close(&queries[token * shape.q_size()..][..shape.q_size()], expected_q, 2e-5);
        let most = if kv == KvFormat::F16 { 65504.0 } else { f32::MAX };
        let expected_kv: Vec<f32> = expected_kv.iter().map(|x| x.clamp(-most, most)).collect();
        let (expected_k, expected_v) = expected_kv.split_at(expected_kv.len() / 2);
        let (block, slot) = (tables[position / BLOCK_TOKENS] as usize, position % BLOCK_TOKENS);
        for head in 0..shape.num_kv_heads {
            let at = (block * shape.num_kv_heads + head) * shape.head_dim * BLOCK_TOKENS;
            let range = head * shape.head_dim..(head + 1) * shape.head_dim;
            let key: Vec<f32> = (0..shape.head_dim)
                .map(|d| keys[at + (d / 4 * BLOCK_TOKENS + slot) * 4 + d % 4])
                .collect();
            assert_close(&key, &expected_k[range.clone()], tolerance);
            let value = &values[at + slot * shape.head_dim..][..shape.head_dim];
            assert_close(value, &expected_v[range], tolerance);
        }
    }
}
