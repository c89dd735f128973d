//! Products with stacks of matrices, of which each row has its own: experts, and heads.
//!
//! A row of the result belongs to a pair: a row of x, and a matrix of the stack. Pairs of one
//! matrix share its reading, as many at a time as a variant has rows; each is summed as every row
//! of a product is, so that its bits don't depend on who shares.

use bytemuck::{Pod, Zeroable};

use crate::error::GpuError;
use crate::experts::{RouteShape, Routes};
use crate::gpu::{Caps, Gpu};
use crate::kernel::{Bound, Kernel, Pass};
use crate::matmul::{Operand, Output, Params};
use crate::matmul_class::Class;
use crate::matmul_variant::{Form, Kind, Stacked, Variant};
use crate::quantize_rows::{self, BoundQuantizeRows, QuantizeRows};
use crate::weights::{Format, RowOrder, TILE, WeightMatrix};

/// The parameters of a product with a stack.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, Pod, Zeroable)]
pub(crate) struct StackedParams {
    product: Params,
    num_matrices: u32,
    matrix_tiles: u32,
    first_tile: u32,
    num_tiles: u32,
    pairs_per_row: u32,
    x_stride: u32,
    out_values: u32,
    chosen_at: u32,
    sorted_at: u32,
    parts_at: u32,
    first_part: u32,
}

/// Which rows of x go with which matrices.
#[derive(Clone, Copy)]
pub enum Rows<'a> {
    /// Each with those that were chosen for it.
    Routed {
        /// What was chosen.
        routes: &'a Routes,
        /// Matrices of a row of x, whose results are neighbours: those of a token where all of
        /// them take the token's row, 1 where each has one of its own.
        pairs_per_row: usize,
    },
    /// Each row is in as many parts as there are matrices: part h is multiplied with matrix h.
    Heads {
        /// Values from one part of x to the next, of which the first are multiplied.
        x_stride: usize,
        /// Values from one part of the result to the next, of which the first are stored.
        out_stride: usize,
    },
}

/// Whether routed rows are multiplied with such weights by packed dot products, where they have a
/// place in bytes.
pub(crate) fn packs(caps: Caps, format: Format) -> bool {
    caps.packs && format.is_integer()
}

/// A product with a stack, bound to its tensors.
pub struct BoundStacked {
    /// What quantises x, and how many pairs a row of it has.
    before: Option<(BoundQuantizeRows, usize)>,
    /// By rows of a workgroup, ascending; the kernel bound to each shard.
    variants: Vec<(Variant, Vec<(Bound, StackedParams)>)>,
    max_pairs: usize,
}

