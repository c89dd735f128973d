//! Products of activations with weight matrices, with what stands before and after them: where the
//! time of a model goes, and where row invariance is decided.
//!
//! A layer is four products and attention. What comes between them is done on the way in and out of
//! a product, since every dispatch costs: the norm of its activations, the bias, rotary positions
//! and KV cache, the gate of the feed-forward layer, the residual stream.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};

use bytemuck::{Pod, Zeroable};

use crate::error::GpuError;
use crate::gpu::Gpu;
use crate::inputs::{Inputs, StepShape};
use crate::kernel::Kernel;
use crate::kv_cache::KvCache;
use crate::matmul_aside::{BoundScales, BoundSums, MAX_PARTS, Room, num_parts};
pub use crate::matmul_bound::BoundMatmul;
use crate::matmul_bound::{BoundPart, BoundShard, Way};
use crate::matmul_class::Class;
use crate::matmul_variant::{Aside, Form, Kind, Order, Variant};
pub use crate::products::Products;
use crate::quantize_rows::{self, QuantizeRows, QuantizedRows};
use crate::rotary::Rotary;
use crate::tensor::Tensor;
use crate::weights::{Format, RowOrder, Shard, WeightMatrix};

/// How a kernel of products reads its operands: `Params`, bindings and loads, to append to it.
pub(crate) const INPUTS: &str = include_str!("matmul_in.wgsl");

/// The parameters of kernels with [`INPUTS`].
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, Pod, Zeroable)]
pub(crate) struct Params {
    /// Rows of x.
    pub num_rows: u32,
    num_columns: u32,
    first_column: u32,
    pub(crate) num_computed: u32,
    row_vec4s: u32,
    num_blocks: u32,
    eps: f32,
    tables_at: u32,
    num_heads: u32,
    num_kv_heads: u32,
    head_vec4s: u32,
    rotary_vec4s: u32,
    has_bias: u32,
}

impl Params {
    /// Of a product with `weights`: no columns of it yet, and no rows.
    pub(crate) fn new(weights: &WeightMatrix) -> Self {
        Self {
            num_columns: weights.rows as u32,
            row_vec4s: (weights.cols / 4) as u32,
            num_blocks: weights.num_blocks() as u32,
            ..Self::default()
        }
    }

    /// Of rows that are normalised with this epsilon, and of all columns of a matrix of a stack.
    #[must_use]
    pub(crate) fn with_norm(self, eps: f32) -> Self {
        Self { eps, num_computed: self.num_columns, ..self }
    }

    /// With so many rows.
    #[must_use]
    pub(crate) fn of_rows(self, num_rows: usize) -> Self {
        Self { num_rows: num_rows as u32, ..self }
    }

    /// Of the sums of so many chunks of k.
    #[must_use]
    pub(crate) fn of_chunks(self, num_chunks: u32) -> Self {
        Self { num_blocks: num_chunks, ..self }
    }

    /// With the block tables of a step.
    #[must_use]
    pub(crate) fn with_tables(self, tables_at: u32) -> Self {
        Self { tables_at, ..self }
    }

    /// With the columns that a shard of the weights computes.
    #[must_use]
    pub(crate) fn of_shard(self, shard: &Shard) -> Self {
        Self {
            first_column: shard.rows.start as u32,
            num_computed: shard.rows.len() as u32,
            ..self
        }
    }
}

/// What is multiplied.
#[derive(Clone, Copy)]
pub struct Operand<'a> {
    /// [num_rows, weights.cols], vec4s
    pub x: &'a Tensor,
    /// The norm that it goes through first.
    pub norm: Option<Norm<'a>>,
    /// Where it waits in bytes, where the product takes it so ([`Matmul::quantizes`]).
    pub quantized: Option<&'a QuantizedRows>,
}

impl<'a> From<&'a Tensor> for Operand<'a> {
    fn from(x: &'a Tensor) -> Self {
        Self { x, norm: None, quantized: None }
    }
}

/// RMS normalisation of each row: `x / sqrt(mean(x^2) + eps) * weight`.
#[derive(Clone, Copy)]
pub struct Norm<'a> {
    /// `[weights.cols]`, vec4s
    pub weight: &'a Tensor,
    /// Added to the mean of squares.
    pub eps: f32,
}

