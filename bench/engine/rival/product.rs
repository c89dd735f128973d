//! The rival's product: k is split, and chains are cut, as is fastest for a shape and a number of
//! rows. Weights and their decoding are ours.

use anyhow::Result;
use shaders::gpu::{Caps, Gpu};
use shaders::kernel::{Access, Bound, Kernel, KernelSource, Pass};
use shaders::matmul::{INPUTS, Params};
use shaders::template::expand_vec4s;
use shaders::tensor::Tensor;
use shaders::weights::{Format, GROUP, GROUPS_PER_QUAD, TILE, WeightMatrix};

use super::sum::BoundSum;

/// One way of computing a product. Each adds in an order of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Way {
    /// Rows of x, and columns of the product, of a lane; of a workgroup where lanes share columns.
    tm: u32,
    tn: u32,
    /// Lanes side by side.
    lanes: u32,
    /// Groups of such lanes in a workgroup, each with its own k.
    groups: u32,
    /// Chains of multiply-adds of a column.
    chains: u32,
    /// Whether the lanes of a workgroup share columns and split k.
    along_k: bool,
    /// Parts of k, each in workgroups of its own.
    parts: u32,
    /// Whether a column's weights are loaded when they are multiplied, not those of all before.
    alone: bool,
}

impl Way {
    /// Those that are tried on an adapter.
    pub(super) fn all(caps: Caps, num_rows: usize) -> Vec<Self> {
        let one = Self {
            tm: 1,
            tn: 8,
            lanes: 8,
            groups: 1,
            chains: 1,
            along_k: false,
            parts: 1,
            alone: false,
        };
        let ways = match (caps.is_cpu, num_rows) {
            (true, 1) => {
                let alone = Self { alone: true, ..one };
                let mut ways = vec![
                    one,
                    Self { parts: 2, ..one },
                    Self { parts: 4, ..one },
                    Self { chains: 2, ..one },
                    Self { chains: 4, ..one },
                    Self { tn: 4, ..one },
                    Self { tn: 4, chains: 2, ..one },
                    Self { tn: 4, chains: 2, parts: 2, ..one },
                    Self { along_k: true, ..one },
                    Self { along_k: true, tn: 4, ..one },
                    Self { along_k: true, tn: 4, chains: 2, ..one },
                ];
                if Self::broadcasts(caps) {
                    ways.extend([
                        alone,
                        Self { chains: 2, ..alone },
                        Self { tn: 4, ..alone },
                        Self { tn: 4, chains: 2, ..alone },
                    ]);
                }
                ways
            }
            (true, _) => {
                let many = Self { tm: 8, ..one };
                vec![
                    many,
                    Self { tm: 16, ..many },
                    Self { tn: 4, ..many },
                    Self { tm: 4, ..many },
                    Self { tm: 4, tn: 4, ..many },
                    Self { tm: 16, tn: 4, ..many },
                    Self { parts: 2, ..many },
                ]
            }
            (false, 1) => {
                let one = Self { tn: 1, lanes: 32, groups: 8, ..one };
                let forms = [
                    one,
                    Self { chains: 4, ..one },
                    Self { lanes: 64, groups: 4, ..one },
                    Self { lanes: 16, groups: 16, ..one },
                    Self { lanes: 32, groups: 4, ..one },
                    Self { tn: 2, chains: 2, ..one },
                    Self { along_k: true, tn: 4, groups: 4, ..one },
                ];
                let split = |form: Self| [1, 2, 4, 8, 16].map(|parts| Self { parts, ..form });
                forms.into_iter().flat_map(split).collect()
            }
            (false, _) => {
                let many = Self { tm: 8, tn: 1, lanes: 64, ..one };
                let forms = [
                    many,
                    Self { tm: 4, ..many },
                    Self { tm: 16, ..many },
                    Self { tn: 2, lanes: 32, ..many },
                    Self { tn: 4, lanes: 16, groups: 4, ..many },
                ];
                let split = |form: Self| [1, 2, 4].map(|parts| Self { parts, ..form });
                forms.into_iter().flat_map(split).collect()
            }
        };
        ways.into_iter().filter(|way| way.strip() <= TILE as u32).collect()
    }

    /// Rows and columns a lane, lanes, groups; chains; parts.
    pub(super) fn name(&self) -> String {
        let Self { tm, tn, lanes, groups, chains, along_k, parts, alone } = *self;
        let along = if along_k { " along k" } else { "" };
        let alone = if alone { ", one by one" } else { "" };
        format!("{tm}x{tn}x{lanes}x{groups}{along}, {chains} chains, {parts} parts{alone}")
    }

    /// Whether lanes load x for each other.
    fn broadcasts(caps: Caps) -> bool {
        caps.is_cpu && caps.subgroups && caps.min_subgroup_size >= 8
    }

    /// Columns of a workgroup.
    fn strip(&self) -> u32 {
        if self.along_k { self.tn } else { self.tn * self.lanes }
    }

