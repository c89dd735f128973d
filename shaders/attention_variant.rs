//! The kernels of attention: one way of laying the work out over lanes, and its text.

use crate::attention::{INPUTS, Params};
use crate::attention_cooperative;
use crate::gpu::Caps;
use crate::inputs::BLOCK_TOKENS;
use crate::kernel::KernelSource;
use crate::kv_cache::{HeadShape, KvFormat};

/// Lanes of a workgroup of one subgroup, and whether all of them are of one, whatever size it gets,
/// and exchange values through it. A software driver compiles a workgroup of several subgroups that
/// wait for each other in minutes, where one takes a second.
pub fn lanes(caps: Caps) -> (u32, bool) {
    let min_subgroup = if caps.subgroups { caps.min_subgroup_size } else { 0 };
    let lanes = match min_subgroup {
        4..8 if caps.is_cpu => 4,
        8..32 => 8,
        _ => 32,
    };
    (lanes, min_subgroup >= lanes)
}

/// One way of laying the work out over lanes. All with the same [`Order`] give the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Variant {
    pub(crate) order: Order,
    /// Lanes in a workgroup.
    pub(crate) lanes: u32,
    /// Tokens of a workgroup: those of one sequence are computed from one reading of keys and
    /// values.
    pub(crate) tokens: u32,
    /// Query heads that a workgroup computes from one reading of keys and values.
    pub(crate) queries: u32,
    /// How lanes exchange values.
    pub(crate) exchange: Exchange,
}

/// In which order positions are taken: what defines a result's bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Order {
    /// Positions of a partition, counted from 0.
    pub(crate) partition: u32,
    /// How those of a partition are.
    pub(crate) within: Within,
}

/// How the positions of a partition are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Within {
    /// So many lanes score so many each at a time, relative to the largest score so far.
    Steps { lanes: u32, keys: u32 },
    /// All at a time.
    Whole,
    /// All at a time, by cooperative matrices of this side.
    Matrices { side: u32 },
}

/// How the lanes of a workgroup exchange values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exchange {
    /// The workgroup is one subgroup: nothing goes through memory.
    Subgroup,
    /// Through workgroup memory.
    Memory,
    /// The same, where parts of a partition's values are summed side by side.
    MemoryParted,
}

impl Variant {
    /// Those for few tokens and for many.
    pub(crate) fn choose(caps: Caps, shape: HeadShape, format: KvFormat) -> Vec<Self> {
        let cooperative = attention_cooperative::variants(caps, shape, format);
        cooperative.unwrap_or_else(|| Self::plain(caps, shape))
    }

    /// In f32: what others are compared with.
    pub(crate) fn plain(caps: Caps, shape: HeadShape) -> Vec<Self> {
        if caps.is_cpu { Self::narrow(caps, shape) } else { Self::wide(caps, shape) }
    }

    /// A workgroup of one subgroup.
    fn narrow(caps: Caps, shape: HeadShape) -> Vec<Self> {
        let (lanes, subgroup) = lanes(caps);
        let vec4s_of_query = shape.head_vec4s() as u32 * CPU_KEYS;
        let queries = queries(shape, (MAX_LONE_VEC4S / vec4s_of_query).max(1));
        let short = shape.head_vec4s() <= SHORT_HEAD_VEC4S;
        let keys = if short { SHORT_HEAD_CPU_KEYS } else { CPU_KEYS };
        let order = Order { partition: CPU_PARTITION, within: Within::Steps { lanes, keys } };
        let exchange = if subgroup { Exchange::Subgroup } else { Exchange::Memory };
        let lone = Self { order, lanes, tokens: 1, queries, exchange };
        let max_tokens = (MAX_VEC4S / (vec4s_of_query * queries)).clamp(1, MAX_TOKENS);
        vec![lone, Self { tokens: 1 << max_tokens.ilog2(), ..lone }]
    }

