//! Products of activations with weight matrices, with what stands before and after them: where the
//! time of a model goes, and where row invariance is decided.
//!
//! A layer is four products and attention. What comes between them is done on the way in and out of
//! a product, since every dispatch costs: the norm of its activations, the bias, rotary positions
//! and KV cache, the gate of the feed-forward layer, the residual stream.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

use crate::error::GpuError;
use crate::gpu::{Caps, Gpu};
use crate::inputs::{BLOCK_TOKENS, Inputs, StepShape};
use crate::kernel::{Access, Bound, Kernel, KernelSource, Pass};
use crate::kv_cache::KvCache;
use crate::rotary::Rotary;
use crate::template::expand_vec4s;
use crate::tensor::Tensor;
use crate::weights::{Format, RowOrder, TILE, WeightMatrix};

/// The parameters of `matmul.wgsl`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, Pod, Zeroable)]
struct Params {
    num_rows: u32,
    num_columns: u32,
    first_column: u32,
    num_computed: u32,
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

/// What is multiplied.
#[derive(Clone, Copy)]
pub struct Operand<'a> {
    /// [num_rows, weights.cols], vec4s
    pub x: &'a Tensor,
    /// The norm that it goes through first.
    pub norm: Option<Norm<'a>>,
}

impl<'a> From<&'a Tensor> for Operand<'a> {
    fn from(x: &'a Tensor) -> Self {
        Self { x, norm: None }
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
    fn kind(&self) -> Kind {
        match self {
            Self::Store(_) => Kind::Store,
            Self::Residual { .. } => Kind::Residual,
            Self::Swiglu(_) => Kind::Swiglu,
            Self::Qkv(_) => Kind::Qkv,
        }
    }
}

/// What becomes of a product, without the tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Store,
    Residual,
    Swiglu,
    Qkv,
}

impl Kind {
    pub(crate) const ALL: [Self; 4] = [Self::Store, Self::Residual, Self::Swiglu, Self::Qkv];

    /// Columns that become a vec4 of results.
    fn unit(self) -> u32 {
        if self == Self::Swiglu { 8 } else { 4 }
    }
}

/// What a kernel is compiled for, beside its variant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Form {
    pub(crate) format: Format,
    pub(crate) norm: bool,
    pub(crate) kind: Kind,
}

/// The compiled kernels, compiled when first bound.
pub struct Matmul {
    class: Class,
    kernels: RefCell<HashMap<Form, Arc<[Kernel]>>>,
}

impl Matmul {
    /// Chooses the variants for this adapter.
    pub fn new(gpu: &Gpu) -> Self {
        Self::with_class(Class::choose(gpu.caps()))
    }

    pub(crate) fn with_class(class: Class) -> Self {
        Self { class, kernels: RefCell::default() }
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
        let Operand { x, norm } = operand;
        let form = Form { format: weights.format, norm: norm.is_some(), kind };
        let kernels = self.compiled(gpu, form)?;
        let mut common = Params {
            num_columns: weights.rows as u32,
            row_vec4s: (weights.cols / 4) as u32,
            num_blocks: weights.num_blocks() as u32,
            eps: norm.map_or(0.0, |norm| norm.eps),
            ..Params::default()
        };
        assert!(norm.is_none_or(|norm| norm.weight.len() == weights.cols), "a weight per value");
        let (tensors, max_rows) = match output {
            Output::Store(out) => (vec![out], out.len() / weights.rows),
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
        let mut variants = Vec::new();
        for (variant, kernel) in self.class.variants.iter().zip(&*kernels) {
            let mut shards = Vec::new();
            for shard in &weights.shards {
                let params = Params {
                    first_column: shard.rows.start as u32,
                    num_computed: shard.rows.len() as u32,
                    ..common
                };
                let before = [Some(x), Some(&shard.blocks), shard.scales.as_ref()];
                let before = before.into_iter().chain([norm.map(|norm| norm.weight)]).flatten();
                let all: Vec<_> = before.chain(tensors.iter().copied()).collect();
                let (k, n) = (weights.cols, weights.rows);
                let name = format!("{} k{k} n{n}", kernel.name());
                shards.push((kernel.bind(gpu, &all)?.named(&name), params));
            }
            variants.push((*variant, shards));
        }
        Ok(BoundMatmul { variants, max_rows: max_rows.min(x.len() / weights.cols) })
    }

    /// A number of rows for each variant that computes it: a driver compiles a kernel when it first
    /// runs.
    pub fn batch_sizes(&self) -> impl Iterator<Item = usize> {
        let before = self.class.variants.iter().map(|variant| variant.max_rows);
        [0].into_iter().chain(before).take(self.class.variants.len()).map(|max_rows| max_rows + 1)
    }

    fn compiled(&self, gpu: &Gpu, form: Form) -> Result<Arc<[Kernel]>, GpuError> {
        if let Some(kernels) = self.kernels.borrow().get(&form) {
            return Ok(Arc::clone(kernels));
        }
        let sources = self.class.sources(form, gpu.caps().images);
        let kernels: Arc<[Kernel]> =
            sources.iter().map(|source| Kernel::new(gpu, source)).collect::<Result<_, _>>()?;
        self.kernels.borrow_mut().insert(form, Arc::clone(&kernels));
        Ok(kernels)
    }
}

/// A product with one matrix of a layer.
pub struct BoundMatmul {
    /// For each variant, the kernel bound to each shard.
    variants: Vec<(Variant, Vec<(Bound, Params)>)>,
    max_rows: usize,
}

impl BoundMatmul {
    /// Multiplies the first `num_rows` rows. Not for [`Output::Qkv`].
    pub fn record(&self, pass: &mut Pass, num_rows: usize) {
        self.record_step(pass, StepShape { num_tokens: num_rows, num_outputs: 0 });
    }

