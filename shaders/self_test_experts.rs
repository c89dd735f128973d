//! The class of a device for layers with experts: a few small experts, computed for all tokens at
//! once and for some alone, as the self-test of other layers does.

use std::ops::Range;

use crate::error::GpuError;
use crate::experts::{self, BoundExperts, ExpertShape, ExpertTensors, Routes};
use crate::gpu::{Caps, Gpu};
use crate::kernel::{KernelSource, Pass};
use crate::matmul::{Norm, Operand, Output};
use crate::matmul_class::Class;
use crate::matmul_stacked::{self, BoundStacked, Rows};
use crate::matmul_variant::{Form, Kind, Stacked};
use crate::quantize_rows::{self, QuantizedRows};
use crate::self_test::{Numbers, check_near, class_of, name_of};
use crate::tensor::Tensor;
use crate::weights::{Format, RowOrder, WeightMatrix};

const NUM_TOKENS: usize = 35;
const HIDDEN_SIZE: usize = 324;
const WIDTH: usize = 100;
/// No more, of however many a model has: what differs is in the text of the kernels.
const MAX_EXPERTS: usize = 8;
const MAX_TOP_K: usize = 3;

/// The test of experts with weights of one format, whose kernels may be compiled with others before
/// it runs.
pub struct ExpertTest {
    name: [u8; 32],
    shape: ExpertShape,
    x: Tensor,
    logits: Tensor,
    out: Tensor,
    experts: BoundExperts,
    products: [BoundStacked; 2],
    /// In f32, where those are packed dot products.
    plain: Option<[BoundStacked; 2]>,
    all_x: Vec<f32>,
    all_logits: Vec<f32>,
}

impl ExpertTest {
    /// Of experts that are chosen like this.
    ///
    /// # Errors
    /// When the device fails.
    pub fn new(gpu: &Gpu, format: Format, of: ExpertShape) -> Result<Self, GpuError> {
        let name = name_of(gpu, &sources(gpu.caps(), format, &of));
        let num_experts = of.num_experts.min(MAX_EXPERTS);
        let top_k = of.top_k.min(MAX_TOP_K).min(num_experts);
        let shape = ExpertShape { num_experts, top_k, num_groups: 1, top_groups: 1, ..of };
        let mut numbers = Numbers(2);
        let mut stack = |rows, cols: usize, order| {
            let row_bytes = format.row_bytes(cols);
            let bytes = format.encode(cols, &numbers.take(num_experts * rows * cols));
            WeightMatrix::upload_stack(
                gpu,
                num_experts,
                (rows, cols),
                (format, order),
                |range, target: &mut [u8]| {
                    let range = range.start * row_bytes..range.end * row_bytes;
                    target.copy_from_slice(&bytes[range]);
                    Ok::<_, GpuError>(())
                },
            )
        };
        let gate_up = stack(2 * WIDTH, HIDDEN_SIZE, RowOrder::Paired)?;
        let down = stack(HIDDEN_SIZE, WIDTH, RowOrder::Plain)?;
        let norm = gpu.upload_vec4s(&numbers.take(HIDDEN_SIZE))?;
        let bias = gpu.upload(&numbers.take(num_experts))?;
        let all_x = numbers.take(NUM_TOKENS * HIDDEN_SIZE);
        let all_logits = numbers.take(NUM_TOKENS * num_experts);

        let x = gpu.alloc_vec4s(all_x.len())?;
        let logits = gpu.alloc_f32(all_logits.len())?;
        let routes = Routes::new(gpu, &shape, NUM_TOKENS)?;
        let gated = gpu.alloc_vec4s(NUM_TOKENS * top_k * WIDTH)?;
        let given = gpu.alloc_f32(NUM_TOKENS * top_k * HIDDEN_SIZE)?;
        let out = gpu.alloc_vec4s(all_x.len())?;
        let tensors = ExpertTensors {
            logits: &logits,
            bias: &bias,
            routes: &routes,
            given: &given,
            residual: &x,
            out: &out,
        };
        let rows = |pairs_per_row| Rows::Routed { routes: &routes, pairs_per_row };
        let norm = Some(Norm { weight: &norm, eps: 1e-5 });
        let place = QuantizedRows::new(gpu, NUM_TOKENS * top_k, HIDDEN_SIZE)?;
        let products = |quantized| -> Result<_, GpuError> {
            let normed = Operand { x: &x, norm, quantized };
            let plain = Operand { x: &gated, norm: None, quantized };
            let (gates, stored) = (Output::Swiglu(&gated), Output::Store(&given));
            Ok([
                BoundStacked::new(gpu, normed, &gate_up, rows(top_k), gates)?,
                BoundStacked::new(gpu, plain, &down, rows(1), stored)?,
            ])
        };
        let packs = matmul_stacked::packs(gpu.caps(), format);
        Ok(Self {
            name,
            experts: BoundExperts::new(gpu, shape, HIDDEN_SIZE, tensors)?,
            products: products(Some(&place))?,
            plain: packs.then(|| products(None)).transpose()?,
            shape,
            x,
            logits,
            out,
            all_x,
            all_logits,
        })
    }