    /// Lone tokens have all the lanes that their loads need to be under way at once; a prompt's
    /// use what few lanes have loaded for as many rows as there are registers.
    fn wide(caps: Caps, shape: HeadShape) -> Vec<Self> {
        // Of workgroup memory, a row takes its queries, its weights and what chains found.
        let row_bytes = 16 * shape.head_vec4s() as u32 + 4 * GPU_PARTITION + 8 * CHAINS + 16;
        let other_bytes = 4 * GPU_PARTITION + 16 * VALUE_PARTS * shape.head_vec4s() as u32;
        let most_rows = caps.max_workgroup_bytes.saturating_sub(other_bytes) / row_bytes;
        let order = Order { partition: GPU_PARTITION, within: Within::Whole };
        let lone = Self {
            order,
            lanes: GPU_PARTITION,
            tokens: 1,
            queries: queries(shape, GPU_QUERIES.min(most_rows)),
            exchange: Exchange::MemoryParted,
        };
        let short = shape.head_vec4s() <= SHORT_HEAD_VEC4S;
        let rows = if short { 2 * GPU_QUERIES } else { GPU_QUERIES };
        let tokens = (rows.min(most_rows) / lone.queries).max(1);
        vec![lone, Self { lanes: GPU_TILE_LANES, tokens, exchange: Exchange::Memory, ..lone }]
    }

    pub(crate) fn source(&self, shape: HeadShape, format: KvFormat, images: bool) -> KernelSource {
        let Self { order, lanes, tokens, queries, exchange } = *self;
        let Order { partition, within } = order;
        let step_keys = match within {
            Within::Steps { keys, .. } => Some(keys),
            Within::Whole => None,
            Within::Matrices { side } => {
                assert!(!images, "matrices are read from buffers");
                return attention_cooperative::source(self, side, shape, format);
            }
        };
        // Keys and values have a width each. Where both lie in one row, as in a latent cache, whose
        // values are the beginning of its keys, a kernel differs in these and in how it finds one.
        let (key_vec4s, value_vec4s) = (shape.head_vec4s() as u32, shape.head_vec4s() as u32);
        let parted = exchange == Exchange::MemoryParted;
        let slice = match step_keys {
            Some(_) => largest_divisor(key_vec4s, lanes),
            None if parted => largest_divisor(value_vec4s, lanes / VALUE_PARTS),
            None => largest_divisor(value_vec4s, lanes),
        };
        let (rows, block) = (tokens * queries, BLOCK_TOKENS as u32);
        let keys = step_keys.unwrap_or(partition / lanes);
        let step = lanes * keys;
        // All lanes are in one block at a time, and together hold the blocks of a step.
        let one_block = exchange == Exchange::Subgroup
            && block.is_multiple_of(lanes)
            && step.div_ceil(block) <= lanes;
        assert!(partition.is_multiple_of(step), "a partition is taken in whole steps");
        assert!((partition / VALUE_PARTS).is_multiple_of(VALUES_AT_ONCE), "in whole parts");
        let constants = [
            ("LANES", lanes),
            ("TOKENS", tokens),
            ("TILED", (tokens > 1).into()),
            ("FURTHER", (tokens - 1).max(1)),
            ("QUERIES", queries),
            ("SUBGROUP", (exchange == Exchange::Subgroup).into()),
            ("KV_F16", (format == KvFormat::F16).into()),
            ("ONE_BLOCK", one_block.into()),
            ("BLOCK", block),
            ("PARTITION", partition),
            ("STEP", step),
            ("KEYS", keys),
            ("KEY_VEC4S", key_vec4s),
            ("VALUE_VEC4S", value_vec4s),
            ("SLICE", slice),
            ("SLICES", value_vec4s / slice),
            ("SHARED_Q", rows * key_vec4s),
            ("SHARED_LANE", rows * lanes),
            ("SHARED_P", rows * step),
            ("SHARED_CHAINS", rows * CHAINS),
            ("SHARED_ROWS", rows),
            ("SHARED_PARTS", VALUE_PARTS * value_vec4s),
            ("PARTED", parted.into()),
            ("CHAINS", CHAINS),
            ("VALUE_PARTS", VALUE_PARTS),
            ("PART_POSITIONS", partition / VALUE_PARTS),
            ("AT_ONCE", largest_divisor(key_vec4s, (LOADS_AT_ONCE / keys).max(1))),
            ("VALUES_AT_ONCE", VALUES_AT_ONCE),
        ];
        let (kernel, chains) = match step_keys {
            Some(_) => (include_str!("attention.wgsl"), ""),
            None => (include_str!("attention_wide.wgsl"), CHAINS_OF_ROWS),
        };
        let main = include_str!("attention_main.wgsl");
        let template = [kernel, main, chains, STORE, PARTS_OF_STATE, INPUTS].concat();
        let kv = if format == KvFormat::F16 { " f16" } else { "" };
        let name = format!(
            "attention{kv} {key_vec4s} lanes{lanes} keys{keys} tokens{tokens} queries{queries} \
             partition{partition} {exchange:?}"
        );
        KernelSource::declared::<Params>(name, &template, images, &constants)
    }

