//! Formats of ggml whose codes aren't four or eight bits under a scale: how their rows are taken
//! apart and put together.
//!
//! On the adapter the lower four bits of codes are laid out as those of [`Format::Int4`]. What
//! belongs to them beside is in vec4s of a row of their own, its sides: scales as the file has
//! them, and the upper bits of codes. So a matrix takes what it does in its file, or little more.

use half::f16;

use crate::format_levels;
use crate::weights::{BLOCK_BYTES, Format, GROUP};

/// Values of a block of these formats.
pub(crate) const SUPER: usize = 256;

/// Groups of 32 values of a block.
const GROUPS: usize = SUPER / GROUP;

/// Bytes of a group of 32 values in [`Format::Int5`].
pub(crate) const INT5_BYTES: usize = 24;

impl Format {
    /// Values that are taken apart together, and their bytes, in formats that are.
    pub(crate) fn unit(self) -> Option<(usize, usize)> {
        match self {
            Self::Int5 => Some((4 * GROUP, 4 * INT5_BYTES)),
            Self::Q4K => Some((SUPER, 144)),
            Self::Q5K => Some((SUPER, 176)),
            Self::Q6K => Some((SUPER, 210)),
            Self::Iq4Nl => Some((SUPER, 8 * format_levels::NL_BYTES)),
            Self::Iq4Xs | Self::Iq3 => Some((2 * SUPER, 2 * format_levels::XS_BYTES)),
            _ => None,
        }
    }

    /// Vec4s that belong to a row of so many blocks of 32 codes beside them.
    pub(crate) fn num_sides(self, num_blocks: usize) -> usize {
        match self {
            Self::Int5 => num_blocks.div_ceil(4) * 2,
            Self::Q4K | Self::Iq4Nl => num_blocks.div_ceil(8),
            Self::Iq4Xs | Self::Iq3 => num_blocks.div_ceil(16),
            Self::Q5K => num_blocks.div_ceil(8) * 3,
            Self::Q6K => num_blocks.div_ceil(4) * 3,
            _ => 0,
        }
    }

    /// Vec4s beside its codes that a quad of four groups is made of.
    pub(crate) fn sides(self) -> u32 {
        match self {
            Self::Int5 | Self::Q5K => 2,
            Self::Q6K => 3,
            _ => 1,
        }
    }
}

/// Takes a block, or up to four groups, apart: `write_codes` gets 16 bytes of each group of 32
/// values, `write_side` the vec4s beside them; both with their numbers.
pub(crate) fn take_apart(
    format: Format,
    block: &[u8],
    mut write_codes: impl FnMut(usize, [u8; BLOCK_BYTES]),
    mut write_side: impl FnMut(usize, [u8; BLOCK_BYTES]),
) {
    if format.levels().is_some() {
        return format_levels::take_apart(format, block, write_codes, write_side);
    }
    let codes = codes(format, block);
    let num_groups = if format == Format::Int5 { block.len() / INT5_BYTES } else { GROUPS };
    let groups = &codes.as_chunks::<GROUP>().0[..num_groups];
    for (number, group) in groups.iter().enumerate() {
        let pair = |i: usize| group[i] & 15 | group[i + BLOCK_BYTES] << 4;
        write_codes(number, std::array::from_fn(pair));
    }
    match format {
        Format::Int5 => {
            let mut side = [0; BLOCK_BYTES];
            for (out, block) in side.chunks_exact_mut(4).zip(block.chunks_exact(INT5_BYTES)) {
                out.copy_from_slice(&block[..4]);
            }
            write_side(0, side);
            write_side(1, vec4(groups.iter().map(|group| fifth_bits(group))));
        }
        Format::Q6K => {
            for (quad, groups) in groups.chunks_exact(4).enumerate() {
                let mut side = [0; BLOCK_BYTES];
                side[..8].copy_from_slice(&block[192 + 8 * quad..][..8]);
                side[8..10].copy_from_slice(&block[208..210]);
                write_side(3 * quad, side);
                for half in 0..2 {
                    let values = half * BLOCK_BYTES..(half + 1) * BLOCK_BYTES;
                    let words = groups.iter().map(|group| upper_bits(&group[values.clone()]));
                    write_side(3 * quad + 1 + half, vec4(words));
                }
            }
        }
        _ => {
            let mut side = [0; BLOCK_BYTES];
            side.copy_from_slice(&block[..BLOCK_BYTES]);
            write_side(0, side);
            if format == Format::Q5K {
                for (quad, groups) in groups.chunks_exact(4).enumerate() {
                    write_side(1 + quad, vec4(groups.iter().map(|group| fifth_bits(group))));
                }
            }
        }
    }
}

