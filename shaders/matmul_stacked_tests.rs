//! Products with stacks against those with each of their matrices, bit for bit.

use std::mem::offset_of;

use super::*;
use crate::experts::{BoundExperts, ExpertShape, ExpertTensors};
use crate::inputs::StepShape;
use crate::matmul::{Matmul, Norm, Operand};
use crate::matmul_variant::Order;
use crate::products::Products;
use crate::quantize_rows::QuantizedRows;
use crate::testing::{self, Random, assert_bits_eq};
use crate::weights::Format;

#[test]
fn params_are_the_shader_s() {
    let Some(gpu) = testing::gpu() else { return };
    for (format, images) in testing::formats_and_layouts() {
        let class = Class::stacked(gpu.caps(), format, false);
        let forms = [(Kind::Swiglu, Stacked::Routed), (Kind::Store, Stacked::Routed)];
        for (kind, stacked) in forms.into_iter().chain([(Kind::Vec4s, Stacked::Heads)]) {
            let form = Form { format, norm: kind == Kind::Swiglu, kind };
            let gpus = Class::gpu();
            let other = Order { ..gpus.order };
            let on_gpu = gpus.variants[0].stacked_source((form, stacked), other, images);
            let own = class.variants.iter();
            let own = own.map(|it| it.stacked_source((form, stacked), class.order, images));
            for source in own.chain([on_gpu]) {
                testing::assert_kernel(&source);
                let last = source.params_bytes as usize;
                assert_eq!(last, offset_of!(StackedParams, first_part) + 4);
            }
        }
    }
}

const HIDDEN: usize = 68;
const WIDTH: usize = 36;

/// A stack of gates and ups, and of downs, with each of their matrices by itself.
struct Case {
    gate_up: (WeightMatrix, Vec<WeightMatrix>),
    down: (WeightMatrix, Vec<WeightMatrix>),
}

fn stack(
    gpu: &Gpu,
    stack: usize,
    (rows, cols): (usize, usize),
    (format, order): (Format, RowOrder),
    seed: u64,
) -> (WeightMatrix, Vec<WeightMatrix>) {
    let values = Random::new(seed).normal(stack * rows * cols);
    let bytes = format.encode(cols, &values);
    let row_bytes = format.row_bytes(cols);
    let whole = WeightMatrix::upload_stack(
        gpu,
        stack,
        (rows, cols),
        (format, order),
        |range, out: &mut [u8]| {
            out.copy_from_slice(&bytes[range.start * row_bytes..range.end * row_bytes]);
            Ok::<_, GpuError>(())
        },
    );
    let one = |number: usize| {
        let of = |first: usize, rows: usize| &bytes[first * row_bytes..(first + rows) * row_bytes];
        let bytes = match order {
            RowOrder::Plain => of(number * rows, rows).to_vec(),
            // All gates come first.
            RowOrder::Paired => {
                let half = rows / 2;
                [of(number * half, half), of((stack + number) * half, half)].concat()
            }
        };
        WeightMatrix::from_bytes(gpu, (rows, cols), (format, order), &bytes).unwrap()
    };
    (whole.unwrap(), (0..stack).map(one).collect())
}

