//! The kernels of products: one way of laying the work out over lanes, and its text.

use bytemuck::Pod;

use crate::gpu::Caps;
use crate::inputs::BLOCK_TOKENS;
use crate::kernel::KernelSource;
use crate::matmul::{CHUNK, INPUTS, Params};
use crate::matmul_aside::{MAX_PARTS, num_parts};
pub(crate) use crate::matmul_form::{Form, Kind, Order, Stacked};
use crate::matmul_stacked::StackedParams;
use crate::weights::{Format, GROUP, TILE};

/// One way of laying the work out over lanes. All of a class give the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Variant {
    /// The most rows it is chosen for; the last variant takes any number.
    pub(crate) max_rows: usize,
    /// Rows of x per lane.
    pub(crate) tm: u32,
    /// Columns of the product per lane.
    pub(crate) tn: u32,
    /// Lanes side by side in a workgroup, each with its own columns.
    pub(crate) lanes: u32,
    /// Groups of such lanes, each with its own chunks of k; where operands are staged, with its own
    /// rows.
    pub(crate) groups: u32,
    /// Whether a lane loads the weights of several steps before it multiplies the first.
    pub(crate) ahead: bool,
    /// How lanes come by x and weights.
    pub(crate) operands: Operands,
    /// What other dispatches do.
    pub(crate) aside: Aside,
}

/// What other dispatches do for a product ([`crate::matmul_aside`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Aside {
    /// The product's own dispatch does all of it.
    Nothing,
    /// The scales of a norm: once, where each workgroup would compute them again.
    Norm,
    /// Those, and the sums of chunks of k that workgroups have side by side: where there are few
    /// columns for as many workgroups as a device runs.
    Chunks,
}

/// Workgroups for a row of a product from which on they are enough.
const ENOUGH_WORKGROUPS: usize = 512;

/// Loads of weights that a lane has under way at once, where it loads ahead.
const LOADS_AHEAD: u32 = 8;

/// More blocks than a row of weights has.
const MAX_BLOCKS: u32 = 1 << 30;

/// Values of a block of halves.
const FRAGMENT_BLOCK: u32 = 8;

/// Vec4s between two rows of operands of cooperative matrices, in workgroup memory.
const PADDING: u32 = 2;

/// Groups of each row and column that a workgroup has in its memory at a time, where both are
/// packed.
const STAGED_GROUPS: u32 = 2;

/// How lanes come by the operands of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Operands {
    /// Each loads what it needs.
    Loaded,
    /// Eight lanes load x and broadcast it to their subgroup; each loads its weights.
    Broadcast,
    /// A workgroup loads and decodes a tile of both into its memory.
    Staged,
    /// The same of x in f16, multiplied by cooperative matrices: a variant's rows and columns per
    /// lane are rows of a matrix and matrices side by side. Weights are stored in their order, and
    /// are read from there.
    Cooperative(Subgroups),
    /// As loaded, by dot products of four bytes: of x, which was quantised before, and of weights.
    Packed,
    /// The same through a workgroup's memory.
    PackedStaged,
}

/// How the subgroups of a workgroup share a product by cooperative matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Subgroups {
    /// Lanes of one, at most: where they are smaller, some do the same.
    pub(crate) lanes: u32,
    /// How many share the rows.
    pub(crate) down: u32,
    /// How many take a chunk of k each.
    pub(crate) chunks: u32,
    /// Groups of values of k in workgroup memory at a time.
    pub(crate) staged: u32,
}

impl Operands {
    pub(crate) fn are_packed(self) -> bool {
        matches!(self, Self::Packed | Self::PackedStaged)
    }

    /// Whether a workgroup loads them for all its lanes.
    fn are_staged(self) -> bool {
        matches!(self, Self::Staged | Self::Cooperative(_) | Self::PackedStaged)
    }

    /// How subgroups share a product; where lanes don't share matrices, one has it all.
    fn subgroups(self) -> Subgroups {
        match self {
            Self::Cooperative(subgroups) => subgroups,
            _ => Subgroups { lanes: 1, down: 1, chunks: 1, staged: 1 },
        }
    }
}

