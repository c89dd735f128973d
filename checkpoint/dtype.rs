//! Number formats: how weights are stored, and as what they are handed over.

use std::fmt;

use crate::architecture::Role;
use crate::fp8;
use crate::levels;

/// How a tensor is stored in its file. The quantised ones are ggml's block formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types, reason = "these are the names that everyone knows them by")]
pub enum DType {
    /// 32-bit floats.
    F32,
    /// IEEE 754 16-bit floats.
    F16,
    /// The upper half of 32-bit floats.
    BF16,
    /// 8-bit floats with four bits of exponent and no infinities; a tensor beside them holds
    /// factors.
    F8_E4M3,
    /// Four-bit integers, eight in a word; tensors beside them hold scales and zeros of groups.
    I4,
    /// Blocks of 32: a scale, 32 signed bytes.
    Q8_0,
    /// Blocks of 32: a scale, 32 four-bit numbers centred on 8.
    Q4_0,
    /// Blocks of 32: a scale, a minimum, 32 four-bit numbers.
    Q4_1,
    /// Blocks of 32: a scale, 32 five-bit numbers centred on 16.
    Q5_0,
    /// Blocks of 32: a scale, a minimum, 32 five-bit numbers.
    Q5_1,
    /// Blocks of 256: two scales, 8 six-bit scales and minimums, 256 four-bit numbers.
    Q4_K,
    /// The same with five-bit numbers.
    Q5_K,
    /// Blocks of 256: a scale, 16 eight-bit scales, 256 six-bit numbers centred on 32.
    Q6_K,
    /// Blocks of 32: a scale, 32 four-bit names of levels.
    IQ4_NL,
    /// Blocks of 256: a scale, 8 six-bit scales, 256 four-bit names of levels.
    IQ4_XS,
    /// Blocks of 256: a scale, 8 four-bit scales, 64 names of four magnitudes, signs.
    IQ3_XXS,
}

impl DType {
    pub(crate) const NAMES: &'static str = "F32, F16, BF16, F8_E4M3, I4, Q8_0, Q4_0, Q4_1, Q5_0, \
        Q5_1, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS and IQ3_XXS";

    /// All that can be read.
    pub(crate) const ALL: &[Self] = &[
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::F8_E4M3,
        Self::I4,
        Self::Q8_0,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q4_K,
        Self::Q5_K,
        Self::Q6_K,
        Self::IQ4_NL,
        Self::IQ4_XS,
        Self::IQ3_XXS,
    ];

