//! What a kernel of products is compiled for, beside how its work is laid out over lanes.

use crate::kv_cache::KvFormat;
use crate::weights::Format;

/// What becomes of a product, without the tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Store,
    Vec4s,
    Residual,
    Swiglu,
    /// Keys and values go to a cache of this format.
    Qkv(KvFormat),
}

impl Kind {
    /// Those of layers with a cache of this format.
    pub(crate) fn all(kv: KvFormat) -> [Self; 5] {
        [Self::Store, Self::Vec4s, Self::Residual, Self::Swiglu, Self::Qkv(kv)]
    }

    /// Columns that become a vec4 of results.
    pub(crate) fn unit(self) -> u32 {
        if self == Self::Swiglu { 8 } else { 4 }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Store => "store",
            Self::Vec4s => "vec4s",
            Self::Residual => "residual",
            Self::Swiglu => "swiglu",
            Self::Qkv(_) => "qkv",
        }
    }

    /// What the text of a kernel is told.
    pub(crate) fn constants(self) -> [(&'static str, u32); 6] {
        [
            ("STORE", (self == Self::Store).into()),
            ("VEC4S", (self == Self::Vec4s).into()),
            ("RESIDUAL", (self == Self::Residual).into()),
            ("SWIGLU", (self == Self::Swiglu).into()),
            ("QKV", matches!(self, Self::Qkv(_)).into()),
            ("KV_F16", (self == Self::Qkv(KvFormat::F16)).into()),
        ]
    }
}

/// Which rows of a product go with which matrices of a stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Stacked {
    /// Each row with those that were chosen for it.
    Routed,
    /// Each row in parts, one for each matrix.
    Heads,
}

/// What a kernel is compiled for, beside its variant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Form {
    pub(crate) format: Format,
    pub(crate) norm: bool,
    pub(crate) kind: Kind,
}

/// What is added, and in which order: with the format of weights, what defines a result's bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Order {
    /// Whether k is cut into chunks, so that groups of lanes can share it.
    pub(crate) chunked: bool,
    /// Lanes that the squares of a norm are summed over; a multiple of eight.
    pub(crate) norm_lanes: u32,
}

impl Form {
    pub(crate) fn name(self) -> String {
        let Self { format, norm, kind } = self;
        let kind = match kind {
            Kind::Qkv(KvFormat::F32) => "Qkv".to_owned(),
            Kind::Qkv(kv) => format!("Qkv {kv:?} cache"),
            kind => format!("{kind:?}"),
        };
        format!("{kind}{} {format:?}", if norm { " norm" } else { "" }).to_lowercase()
    }
}