    /// Tokens and query heads a workgroup, its lanes, positions a partition.
    pub(crate) fn name(&self) -> String {
        let Self { order, lanes, tokens, queries, .. } = self;
        let how = if self.is_cooperative() { " cooperative" } else { "" };
        format!("{tokens}x{queries}x{lanes}x{}{how}", order.partition)
    }

    /// Whether it multiplies by cooperative matrices.
    pub(crate) fn is_cooperative(&self) -> bool {
        matches!(self.order.within, Within::Matrices { .. })
    }
}

/// Where what is found goes: to append to kernels that have partitions.
pub(crate) const STORE: &str = include_str!("attention_store.wgsl");

/// How what lanes found of a row's positions is put together: to append to kernels where several
/// share a row.
pub(crate) const CHAINS_OF_ROWS: &str = include_str!("attention_chains.wgsl");

/// What is known of some positions, and how it is merged: to append to kernels that do.
pub(crate) const PARTS_OF_STATE: &str = include_str!("attention_parts.wgsl");

/// The most query heads, up to `most`, that can share the reading of a kv head.
fn queries(shape: HeadShape, most: u32) -> u32 {
    largest_divisor((shape.num_heads / shape.num_kv_heads) as u32, most)
}

pub(crate) fn largest_divisor(of: u32, most: u32) -> u32 {
    (1..=most.min(of)).rev().find(|divisor| of.is_multiple_of(*divisor)).unwrap_or(1)
}

/// Positions that a lane scores at a time on a software driver, whose registers hold no more; and
/// for short heads. As measured: twice as many take 7 % from decoding with heads of 64 and add a
/// third to it with heads of 128.
pub(crate) const CPU_KEYS: u32 = 2;
pub(crate) const SHORT_HEAD_CPU_KEYS: u32 = 4;
const SHORT_HEAD_VEC4S: usize = 16;

/// Positions of a partition on a software driver, which has few workgroups to run side by side.
/// Merging twice as many takes 5 % at a context of 4,096.
const CPU_PARTITION: u32 = 512;

/// And on a GPU, which has many.
pub(crate) const GPU_PARTITION: u32 = 128;

/// A multiple of all of them.
pub(crate) const LARGEST_PARTITION: usize = CPU_PARTITION as usize;

/// Most query heads of a workgroup there.
const GPU_QUERIES: u32 = 8;

/// Lanes of a workgroup for a prompt's tokens there.
const GPU_TILE_LANES: u32 = 32;

/// Chains that the weights of a partition are summed in, and parts that its values are; of orders
/// that take partitions as a whole. Part of what defines their bits.
const CHAINS: u32 = 16;
const VALUE_PARTS: u32 = 4;

/// Loads of keys, and of values, that a lane has under way at once.
const LOADS_AT_ONCE: u32 = 8;
const VALUES_AT_ONCE: u32 = 8;

/// Most vec4s of keys that the text of a kernel multiplies with the queries of a token, and of all
/// its tokens, for short heads half of them: it is written out, and more would take seconds to
/// compile.
const MAX_LONE_VEC4S: u32 = 256;
const MAX_VEC4S: u32 = 512;

/// Most tokens of a workgroup.
const MAX_TOKENS: u32 = 4;