    /// The class of this device for such experts.
    ///
    /// # Errors
    /// If a row depends on its batch here, which no device should do.
    pub fn run(self, gpu: &Gpu) -> Result<[u8; 32], GpuError> {
        let together = self.compute(gpu, &self.products, 0..NUM_TOKENS)?;
        if let Some(plain) = &self.plain {
            check_near(gpu, true, &together, &self.compute(gpu, plain, 0..NUM_TOKENS)?)?;
        }
        let row_bytes = together.len() / NUM_TOKENS;
        let mut first = 0;
        for num_tokens in [1, 2, 5, 20] {
            let rows = self.compute(gpu, &self.products, first..first + num_tokens)?;
            if rows != together[first * row_bytes..][..num_tokens * row_bytes] {
                return Err(GpuError::Failed(format!(
                    "{} computes experts differently in another batch",
                    gpu.info().name
                )));
            }
            first += num_tokens;
        }
        Ok(class_of(&self.name, &together))
    }

    fn compute(
        &self,
        gpu: &Gpu,
        products: &[BoundStacked; 2],
        tokens: Range<usize>,
    ) -> Result<Vec<u8>, GpuError> {
        let rows =
            |all: &[f32], width: usize| all[tokens.start * width..tokens.end * width].to_vec();
        gpu.write(&self.x, 0, &rows(&self.all_x, HIDDEN_SIZE));
        gpu.write(&self.logits, 0, &rows(&self.all_logits, self.shape.num_experts));
        let mut pass = Pass::new();
        let step = self.experts.record_choice(&mut pass, tokens.len());
        products.iter().for_each(|product| product.record_routed(&mut pass, &step));
        self.experts.record_sum(&mut pass, &step);
        let out = (&self.out, 0..tokens.len() * HIDDEN_SIZE);
        gpu.wait(gpu.submit(&pass, Some(out))?, <[u8]>::to_vec)
    }
}

/// The kernels of layers with experts, as this device runs them.
fn sources(caps: Caps, format: Format, shape: &ExpertShape) -> Vec<KernelSource> {
    let mut sources = vec![
        experts::route_source(caps, shape),
        experts::sort_source(caps, true),
        experts::sort_source(caps, false),
        experts::sum_source(caps.images),
    ];
    let packs = matmul_stacked::packs(caps, format);
    let class = Class::stacked(caps, format, packs);
    for (kind, norm) in [(Kind::Swiglu, true), (Kind::Store, false)] {
        if packs {
            sources.push(quantize_rows::source(class.order.norm_lanes, norm, caps.images));
        }
        let norm = norm && !packs;
        let form = (Form { format, norm, kind }, Stacked::Routed);
        let of = class.variants.iter();
        sources.extend(of.map(|it| it.stacked_source(form, class.order, caps.images)));
    }
    sources
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::products::Products;
    use crate::testing;

    #[test]
    fn a_class_of_experts_is_stable_and_knows_how_they_are_chosen() {
        let Some(gpu) = testing::gpu() else { return };
        let shape = ExpertShape {
            num_experts: 160,
            top_k: 8,
            num_groups: 1,
            top_groups: 1,
            normalized: true,
            scale: 2.5,
        };
        let class =
            |format, shape| ExpertTest::new(&gpu, format, shape).unwrap().run(&gpu).unwrap();
        assert_eq!(class(Format::Bf16, shape), class(Format::Bf16, shape));
        assert_ne!(class(Format::Bf16, shape), class(Format::Int4, shape));
        // By packed dot products integers have another, and no others have.
        let caps = |caps: Caps| caps.with_products(Products::PackedDot);
        let Some(packed) = testing::new_gpu().map(|gpu| gpu.with_caps(caps)) else { return };
        let of = |format| ExpertTest::new(&packed, format, shape).unwrap().run(&packed).unwrap();
        assert_ne!(of(Format::Int4), class(Format::Int4, shape));
        assert_eq!(of(Format::Bf16), class(Format::Bf16, shape));
        let groups = ExpertShape { num_groups: 4, top_groups: 2, ..shape };
        assert_ne!(class(Format::Bf16, shape), class(Format::Bf16, groups));
    }
}
