//! Which experts a token has, which tokens an expert has, and the sum of what experts give.
//!
//! A token and one of its experts are a pair: pair `t top_k + k` is token t with the k-th of its
//! experts, the best first. Pairs of few tokens are multiplied one by one; those of many are sorted
//! by expert, so that a reading of its weights serves several ([`crate::matmul_stacked`]). What
//! experts give is added in the order of a token's pairs, whoever computed it.

use bytemuck::{Pod, Zeroable};

use crate::attention;
use crate::error::GpuError;
use crate::gpu::{Caps, Gpu};
use crate::kernel::{Bound, Kernel, KernelSource, Pass};
use crate::matmul_class::Class;
use crate::matmul_variant::Variant;
use crate::tensor::Tensor;
use crate::weights::Format;

/// How experts are chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ExpertShape {
    /// Experts to choose from.
    pub num_experts: usize,
    /// Experts of a token.
    pub top_k: usize,
    /// Groups of neighbouring experts.
    pub num_groups: usize,
    /// Groups whose experts can be chosen.
    pub top_groups: usize,
    /// Whether the scores of a token's experts are made to add up to 1.
    pub normalized: bool,
    /// What they are multiplied with then.
    pub scale: f32,
}

/// The pairs of a step, and where in the tensor of routes what stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteShape {
    num_tokens: usize,
    top_k: usize,
    num_experts: usize,
    /// Pairs that share a reading of weights, at most.
    pub(crate) rows_of_part: u32,
}

impl RouteShape {
    /// Of a step of so many tokens on an adapter.
    fn new(caps: Caps, shape: &ExpertShape, num_tokens: usize) -> Self {
        let ExpertShape { num_experts, top_k, .. } = *shape;
        let num_pairs = num_tokens * top_k;
        // Of few pairs hardly two have the same expert.
        let of_one = if num_pairs <= num_experts / 2 { 1 } else { num_pairs.div_ceil(num_experts) };
        let of_one = if num_tokens > 1 { of_one } else { 1 };
        let variants = Class::stacked(caps, Format::F32, false).variants;
        let part = variants.iter().find(|variant| of_one <= variant.max_rows);
        let rows_of_part = part.or(variants.last()).map_or(1, Variant::rows);
        Self { num_tokens, top_k, num_experts, rows_of_part }
    }

    pub(crate) fn num_pairs(&self) -> usize {
        self.num_tokens * self.top_k
    }

    fn is_sorted(&self) -> bool {
        self.rows_of_part > 1
    }

    /// Parts that are dispatched: what all experts have at most; those that none has are empty.
    pub(crate) fn num_parts(&self) -> u32 {
        let num_pairs = self.num_pairs();
        let partly_filled = if self.is_sorted() { num_pairs.min(self.num_experts) } else { 0 };
        (num_pairs / self.rows_of_part as usize + partly_filled) as u32
    }

    pub(crate) fn chosen_at(&self) -> u32 {
        0
    }

    fn weights_at(&self) -> u32 {
        self.num_pairs() as u32
    }

    pub(crate) fn sorted_at(&self) -> u32 {
        2 * self.num_pairs() as u32
    }

    fn counts_at(&self) -> u32 {
        3 * self.num_pairs() as u32
    }

    pub(crate) fn parts_at(&self) -> u32 {
        self.counts_at() + self.num_experts as u32
    }
}

/// The routes of the tokens of a step: for each pair its expert and the weight of what that gives;
/// for each expert its pairs.
pub struct Routes(Tensor);

impl Routes {
    /// Room for steps of up to `max_tokens` tokens.
    ///
    /// # Errors
    /// When the adapter has none.
    pub fn new(gpu: &Gpu, shape: &ExpertShape, max_tokens: usize) -> Result<Self, GpuError> {
        gpu.alloc_u32(Self::num_words(shape, max_tokens)).map(Self)
    }

    /// Bytes that [`new`](Self::new) takes.
    pub fn num_bytes(shape: &ExpertShape, max_tokens: usize) -> u64 {
        Self::num_words(shape, max_tokens) as u64 * 4
    }