fn vec4(words: impl Iterator<Item = u32>) -> [u8; BLOCK_BYTES] {
    let mut bytes = [0; BLOCK_BYTES];
    for (bytes, word) in bytes.as_chunks_mut().0.iter_mut().zip(words) {
        *bytes = word.to_le_bytes();
    }
    bytes
}

/// Of value 4 q + b in bit 8 b + q.
fn fifth_bits(group: &[u8]) -> u32 {
    let bit = |(i, code): (usize, &u8)| u32::from(code >> 4 & 1) << (8 * (i % 4) + i / 4);
    group.iter().enumerate().map(bit).sum()
}

/// Of value 4 q + b in two bits from 8 b + 4, 6, 0 or 2 on, as q is 0, 1, 2 or 3.
fn upper_bits(half: &[u8]) -> u32 {
    let bits =
        |(i, code): (usize, &u8)| u32::from(code >> 4 & 3) << (8 * (i % 4) + (2 * (i / 4) + 4) % 8);
    half.iter().enumerate().map(bits).sum()
}

/// The codes of a block, without scales, in the order of its values.
fn codes(format: Format, block: &[u8]) -> [u8; SUPER] {
    let mut codes = [0; SUPER];
    match format {
        Format::Int5 => {
            let groups = block.chunks_exact(INT5_BYTES).zip(codes.chunks_exact_mut(GROUP));
            for (block, codes) in groups {
                let high = u32::from_le_bytes([block[4], block[5], block[6], block[7]]);
                let fifth = |i: usize| ((high >> i & 1) << 4) as u8;
                for (i, low) in block[8..].iter().enumerate() {
                    codes[i] = low & 15 | fifth(i);
                    codes[i + 16] = low >> 4 | fifth(i + 16);
                }
            }
        }
        Format::Q6K => {
            for (n, codes) in codes.chunks_exact_mut(128).enumerate() {
                let (low, high) = (&block[64 * n..][..64], &block[128 + 32 * n..][..32]);
                for i in 0..32 {
                    let (a, b, h) = (low[i], low[i + 32], high[i]);
                    codes[i] = a & 15 | (h & 3) << 4;
                    codes[i + 32] = b & 15 | (h >> 2 & 3) << 4;
                    codes[i + 64] = a >> 4 | (h >> 4 & 3) << 4;
                    codes[i + 96] = b >> 4 | (h >> 6) << 4;
                }
            }
        }
        _ => {
            let (high, low) = block[16..].split_at(if format == Format::Q5K { 32 } else { 0 });
            for (j, (low, codes)) in
                low.chunks_exact(32).zip(codes.chunks_exact_mut(64)).enumerate()
            {
                for i in 0..32 {
                    let fifth = |group: usize| high.get(i).map_or(0, |h| (h >> group & 1) << 4);
                    codes[i] = low[i] & 15 | fifth(2 * j);
                    codes[i + 32] = low[i] >> 4 | fifth(2 * j + 1);
                }
            }
        }
    }
    codes
}

/// The values of a block, or of up to four groups, and zeros.
pub(crate) fn decode(format: Format, block: &[u8]) -> impl Iterator<Item = f32> {
    let f16_at = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
    let mut scales = [(0.0, 0.0); 2 * GROUPS];
    for (i, scale) in scales.iter_mut().enumerate() {
        *scale = match format {
            Format::Int5 => match i / 2 * INT5_BYTES {
                at if at < block.len() => (f16_at(at), f16_at(at + 2)),
                _ => (0.0, 0.0),
            },
            Format::Q6K => {
                let d = f16_at(208) * f32::from(block[192 + i] as i8);
                (d, -32.0 * d)
            }
            _ => {
                let (scale, minimum) = six_bits(&block[4..16], i / 2);
                (f16_at(0) * f32::from(scale), -f16_at(2) * f32::from(minimum))
            }
        };
    }
    let value = move |(i, code): (usize, u8)| {
        let (scale, offset) = scales[i / 16];
        scale * f32::from(code) + offset
    };
    let num_values = if format == Format::Int5 { block.len() / INT5_BYTES * GROUP } else { SUPER };
    codes(format, block).into_iter().enumerate().take(num_values).map(value)
}