    /// Values in one block; 1 for plain floats.
    pub(crate) fn block_values(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 | Self::F8_E4M3 => 1,
            Self::I4 => 8,
            Self::Q8_0 | Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::IQ4_NL => 32,
            Self::Q4_K | Self::Q5_K | Self::Q6_K | Self::IQ4_XS | Self::IQ3_XXS => SUPER,
        }
    }

    /// As stored, scales included.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::F8_E4M3 => 1,
            Self::I4 => 4,
            Self::Q8_0 => 34,
            Self::Q4_0 | Self::IQ4_NL => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q4_K => 144,
            Self::Q5_K => 176,
            Self::Q6_K => 210,
            Self::IQ4_XS => levels::XS_BYTES,
            Self::IQ3_XXS => levels::GRID_BYTES,
        }
    }

    /// As what values stored like this are handed over: quantised ones keep their bits.
    pub fn format(self) -> Format {
        match self {
            Self::F32 => Format::F32,
            Self::BF16 => Format::BF16,
            Self::F8_E4M3 => Format::Fp8,
            Self::I4 => Format::Int4Zero,
            Self::Q8_0 => Format::Int8,
            Self::Q4_0 | Self::Q4_1 => Format::Int4,
            Self::Q5_0 | Self::Q5_1 => Format::Int5,
            Self::Q4_K => Format::Q4K,
            Self::Q5_K => Format::Q5K,
            Self::Q6_K => Format::Q6K,
            Self::IQ4_NL => Format::Iq4Nl,
            Self::IQ4_XS => Format::Iq4Xs,
            Self::IQ3_XXS => Format::Iq3,
            Self::F16 => Format::F16,
        }
    }

    /// Whether a row in its file is a row as it is handed over.
    pub(crate) fn is_handed_over_as_stored(self) -> bool {
        !matches!(self, Self::F8_E4M3 | Self::I4 | Self::Q4_0 | Self::Q5_0 | Self::IQ3_XXS)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl std::str::FromStr for DType {
    type Err = String;

    /// By its name, in letters of any size; `fp8` is that of e4m3.
    fn from_str(name: &str) -> Result<Self, String> {
        let is = |it: &&Self| name.eq_ignore_ascii_case(&it.to_string());
        let fp8 = name.eq_ignore_ascii_case("fp8").then_some(Self::F8_E4M3);
        let found = Self::ALL.iter().find(is).copied().or(fp8);
        found.ok_or_else(|| format!("expected one of {}", Self::NAMES))
    }
}

/// Values that share a scale in an integer format.
pub(crate) const GROUP: usize = 32;

/// Values of ggml's large blocks.
const SUPER: usize = 256;

/// Values that share a scale in [`Format::Int4Zero`].
pub(crate) const ZERO_GROUP: usize = 128;

/// Bytes of such a group.
pub(crate) const ZERO_GROUP_BYTES: usize = 4 + ZERO_GROUP / 2;

/// Values that share a scale in [`Format::Fp8`].
pub(crate) const FP8_GROUP: usize = 128;

/// As what a matrix is handed over, little-endian. A row of an integer format is ggml's blocks; the
/// last group of a row is filled with zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// 32-bit floats.
    F32,
    /// IEEE 754 16-bit floats.
    F16,
    /// The upper half of 32-bit floats.
    BF16,
    /// Groups of 32, each `d: f16, q: [i8; 32]` (`block_q8_0`): values `d q`.
    Int8,
    /// Groups of 32, each `d: f16, m: f16, q: [u8; 16]` (`block_q4_1`): values `d q + m`.
    Int4,
    /// Groups of 128, each `d: f32, q: [u8; 128]`, q in e4m3: values `d q`. None of them is NaN.
    Fp8,
    /// Groups of 128, each `d: f32, q: [u8; 64]`, four times 32 values as those of `Int4`: values
    /// `d (q - z)`, z in the last byte of d, which has no digits there.
    Int4Zero,
    /// Groups of 32, each `d: f16, m: f16, high: u32, q: [u8; 16]` (`block_q5_1`): values
    /// `d q + m`.
    Int5,
    /// Blocks of 256 as ggml has them (`block_q4_K`).
    Q4K,
    /// The same (`block_q5_K`).
    Q5K,
    /// The same (`block_q6_K`).
    Q6K,
    /// Groups of 32, each `d: f16, q: [u8; 16]` (`block_iq4_nl`): codes name levels.
    Iq4Nl,
    /// Blocks of 256 as ggml has them (`block_iq4_xs`).
    Iq4Xs,
    /// Blocks laid out in the same way, whose codes name -15.5, -13, -11 ... 11, 13, 15.5.
    Iq3,
}

impl Format {
    /// How blocks of ggml are stored that are handed over as they are, or become such; `None` for
    /// other formats.
    fn blocks(self) -> Option<DType> {
        match self {
            Self::Int8 => Some(DType::Q8_0),
            Self::Int4 => Some(DType::Q4_1),
            Self::Int5 => Some(DType::Q5_1),
            Self::Q4K => Some(DType::Q4_K),
            Self::Q5K => Some(DType::Q5_K),
            Self::Q6K => Some(DType::Q6_K),
            Self::Iq4Nl => Some(DType::IQ4_NL),
            // The one is laid out as the other.
            Self::Iq4Xs | Self::Iq3 => Some(DType::IQ4_XS),
            Self::F32 | Self::F16 | Self::BF16 | Self::Fp8 | Self::Int4Zero => None,
        }
    }

    /// Bytes of a row of `cols` values.
    pub fn row_bytes(self, cols: usize) -> usize {
        match self {
            Self::F32 => 4 * cols,
            Self::F16 | Self::BF16 => 2 * cols,
            Self::Fp8 => cols.div_ceil(FP8_GROUP) * (4 + FP8_GROUP),
            Self::Int4Zero => cols.div_ceil(ZERO_GROUP) * ZERO_GROUP_BYTES,
            _ => self
                .blocks()
                .map_or(0, |blocks| cols.div_ceil(blocks.block_values()) * blocks.block_bytes()),
        }
    }

