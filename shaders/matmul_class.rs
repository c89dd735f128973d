//! The kernels of products: in which ways their work is laid out over lanes on a device.

use crate::gpu::Caps;
use crate::kernel::KernelSource;
use crate::matmul::Products;
use crate::matmul_aside;
use crate::matmul_variant::{Aside, Form, Operands, Order, Subgroups, Variant};
use crate::quantize_rows;
use crate::weights::Format;

/// What defines the bits of products on a device, and how they are laid out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Class {
    /// By ascending number of rows; those for the same number are ways among which the fastest is
    /// chosen by trying, the first one where nothing is tried.
    pub(crate) variants: Vec<Variant>,
    /// What they have in common.
    pub(crate) order: Order,
}

impl Class {
    /// The class of an adapter for weights of this format.
    pub(crate) fn choose(caps: Caps, format: Format) -> Self {
        let side = caps.fragment_side().filter(|_| caps.products == Products::Cooperative);
        if let Some(side) = side.filter(|_| format.fragment_side() == side) {
            return Self::cooperative(side, caps.max_subgroup_size).that_fits(caps);
        }
        match caps.packs && format.is_integer() {
            true => Self::packed(caps.is_cpu).that_fits(caps),
            false => Self::plain(caps, format),
        }
    }

    /// In f32: what others are compared with.
    pub(crate) fn plain(caps: Caps, format: Format) -> Self {
        let broadcast = caps.subgroups && caps.min_subgroup_size >= 8;
        let class = if caps.is_cpu { Self::cpu(broadcast, format) } else { Self::gpu() };
        class.that_fits(caps)
    }

    /// For stacks of matrices, of which few rows are multiplied with each: by packed dot products
    /// where x is in bytes, else in f32, whatever the device does with others. As many rows a
    /// workgroup for every format, since the stacks of a layer may be of several.
    pub(crate) fn stacked(caps: Caps, format: Format, packs: bool) -> Self {
        if packs {
            let Self { variants, order } = Self::packed(caps.is_cpu);
            let of = |variant, tm, max_rows| Variant { tm, max_rows, ..variant };
            let (one, any) = (variants[0], usize::MAX);
            let variants = if caps.is_cpu {
                vec![one, of(one, 2, 2), of(one, 4, any)]
            } else {
                let eight = Variant { lanes: 64, groups: 1, ahead: false, ..one };
                let staged =
                    |it: &&Variant| it.operands == Operands::PackedStaged && it.rows() == 32;
                let staged = variants.iter().find(staged).expect("a GPU has it");
                vec![one, of(one, 4, 4), of(eight, 8, 8), of(*staged, staged.tm, any)]
            };
            return Self { variants, order };
        }
        let Self { variants, order } = Self::plain(caps, format);
        let (one, any) = (variants[0], usize::MAX);
        let variants = if caps.is_cpu {
            let tn = variants[1].tn;
            let of = |tm, tn, max_rows| Variant { tm, tn, max_rows, ..one };
            vec![one, of(2, tn, 2), of(4, tn, any)]
        } else {
            vec![
                one,
                Variant { tm: 4, max_rows: 4, ..one },
                Variant { tm: 8, max_rows: 8, lanes: 64, groups: 1, ..one },
                Self::gpu().staged(),
            ]
        };
        Self { variants, order }
    }

    /// A software driver loads lane by lane: what counts is the number of loads, so a broadcast
    /// pays, and one subgroup per workgroup keeps its reads together. Its sums don't fit the
    /// registers: more columns at once make it no faster, and k in chunks a tenth slower.
    fn cpu(broadcast: bool, format: Format) -> Self {
        let operands = if broadcast { Operands::Broadcast } else { Operands::Loaded };
        let aside = Aside::Nothing;
        let one = Variant {
            max_rows: 1,
            tm: 1,
            tn: 8,
            lanes: 8,
            groups: 1,
            ahead: false,
            operands,
            aside,
        };
        // As measured.
        let tn = match format {
            Format::F32 | Format::Bf16 | Format::Fp8 => 4,
            _ => 8,
        };
        let many = Variant { max_rows: usize::MAX, tm: 4, tn, ..one };
        let mut variants = vec![one, Variant { max_rows: 2, tm: 2, ..many }];
        if matches!(format, Format::F16 | Format::F16Fragments | Format::Fp8) {
            // As measured: a tenth faster in one, a fifth in the other, and in no other format.
            let most = Variant { tm: 16, tn: 8, ..many };
            variants.extend([Variant { max_rows: 32, ..many }, most]);
        } else {
            variants.push(many);
        }
        Self { variants, order: Order { chunked: false, norm_lanes: 8 } }
    }