impl BoundStacked {
    /// `y[pair, n] = sum over k of x[row of the pair, k] * weights[matrix of the pair, n, k]`, and
    /// what becomes of it: stored, as it is or gated.
    ///
    /// # Errors
    /// When the device fails.
    pub fn new(
        gpu: &Gpu,
        operand: Operand<'_>,
        weights: &WeightMatrix,
        rows: Rows<'_>,
        output: Output<'_>,
    ) -> Result<Self, GpuError> {
        let kind = output.kind();
        assert_eq!(
            weights.order == RowOrder::Paired,
            kind == Kind::Swiglu,
            "gate and up are paired for their kernel"
        );
        let (Output::Store(out) | Output::Vec4s(out) | Output::Swiglu(out)) = output else {
            panic!("pairs are stored")
        };
        let Operand { mut x, mut norm, quantized } = operand;
        assert!(norm.is_none_or(|norm| norm.weight.len() == weights.cols), "a weight per value");
        let (stacked, pairs_per_row, x_stride, out_values) = match rows {
            Rows::Routed { pairs_per_row, .. } => {
                (Stacked::Routed, pairs_per_row, weights.cols, weights.rows)
            }
            Rows::Heads { x_stride, out_stride } => (Stacked::Heads, 1, x_stride, out_stride),
        };
        assert!(x_stride >= weights.cols && x_stride.is_multiple_of(4), "a part holds its values");
        let mut rows_of_x = x.len() / x_stride;
        let (eps, mut x_vec4s) = (norm.map_or(0.0, |norm| norm.eps), x_stride / 4);
        let packs = packs(gpu.caps(), weights.format) && stacked == Stacked::Routed;
        let quantized = quantized.filter(|_| packs);
        let class = Class::stacked(gpu.caps(), weights.format, quantized.is_some());
        let mut before = None;
        if let Some(quantized) = quantized {
            let kernels = QuantizeRows::new(class.order.norm_lanes);
            before = Some((kernels.bind(gpu, operand, weights.cols, quantized)?, pairs_per_row));
            rows_of_x = rows_of_x.min(quantized.max_rows(weights.cols));
            x_vec4s = quantize_rows::row_words(weights.cols) / 4;
            (x, norm) = (quantized.tensor(), None);
        }
        let form = Form { format: weights.format, norm: norm.is_some(), kind };
        let matrix_tiles = weights.rows.div_ceil(TILE);
        let common = StackedParams {
            product: Params::new(weights).with_norm(eps),
            num_matrices: weights.stack as u32,
            matrix_tiles: matrix_tiles as u32,
            pairs_per_row: pairs_per_row as u32,
            x_stride: x_vec4s as u32,
            out_values: out_values as u32,
            ..StackedParams::default()
        };
        let mut variants = Vec::new();
        for variant in class.variants {
            let source = variant.stacked_source((form, stacked), class.order, gpu.caps().images);
            let kernel = Kernel::new(gpu, &source)?;
            let name = format!("{} k{} n{}", kernel.name(), weights.cols, weights.rows);
            let mut shards = Vec::new();
            for shard in &weights.shards {
                let params = StackedParams {
                    first_tile: (shard.rows.start / TILE) as u32,
                    num_tiles: shard.rows.len().div_ceil(TILE) as u32,
                    ..common
                };
                let routes = match rows {
                    Rows::Routed { routes, .. } => Some(routes.tensor()),
                    Rows::Heads { .. } => None,
                };
                let all = [Some(x), Some(&shard.blocks), shard.scales.as_ref(), Some(out)];
                let last = [norm.map(|norm| norm.weight), routes];
                let all: Vec<_> = all.into_iter().chain(last).flatten().collect();
                shards.push((kernel.bind(gpu, &all)?.named(&name), params));
            }
            variants.push((variant, shards));
        }
        let out_row = if kind == Kind::Swiglu { weights.rows / 2 } else { out_values };
        let max_pairs = (out.len() / out_row).min(rows_of_x * pairs_per_row);
        Ok(Self { before, variants, max_pairs })
    }

    /// Multiplies the pairs that were chosen for a step.
    pub fn record_routed(&self, pass: &mut Pass, step: &RouteShape) {
        assert!(step.num_pairs() <= self.max_pairs, "a batch fits the tensors of its stage");
        let rows_of_part = step.rows_of_part;
        let found = self.variants.iter().find(|(variant, _)| variant.rows() == rows_of_part);
        let (variant, shards) = found.expect("all products have parts of the same sizes");
        if let Some((before, pairs_per_row)) = &self.before {
            before.record(pass, step.num_pairs() / pairs_per_row);
        }
        for (bound, params) in shards {
            let params = StackedParams {
                chosen_at: step.chosen_at(),
                sorted_at: step.sorted_at(),
                parts_at: step.parts_at(),
                ..*params
            };
            let strips = params.matrix_tiles * variant.strips();
            let of = |first_part| StackedParams { first_part, ..params };
            pass.dispatch_rows(bound, [strips, step.num_parts()], of);
        }
    }

    /// Multiplies the parts of the first `num_rows` rows, each with its matrix.
    pub fn record_heads(&self, pass: &mut Pass, num_rows: usize) {
        let of_rows = |(variant, _): &&(Variant, _)| num_rows <= variant.max_rows;
        let found = self.variants.iter().find(of_rows).or(self.variants.last());
        let Some((variant, shards)) = found else { return };
        for (bound, params) in shards {
            let product = params.product.of_rows(num_rows);
            let params = StackedParams { product, ..*params };
            let num_matrices = params.num_matrices;
            assert!(num_rows * num_matrices as usize <= self.max_pairs, "a batch fits its stage");
            let strips = params.matrix_tiles * variant.strips();
            let num_parts = (num_rows as u32).div_ceil(variant.rows()) * num_matrices;
            let of = |first_part| StackedParams { first_part, ..params };
            pass.dispatch_rows(bound, [strips, num_parts], of);
        }
    }
}

#[cfg(test)]
#[path = "matmul_stacked_tests.rs"]
mod tests;