impl Variant {
    /// Rows and columns a lane, lanes side by side, groups of them.
    pub(crate) fn name(&self) -> String {
        let Self { tm, tn, lanes, groups, .. } = self;
        let aside = match self.aside {
            Aside::Nothing => "",
            Aside::Norm => " normed",
            Aside::Chunks => " cut",
        };
        let name = match self.operands {
            Operands::Cooperative(Subgroups { down, chunks, staged, .. }) => {
                format!("{tm}x{tn}x{lanes}x{groups}{} {down}x{chunks}x{staged}", self.how())
            }
            Operands::Staged | Operands::PackedStaged => {
                format!("{tm}x{tn}x{lanes}x{groups}{} staged", self.how())
            }
            _ => {
                let ahead = if self.ahead { " ahead" } else { "" };
                format!("{tm}x{tn}x{lanes}x{groups}{}{ahead}", self.how())
            }
        };
        name + aside
    }

    /// Whether k is cut over workgroups.
    pub(crate) fn is_cut(&self) -> bool {
        self.aside == Aside::Chunks
    }

    /// Whether it is one for a product of so many rows, columns and chunks of k: a function of its
    /// shape.
    pub(crate) fn suits(&self, max_rows: usize, columns: usize, num_chunks: usize) -> bool {
        let columns = columns.next_multiple_of(TILE);
        let workgroups = columns / self.strip() as usize;
        let num_parts = num_parts(self.max_rows.min(max_rows), columns, num_chunks);
        let needs = workgroups < ENOUGH_WORKGROUPS && num_chunks > self.groups as usize;
        !self.is_cut() || (needs && num_parts <= MAX_PARTS)
    }