/// What becomes of a product.
#[derive(Clone, Copy)]
pub enum Output<'a> {
    /// `out = product`. [num_rows, weights.rows]
    Store(&'a Tensor),
    /// The same, into a tensor that kernels take four values at a time.
    Vec4s(&'a Tensor),
    /// `out = residual + product`: the residual stream, from one tensor to another.
    /// [num_rows, weights.rows], vec4s
    Residual {
        /// The stream so far.
        residual: &'a Tensor,
        /// Where it goes.
        out: &'a Tensor,
    },
    /// `out = silu(gate) * up`, of weights in [`RowOrder::Paired`]. [num_rows, weights.rows / 2],
    /// vec4s
    Swiglu(&'a Tensor),
    /// Queries, keys and values: the first two rotated, the last two to the cache. Attention of the
    /// same layer and step follows.
    Qkv(Qkv<'a>),
}

/// Where queries, keys and values go.
#[derive(Clone, Copy)]
pub struct Qkv<'a> {
    /// Added to the product. `[weights.rows]`, vec4s
    pub bias: Option<&'a Tensor>,
    /// Positions and block tables.
    pub inputs: &'a Inputs,
    /// Angles.
    pub rotary: &'a Rotary,
    /// The layer's cache.
    pub cache: &'a KvCache,
    /// [num_rows, num_heads, head_dim], vec4s
    pub queries: &'a Tensor,
}

impl Output<'_> {
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::Store(_) => Kind::Store,
            Self::Vec4s(_) => Kind::Vec4s,
            Self::Residual { .. } => Kind::Residual,
            Self::Swiglu(_) => Kind::Swiglu,
            Self::Qkv(qkv) => Kind::Qkv(qkv.cache.format),
        }
    }
}

/// The compiled kernels, compiled when first bound.
pub struct Matmul {
    /// By format of weights.
    class: Box<dyn Fn(Format) -> Class + Send>,
    quantize_rows: QuantizeRows,
    kernels: RefCell<HashMap<(Form, Variant), Kernel>>,
    room: Room,
}

impl Matmul {
    /// The variants for this adapter. Where there is a choice, it is made for each shape when it is
    /// bound, by trying, if the adapter was opened with a place to keep what was found.
    pub fn new(gpu: &Gpu) -> Self {
        Self::of(gpu, gpu.caps().products)
    }

    /// Those for products that are computed so, for tools; plain ones if the adapter wasn't opened
    /// for those by cooperative matrices.
    pub fn of(gpu: &Gpu, products: Products) -> Self {
        let caps = gpu.caps().with_products(products);
        let norm_lanes = Class::choose(caps, Format::Int8).order.norm_lanes;
        Self::by_format(norm_lanes, move |format| Class::choose(caps, format))
    }

    /// Those of one class, for whatever weights.
    pub(crate) fn with_class(class: Class) -> Self {
        let norm_lanes = class.order.norm_lanes;
        Self::by_format(norm_lanes, move |_| class.clone())
    }

    fn by_format(norm_lanes: u32, class: impl Fn(Format) -> Class + Send + 'static) -> Self {
        Self {
            class: Box::new(class),
            quantize_rows: QuantizeRows::new(norm_lanes),
            kernels: RefCell::default(),
            room: Room::default(),
        }
    }

    /// Bytes that products of so many rows take beside their tensors.
    pub fn num_bytes(gpu: &Gpu, max_rows: usize) -> u64 {
        let parts = if gpu.caps().is_cpu { 0 } else { MAX_PARTS };
        4 * (max_rows + parts) as u64
    }

    /// Whether activations are rounded to eight bits before products with such weights.
    pub fn quantizes(&self, format: Format) -> bool {
        (self.class)(format).is_packed()
    }

    /// `product[t, n] = sum over k of x[t, k] * weights[n, k]`, and what becomes of it.
    pub fn bind(
        &self,
        gpu: &Gpu,
        operand: Operand<'_>,
        weights: &WeightMatrix,
        output: Output<'_>,
    ) -> Result<BoundMatmul, GpuError> {
        let kind = output.kind();
        assert_eq!(
            weights.order == RowOrder::Paired,
            kind == Kind::Swiglu,
            "gate and up are paired for their kernel"
        );
        assert_eq!(weights.stack, 1, "a stack of matrices has a kernel of its own");
        let mut parts = Vec::new();
        let mut is_quantized = false;
        for weights in weights.by_format() {
            let mut part = self.bind_part(gpu, operand, &weights, output)?;
            // Once is enough.
            part.before = part.before.filter(|_| !std::mem::replace(&mut is_quantized, true));
            parts.push(part);
        }
        Ok(BoundMatmul { parts })
    }