    fn num_words(shape: &ExpertShape, max_tokens: usize) -> usize {
        let num_pairs = max_tokens * shape.top_k;
        // With the smallest parts that are sorted, of two.
        3 * num_pairs + shape.num_experts + 3 * (num_pairs / 2 + shape.num_experts)
    }

    pub(crate) fn tensor(&self) -> &Tensor {
        &self.0
    }
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct RouteParams {
    weights_at: u32,
    scale: f32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct SortParams {
    num_pairs: u32,
    num_experts: u32,
    sorted_at: u32,
    counts_at: u32,
    parts_at: u32,
    num_parts: u32,
    rows_of_part: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct SumParams {
    row_vec4s: u32,
    top_k: u32,
    weights_at: u32,
}

/// The choice of experts and the sum of what they give, bound to a layer's tensors.
pub struct BoundExperts {
    caps: Caps,
    shape: ExpertShape,
    route: Bound,
    count: Bound,
    sort: Bound,
    sum: Bound,
    row_vec4s: u32,
    max_tokens: usize,
}

/// The tensors of a layer with experts.
#[derive(Clone, Copy)]
pub struct ExpertTensors<'a> {
    /// What the router says. [num_tokens, num_experts]
    pub logits: &'a Tensor,
    /// Added to scores for the choice. `[num_experts]`, not vec4s
    pub bias: &'a Tensor,
    /// What is chosen.
    pub routes: &'a Routes,
    /// What the pairs' experts give. [num_pairs, hidden_size]
    pub given: &'a Tensor,
    /// What is added to. [num_tokens, hidden_size], vec4s
    pub residual: &'a Tensor,
    /// The sum. [num_tokens, hidden_size], vec4s
    pub out: &'a Tensor,
}

impl BoundExperts {
    /// Chooses by `sigmoid(logits)`, and adds `weight given` of each pair to the residual stream.
    ///
    /// # Errors
    /// When the device fails.
    pub fn new(
        gpu: &Gpu,
        shape: ExpertShape,
        hidden_size: usize,
        tensors: ExpertTensors<'_>,
    ) -> Result<Self, GpuError> {
        let ExpertTensors { logits, bias, routes, given, residual, out } = tensors;
        assert!(hidden_size.is_multiple_of(4), "the kernel takes four values at a time");
        assert!(bias.len() >= shape.num_experts, "every expert has a bias");
        let max_tokens = logits.len() / shape.num_experts;
        let max_tokens = max_tokens.min(given.len() / hidden_size / shape.top_k);
        let caps = gpu.caps();
        let route = Kernel::new(gpu, &route_source(caps, &shape))?;
        let count = Kernel::new(gpu, &sort_source(caps, true))?;
        let sort = Kernel::new(gpu, &sort_source(caps, false))?;
        let sum = Kernel::new(gpu, &sum_source(caps.images))?;
        Ok(Self {
            caps,
            shape,
            route: route.bind(gpu, &[logits, bias, &routes.0])?,
            count: count.bind(gpu, &[&routes.0])?,
            sort: sort.bind(gpu, &[&routes.0])?,
            sum: sum.bind(gpu, &[given, &routes.0, residual, out])?,
            row_vec4s: (hidden_size / 4) as u32,
            max_tokens,
        })
    }

    /// Chooses the experts of the first `num_tokens` tokens.
    pub fn record_choice(&self, pass: &mut Pass, num_tokens: usize) -> RouteShape {
        assert!(num_tokens <= self.max_tokens, "a batch fits the tensors of its stage");
        let step = RouteShape::new(self.caps, &self.shape, num_tokens);
        let params = RouteParams { weights_at: step.weights_at(), scale: self.shape.scale };
        pass.dispatch(&self.route, &params, [num_tokens as u32, 1, 1]);
        if step.is_sorted() {
            let num_experts = self.shape.num_experts as u32;
            let params = SortParams {
                num_pairs: step.num_pairs() as u32,
                num_experts,
                sorted_at: step.sorted_at(),
                counts_at: step.counts_at(),
                parts_at: step.parts_at(),
                num_parts: step.num_parts(),
                rows_of_part: step.rows_of_part,
            };
            for bound in [&self.count, &self.sort] {
                pass.dispatch(bound, &params, [num_experts, 1, 1]);
            }
        }
        step
    }

    /// Adds what the pairs' experts gave.
    pub fn record_sum(&self, pass: &mut Pass, step: &RouteShape) {
        let params = SumParams {
            row_vec4s: self.row_vec4s,
            top_k: step.top_k as u32,
            weights_at: step.weights_at(),
        };
        let grid = [self.row_vec4s.div_ceil(WORKGROUP), step.num_tokens as u32, 1];
        pass.dispatch(&self.sum, &params, grid);
    }
}

/// The experts of a token, the best first, and the weight of each.
///
/// * `logits`, `bias`: `[num_experts]`
pub fn reference(shape: &ExpertShape, logits: &[f32], bias: &[f32]) -> Vec<(usize, f32)> {
    let scores: Vec<f32> = logits.iter().map(|logit| 1.0 / (1.0 + (-logit).exp())).collect();
    let choice: Vec<f32> = scores.iter().zip(bias).map(|(score, bias)| score + bias).collect();
    let best = |values: &[f32], count: usize| -> Vec<usize> {
        let mut order: Vec<usize> = (0..values.len()).collect();
        // Stable: of equal ones the first.
        order.sort_by(|a, b| values[*b].total_cmp(&values[*a]));
        order[..count].to_vec()
    };
    let of_group = shape.num_experts / shape.num_groups;
    let groups: Vec<f32> = choice
        .chunks(of_group)
        .map(|group| best(group, 2.min(of_group)).iter().map(|expert| group[*expert]).sum())
        .collect();
    let kept = best(&groups, shape.top_groups);
    let is_kept = |expert: usize| kept.contains(&(expert / of_group));
    let masked: Vec<f32> = choice
        .iter()
        .enumerate()
        .map(|(expert, choice)| if is_kept(expert) { *choice } else { f32::MIN })
        .collect();
    let chosen = best(&masked, shape.top_k);
    let sum: f32 = chosen.iter().map(|expert| scores[*expert]).sum();
    let divisor = if shape.normalized { sum + 1e-20 } else { 1.0 };
    chosen.into_iter().map(|expert| (expert, scores[expert] / divisor * shape.scale)).collect()
}

const WORKGROUP: u32 = 64;

pub(crate) fn route_source(caps: Caps, shape: &ExpertShape) -> KernelSource {
    let (lanes, _) = attention::lanes(caps);
    let (num_experts, num_groups) = (shape.num_experts as u32, shape.num_groups as u32);
    let constants = [
        ("LANES", lanes),
        ("EXPERTS", num_experts),
        ("TOP_K", shape.top_k as u32),
        ("GROUPS", num_groups),
        ("IN_GROUPS", (num_groups > 1).into()),
        ("GROUP", num_experts / num_groups),
        ("TOP_GROUPS", shape.top_groups as u32),
        ("NORMALIZED", shape.normalized.into()),
    ];
    let template = include_str!("experts_route.wgsl");
    KernelSource::declared::<RouteParams>("experts_route", template, false, &constants)
}

pub(crate) fn sort_source(caps: Caps, counts: bool) -> KernelSource {
    let (lanes, _) = attention::lanes(caps);
    let constants = [("LANES", lanes), ("COUNTS", counts.into())];
    let template = include_str!("experts_sort.wgsl");
    KernelSource::declared::<SortParams>("experts_sort", template, false, &constants)
}

pub(crate) fn sum_source(images: bool) -> KernelSource {
    let constants = [("WORKGROUP", WORKGROUP)];
    let template = include_str!("experts_sum.wgsl");
    KernelSource::declared::<SumParams>("experts_sum", template, images, &constants)
}

#[cfg(test)]
#[path = "experts_tests.rs"]
mod tests;