#[test]
fn experts_compute_what_they_would_alone_for_any_tokens_together() {
    let shape = ExpertShape {
        num_experts: 6,
        top_k: 2,
        num_groups: 1,
        top_groups: 1,
        normalized: true,
        scale: 1.0,
    };
    // The third can't bind a stack at once; the next has the kernels of a GPU; the last two do the
    // same with packed dot products.
    let packs = |gpu: Gpu| gpu.with_caps(|caps| caps.with_products(Products::PackedDot));
    let as_gpu = || testing::new_gpu().map(Gpu::with_gpu_kernels);
    let others = [
        testing::small_gpu(40_000),
        as_gpu(),
        testing::small_gpu(40_000).map(packs),
        as_gpu().map(packs),
    ];
    let others = others.into_iter().flatten().map(Err);
    for gpu in testing::both_layouts().map(Ok).chain(others) {
        let gpu: &Gpu = match &gpu {
            Ok(gpu) => gpu,
            Err(gpu) => gpu,
        };
        let others = [Format::F16, Format::Fp8, Format::Q5K, Format::Q6K];
        let formats = [Format::Int4, Format::Int8].into_iter().chain(others);
        let num_formats = if gpu.caps().packs { 2 } else { 6 };
        for format in formats.take(num_formats).filter(|it| *it != Format::Int8 || num_formats == 2)
        {
            let case = Case {
                gate_up: stack(gpu, 6, (2 * WIDTH, HIDDEN), (format, RowOrder::Paired), 1),
                down: stack(gpu, 6, (HIDDEN, WIDTH), (format, RowOrder::Plain), 2),
            };
            let mut random = Random::new(3);
            let (x, norm) = (random.normal(41 * HIDDEN), random.normal(HIDDEN));
            let logits = random.normal(41 * 6);
            let norm = gpu.upload_vec4s(&norm).unwrap();
            for tokens in [0..1, 3..5, 10..22, 0..41] {
                let num_tokens = tokens.len();
                let num_pairs = 2 * num_tokens;
                let x = &x[tokens.start * HIDDEN..tokens.end * HIDDEN];
                let x_tensor = gpu.upload_vec4s(x).unwrap();
                let logits = gpu.upload(&logits[tokens.start * 6..tokens.end * 6]).unwrap();
                let routes = Routes::new(gpu, &shape, num_tokens).unwrap();
                let gated = gpu.alloc_vec4s(num_pairs * WIDTH).unwrap();
                let place = QuantizedRows::new(gpu, num_pairs, HIDDEN).unwrap();
                let quantized = gpu.caps().packs.then_some(&place);
                let given = gpu.alloc_f32(num_pairs * HIDDEN).unwrap();
                let tensors = ExpertTensors {
                    logits: &logits,
                    bias: &gpu.upload(&[0f32; 6]).unwrap(),
                    routes: &routes,
                    given: &given,
                    residual: &x_tensor,
                    out: &gpu.alloc_vec4s(num_tokens * HIDDEN).unwrap(),
                };
                let experts = BoundExperts::new(gpu, shape, HIDDEN, tensors).unwrap();
                let norm = Norm { weight: &norm, eps: 1e-5 };
                let rows = |pairs_per_row| Rows::Routed { routes: &routes, pairs_per_row };
                let gate_up = BoundStacked::new(
                    gpu,
                    Operand { x: &x_tensor, norm: Some(norm), quantized },
                    &case.gate_up.0,
                    rows(2),
                    Output::Swiglu(&gated),
                )
                .unwrap();
                let to = Output::Store(&given);
                let down = BoundStacked::new(
                    gpu,
                    Operand { quantized, ..Operand::from(&gated) },
                    &case.down.0,
                    rows(1),
                    to,
                )
                .unwrap();
                let mut pass = Pass::new();
                let step = experts.record_choice(&mut pass, num_tokens);
                gate_up.record_routed(&mut pass, &step);
                down.record_routed(&mut pass, &step);
                gpu.run(&pass).unwrap();
                let words = gpu.read_u32(routes.tensor()).unwrap();
                let found = gpu.read_f32(&given).unwrap();
                for pair in 0..num_pairs {
                    let expert = words[pair] as usize;
                    let row = &x[pair / 2 * HIDDEN..][..HIDDEN];
                    let alone = alone(gpu, &case, expert, (row, norm));
                    assert_bits_eq(&found[pair * HIDDEN..][..HIDDEN], &alone);
                }
            }
        }
    }
}

