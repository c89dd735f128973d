//! Number formats of weights: how a row is handed over, and how kernels read it.

use crate::format_k;
use crate::format_levels;
use crate::gpu::Caps;
use crate::weights::{BLOCK_BYTES, GROUP, GROUPS_PER_QUAD, TILE};

/// How weights are stored. Products are computed in f32 whatever they are.
///
/// Rows of the integer formats are, before they are packed, the blocks of ggml (`block_q8_0`,
/// `block_q4_1` in `ggml-common.h`), so that such files keep their bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of an f32.
    Bf16,
    /// `d q`, `q` a signed byte: per group of 32 `d: f16, q: [i8; 32]`.
    Int8,
    /// `d q + m`, `q` from 0 to 15: per group of 32 `d: f16, m: f16, q: [u8; 16]`, the low nibbles
    /// the first 16 values.
    Int4,
    /// `d q`, `q` an e4m3 number without infinities (OCP 8-bit floating point): per group of 128
    /// `d: f32, q: [u8; 128]`. Kernels don't know its NaN: whoever loads refuses it.
    Fp8,
    /// `d (q - z)`, `q` from 0 to 15: per group of 128 `d: f32, q: [u8; 64]`, four times 32 values
    /// as those of `Int4`, z in the last byte of d, which has no digits there.
    Int4Zero,
    /// `d q + m`, `q` from 0 to 31: per group of 32 `d: f16, m: f16, high: u32, q: [u8; 16]`, the
    /// bits of `high` the fifth ones of the values (`block_q5_1`).
    Int5,
    /// `d s q - m t`, `q` from 0 to 15, `s` and `t` of six bits for each group of 32: blocks of 256
    /// values (`block_q4_K`).
    Q4K,
    /// The same with `q` up to 31 (`block_q5_K`).
    Q5K,
    /// `d s (q - 32)`, `q` from 0 to 63, `s` a signed byte for each group of 16: blocks of 256
    /// values (`block_q6_K`).
    Q6K,
    /// `d v`, `v` one of 16 levels: per group of 32 `d: f16, q: [u8; 16]` (`block_iq4_nl`).
    Iq4Nl,
    /// `d s v`, `v` the same, `s` of six bits for each group of 32: blocks of 256 values
    /// (`block_iq4_xs`).
    Iq4Xs,
    /// The same with other levels, with which `block_iq3_xxs` is exact.
    Iq3,
    /// Halves as cooperative matrices of 16 x 16 take them from a buffer: two blocks of a row stand
    /// side by side, so that 16 rows of 16 values are one piece.
    F16Fragments,
}