    /// Multiplies the rows of the tokens of a step.
    pub fn record_step(&self, pass: &mut Pass, step: StepShape) {
        let num_rows = step.num_tokens;
        assert!(num_rows <= self.max_rows, "a batch fits the tensors of its stage");
        let Some((variant, shards)) = self
            .variants
            .iter()
            .find(|(variant, _)| num_rows <= variant.max_rows)
            .or(self.variants.last())
        else {
            return;
        };
        for (bound, params) in shards {
            let tables_at = step.tables_at();
            let params = Params { num_rows: num_rows as u32, tables_at, ..*params };
            let strips = params.num_computed.div_ceil(TILE as u32) * variant.strips();
            pass.dispatch(bound, &params, [strips, params.num_rows.div_ceil(variant.tm), 1]);
        }
    }
}

/// What defines the bits of products on a device, and how they are laid out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Class {
    /// By ascending number of rows.
    pub(crate) variants: Vec<Variant>,
    /// Lanes that the squares of a norm are summed over; a multiple of eight. Part of what defines
    /// the bits of a result.
    pub(crate) norm_lanes: u32,
}

/// One way of laying the work out over lanes. All give the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Variant {
    /// The most rows it is chosen for; the last variant takes any number.
    pub(crate) max_rows: usize,
    /// Rows of x per lane.
    pub(crate) tm: u32,
    /// Columns of the product per lane.
    pub(crate) tn: u32,
    /// Lanes side by side in a workgroup, each with its own columns.
    pub(crate) lanes: u32,
    /// Groups of such lanes, each with its own chunks of k.
    pub(crate) groups: u32,
    /// Whether x is loaded by eight lanes and broadcast.
    pub(crate) subgroup: bool,
}

impl Class {
    /// The class of an adapter.
    pub(crate) fn choose(caps: Caps) -> Self {
        let any = usize::MAX;
        if caps.is_cpu {
            // A software driver loads lane by lane: what counts is the number of loads, so a
            // broadcast pays, and one subgroup per workgroup keeps its reads together.
            let subgroup = caps.subgroups && caps.min_subgroup_size >= 8;
            let one = Variant { max_rows: 1, tm: 1, tn: 8, lanes: 8, groups: 1, subgroup };
            let variants = vec![
                one,
                Variant { max_rows: 2, tm: 2, ..one },
                Variant { max_rows: 4, tm: 4, ..one },
                Variant { max_rows: 8, tm: 8, ..one },
                Variant { max_rows: any, tm: 16, ..one },
            ];
            Self { variants, norm_lanes: 8 }
        } else {
            // With few rows there are too few columns for one lane each: chunks of k run side by
            // side.
            let one = Variant { max_rows: 1, tm: 1, tn: 1, lanes: 32, groups: 8, subgroup: false };
            let variants = vec![
                one,
                Variant { max_rows: 4, tm: 4, ..one },
                Variant { max_rows: any, tm: 8, tn: 1, lanes: 64, groups: 1, subgroup: false },
            ];
            Self { variants, norm_lanes: 64 }
        }
    }

    /// The kernels of a form, one for each variant.
    pub(crate) fn sources(&self, form: Form, images: bool) -> Vec<KernelSource> {
        let source = |variant: &Variant| variant.source(form, self.norm_lanes, images);
        self.variants.iter().map(source).collect()
    }
}

