//! The choice of experts, the pairs of each, and the sum, against their references.

use std::mem::offset_of;

use super::*;
use crate::testing::{self, Random, assert_bits_eq, assert_close};

const SHAPE: ExpertShape = ExpertShape {
    num_experts: 24,
    top_k: 3,
    num_groups: 1,
    top_groups: 1,
    normalized: true,
    scale: 1.5,
};

fn shapes() -> [ExpertShape; 4] {
    let one = ExpertShape { num_experts: 1, top_k: 1, normalized: false, ..SHAPE };
    let groups = ExpertShape { num_groups: 6, top_groups: 2, top_k: 4, ..SHAPE };
    [SHAPE, one, groups, ExpertShape { top_k: 24, scale: 1.0, ..SHAPE }]
}

#[test]
fn params_are_the_shader_s() {
    let Some(gpu) = testing::gpu() else { return };
    for shape in shapes() {
        let source = route_source(gpu.caps(), &shape);
        testing::assert_kernel(&source);
        let fields = [
            ("weights_at", offset_of!(RouteParams, weights_at)),
            ("scale", offset_of!(RouteParams, scale)),
        ];
        testing::assert_params(&source, &fields);
    }
    for counts in [false, true] {
        let source = sort_source(gpu.caps(), counts);
        testing::assert_kernel(&source);
        let fields = [
            ("num_pairs", offset_of!(SortParams, num_pairs)),
            ("num_experts", offset_of!(SortParams, num_experts)),
            ("sorted_at", offset_of!(SortParams, sorted_at)),
            ("counts_at", offset_of!(SortParams, counts_at)),
            ("parts_at", offset_of!(SortParams, parts_at)),
            ("num_parts", offset_of!(SortParams, num_parts)),
            ("rows_of_part", offset_of!(SortParams, rows_of_part)),
        ];
        testing::assert_params(&source, &fields);
    }
    for images in [false, true] {
        let source = sum_source(images);
        testing::assert_kernel(&source);
        let fields = [
            ("row_vec4s", offset_of!(SumParams, row_vec4s)),
            ("top_k", offset_of!(SumParams, top_k)),
            ("weights_at", offset_of!(SumParams, weights_at)),
        ];
        testing::assert_params(&source, &fields);
    }
}

#[test]
fn reference_by_hand() {
    // Both of the second group are better than the first's best; the bias decides between them.
    let shape = ExpertShape { num_experts: 4, top_k: 1, num_groups: 2, ..SHAPE };
    assert_eq!(reference(&shape, &[3.0, -9.0, 1.0, 1.0], &[0.0, 0.0, 0.0, 0.1]), [(3, 1.5)]);
    // Of equal ones the first.
    assert_eq!(reference(&shape, &[0.0; 4], &[0.0; 4]), [(0, 1.5)]);
    let two = ExpertShape { num_experts: 3, top_k: 2, ..SHAPE };
    let found = reference(&two, &[0.0, 9.0, 0.0], &[0.0, -1.0, 0.0]);
    assert_eq!(found, [(0, 0.75), (2, 0.75)]);
}

/// What the kernels make of logits, with so many tokens in a step.
struct Found {
    words: Vec<u32>,
    step: RouteShape,
    out: Vec<f32>,
}

const HIDDEN: usize = 20;

fn run(gpu: &Gpu, shape: ExpertShape, logits: &[f32], bias: &[f32], given: &[f32]) -> Found {
    let num_tokens = logits.len() / shape.num_experts;
    let routes = Routes::new(gpu, &shape, num_tokens).unwrap();
    let residual = gpu.upload_vec4s(&vec![0.5; num_tokens * HIDDEN]).unwrap();
    let out = gpu.alloc_vec4s(num_tokens * HIDDEN).unwrap();
    let tensors = ExpertTensors {
        logits: &gpu.upload(logits).unwrap(),
        bias: &gpu.upload(bias).unwrap(),
        routes: &routes,
        given: &gpu.upload(given).unwrap(),
        residual: &residual,
        out: &out,
    };
    let experts = BoundExperts::new(gpu, shape, HIDDEN, tensors).unwrap();
    let mut pass = Pass::new();
    let step = experts.record_choice(&mut pass, num_tokens);
    experts.record_sum(&mut pass, &step);
    gpu.run(&pass).unwrap();
    let words = gpu.read_u32(&routes.0).unwrap();
    Found { words, step, out: gpu.read_f32(&out).unwrap() }
}

#[test]
fn agrees_with_the_reference_and_a_token_is_the_same_in_any_step() {
    for gpu in testing::both_layouts() {
        for shape in shapes() {
            let mut random = Random::new(7);
            let num_tokens = 37;
            let num_pairs = num_tokens * shape.top_k;
            let mut logits = random.normal(num_tokens * shape.num_experts);
            // Ties, and what no router should say.
            logits[..shape.num_experts].fill(0.25);
            logits[shape.num_experts] = f32::NAN;
            let mut bias = random.normal(shape.num_experts);
            bias.iter_mut().for_each(|bias| *bias = (*bias * 2.0).round() / 8.0);
            let given = random.normal(num_pairs * HIDDEN);
            let found = run(&gpu, shape, &logits, &bias, &given);
            for token in (0..num_tokens).filter(|token| *token != 1) {
                let logits = &logits[token * shape.num_experts..][..shape.num_experts];
                let expected = reference(&shape, logits, &bias);
                let mut sum = vec![0.5; HIDDEN];
                for (k, (expert, weight)) in expected.into_iter().enumerate() {
                    let pair = token * shape.top_k + k;
                    assert_eq!(found.words[pair], expert as u32, "{shape:?} {token}");
                    let at = found.step.weights_at() as usize + pair;
                    assert_close(&[f32::from_bits(found.words[at])], &[weight], 1e-5);
                    let given = &given[pair * HIDDEN..][..HIDDEN];
                    sum.iter_mut().zip(given).for_each(|(sum, given)| *sum += weight * given);
                }
                assert_close(&found.out[token * HIDDEN..][..HIDDEN], &sum, 1e-5);
                let pairs = token * shape.top_k..(token + 1) * shape.top_k;
                let given = &given[pairs.start * HIDDEN..pairs.end * HIDDEN];
                let alone = run(&gpu, shape, logits, &bias, given);
                assert!(!alone.step.is_sorted(), "one token's pairs are lone");
                assert_eq!(alone.words[..shape.top_k], found.words[pairs]);
                assert_bits_eq(&alone.out, &found.out[token * HIDDEN..][..HIDDEN]);
            }
            check_parts(&found);
            let chosen = &found.words[..num_pairs];
            assert!(chosen.iter().all(|expert| (*expert as usize) < shape.num_experts));
        }
    }
}

/// Every pair is in one part, with its expert, and no part is larger than it may be.
fn check_parts(found: &Found) {
    let Found { words, step, .. } = found;
    if !step.is_sorted() {
        return;
    }
    let mut seen = vec![false; step.num_pairs()];
    for part in 0..step.num_parts() {
        let at = (step.parts_at() + 3 * part) as usize;
        let [expert, first, count] = words[at..at + 3] else { panic!() };
        assert!(count <= step.rows_of_part);
        for i in 0..count {
            let pair = words[(step.sorted_at() + first + i) as usize] as usize;
            assert_eq!(words[pair], expert);
            assert!(!std::mem::replace(&mut seen[pair], true), "a pair is in one part");
        }
    }
    assert!(seen.into_iter().all(|seen| seen), "every pair is in a part");
}