impl Format {
    /// What self-tests go through.
    pub const ALL: [Self; 15] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Int8,
        Self::Int4,
        Self::Fp8,
        Self::Int4Zero,
        Self::Int5,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
        Self::Iq4Nl,
        Self::Iq4Xs,
        Self::Iq3,
        Self::F16Fragments,
    ];

    /// Whether groups of values share a scale.
    pub fn is_grouped(self) -> bool {
        self.scale_bytes() > 0 || self.unit().is_some()
    }

    /// Whether a weight is an integer under a scale.
    pub fn is_integer(self) -> bool {
        matches!(self, Self::Int8 | Self::Int4)
    }

    /// Whether a group's values have an offset beside their scale, or codes that take one.
    pub(crate) fn has_offset(self) -> bool {
        let has_none = matches!(self, Self::Fp8 | Self::Q6K) || self.levels().is_some();
        self.is_grouped() && !has_none
    }

    /// Whether codes can be decoded in the places that they have in a word, each a power of two too
    /// large, by kernels that scale x.
    pub(crate) fn scales_x(self) -> bool {
        self.has_offset() || self == Self::Q6K
    }

    /// Size of a row before it is packed, in bytes.
    pub fn row_bytes(self, cols: usize) -> usize {
        match self {
            Self::F32 => cols * 4,
            Self::F16 | Self::F16Fragments | Self::Bf16 => cols * 2,
            Self::Int8 | Self::Int4 | Self::Fp8 | Self::Int4Zero => {
                cols.div_ceil(self.group()) * self.group_bytes()
            }
            Self::Int5 => cols.div_ceil(GROUP) * format_k::INT5_BYTES,
            Self::Q4K | Self::Q5K | Self::Q6K => {
                self.unit().map_or(0, |(values, bytes)| cols.div_ceil(values) * bytes)
            }
            Self::Iq4Nl => cols.div_ceil(GROUP) * format_levels::NL_BYTES,
            Self::Iq4Xs | Self::Iq3 => cols.div_ceil(format_k::SUPER) * format_levels::XS_BYTES,
        }
    }

    /// Values that share a scale, in grouped formats, as far as kernels see.
    pub fn group(self) -> usize {
        if matches!(self, Self::Fp8 | Self::Int4Zero) { 128 } else { GROUP }
    }

    /// Bytes of a group before it is packed.
    pub(crate) fn group_bytes(self) -> usize {
        self.scale_bytes() + self.group_blocks() * BLOCK_BYTES
    }

    /// Bytes of a group's scale, and offset where there is one.
    pub(crate) fn scale_bytes(self) -> usize {
        match self {
            Self::Int8 => 2,
            Self::Int4 | Self::Fp8 | Self::Int4Zero => 4,
            _ => 0,
        }
    }

    /// Values in a block of 16 bytes.
    pub fn block(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::F16Fragments | Self::Bf16 => 8,
            Self::Int8 | Self::Fp8 => 16,
            _ => 32,
        }
    }

    /// What weights of this format are stored as on an adapter: halves that it multiplies by
    /// cooperative matrices in the order of those, whatever kind of halves they are. Those that
    /// don't become such halves stay as they are ([`crate::weights::WeightMatrix::upload`]).
    pub(crate) fn stored(self, caps: Caps) -> Self {
        match (self, caps.fragment_side()) {
            (Self::F16 | Self::Bf16, Some(16)) => Self::F16Fragments,
            (Self::F16 | Self::Bf16, Some(_)) => Self::F16,
            _ => self,
        }
    }

    /// The side of the cooperative matrices that weights of this format are a row of.
    pub(crate) fn fragment_side(self) -> Option<u32> {
        match self {
            Self::F16 => Some(8),
            Self::F16Fragments => Some(16),
            _ => None,
        }
    }

    /// Blocks of a row that stand side by side.
    pub(crate) fn side_by_side(self) -> usize {
        if self == Self::F16Fragments { 2 } else { 1 }
    }

    /// How many blocks share the scale of a group.
    pub(crate) fn group_blocks(self) -> usize {
        self.group() / self.block()
    }

    /// The functions that decode a block, to append to a kernel; of grouped formats without scale.
    pub(crate) fn decoder(self) -> &'static str {
        match self {
            Self::F32 => include_str!("decode_f32.wgsl"),
            Self::F16 | Self::F16Fragments => include_str!("decode_f16.wgsl"),
            Self::Bf16 => include_str!("decode_bf16.wgsl"),
            Self::Int8 => concat!(
                include_str!("decode_int8.wgsl"),
                include_str!("decode_bytes.wgsl"),
                include_str!("decode_scales.wgsl"),
            ),
            Self::Int4 => concat!(
                include_str!("decode_int4.wgsl"),
                include_str!("decode_nibbles.wgsl"),
                include_str!("decode_scales.wgsl"),
            ),
            Self::Int4Zero => concat!(
                include_str!("decode_int4_zero.wgsl"),
                include_str!("decode_nibbles.wgsl"),
                include_str!("decode_scales.wgsl"),
            ),
            Self::Fp8 => {
                concat!(include_str!("decode_fp8.wgsl"), include_str!("decode_scales.wgsl"))
            }
            Self::Int5 => concat!(
                include_str!("decode_int5.wgsl"),
                include_str!("decode_fives.wgsl"),
                include_str!("decode_bytes.wgsl"),
                include_str!("decode_codes.wgsl"),
            ),
            Self::Q4K => concat!(
                include_str!("decode_q4_k.wgsl"),
                include_str!("decode_nibbles.wgsl"),
                include_str!("decode_codes.wgsl"),
            ),
            Self::Q5K => concat!(
                include_str!("decode_q4_k.wgsl"),
                include_str!("decode_fives.wgsl"),
                include_str!("decode_bytes.wgsl"),
                include_str!("decode_codes.wgsl"),
            ),
            Self::Q6K => concat!(
                include_str!("decode_q6_k.wgsl"),
                include_str!("decode_bytes.wgsl"),
                include_str!("decode_codes.wgsl"),
            ),
            Self::Iq4Nl => concat!(
                include_str!("decode_iq4_nl.wgsl"),
                include_str!("decode_levels.wgsl"),
                include_str!("decode_levels_16.wgsl"),
                include_str!("decode_codes.wgsl"),
            ),
            Self::Iq4Xs => concat!(
                include_str!("decode_iq4_xs.wgsl"),
                include_str!("decode_levels.wgsl"),
                include_str!("decode_levels_16.wgsl"),
                include_str!("decode_codes.wgsl"),
            ),
            Self::Iq3 => concat!(
                include_str!("decode_iq4_xs.wgsl"),
                include_str!("decode_levels.wgsl"),
                include_str!("decode_levels_8.wgsl"),
                include_str!("decode_codes.wgsl"),
            ),
        }
    }

    /// The constants of kernels that read blocks, beside their own.
    pub(crate) fn constants(self) -> [(&'static str, u32); 11] {
        let block = self.block() as u32;
        let group_blocks = self.group_blocks() as u32;
        [
            ("TILE", TILE as u32),
            ("PARTS", block / 4),
            ("STEP_BLOCKS", GROUP as u32 / block),
            ("SIDE_BY_SIDE", self.side_by_side() as u32),
            ("PAIRS", (self.side_by_side() == 2).into()),
            ("GROUP_BLOCKS", group_blocks),
            ("QUAD_BLOCKS", group_blocks * GROUPS_PER_QUAD as u32),
            ("GROUPED", self.is_grouped().into()),
            ("OFFSET", self.has_offset().into()),
            ("SIDES", self.sides()),
            ("HIGH_BITS", (self == Self::Q5K).into()),
        ]
    }

    /// The f32 value of each weight in `bytes`: whole rows of `cols` values.
    pub fn decode(self, cols: usize, bytes: &[u8]) -> Vec<f32> {
        let f16_at =
            |bytes: &[u8], at: usize| half::f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32();
        let rows = bytes.chunks_exact(self.row_bytes(cols));
        let decode_row = |row: &[u8]| -> Vec<f32> {
            if let Some((_, bytes)) = self.unit() {
                let blocks = row.chunks(bytes);
                let decode = |it| match self.levels() {
                    Some(levels) => format_levels::decode(self, levels, it),
                    None => format_k::decode(self, it).collect(),
                };
                return blocks.flat_map(decode).take(cols).collect();
            }
            let groups = row.chunks_exact(self.group_bytes());
            match self {
                Self::F32 => row.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
                Self::F16 | Self::F16Fragments => {
                    let values = row.as_chunks().0.iter();
                    values.map(|b| half::f16::from_le_bytes(*b).to_f32()).collect()
                }
                Self::Bf16 => {
                    let values = row.as_chunks().0.iter();
                    values.map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect()
                }
                Self::Int8 => groups
                    .flat_map(|group| {
                        let d = f16_at(group, 0);
                        group[2..].iter().map(move |q| d * f32::from(*q as i8))
                    })
                    .take(cols)
                    .collect(),
                Self::Int4 => groups
                    .flat_map(|group| {
                        let (d, m) = (f16_at(group, 0), f16_at(group, 2));
                        let low = group[4..].iter().map(|q| q & 15);
                        let high = group[4..].iter().map(|q| q >> 4);
                        low.chain(high).map(move |q| d * f32::from(q) + m)
                    })
                    .take(cols)
                    .collect(),
                Self::Int4Zero => groups
                    .flat_map(|group| {
                        let word = u32::from_le_bytes([group[0], group[1], group[2], group[3]]);
                        let (d, zero) = (f32::from_bits(word & !0xff), (word & 0xff) as f32);
                        let code = |i: usize| group[4 + i / 32 * 16 + i % 16] >> (i % 32 / 16 * 4);
                        (0..128).map(move |i| d * (f32::from(code(i) & 15) - zero))
                    })
                    .take(cols)
                    .collect(),
                _ => groups
                    .flat_map(|group| {
                        let d = f32::from_le_bytes([group[0], group[1], group[2], group[3]]);
                        group[4..].iter().map(move |q| d * e4m3_to_f32(*q))
                    })
                    .take(cols)
                    .collect(),
            }
        };
        rows.flat_map(decode_row).collect()
    }

    /// Rows of `cols` values each, every value rounded to this format; for self-tests and tests:
    /// nothing is done for a small error.
    pub fn encode(self, cols: usize, values: &[f32]) -> Vec<u8> {
        match self {
            Self::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Self::F16 | Self::F16Fragments => {
                values.iter().flat_map(|value| half::f16::from_f32(*value).to_le_bytes()).collect()
            }
            Self::Bf16 => {
                values.iter().flat_map(|value| half::bf16::from_f32(*value).to_le_bytes()).collect()
            }
            Self::Int8 | Self::Int4 | Self::Fp8 | Self::Int4Zero => values
                .chunks(cols)
                .flat_map(|row| row.chunks(self.group()).flat_map(|group| self.encode_group(group)))
                .collect(),
            _ => {
                let is_group = matches!(self, Self::Int5 | Self::Iq4Nl);
                let unit = if is_group { GROUP } else { format_k::SUPER };
                let encode = |it| match self.levels() {
                    Some(levels) => format_levels::encode(self, levels, it),
                    None => format_k::encode(self, it),
                };
                values.chunks(cols).flat_map(|row| row.chunks(unit).flat_map(encode)).collect()
            }
        }
    }

    fn encode_group(self, group: &[f32]) -> Vec<u8> {
        let max = group.iter().copied().fold(f32::MIN, f32::max).max(0.0);
        let min = group.iter().copied().fold(f32::MAX, f32::min).min(0.0);
        let value = |i: usize| group.get(i).copied().unwrap_or(0.0);
        let inverse = |d: f32| if d == 0.0 { 0.0 } else { d.recip() };
        match self {
            Self::Int8 => {
                let d = half::f16::from_f32(max.max(-min) / 127.0);
                let inverse = inverse(d.to_f32());
                let codes = (0..GROUP).map(|i| (value(i) * inverse).round() as i8 as u8);
                d.to_le_bytes().into_iter().chain(codes).collect()
            }
            Self::Int4Zero => {
                let d = half::bf16::from_f32((max - min) / 15.0).to_f32();
                let zero = (-min * inverse(d)).round().min(15.0);
                let code = |i: usize| (value(i) * inverse(d) + zero).round().clamp(0.0, 15.0) as u8;
                let pair = |i: usize| {
                    let first = i / 16 * 32 + i % 16;
                    code(first) | code(first + 16) << 4
                };
                let word = d.to_bits() | zero as u32;
                word.to_le_bytes().into_iter().chain((0..64).map(pair)).collect()
            }
            Self::Fp8 => {
                let d = max.max(-min) / E4M3_MAX;
                let codes = (0..self.group()).map(|i| f32_to_e4m3(value(i) * inverse(d)));
                d.to_le_bytes().into_iter().chain(codes).collect()
            }
            _ => {
                let (d, m) = (half::f16::from_f32((max - min) / 15.0), half::f16::from_f32(min));
                let inverse = inverse(d.to_f32());
                let code = |i| ((value(i) - m.to_f32()) * inverse).round().clamp(0.0, 15.0) as u8;
                let codes = (0..GROUP / 2).map(|i| code(i) | code(i + 16) << 4);
                d.to_le_bytes().into_iter().chain(m.to_le_bytes()).chain(codes).collect()
            }
        }
    }
}