impl Variant {
    /// Columns of a workgroup.
    fn strip(&self) -> u32 {
        self.lanes * self.tn
    }

    /// Strips of columns that a tile is cut into, one workgroup each.
    fn strips(&self) -> u32 {
        TILE as u32 / self.strip()
    }

    pub(crate) fn source(&self, form: Form, norm_lanes: u32, images: bool) -> KernelSource {
        let Self { tm, tn, lanes, groups, subgroup, .. } = *self;
        let Form { format, norm, kind } = form;
        assert!((TILE as u32).is_multiple_of(self.strip()), "strips fill a tile");
        assert!(norm_lanes.is_multiple_of(8), "squares are summed by eights");
        assert!(!subgroup || norm_lanes == 8, "eight lanes sum the squares");
        assert!(norm_lanes <= lanes * groups, "a workgroup sums the squares");
        let block = format.block() as u32;
        // Results leave as vec4s: a lane has all four values of one, or gets them from its
        // neighbours.
        let wide = tn.is_multiple_of(kind.unit());
        let (lane_stride, j_stride) = if wide { (tn, 1) } else { (1, lanes) };
        let own = [
            ("TM", tm),
            ("TN", tn),
            ("LANES", lanes),
            ("GROUPS", groups),
            ("WORKGROUP", lanes * groups),
            ("SPLIT", (groups > 1).into()),
            ("SPLIT_SUMS", groups * tm * tn * lanes),
            ("SUBGROUP", subgroup.into()),
            ("STRIP", self.strip()),
            ("STRIPS", self.strips()),
            ("CHUNK_BLOCKS", CHUNK / block),
            // Lanes that share values of x can afford to scale them.
            ("SCALED", (subgroup && format.is_grouped()).into()),
            ("NORM", norm.into()),
            ("NORM_LANES", norm_lanes),
            ("NORM_EIGHTHS", norm_lanes / 8),
            ("SQUARES", tm * norm_lanes),
            ("WIDE", wide.into()),
            ("UNIT", kind.unit()),
            ("LANE_STRIDE", lane_stride),
            ("J_STRIDE", j_stride),
            ("SHARED_OUT", tm * self.strip()),
            ("BLOCK", BLOCK_TOKENS as u32),
            ("STORE", (kind == Kind::Store).into()),
            ("RESIDUAL", (kind == Kind::Residual).into()),
            ("SWIGLU", (kind == Kind::Swiglu).into()),
            ("QKV", (kind == Kind::Qkv).into()),
        ];
        let (vec4s, blocks) = (Access::read_vec4s(images), Access::read_blocks(images));
        let write = Access::write_vec4s(images);
        let mut bindings = vec![("AT_X", vec4s), ("AT_WEIGHTS", blocks)];
        bindings.extend(format.is_grouped().then_some(("AT_SCALES", blocks)));
        bindings.extend(norm.then_some(("AT_NORM", vec4s)));
        match kind {
            Kind::Store => bindings.push(("AT_OUT", Access::ReadWrite)),
            Kind::Residual => bindings.extend([("AT_OUT", write), ("AT_RESIDUAL", vec4s)]),
            Kind::Swiglu => bindings.push(("AT_OUT", write)),
            Kind::Qkv => bindings.extend([
                ("AT_OUT", write),
                ("AT_INPUTS", Access::Read),
                ("AT_BIAS", vec4s),
                ("AT_COS_SIN", vec4s),
                ("AT_KEYS", write),
                ("AT_VALUES", write),
            ]),
        }
        let places = (0..).zip(&bindings).map(|(place, (name, _))| (*name, place));
        let constants: Vec<_> = own.into_iter().chain(format.constants()).chain(places).collect();
        let template =
            [include_str!("matmul.wgsl"), include_str!("matmul_out.wgsl"), format.decoder()]
                .concat();
        let name = format!(
            "{kind:?}{} {format:?} {tm}x{tn}x{lanes}x{groups}",
            if norm { " norm" } else { "" }
        )
        .to_lowercase();
        let accesses: Vec<_> = bindings.iter().map(|(_, access)| *access).collect();
        let wgsl = expand_vec4s(&template, images, &constants);
        KernelSource::new::<Params>(format!("matmul {name}"), wgsl, &accesses)
    }
}

/// Values of k whose products are added in one chain. Part of what defines the bits of every
/// result.
const CHUNK: u32 = 256;

/// A product, in the kernel's order of additions.
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
