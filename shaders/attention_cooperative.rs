//! Attention by cooperative matrices, where products are computed by them: as everywhere over
//! partitions of positions, with queries, keys, weights and values rounded to f16.
//!
//! One kernel is for a token and for many: rows of matrices that no token has are computed and not
//! stored. Query heads that share a kv head are rows of the same matrices, and so are tokens.

use crate::attention::{INPUTS, Params};
use crate::attention_variant::{
    CHAINS_OF_ROWS, Exchange, GPU_PARTITION, Order, PARTS_OF_STATE, STORE, Variant, Within,
    largest_divisor,
};
use crate::gpu::Caps;
use crate::inputs::BLOCK_TOKENS;
use crate::kernel::KernelSource;
use crate::kv_cache::{HeadShape, KvFormat};

/// The kernels for few tokens and for many, where products are computed so and there is room for
/// it in a workgroup.
pub(crate) fn variants(caps: Caps, shape: HeadShape, format: KvFormat) -> Option<Vec<Variant>> {
    let side = caps.fragment_side().filter(|side| shape.head_dim.is_multiple_of(*side as usize))?;
    let order = Order { partition: GPU_PARTITION, within: Within::Matrices { side } };
    let shared = (shape.num_heads / shape.num_kv_heads) as u32;
    let lone = Variant {
        order,
        lanes: SUBGROUPS * caps.max_subgroup_size.max(side),
        tokens: 1,
        queries: largest_divisor(shared, LONE_ROWS),
        exchange: Exchange::Memory,
    };
    let fits = |variant: &Variant| {
        variant.lanes <= caps.max_workgroup_lanes
            && Layout::new(variant, side, shape, format).num_bytes() <= caps.max_workgroup_bytes
    };
    let many = MANY_ROWS.map(|rows| Variant { tokens: (rows / lone.queries).max(1), ..lone });
    let many = many.into_iter().find(fits)?;
    fits(&lone).then(|| vec![lone, many])
}

/// The text of a variant whose matrices have this side.
pub(crate) fn source(
    variant: &Variant,
    side: u32,
    shape: HeadShape,
    format: KvFormat,
) -> KernelSource {
    let Variant { order, lanes, tokens, queries, .. } = *variant;
    let layout = Layout::new(variant, side, shape, format);
    let Layout { rows, head_vec4s, key_vec4s, .. } = layout;
    let partition = order.partition;
    let columns = head_vec4s * 4 / side;
    let constants = [
        ("SIDE", side),
        ("LANES", lanes),
        ("SUBGROUPS", SUBGROUPS),
        ("SUBGROUP_LANES", lanes / SUBGROUPS),
        ("TOKENS", tokens),
        ("TILED", (tokens > 1).into()),
        ("QUERIES", queries),
        ("ROWS", rows),
        ("MATRICES", rows / side),
        ("SCORES", partition / side / SUBGROUPS),
        ("COLUMNS", columns.div_ceil(SUBGROUPS)),
        ("LAST_COLUMN", columns - 1),
        ("HELD", (rows * head_vec4s).div_ceil(lanes)),
        ("KV_F16", (format == KvFormat::F16).into()),
        ("BLOCK", BLOCK_TOKENS as u32),
        ("PARTITION", partition),
        ("PART", PART),
        ("CHAINS", CHAINS),
        ("HEAD_VEC4S", head_vec4s),
        ("VALUE_VEC4S", head_vec4s),
        ("KEY_VEC4S", key_vec4s),
        ("KEY_VALUES", key_vec4s * 4),
        ("Q_STRIDE", layout.q_stride()),
        ("KEY_STRIDE", layout.key_stride()),
        ("P_STRIDE", layout.p_stride()),
        ("OUT_STRIDE", layout.out_stride()),
        ("SHARED_Q", rows * layout.q_stride()),
        ("SHARED_HALF", layout.shared_half()),
        ("SHARED_P", rows * layout.p_stride()),
        ("SHARED_OUT", rows * layout.out_stride()),
        ("SHARED_CHAINS", rows * CHAINS),
    ];
    let inputs = match format {
        KvFormat::F32 => INPUTS.to_owned(),
        // Halves are taken as they are stored, values as matrices.
        KvFormat::F16 => INPUTS.replace(" cache ", " vec4<f16> "),
    };
    let kernel = include_str!("attention_cooperative.wgsl");
    let template = [kernel, CHAINS_OF_ROWS, STORE, PARTS_OF_STATE, &inputs].concat();
    let kv = if format == KvFormat::F16 { " f16" } else { "" };
    let name = format!("attention{kv} {head_vec4s} {}", variant.name());
    KernelSource::declared::<Params>(name, &template, false, &constants)
}

/// What a workgroup has in its memory.
struct Layout {
    rows: u32,
    head_vec4s: u32,
    /// Of keys at a time.
    key_vec4s: u32,
    partition: u32,
    format: KvFormat,
}

impl Layout {
    fn new(variant: &Variant, side: u32, shape: HeadShape, format: KvFormat) -> Self {
        let head_vec4s = shape.head_vec4s() as u32;
        Self {
            rows: (variant.tokens * variant.queries).next_multiple_of(side),
            head_vec4s,
            key_vec4s: largest_divisor(head_vec4s * 4 / side, KEY_VALUES / side) * side / 4,
            partition: variant.order.partition,
            format,
        }
    }

    /// Of a row of queries, and of values, in vec4s of halves.
    fn q_stride(&self) -> u32 {
        self.head_vec4s + PADDING
    }

    fn key_stride(&self) -> u32 {
        self.key_vec4s + PADDING
    }

    fn p_stride(&self) -> u32 {
        self.partition / 4 + PADDING
    }

    /// Of a row of scores, and of weighted values, in values.
    fn out_stride(&self) -> u32 {
        self.partition.max(self.head_vec4s * 4) + 4
    }

    fn shared_half(&self) -> u32 {
        let values = if self.format == KvFormat::F32 { PART * self.q_stride() } else { 0 };
        values.max(self.partition * self.key_stride())
    }

    fn num_bytes(&self) -> u32 {
        let halves = self.rows * (self.q_stride() + self.p_stride()) + self.shared_half();
        let of_rows = self.rows * (4 * self.out_stride() + 8 * CHAINS + 16);
        8 * halves + of_rows + 4 * self.partition
    }
}

/// Subgroups of a workgroup, which share positions, then columns.
const SUBGROUPS: u32 = 4;

/// Most rows of a workgroup for a token, and for many: as many as there is room for.
const LONE_ROWS: u32 = 16;
const MANY_ROWS: [u32; 2] = [32, 16];

/// Values of keys in a workgroup's memory at a time.
const KEY_VALUES: u32 = 32;

/// Chains that the weights of a partition are summed in, and positions whose values are summed at a
/// time: part of what defines their bits.
const CHAINS: u32 = 8;
const PART: u32 = 32;

/// Vec4s between two rows of operands of cooperative matrices, in workgroup memory.
const PADDING: u32 = 2;