    /// With few rows there are too few columns for one lane each: chunks of k run side by side, in
    /// a workgroup or over several.
    /// With many, every weight is used often, which is worth a place in a workgroup's memory.
    pub(crate) fn gpu() -> Self {
        let any = usize::MAX;
        let operands = Operands::Loaded;
        let aside = Aside::Nothing;
        let base = Variant {
            max_rows: 1,
            tm: 1,
            tn: 1,
            lanes: 32,
            groups: 8,
            ahead: true,
            operands,
            aside,
        };
        let laid_out = |base: Variant, lanes, groups| Variant { lanes, groups, ..base };
        // Narrow strips, where there are few columns for as many workgroups as a device runs.
        let narrow =
            |base| [(32, 8), (16, 16), (16, 8), (8, 16)].map(|(l, g)| laid_out(base, l, g));
        let cut = |base, groups| Variant { aside: Aside::Chunks, ..laid_out(base, 32, groups) };
        let four = Variant { max_rows: 4, tm: 4, ..base };
        // From here on a norm costs more in every workgroup than once.
        let eight = Variant { max_rows: 8, tm: 8, ahead: false, aside: Aside::Norm, ..base };
        let several = Variant { max_rows: 32, ..eight };
        let many = Variant { max_rows: any, ..laid_out(eight, 64, 1) };
        let staged = Variant { tm: 4, tn: 8, lanes: 8, operands: Operands::Staged, ..many };
        let variants = [
            &narrow(base)[..],
            &[
                Variant { ahead: false, ..base },
                Variant { aside: Aside::Norm, ..base },
                cut(base, 2),
                cut(base, 4),
            ],
            &narrow(four)[..3],
            &[
                Variant { aside: Aside::Norm, ..four },
                cut(four, 4),
                eight,
                laid_out(eight, 16, 16),
                Variant { tn: 2, ..laid_out(eight, 16, 8) },
                Variant { tn: 2, ..laid_out(eight, 16, 16) },
                Variant { max_rows: 32, ..many },
                Variant { max_rows: 32, groups: 8, ..staged },
                several,
                Variant { tn: 2, ..laid_out(several, 16, 8) },
                many,
                Variant { tm: 16, ..many },
                Variant { groups: 16, ..staged },
                Variant { tm: 8, groups: 8, ..staged },
            ],
        ]
        .concat();
        Self { variants, order: Order { chunked: true, norm_lanes: 64 } }
    }

    /// What takes 32 rows a workgroup, or any number of them.
    fn staged(&self) -> Variant {
        let is_staged =
            |it: &&Variant| it.operands == Operands::Staged && it.tm == 4 && it.groups == 8;
        let staged = self.variants.iter().find(is_staged).expect("a GPU has it");
        Variant { max_rows: usize::MAX, aside: Aside::Nothing, ..*staged }
    }

    /// Of weights that are stored as matrices. Matrix cores take `side` rows or none: with fewer,
    /// the others are computed and not stored. Few rows need more loads under way than their
    /// columns have lanes, so that subgroups share k; with many, what a subgroup has read is used
    /// for several matrices.
    pub(crate) fn cooperative(side: u32, subgroup_lanes: u32) -> Self {
        // Fewer couldn't sum the squares of a norm.
        let lanes = subgroup_lanes.max(side);
        let alone = Subgroups { lanes, down: 1, chunks: 1, staged: 1 };
        let cooperative = Operands::Cooperative;
        let split = |chunks, staged| cooperative(Subgroups { chunks, staged, ..alone });
        let few = Variant {
            max_rows: side as usize,
            tm: side,
            tn: 1,
            lanes: side,
            groups: 1,
            ahead: false,
            operands: split(8, 2),
            aside: Aside::Norm,
        };
        let alone_few = Variant { lanes: 64, operands: cooperative(alone), ..few };
        let many = Variant { max_rows: usize::MAX, groups: 4, ..alone_few };
        let shared = cooperative(Subgroups { down: 2, ..alone });
        let variants = vec![
            few,
            Variant { lanes: 2 * side, operands: split(4, 2), ..few },
            alone_few,
            Variant { aside: Aside::Nothing, ..few },
            // With little to stage, a step takes more of k at a time.
            Variant { operands: split(4, 4), ..few },
            Variant { operands: split(16, 1), ..few },
            Variant { operands: split(16, 1), aside: Aside::Nothing, ..few },
            many,
            Variant { groups: 2, ..many },
            Variant { groups: 8, operands: shared, ..many },
            Variant { groups: 8, tn: 2, lanes: 32, operands: shared, ..many },
            Variant { groups: 2, operands: split(1, 2), ..many },
        ];
        Self { variants, order: Order { chunked: true, norm_lanes: 64 } }
    }