    /// The rows of one format.
    fn bind_part(
        &self,
        gpu: &Gpu,
        operand: Operand<'_>,
        weights: &WeightMatrix,
        output: Output<'_>,
    ) -> Result<BoundPart, GpuError> {
        let kind = output.kind();
        let Operand { mut x, mut norm, quantized } = operand;
        assert!(norm.is_none_or(|norm| norm.weight.len() == weights.cols), "a weight per value");
        let class = (self.class)(weights.format);
        let mut rows_of_x = x.len() / weights.cols;
        let mut row_vec4s = weights.cols / 4;
        let mut before = None;
        if class.is_packed() {
            let packed = quantized.expect("x in bytes has a place");
            before = Some(self.quantize_rows.bind(gpu, operand, weights.cols, packed)?);
            rows_of_x = rows_of_x.min(packed.max_rows(weights.cols));
            row_vec4s = quantize_rows::row_words(weights.cols) / 4;
            (x, norm) = (packed.tensor(), None);
        }
        let form = Form { format: weights.format, norm: norm.is_some(), kind };
        let eps = norm.map_or(0.0, |norm| norm.eps);
        let mut common = Params { eps, row_vec4s: row_vec4s as u32, ..Params::new(weights) };
        let (tensors, max_rows) = match output {
            Output::Store(out) | Output::Vec4s(out) => (vec![out], out.len() / weights.rows),
            Output::Residual { residual, out } => {
                (vec![out, residual], out.len().min(residual.len()) / weights.rows)
            }
            Output::Swiglu(out) => (vec![out], 2 * out.len() / weights.rows),
            Output::Qkv(Qkv { bias, inputs, rotary, cache, queries }) => {
                let shape = cache.shape;
                assert_eq!(shape.qkv_size(), weights.rows, "queries, keys and values of all heads");
                assert!(bias.is_none_or(|bias| bias.len() == weights.rows), "a bias per column");
                assert!(rotary.rotary_dim <= shape.head_dim, "no more is rotated than there is");
                assert!(
                    inputs.limits().max_positions <= rotary.max_positions,
                    "every position has its angles"
                );
                common.num_heads = shape.num_heads as u32;
                common.num_kv_heads = shape.num_kv_heads as u32;
                common.head_vec4s = shape.head_vec4s() as u32;
                common.rotary_vec4s = (rotary.rotary_dim / 4) as u32;
                common.has_bias = bias.is_some().into();
                // A binding can't be empty, though without a bias it isn't read.
                let bias = bias.unwrap_or(&rotary.cos_sin);
                let (keys, values) = (&cache.keys, &cache.values);
                (
                    vec![queries, &inputs.tensor, bias, &rotary.cos_sin, keys, values],
                    (queries.len() / shape.q_size()).min(inputs.limits().max_tokens),
                )
            }
        };
        let whole = kind == Kind::Store || weights.rows.is_multiple_of(kind.unit() as usize);
        assert!(whole, "results are whole vec4s");
        let max_rows = max_rows.min(rows_of_x);
        let num_chunks = weights.cols.div_ceil(CHUNK as usize);
        let bind = |variant: Variant| -> Result<Way, GpuError> {
            let kernel = self.compiled(gpu, form, (variant, class.order))?;
            let name = format!("{} k{} n{}", kernel.name(), weights.cols, weights.rows);
            let apart = norm.filter(|_| variant.aside != Aside::Nothing).map(|norm| {
                let (lanes, rows) = (class.order.norm_lanes, (max_rows, weights.cols));
                BoundScales::new(gpu, lanes, (x, norm), rows, &self.room)
            });
            let scales = apart.transpose()?;
            let parts = variant.is_cut().then(|| {
                let num_parts = num_parts(variant.max_rows.min(max_rows), weights.rows, num_chunks);
                assert!(num_parts <= MAX_PARTS, "the sums of chunks fit their room");
                self.room.parts(gpu)
            });
            let parts = parts.transpose()?;
            let mut shards = Vec::new();
            for shard in &weights.shards {
                let params = common.of_shard(shard);
                let before = [Some(x), Some(&shard.blocks), shard.scales.as_ref()];
                let after = parts.as_ref().map_or_else(|| tensors.clone(), |parts| vec![parts]);
                let last = [norm.map(|norm| norm.weight), scales.as_ref().map(|it| &it.scales)];
                let all = before.into_iter().flatten().chain(after);
                let all: Vec<_> = all.chain(last.into_iter().flatten()).collect();
                let sums = parts
                    .as_ref()
                    .map(|parts| BoundSums::new(gpu, kind, num_chunks as u32, (parts, &tensors)));
                let (bound, sums) = (kernel.bind(gpu, &all)?.named(&name), sums.transpose()?);
                shards.push(BoundShard { bound, sums, params });
            }
            Ok(Way { variant, scales, num_chunks: num_chunks as u32, shards })
        };
        let mut chosen = BoundPart { before, ways: Vec::new(), max_rows };
        for ways in class.choices() {
            let (k, n) = (weights.cols, weights.rows);
            // A class without a choice, of a test, has it anyway.
            let suits = |way: &&Variant| ways.len() == 1 || way.suits(max_rows, n, num_chunks);
            let ways: Vec<_> = ways.iter().filter(suits).collect();
            // What is fastest for many rows hangs little on how many they are.
            let (num_rows, rows) = match ways[0].max_rows {
                usize::MAX => (TRIED_ROWS.min(max_rows), "many rows".to_owned()),
                most => (most.min(max_rows), format!("{most} rows")),
            };
            let what = format!("matmul {}{} k{k} n{n} {rows}", form.name(), class.how());
            let names: Vec<_> = ways.iter().map(|way| way.name()).collect();
            let names: Vec<_> = names.iter().map(String::as_str).collect();
            if gpu.tuning.tries(&what, &names) {
                // Side by side: one after another, as they are tried, takes most of a first start.
                for way in &ways {
                    self.compiled(gpu, form, (**way, class.order))?;
                }
                gpu.compile(&mut |_, _| ())?;
            }
            let way = gpu.tuning.choose(&what, &names, |way| {
                let way = BoundPart { before: None, ways: vec![bind(*ways[way])?], max_rows };
                let step = StepShape { num_tokens: num_rows, ..StepShape::default() };
                gpu.time(|pass| way.record_step(pass, step))
            })?;
            chosen.ways.push(bind(*ways[way])?);
            if max_rows <= ways[0].max_rows {
                break;
            }
        }
        Ok(chosen)
    }