    /// Whether every weight of rows as they are handed over is finite. No branch hangs on a single
    /// one, so that this vectorises: it runs over a whole model.
    pub(crate) fn is_finite(self, rows: &[u8]) -> bool {
        let f16s = |bytes| none(bytes, |value| u16::from_le_bytes(value) & 0x7c00 == 0x7c00);
        match self {
            Self::F32 => none(rows, |value| u32::from_le_bytes(value) & 0x7f80_0000 == 0x7f80_0000),
            Self::F16 => f16s(rows),
            Self::BF16 => none(rows, |value| u16::from_le_bytes(value) & 0x7f80 == 0x7f80),
            Self::Int8 | Self::Iq4Nl => {
                rows.chunks_exact(self.row_bytes(GROUP)).all(|group| f16s(&group[..2]))
            }
            Self::Iq4Xs | Self::Iq3 => {
                rows.chunks_exact(self.row_bytes(SUPER)).all(|block| f16s(&block[..2]))
            }
            Self::Int4 | Self::Int5 => {
                rows.chunks_exact(self.row_bytes(GROUP)).all(|group| f16s(&group[..4]))
            }
            Self::Int4Zero => rows.chunks_exact(ZERO_GROUP_BYTES).all(|group| {
                none(&group[..4], |d| u32::from_le_bytes(d) & 0x7f80_0000 == 0x7f80_0000)
            }),
            Self::Q4K | Self::Q5K => {
                rows.chunks_exact(self.row_bytes(SUPER)).all(|block| f16s(&block[..4]))
            }
            Self::Q6K => rows.chunks_exact(self.row_bytes(SUPER)).all(|block| f16s(&block[208..])),
            Self::Fp8 => rows.chunks_exact(4 + FP8_GROUP).all(|group| {
                let factor = f32::from_le_bytes([group[0], group[1], group[2], group[3]]);
                fp8::is_factor(factor) && none(&group[4..], |[code]| code & 0x7f == 0x7f)
            }),
        }
    }

    /// Bytes of a row on an adapter, where what belongs to a group beside its numbers has a word.
    pub(crate) fn device_row_bytes(self, cols: usize) -> usize {
        match self {
            Self::Int8 => cols.div_ceil(GROUP) * (GROUP + 4),
            Self::Fp8 => cols.next_multiple_of(GROUP) + cols.div_ceil(FP8_GROUP) * 4,
            Self::Int4Zero => cols.next_multiple_of(GROUP) / 2 + cols.div_ceil(ZERO_GROUP) * 4,
            // The scales of 128 values take as much as their upper bits.
            Self::Q6K => cols.div_ceil(SUPER) * (128 + 6 * 16),
            // Scales of 256 values, or of 512, are rounded up to 16 bytes.
            Self::Iq4Nl => (cols.div_ceil(GROUP) + cols.div_ceil(SUPER)) * 16,
            Self::Iq4Xs | Self::Iq3 => (cols.div_ceil(GROUP) + cols.div_ceil(2 * SUPER)) * 16,
            _ => self.row_bytes(cols),
        }
    }

    /// The narrowest floats that hold the values.
    pub(crate) fn float(self) -> Self {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => self,
            Self::Fp8 | Self::Int4Zero => Self::F32,
            _ => Self::F16,
        }
    }

    /// The narrowest floats that hold the values of both, unless both are the same.
    pub(crate) fn widest(self, other: Self) -> Self {
        match (self, other) {
            _ if self == other => self,
            _ if self.float() == other.float() => self.float(),
            _ => Self::F32,
        }
    }
}

/// Whether no value is bad. Looks at all of them.
fn none<const N: usize>(values: &[u8], is_bad: impl Fn([u8; N]) -> bool) -> bool {
    !values.as_chunks().0.iter().fold(false, |any, value| any | is_bad(*value))
}

/// What weights are rounded to while they are loaded, unless the file has them smaller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Quantize {
    /// They stay as they are.
    #[default]
    None,
    /// 8 bits.
    Int8,
    /// 4 bits in layers; embedding and head, which lose most by it, 8.
    Int4,
}

impl Quantize {
    /// What becomes of a role's matrices.
    pub(crate) fn of(self, role: Role) -> Self {
        // What is chosen hangs on a router: it stays as it is.
        if role == Role::Router { Self::None } else { self }
    }

    /// The format of a matrix that its file has in `stored`.
    pub(crate) fn format(self, stored: Format, is_layer: bool) -> Format {
        match (self, stored) {
            (Self::None, _) | (_, Format::Int4 | Format::Int4Zero | Format::Q4K) => stored,
            (_, Format::Iq4Nl | Format::Iq4Xs | Format::Iq3) => stored,
            (Self::Int4, _) if is_layer => Format::Int4,
            (_, Format::Int5 | Format::Q5K | Format::Q6K) => stored,
            (Self::Int8 | Self::Int4, _) => Format::Int8,
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_found_by_the_names_that_messages_list() {
        let names: Vec<_> = DType::NAMES.split(", ").flat_map(|it| it.split(" and ")).collect();
        let all: Vec<_> = DType::ALL.iter().map(DType::to_string).collect();
        assert_eq!(names, all);
        for name in names {
            assert_eq!(name.to_lowercase().parse::<DType>().unwrap().to_string(), name);
        }
        assert_eq!("fp8".parse(), Ok(DType::F8_E4M3));
        assert!("q9".parse::<DType>().unwrap_err().contains("BF16"));
    }
}