/// Scale and minimum of a group.
fn six_bits(packed: &[u8], group: usize) -> (u8, u8) {
    if group < 4 {
        return (packed[group] & 63, packed[group + 4] & 63);
    }
    let (both, upper) = (packed[group + 4], [packed[group - 4] >> 6, packed[group] >> 6]);
    (both & 15 | upper[0] << 4, both >> 4 | upper[1] << 4)
}

/// A block of up to 256 values, or a group of up to 32, each rounded; the others are zero.
pub(crate) fn encode(format: Format, values: &[f32]) -> Vec<u8> {
    let mut all = [0.0; SUPER];
    all[..values.len()].copy_from_slice(values);
    match format {
        Format::Int5 => encode_group(&all[..GROUP]),
        Format::Q6K => encode_symmetric(&all),
        _ => encode_with_minimums(format, &all),
    }
}

fn encode_group(group: &[f32]) -> Vec<u8> {
    let lowest = group.iter().copied().fold(0.0, f32::min);
    let width = group.iter().copied().fold(0.0, f32::max) - lowest;
    let (d, m) = (f16::from_f32(width / 31.0), f16::from_f32(lowest));
    let code =
        |value: &f32| ((value - m.to_f32()) * inverse(d.to_f32())).round().clamp(0.0, 31.0) as u32;
    let codes: Vec<u32> = group.iter().map(code).collect();
    let high: u32 = codes.iter().enumerate().map(|(i, code)| code >> 4 << i).sum();
    let low = (0..GROUP / 2).map(|i| (codes[i] & 15 | (codes[i + 16] & 15) << 4) as u8);
    let scales = d.to_le_bytes().into_iter().chain(m.to_le_bytes());
    scales.chain(high.to_le_bytes()).chain(low).collect()
}

fn encode_symmetric(values: &[f32; SUPER]) -> Vec<u8> {
    let largest = |group: &[f32]| group.iter().fold(0.0, |max: f32, value| max.max(value.abs()));
    let groups = values.as_chunks::<16>().0;
    let d = f16::from_f32(largest(values) / 31.0 / 127.0);
    let scale = |group| (largest(group) / 31.0 * inverse(d.to_f32())).ceil().min(127.0);
    let scales: Vec<f32> = groups.iter().map(|group| scale(group)).collect();
    let code = |i: usize| {
        let step = d.to_f32() * scales[i / 16];
        (values[i] * inverse(step)).round().clamp(-32.0, 31.0) as i8 as u8 ^ 0x20
    };
    let code = |i: usize| code(i) & 63;
    let mut block = vec![0; 210];
    for n in 0..2 {
        for i in 0..32 {
            let [a, b, c, e] = [0, 32, 64, 96].map(|at| code(128 * n + at + i));
            block[64 * n + i] = a & 15 | c << 4;
            block[64 * n + 32 + i] = b & 15 | e << 4;
            block[128 + 32 * n + i] = a >> 4 | b >> 4 << 2 | c >> 4 << 4 | e >> 4 << 6;
        }
    }
    for (out, scale) in block[192..208].iter_mut().zip(&scales) {
        *out = *scale as i8 as u8;
    }
    block[208..].copy_from_slice(&d.to_le_bytes());
    block
}