    /// A number of rows for each variant that computes it: a driver compiles a kernel when it first
    /// runs.
    pub fn batch_sizes(&self) -> BTreeSet<usize> {
        let mut sizes = BTreeSet::new();
        for class in Format::ALL.map(&self.class) {
            let mut least = 1;
            for ways in class.choices() {
                sizes.insert(least);
                least = ways[0].max_rows.saturating_add(1);
            }
        }
        sizes
    }

    fn compiled(
        &self,
        gpu: &Gpu,
        form: Form,
        (variant, order): (Variant, Order),
    ) -> Result<Kernel, GpuError> {
        if let Some(kernel) = self.kernels.borrow().get(&(form, variant)) {
            return Ok(kernel.clone());
        }
        let source = variant.source(form, order, gpu.caps().images);
        let kernel = Kernel::new(gpu, &source)?;
        self.kernels.borrow_mut().insert((form, variant), kernel.clone());
        Ok(kernel)
    }
}

/// Rows with which ways of computing many are compared.
const TRIED_ROWS: usize = 64;

/// Values of k whose sums are added before those of the next, in classes that cut k. Part of what
/// defines the bits of their results.
pub(crate) const CHUNK: u32 = 256;

/// A product, in the order of additions of the classes that cut k.
///
/// * `x`: [num_rows, cols]
/// * `weights`: [rows, cols]
pub fn reference(cols: usize, x: &[f32], weights: &[f32]) -> Vec<f32> {
    let mut out = Vec::new();
    for row in x.chunks_exact(cols) {
        for weights in weights.chunks_exact(cols) {
            let mut total = 0.0;
            for (x, weights) in row.chunks(CHUNK as usize).zip(weights.chunks(CHUNK as usize)) {
                total += x
                    .iter()
                    .zip(weights)
                    .fold(0.0, |sum: f32, (x, weight)| weight.mul_add(*x, sum));
            }
            out.push(total);
        }
    }
    out
}

/// What [`Output::Swiglu`] makes of a product whose columns are all of gate, then all of up.
///
/// * `gate_up`: [num_tokens, 2 * width]
pub fn swiglu_reference(width: usize, gate_up: &[f32]) -> Vec<f32> {
    gate_up
        .chunks_exact(2 * width)
        .flat_map(|row| {
            let (gate, up) = row.split_at(width);
            gate.iter().zip(up).map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up)
        })
        .collect()
}

#[cfg(test)]
#[path = "matmul_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "matmul_qkv_tests.rs"]
mod qkv_tests;

#[cfg(test)]
#[path = "matmul_packed_tests.rs"]
mod packed_tests;

#[cfg(test)]
#[path = "matmul_cooperative_tests.rs"]
mod cooperative_tests;