    /// As plain ones are laid out. A broadcast would gain nothing on a software driver, which has
    /// more to do for a product of four bytes than for a load.
    pub(crate) fn packed(is_cpu: bool) -> Self {
        let (any, operands, aside) = (usize::MAX, Operands::Packed, Aside::Nothing);
        if is_cpu {
            let one = Variant {
                max_rows: 1,
                tm: 1,
                tn: 8,
                lanes: 8,
                groups: 1,
                ahead: false,
                operands,
                aside,
            };
            let variants = vec![
                one,
                Variant { max_rows: 4, tm: 4, ..one },
                Variant { max_rows: any, tm: 8, ..one },
            ];
            return Self { variants, order: Order { chunked: true, norm_lanes: 8 } };
        }
        let one = Variant {
            max_rows: 1,
            tm: 1,
            tn: 1,
            lanes: 32,
            groups: 8,
            ahead: true,
            operands,
            aside,
        };
        let laid_out = |base: Variant, lanes, groups| Variant { lanes, groups, ..base };
        let cut = |base, groups| Variant { aside: Aside::Chunks, ..laid_out(base, 32, groups) };
        let few = Variant { max_rows: 8, tm: 4, ..one };
        let several = Variant { max_rows: 64, tm: 8, tn: 2, ahead: false, ..one };
        let operands = Operands::PackedStaged;
        let staged = Variant {
            max_rows: any,
            tm: 4,
            tn: 8,
            lanes: 8,
            groups: 16,
            ahead: false,
            operands,
            aside,
        };
        let variants = vec![
            one,
            laid_out(one, 16, 16),
            laid_out(one, 16, 8),
            laid_out(one, 8, 16),
            Variant { ahead: false, ..one },
            cut(one, 2),
            cut(one, 4),
            few,
            laid_out(few, 16, 16),
            cut(few, 4),
            Variant { tm: 8, ..laid_out(few, 16, 8) },
            Variant { max_rows: 64, groups: 8, ..staged },
            Variant { max_rows: 64, tm: 2, groups: 8, ..staged },
            laid_out(several, 16, 8),
            laid_out(several, 16, 4),
            staged,
            Variant { groups: 8, ..staged },
        ];
        Self { variants, order: Order { chunked: true, norm_lanes: 64 } }
    }

    /// Without the variants for which a device has too little of workgroups' lanes or memory.
    fn that_fits(mut self, caps: Caps) -> Self {
        self.variants.retain(|variant| variant.fits(caps));
        self
    }

    /// Whether x is quantised before.
    pub(crate) fn is_packed(&self) -> bool {
        self.variants.iter().all(|variant| variant.operands.are_packed())
    }

    /// How it multiplies, which decides what is fastest.
    pub(crate) fn how(&self) -> &'static str {
        self.variants[0].how()
    }

    /// The variants for each number of rows.
    pub(crate) fn choices(&self) -> impl Iterator<Item = &[Variant]> {
        self.variants.chunk_by(|one, other| one.max_rows == other.max_rows)
    }

    /// Classes without a choice, so many that every variant is in one of them.
    pub(crate) fn ways(&self) -> Vec<Self> {
        let num_ways = self.choices().map(<[_]>::len).max().unwrap_or(0);
        let way = |way: usize| Self {
            variants: self.choices().map(|ways| ways[way.min(ways.len() - 1)]).collect(),
            order: self.order,
        };
        (0..num_ways).map(way).collect()
    }

    /// The kernels of a form, one for each variant, and what quantises its x.
    pub(crate) fn sources(&self, mut form: Form, images: bool) -> Vec<KernelSource> {
        let mut before = Vec::new();
        if self.is_packed() {
            before.push(quantize_rows::source(self.order.norm_lanes, form.norm, images));
            form.norm = false;
        }
        if form.norm && self.variants.iter().any(|variant| variant.aside != Aside::Nothing) {
            before.push(matmul_aside::scales_source(self.order.norm_lanes, images));
        }
        if self.variants.iter().any(Variant::is_cut) {
            before.push(matmul_aside::sums_source(form.kind, images));
        }
        let source = |variant: &Variant| variant.source(form, self.order, images);
        before.into_iter().chain(self.variants.iter().map(source)).collect()
    }
}