    /// How it multiplies, which the variants of a class have in common.
    pub(crate) fn how(&self) -> &'static str {
        match self.operands {
            Operands::Loaded | Operands::Broadcast | Operands::Staged => "",
            Operands::Cooperative(_) => " cooperative",
            Operands::Packed | Operands::PackedStaged => " packed",
        }
    }

    /// Lanes of a workgroup.
    fn workgroup(&self) -> u32 {
        match self.operands {
            Operands::Cooperative(subgroups) => {
                let across = self.lanes / self.tm;
                across * subgroups.down * subgroups.chunks * subgroups.lanes
            }
            _ => self.lanes * self.groups,
        }
    }

    /// Whether a device has as many lanes and as much memory for a workgroup.
    pub(crate) fn fits(&self, caps: Caps) -> bool {
        self.workgroup() <= caps.max_workgroup_lanes
            && self.most_bytes() <= caps.max_workgroup_bytes
    }

    /// Workgroup memory of the form that takes most: with a norm, of weights with scales and
    /// offsets.
    fn most_bytes(&self) -> u32 {
        let Self { tm, tn, lanes, groups, .. } = *self;
        let Subgroups { down, chunks, staged, .. } = self.operands.subgroups();
        let (rows, strip, group_vec4s) = (self.rows(), self.strip(), GROUP as u32 / 4);
        let norm = 4 * (self.workgroup() + rows);
        match self.operands {
            Operands::Cooperative(_) => {
                let operands = rows * chunks * (group_vec4s * staged + PADDING);
                8 * operands + 4 * chunks * down * tm * strip + norm
            }
            Operands::Staged => {
                16 * group_vec4s * (rows + strip) + 4 * group_vec4s * rows + 8 * strip + norm
            }
            Operands::PackedStaged => (2 * 16 + 8) * STAGED_GROUPS * (rows + strip),
            Operands::Loaded | Operands::Broadcast | Operands::Packed => {
                4 * (groups * tm * tn * lanes + tm * self.workgroup() + tm * strip)
            }
        }
    }

    /// Rows of a workgroup.
    pub(crate) fn rows(&self) -> u32 {
        if self.operands.are_staged() { self.tm * self.groups } else { self.tm }
    }

    /// Columns of a workgroup.
    fn strip(&self) -> u32 {
        self.lanes * self.tn
    }

    /// Strips of columns that a tile is cut into, one workgroup each.
    pub(crate) fn strips(&self) -> u32 {
        TILE as u32 / self.strip()
    }

    pub(crate) fn source(&self, form: Form, order: Order, images: bool) -> KernelSource {
        self.text::<Params>((form, None), order, images)
    }

    /// The same for a stack of matrices.
    pub(crate) fn stacked_source(
        &self,
        form: (Form, Stacked),
        order: Order,
        images: bool,
    ) -> KernelSource {
        let by_matrices = matches!(self.operands, Operands::Cooperative(_));
        assert!(!by_matrices, "stacks are multiplied in f32 or by packed dot products");
        self.text::<StackedParams>((form.0, Some(form.1)), order, images)
    }

    fn text<P: Pod>(
        &self,
        (form, stacked): (Form, Option<Stacked>),
        order: Order,
        images: bool,
    ) -> KernelSource {
        let Order { chunked, norm_lanes } = order;
        let Self { tm, tn, lanes, groups, ahead, operands, aside, .. } = *self;
        let is_cut = aside == Aside::Chunks;
        let (subgroup, staged) = (operands == Operands::Broadcast, operands.are_staged());
        let packed = operands.are_packed();
        let workgroup = self.workgroup();
        let Form { format, norm, mut kind } = form;
        if is_cut {
            kind = Kind::Store;
        }
        let apart = norm && aside != Aside::Nothing;
        assert!(!is_cut || chunked, "what is cut has chunks");
        assert!(aside == Aside::Nothing || stacked.is_none(), "a stack's kernels do it all");
        assert!((TILE as u32).is_multiple_of(self.strip()), "strips fill a tile");
        assert!(norm_lanes.is_multiple_of(8), "squares are summed by eights");
        assert!(!subgroup || norm_lanes == 8, "eight lanes sum the squares");
        assert!(norm_lanes <= workgroup || apart || !norm, "a workgroup sums the squares");
        assert!(chunked || groups == 1 || staged, "groups share chunks");
        assert!(
            !staged || !norm || apart || workgroup.is_multiple_of(norm_lanes),
            "by whole rows where it stages"
        );
        assert!(!packed || (format.is_integer() && !norm), "x was normalised as it was quantised");
        let group_vec4s = GROUP as u32 / 4;
        let shared = operands.subgroups();
        assert!(groups.is_multiple_of(shared.down), "each subgroup has as many rows");
        assert!(shared.chunks == 1 || groups == 1, "of few rows k is shared");
        let padded = group_vec4s * shared.staged + PADDING;
        let cooperative = matches!(operands, Operands::Cooperative(_));
        let is_whole = format.fragment_side() == Some(tm) && !images;
        assert!(!cooperative || is_whole, "weights are stored as matrices are read");
        let block = format.block() as u32;
        // Up to four groups, whose scales are loaded at once.
        let step_loads = GROUP as u32 / block * tn;
        let steps = if ahead { (LOADS_AHEAD / step_loads).clamp(1, 4) } else { 1 };
        // Results leave as vec4s: a lane has all four values of one, or gets them from its
        // neighbours.
        let wide = tn.is_multiple_of(kind.unit());
        let needs_wide = matches!(operands, Operands::Staged | Operands::PackedStaged);
        assert!(wide || !needs_wide, "lanes of a tile have whole results");
        let out_rows = match operands {
            _ if is_cut => 0,
            Operands::Loaded | Operands::Broadcast if wide => 0,
            Operands::Staged | Operands::PackedStaged => 0,
            _ => shared.down * tm,
        };
        let (lane_stride, j_stride) = if wide { (tn, 1) } else { (1, lanes) };
        let own = [
            ("TM", tm),
            ("TN", tn),
            // Columns whose weights are loaded before they are multiplied. As measured on software
            // drivers: one row of bf16 is a tenth faster so, other formats are a quarter slower.
            ("AT_ONCE", if subgroup && tm == 1 && format == Format::Bf16 { 1 } else { tn }),
            ("AHEAD", (steps > 1).into()),
            ("STEPS", steps),
            ("LANES", lanes),
            ("GROUPS", groups),
            ("WORKGROUP", workgroup),
            ("TILE_ROWS", self.rows()),
            ("TILE_X", group_vec4s * self.rows()),
            ("TILE_WEIGHTS", group_vec4s * self.strip()),
            ("NORM_ROWS", workgroup / norm_lanes),
            ("SIDE", tm),
            ("SUBGROUP_LANES", shared.lanes),
            ("ACROSS", lanes / tm),
            ("DOWN", shared.down),
            ("CHUNKS", shared.chunks),
            ("MATRICES", groups / shared.down),
            ("COOPERATIVE", cooperative.into()),
            ("FRAGMENT_BLOCKS", (tm / FRAGMENT_BLOCK).max(1)),
            ("FRAGMENT", tm * tm / 4),
            ("FRAGMENT_STRIDE", tm / 4),
            ("STAGED_VALUES", GROUP as u32 * shared.staged),
            ("STAGED_VEC4S", group_vec4s * shared.staged),
            ("PADDED", padded),
            ("HALF_X", padded * self.rows() * shared.chunks),
            ("PACKED", packed.into()),
            ("NIBBLES", (format == Format::Int4).into()),
            ("LAST_BLOCK", format.group_blocks() as u32 - 1),
            ("STAGED", if packed { STAGED_GROUPS } else { shared.staged }),
            ("PACKED_X", 2 * STAGED_GROUPS * self.rows()),
            ("X_FACTORS", STAGED_GROUPS * self.rows()),
            ("PACKED_WEIGHTS", 2 * STAGED_GROUPS * self.strip()),
            ("FACTORS", STAGED_GROUPS * self.strip()),
            ("CUT", is_cut.into()),
            ("SUMS", 0),
            ("APART", apart.into()),
            ("OWN_NORM", (norm && !apart).into()),
            ("SPLIT", (!is_cut && if staged { shared.chunks } else { groups } > 1).into()),
            ("SPLIT_SUMS", groups * tm * tn * lanes),
            ("SUBGROUP", subgroup.into()),
            ("STRIP", self.strip()),
            ("STRIPS", self.strips()),
            ("CHUNKED", chunked.into()),
            ("CHUNK_BLOCKS", if chunked { CHUNK / block } else { MAX_BLOCKS }),
            // Lanes that share values of x can afford to scale them.
            ("SCALED", (subgroup && format.scales_x()).into()),
            ("LONG_GROUPS", (format.group() > GROUP).into()),
            ("HALF_QUADS", (chunked && format.group() > GROUP).into()),
            ("NORM", norm.into()),
            ("NORM_LANES", norm_lanes),
            ("NORM_EIGHTHS", norm_lanes / 8),
            ("SQUARES", tm * norm_lanes),
            ("WIDE", wide.into()),
            ("UNIT", kind.unit()),
            ("LANE_STRIDE", lane_stride),
            ("J_STRIDE", j_stride),
            ("OUT_ROWS", out_rows),
            ("SHARED_OUT", shared.chunks * out_rows * self.strip()),
            ("BLOCK", BLOCK_TOKENS as u32),
            ("STACKED", stacked.is_some().into()),
            ("ROUTED", (stacked == Some(Stacked::Routed)).into()),
            ("LONE", (self.rows() == 1).into()),
        ];
        let constants = own.into_iter().chain(kind.constants()).chain(format.constants());
        let constants: Vec<_> = constants.collect();
        let template = [
            match operands {
                Operands::Loaded | Operands::Broadcast => include_str!("matmul.wgsl"),
                Operands::Staged => include_str!("matmul_tiled.wgsl"),
                Operands::Cooperative(_) => include_str!("matmul_cooperative.wgsl"),
                Operands::Packed => include_str!("matmul_packed.wgsl"),
                Operands::PackedStaged => include_str!("matmul_packed_tiled.wgsl"),
            },
            if packed { include_str!("matmul_packed_in.wgsl") } else { "" },
            if staged && !packed { include_str!("matmul_staged.wgsl") } else { "" },
            INPUTS,
            include_str!("matmul_out.wgsl"),
            if packed { "" } else { include_str!("decode_place.wgsl") },
            format.decoder(),
        ]
        .concat();
        let which = stacked.map_or(String::new(), |it| format!(" {it:?}").to_lowercase());
        let name = format!("matmul{which} {} {}", form.name(), self.name());
        KernelSource::declared::<P>(name, &template, images, &constants)
    }
}