    fn source(&self, caps: Caps, format: Format) -> KernelSource {
        let Self { tm, tn, lanes, groups, chains, along_k, alone, .. } = *self;
        let workgroup = lanes * groups;
        let subgroup = caps.subgroups && caps.min_subgroup_size >= 8;
        let broadcast = Self::broadcasts(caps) && !along_k && workgroup == 8;
        // Without them, or with several subgroups, lanes meet in workgroup memory.
        let one_subgroup = subgroup && workgroup <= caps.min_subgroup_size;
        let shared = if along_k { !one_subgroup || tn > workgroup } else { groups > 1 };
        let grouped = format.is_grouped();
        let own = [
            ("TM", tm),
            ("TN", tn),
            ("LANES", lanes),
            ("GROUPS", groups),
            ("WORKGROUP", workgroup),
            ("STRIP", self.strip()),
            ("STRIPS", TILE as u32 / self.strip()),
            ("AT_ONCE", if alone { 1 } else { tn }),
            ("CHAINS", chains),
            ("C0", 0),
            ("C1", 1 % chains),
            ("C2", 2 % chains),
            ("C3", 3 % chains),
            ("ALONG_K", along_k.into()),
            ("BROADCAST", broadcast.into()),
            ("SCALED", (broadcast && format.has_offset()).into()),
            ("SHARED", shared.into()),
            ("SHARED_SUMS", workgroup * tm * tn),
            ("LONG_GROUPS", (format.group() > GROUP).into()),
            ("HALF_QUADS", 0),
            ("UNIT", self.unit(format) as u32),
            ("AT_SCALES", 2),
            ("AT_OUT", if grouped { 3 } else { 2 }),
            ("STORE", 1),
            ("PACKED", 0),
            ("NORM", 0),
            ("RESIDUAL", 0),
            ("STACKED", 0),
            ("ROUTED", 0),
            ("VEC4S", 0),
            ("QKV", 0),
        ];
        let constants = [&own[..], &format.constants()].concat();
        let template = [include_str!("product.wgsl"), INPUTS, format.decoder()].concat();
        let wgsl = expand_vec4s(&template, caps.images, &constants);
        let blocks = Access::read_blocks(caps.images);
        let mut accesses = vec![Access::read_vec4s(caps.images), blocks];
        accesses.extend(grouped.then_some(blocks));
        accesses.push(Access::ReadWrite);
        KernelSource::new::<Params>(format!("rival product {}", self.name()), wgsl, &accesses)
    }

    /// Blocks that a lane takes at a time.
    fn unit(&self, format: Format) -> usize {
        match format.is_grouped() {
            true => format.group_blocks() * GROUPS_PER_QUAD,
            false => GROUP / format.block(),
        }
    }
}

/// The rival's product, bound.
pub(super) struct BoundProduct {
    /// The kernel bound to each shard, and the strips of columns that it takes.
    shards: Vec<(Bound, Params, u32)>,
    sum: Option<BoundSum>,
    num_columns: usize,
    way: Way,
}

impl BoundProduct {
    /// `out[t, n] = sum over k of x[t, k] * weights[n, k]`
    ///
    /// * `x`: [num_rows, weights.cols], vec4s
    /// * `out`: [num_rows, weights.rows]
    pub(super) fn new(
        gpu: &Gpu,
        way: Way,
        x: &Tensor,
        weights: &WeightMatrix,
        out: &Tensor,
    ) -> Result<Self> {
        anyhow::ensure!(weights.cols.is_multiple_of(GROUP), "the rival takes whole groups of k");
        let kernel = Kernel::new(gpu, &way.source(gpu.caps(), weights.format))?;
        let num_units = weights.num_blocks().div_ceil(way.unit(weights.format));
        // No more parts than there is k for.
        let num_parts = num_units.div_ceil(num_units.div_ceil(way.parts as usize));
        let parts = match num_parts {
            1 => out.clone(),
            _ => gpu.alloc_f32(num_parts * out.len())?,
        };
        let mut shards = Vec::new();
        for shard in &weights.shards {
            let tensors = [Some(x), Some(&shard.blocks), shard.scales.as_ref(), Some(&parts)];
            let tensors: Vec<_> = tensors.into_iter().flatten().collect();
            let strips = shard.rows.len().div_ceil(TILE) as u32 * TILE as u32 / way.strip();
            let params = Params::new(weights).of_shard(shard);
            shards.push((kernel.bind(gpu, &tensors)?, params, strips));
        }
        let sum = match num_parts {
            1 => None,
            _ => Some(BoundSum::new(gpu, &parts, out)?),
        };
        Ok(Self {
            shards,
            sum,
            num_columns: weights.rows,
            way: Way { parts: num_parts as u32, ..way },
        })
    }

    pub(super) fn name(&self) -> String {
        self.way.name()
    }

    /// Computes the first `num_rows` rows.
    pub(super) fn record(&self, pass: &mut Pass, num_rows: usize) {
        let Way { tm, parts, .. } = self.way;
        for (bound, params, strips) in &self.shards {
            let mut params = *params;
            params.num_rows = num_rows as u32;
            pass.dispatch(bound, &params, [*strips, params.num_rows.div_ceil(tm), parts]);
        }
        if let Some(sum) = &self.sum {
            sum.record(pass, num_rows * self.num_columns);
        }
    }
}
