//! The rival's attention: flash-decoding, whose parts of the positions follow from batch and
//! context, and flash attention of a prompt, in tiles of tokens and heads. The cache is ours.

use anyhow::Result;
use shaders::attention::{INPUTS, Params, lanes};
use shaders::gpu::{Caps, Gpu};
use shaders::inputs::BLOCK_TOKENS;
use shaders::kernel::{Access, Bound, Kernel, KernelSource, Pass};
use shaders::kv_cache::{HeadShape, KvFormat};
use shaders::template::expand_vec4s;

use super::merge::BoundMerge;
use crate::engine::kernels::attention::{Operands, Step, scale};

/// One way of computing attention. Each adds in an order of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Way {
    /// Tokens, and query heads, that a workgroup computes from one reading of keys and values.
    tokens: u32,
    queries: u32,
    lanes: u32,
    /// Keys that a lane scores at a time.
    keys: u32,
    /// Whether lanes exchange values through the subgroup.
    subgroup: bool,
    /// Parts of the positions.
    parts: u32,
}

/// Most vec4s of keys that the text of a kernel multiplies with queries: more takes a driver
/// seconds to compile.
const MAX_UNROLLED: u32 = 512;

impl Way {
    /// Those that are tried on an adapter for a step.
    pub(super) fn all(caps: Caps, heads: HeadShape, step: Step) -> Vec<Self> {
        let (lanes, subgroup) = lanes(caps);
        let shared = (heads.num_heads / heads.num_kv_heads) as u32;
        let (tokens, parts): (&[u32], &[u32]) = match (step, caps.is_cpu) {
            (Step::Decode { .. }, true) => (&[1], &[1, 2, 4]),
            (Step::Decode { .. }, false) => (&[1], &[1, 4, 16, 64]),
            (Step::Prefill { .. }, _) => (&[1, 2, 4], &[1]),
        };
        let mut ways = Vec::new();
        for &tokens in tokens {
            for queries in
                [1, 2, 4, 8].into_iter().filter(|&queries| shared.is_multiple_of(queries))
            {
                for keys in [1, 2, 4] {
                    let unrolled = tokens * queries * keys * heads.head_vec4s() as u32;
                    // Few rows or keys at a time leave more loads than sums.
                    let few = (tokens * queries * keys) < shared.min(4) || keys == 1 && lanes <= 8;
                    if unrolled > MAX_UNROLLED || few {
                        continue;
                    }
                    let way = Self { tokens, queries, lanes, keys, subgroup, parts: 1 };
                    ways.extend(parts.iter().map(|&parts| Self { parts, ..way }));
                }
            }
        }
        ways
    }

    /// Tokens, heads, lanes, keys a lane; parts.
    pub(super) fn name(&self) -> String {
        let Self { tokens, queries, lanes, keys, parts, .. } = *self;
        format!("{tokens}x{queries}x{lanes}x{keys}, {parts} parts")
    }

    /// The kernel, and whether it leaves parts for another to merge.
    fn source(&self, images: bool, heads: HeadShape, format: KvFormat) -> KernelSource {
        let Self { tokens, queries, lanes, keys, subgroup, parts } = *self;
        let head_vec4s = heads.head_vec4s() as u32;
        let slice = (1..=head_vec4s.min(lanes))
            .rev()
            .find(|slice| head_vec4s.is_multiple_of(*slice))
            .unwrap_or(1);
        let rows = tokens * queries;
        let constants = [
            ("TOKENS", tokens),
            ("QUERIES", queries),
            ("LANES", lanes),
            ("KEYS", keys),
            ("FEW_LANES", (lanes <= 8).into()),
            ("SUBGROUP", subgroup.into()),
            ("PARTED", (parts > 1).into()),
            ("KV_F16", (format == KvFormat::F16).into()),
            ("BLOCK", BLOCK_TOKENS as u32),
            ("PARTITION", lanes * keys),
            ("HEAD_VEC4S", head_vec4s),
            ("SLICE", slice),
            ("SLICES", head_vec4s / slice),
            ("SHARED_Q", rows * head_vec4s),
            ("SHARED_LANE", rows * lanes),
            ("SHARED_P", rows * lanes * keys),
        ];
        let template = [include_str!("flash.wgsl"), INPUTS].concat();
        let wgsl = expand_vec4s(&template, images, &constants);
        let read = Access::read_vec4s(images);
        let cached = format.read(images);
        let mut accesses = vec![Access::Read, read, cached, cached, Access::write_vec4s(images)];
        accesses.extend((parts > 1).then_some(Access::ReadWrite));
        KernelSource::new::<Params>(format!("rival flash {}", self.name()), wgsl, &accesses)
    }
}

/// The rival's attention, bound.
pub(super) struct BoundFlash {
    bound: Bound,
    params: Params,
    /// Tiles of tokens, tiles of heads, parts.
    grid: [u32; 3],
    merge: Option<BoundMerge>,
    way: Way,
}

impl BoundFlash {
    /// Computes what ours computes of `operands`, into `out` of the same shape as theirs.
    pub(super) fn new(
        gpu: &Gpu,
        way: Way,
        operands: &Operands,
        out: &shaders::tensor::Tensor,
    ) -> Result<Self> {
        let Operands { inputs, shape, cache, q, .. } = operands;
        let heads = cache.shape;
        // No more parts than there are partitions.
        let num_partitions =
            inputs.limits().max_positions.div_ceil((way.lanes * way.keys) as usize);
        let way = Way { parts: way.parts.min(num_partitions as u32), ..way };
        let kernel = Kernel::new(gpu, &way.source(gpu.caps().images, heads, cache.format))?;
        let parts = way.parts as usize;
        let (bound, merge) = if parts == 1 {
            let tensors = [&inputs.tensor, q, &cache.keys, &cache.values, out];
            (kernel.bind(gpu, &tensors)?, None)
        } else {
            let unfinished = gpu.alloc_vec4s(parts * out.len())?;
            let states = gpu.alloc_f32(parts * out.len() / heads.head_dim * 2)?;
            let tensors = [&inputs.tensor, q, &cache.keys, &cache.values, &unfinished, &states];
            let merge = BoundMerge::new(gpu, heads, (&unfinished, &states, out))?;
            (kernel.bind(gpu, &tensors)?, Some(merge))
        };
        let params = Params::new(heads, scale(heads)).of_step(*shape);
        let tiles = (shape.num_tokens as u32).div_ceil(way.tokens);
        let grid = [tiles, heads.num_heads as u32 / way.queries, way.parts];
        Ok(Self { bound, params, grid, merge, way })
    }

    pub(super) fn name(&self) -> String {
        self.way.name()
    }

    pub(super) fn record(&self, pass: &mut Pass) {
        pass.dispatch(&self.bound, &self.params, self.grid);
        if let Some(merge) = &self.merge {
            merge.record(pass);
        }
    }
}