/// The largest e4m3 number: the one above it is NaN.
const E4M3_MAX: f32 = 448.0;

/// Sign, four bits of exponent with a bias of 7, three of mantissa; NaN where all of the last
/// seven are set (OCP 8-bit Floating Point Specification, 5.1).
fn e4m3_to_f32(code: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let magnitude = match (exponent, code & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa / 512.0,
        _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    };
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}

/// The nearest e4m3 number, the even one of two.
fn f32_to_e4m3(value: f32) -> u8 {
    let magnitude = value.abs().min(E4M3_MAX);
    // Below 2^-6 steps stay as large as there.
    let exponent = ((magnitude.to_bits() >> 23) as i32 - 127).max(-6);
    let steps = (magnitude / 2f32.powi(exponent - 3)).round_ties_even();
    let code = ((exponent + 6) * 8) as u8 + steps as u8;
    if value.is_sign_negative() { code | 0x80 } else { code }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_survive() {
        for format in Format::ALL {
            let values: Vec<f32> = (0..40).map(|i| (i % 16) as f32 * 0.5 - 3.5).collect();
            let decoded = format.decode(40, &format.encode(40, &values));
            // Of 4, half a step: with three bits of mantissa a quarter, between levels more.
            let tolerance = match format {
                Format::Fp8 => 0.25,
                Format::Iq4Nl | Format::Iq4Xs | Format::Iq3 => 0.43,
                _ => 0.13,
            };
            for (decoded, value) in decoded.iter().zip(&values) {
                assert!(
                    (decoded - value).abs() < tolerance,
                    "{format:?}: {decoded} is not {value}"
                );
            }
        }
    }

    #[test]
    fn e4m3_by_hand() {
        for (code, value) in [
            (0x00, 0.0),
            (0x01, 0.001_953_125),
            (0x07, 0.013_671_875),
            (0x08, 0.015_625),
            (0x38, 1.0),
            (0x39, 1.125),
            (0xc4, -3.0),
            (0x7e, 448.0),
        ] {
            assert_eq!(e4m3_to_f32(code), value);
        }
        assert!(e4m3_to_f32(0x7f).is_nan() && e4m3_to_f32(0xff).is_nan());
        for code in (0..=255).filter(|code| code & 0x7f != 0x7f) {
            let value = e4m3_to_f32(code);
            assert_eq!(f32_to_e4m3(value), code);
            // A tie, which the even neighbour wins.
            if code & 0x7f < 0x7e {
                let middle = (value + e4m3_to_f32(code + 1)) / 2.0;
                assert_eq!(f32_to_e4m3(middle), code + (code & 1));
            }
        }
        assert_eq!(f32_to_e4m3(1e9), 0x7e);
    }
}