/// What one expert gives for one row, by the products of other layers.
fn alone(gpu: &Gpu, case: &Case, expert: usize, (x, norm): (&[f32], Norm<'_>)) -> Vec<f32> {
    let matmul = Matmul::new(gpu);
    let x = gpu.upload_vec4s(x).unwrap();
    let place = QuantizedRows::new(gpu, 1, HIDDEN).unwrap();
    let quantized = Some(&place);
    let gated = gpu.alloc_vec4s(WIDTH).unwrap();
    let given = gpu.alloc_f32(HIDDEN).unwrap();
    let operand = Operand { norm: Some(norm), quantized, x: &x };
    let to = Output::Swiglu(&gated);
    let gate_up = matmul.bind(gpu, operand, &case.gate_up.1[expert], to).unwrap();
    let to = Output::Store(&given);
    let down = matmul
        .bind(gpu, Operand { quantized, ..Operand::from(&gated) }, &case.down.1[expert], to)
        .unwrap();
    let mut pass = Pass::new();
    gate_up.record(&mut pass, 1);
    down.record(&mut pass, 1);
    gpu.run(&pass).unwrap();
    gpu.read_f32(&given).unwrap()
}

#[test]
fn heads_are_multiplied_with_their_own_matrices() {
    // 3 heads of 20 values, of which 12 are multiplied; results of 40 values in rows of 44.
    let (num_heads, cols, rows) = (3, 12, 40);
    for gpu in testing::both_layouts() {
        for format in [Format::F32, Format::Bf16, Format::Int8] {
            let (whole, single) =
                stack(&gpu, num_heads, (rows, cols), (format, RowOrder::Plain), 5);
            let x = Random::new(6).normal(9 * num_heads * 20);
            for num_rows in [1, 2, 9] {
                let x_tensor = gpu.upload_vec4s(&x[..num_rows * num_heads * 20]).unwrap();
                let out = gpu.alloc_vec4s(num_rows * num_heads * 44).unwrap();
                let how = Rows::Heads { x_stride: 20, out_stride: 44 };
                let to = Output::Vec4s(&out);
                let bound =
                    BoundStacked::new(&gpu, Operand::from(&x_tensor), &whole, how, to).unwrap();
                let mut pass = Pass::new();
                bound.record_heads(&mut pass, num_rows);
                gpu.run(&pass).unwrap();
                let found = gpu.read_f32(&out).unwrap();
                let matmul = Matmul::of(&gpu, Products::Plain);
                for pair in 0..num_rows * num_heads {
                    let row = gpu.upload_vec4s(&x[pair * 20..][..cols]).unwrap();
                    let one = gpu.alloc_vec4s(rows).unwrap();
                    let matrix = &single[pair % num_heads];
                    let to = Output::Vec4s(&one);
                    let bound = matmul.bind(&gpu, Operand::from(&row), matrix, to).unwrap();
                    let mut pass = Pass::new();
                    bound.record_step(
                        &mut pass,
                        StepShape { num_tokens: 1, ..StepShape::default() },
                    );
                    gpu.run(&pass).unwrap();
                    assert_bits_eq(&found[pair * 44..][..rows], &gpu.read_f32(&one).unwrap());
                    assert_eq!(found[pair * 44 + rows..][..4], [0.0; 4]);
                }
            }
        }
    }
}

/// As those of a batch of 8,192 tokens are of 128 heads. Method: they are computed in two halves
/// that a grid has room for, too.
#[test]
fn there_may_be_more_parts_than_a_grid_has() {
    let Some(gpu) = testing::gpu() else { return };
    let (num_heads, num_rows) = (128, 8200);
    let (weights, _) = stack(&gpu, num_heads, (4, 4), (Format::F32, RowOrder::Plain), 7);
    let x = Random::new(8).normal(num_rows * num_heads * 4);
    let product = |x: &[f32]| {
        let (x, out) = (gpu.upload_vec4s(x).unwrap(), gpu.alloc_vec4s(x.len()).unwrap());
        let (how, to) = (Rows::Heads { x_stride: 4, out_stride: 4 }, Output::Vec4s(&out));
        let bound = BoundStacked::new(&gpu, Operand::from(&x), &weights, how, to).unwrap();
        let mut pass = Pass::new();
        bound.record_heads(&mut pass, x.len() / num_heads / 4);
        gpu.run(&pass).unwrap();
        (gpu.read_f32(&out).unwrap(), pass.dispatches().len())
    };
    let (whole, num_dispatches) = product(&x);
    assert!(num_dispatches > 1, "there are too few parts");
    let halves = x.chunks(x.len() / 2).flat_map(|half| product(half).0).collect::<Vec<_>>();
    assert_bits_eq(&whole, &halves);
}