fn encode_with_minimums(format: Format, values: &[f32; SUPER]) -> Vec<u8> {
    let largest_code = if format == Format::Q5K { 31.0 } else { 15.0 };
    let ends = |group: &[f32; GROUP]| {
        let lowest = group.iter().copied().fold(0.0, f32::min);
        (-lowest, (group.iter().copied().fold(0.0, f32::max) - lowest) / largest_code)
    };
    let ends: Vec<_> = values.as_chunks().0.iter().map(ends).collect();
    let step =
        |of: fn(&(f32, f32)) -> f32| f16::from_f32(ends.iter().map(of).fold(0.0, f32::max) / 63.0);
    let (d, m) = (step(|ends| ends.1), step(|ends| ends.0));
    let times = |value: f32, of: f16| (value * inverse(of.to_f32())).ceil().min(63.0) as u8;
    let packed: Vec<_> =
        ends.iter().map(|(min, scale)| (times(*scale, d), times(*min, m))).collect();
    let code = |i: usize| {
        let (scale, minimum) = packed[i / GROUP];
        let above = values[i] + m.to_f32() * f32::from(minimum);
        let step = d.to_f32() * f32::from(scale);
        (above * inverse(step)).round().clamp(0.0, largest_code) as u8
    };
    let mut block = [d.to_le_bytes(), m.to_le_bytes()].concat();
    let first = |of: fn(&(u8, u8)) -> u8| {
        let packed = &packed;
        (0..4).map(move |i| of(&packed[i]) & 63 | of(&packed[i + 4]) >> 4 << 6)
    };
    block.extend(first(|(scale, _)| *scale).chain(first(|(_, minimum)| *minimum)));
    block.extend(packed[4..].iter().map(|(scale, minimum)| scale & 15 | minimum << 4));
    if format == Format::Q5K {
        let bits = |i: usize| (0..GROUPS).map(|group| code(GROUP * group + i) >> 4 << group).sum();
        block.extend((0..GROUP).map(|i| -> u8 { bits(i) }));
    }
    for j in 0..GROUPS / 2 {
        let pair = |i: usize| code(64 * j + i) & 15 | code(64 * j + 32 + i) << 4;
        block.extend((0..GROUP).map(pair));
    }
    block
}

fn inverse(step: f32) -> f32 {
    if step == 0.0 { 0.0 } else { step.recip() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// ggml's own words for its blocks, one value at a time.
    #[test]
    fn blocks_are_those_of_ggml() {
        let block: Vec<u8> = (0..176u32).map(|i| (i * 73 % 251) as u8).collect();
        let value: Vec<f32> = decode(Format::Q5K, &block).collect();
        let half = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
        // Value 70 is the seventh of the third group: the lower nibble of the second 32 bytes.
        let (scale, minimum) = (f32::from(block[4 + 2] & 63), f32::from(block[4 + 6] & 63));
        let code = (block[48 + 32 + 6] & 15) + (block[16 + 6] >> 2 & 1) * 16;
        assert_eq!(value[70], half(0) * scale * f32::from(code) - half(2) * minimum);
        // Value 250 is of the last: the upper nibble.
        let scale = f32::from(block[4 + 11] & 15 | block[4 + 3] >> 6 << 4);
        let minimum = f32::from(block[4 + 11] >> 4 | block[4 + 7] >> 6 << 4);
        let code = (block[48 + 96 + 26] >> 4) + (block[16 + 26] >> 7) * 16;
        assert_eq!(value[250], half(0) * scale * f32::from(code) - half(2) * minimum);

        let block: Vec<u8> = (0..210u32).map(|i| (i * 91 % 253) as u8).collect();
        let value: Vec<f32> = decode(Format::Q6K, &block).collect();
        let d = f16::from_le_bytes([block[208], block[209]]).to_f32();
        // Value 100 of the second half: upper nibbles, upper bits 4 and 5 of 32 bytes.
        let code = block[64 + 32 + 4] >> 4 | block[128 + 32 + 4] >> 6 << 4;
        let scale = f32::from(block[192 + 14] as i8);
        assert_eq!(value[128 + 100], d * scale * (f32::from(code) - 32.0));
    }

    #[test]
    fn upper_bits_are_where_kernels_look() {
        let group: [u8; 32] = std::array::from_fn(|i| (i * 7 % 64) as u8);
        let word = fifth_bits(&group);
        for q in 0..8 {
            let bits = (word << (7 - q) >> 3).to_le_bytes();
            for b in 0..4 {
                assert_eq!(bits[b] & 16, group[4 * q + b] & 16);
            }
        }
        let word = upper_bits(&group[..16]);
        for (q, shifted) in [word, word >> 2, word << 4, word << 2].into_iter().enumerate() {
            for (b, bits) in shifted.to_le_bytes().into_iter().enumerate() {
                assert_eq!(bits & 48, group[4 * q + b] & 48);
            }
        }
    }
}
