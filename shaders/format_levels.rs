//! Formats whose codes of four bits name levels that aren't evenly spaced: how their rows are taken
//! apart and put together.
//!
//! On the adapter codes are laid out as those of [`Format::Int4`]. Scales are in vec4s of a row
//! beside them, in the bits of the file: a matrix takes what it does there.

use half::f16;

use crate::format_k::SUPER;
use crate::weights::{BLOCK_BYTES, Format, GROUP};

/// Bytes of a group of 32 values in [`Format::Iq4Nl`].
pub(crate) const NL_BYTES: usize = 18;

/// Bytes of 256 values in the other formats.
pub(crate) const XS_BYTES: usize = 136;

/// What stands before the codes of these: scales.
const XS_SCALES: usize = 8;

impl Format {
    /// The value that each code names, under a scale of 1, in formats where codes name values.
    pub(crate) fn levels(self) -> Option<[f32; 16]> {
        match self {
            // `kvalues_iq4nl`.
            Self::Iq4Nl | Self::Iq4Xs => Some([
                -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0,
                53.0, 69.0, 89.0, 113.0,
            ]),
            Self::Iq3 => Some([
                -15.5, -13.0, -11.0, -9.0, -7.0, -5.0, -3.0, -1.0, 1.0, 3.0, 5.0, 7.0, 9.0, 11.0,
                13.0, 15.5,
            ]),
            _ => None,
        }
    }
}

/// Takes up to 16 groups apart: `write_codes` gets 16 bytes of each with its number, `write_side`
/// the vec4 beside them.
pub(crate) fn take_apart(
    format: Format,
    bytes: &[u8],
    mut write_codes: impl FnMut(usize, [u8; BLOCK_BYTES]),
    mut write_side: impl FnMut(usize, [u8; BLOCK_BYTES]),
) {
    let (unit, scale_bytes) =
        if format == Format::Iq4Nl { (NL_BYTES, 2) } else { (XS_BYTES, XS_SCALES) };
    let mut side = [0; BLOCK_BYTES];
    let mut groups = 0..;
    for (unit, side) in bytes.chunks_exact(unit).zip(side.chunks_exact_mut(scale_bytes)) {
        let (scales, codes) = unit.split_at(scale_bytes);
        side.copy_from_slice(scales);
        for (codes, group) in codes.as_chunks().0.iter().zip(&mut groups) {
            write_codes(group, *codes);
        }
    }
    write_side(0, side);
}

/// The values of up to 16 groups.
pub(crate) fn decode(format: Format, levels: [f32; 16], bytes: &[u8]) -> Vec<f32> {
    let f16_at = |bytes: &[u8]| f16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
    let mut values = Vec::new();
    let mut push = |scale: f32, codes: &[u8]| {
        let codes = codes.iter().map(|code| code & 15).chain(codes.iter().map(|code| code >> 4));
        values.extend(codes.map(|code| scale * levels[usize::from(code)]));
    };
    if format == Format::Iq4Nl {
        bytes.chunks_exact(NL_BYTES).for_each(|group| push(f16_at(group), &group[2..]));
        return values;
    }
    for block in bytes.chunks_exact(XS_BYTES) {
        for (group, codes) in block[XS_SCALES..].chunks_exact(BLOCK_BYTES).enumerate() {
            let low = block[4 + group / 2] >> (group % 2 * 4) & 15;
            let high = block[2 + group / 4] >> (group % 4 * 2) & 3;
            push(f16_at(block) * (f32::from(low | high << 4) - 32.0), codes);
        }
    }
    values
}

/// A group of up to 32 values, or a block of up to 256, each rounded; the others are near zero.
pub(crate) fn encode(format: Format, levels: [f32; 16], values: &[f32]) -> Vec<u8> {
    let [lowest, highest] = [levels[0], levels[15]];
    let needed = |group: &[f32]| {
        group.iter().fold(0.0, |most: f32, value| most.max((value / highest).max(value / lowest)))
    };
    let codes = |group: &[f32], scale: f32| -> [u8; BLOCK_BYTES] {
        let code = |i: usize| {
            let value = group.get(i).map_or(0.0, |value| value * inverse(scale));
            let away = |code: &u8| (levels[usize::from(*code)] - value).abs();
            (0..16).min_by(|a, b| away(a).total_cmp(&away(b))).expect("there are levels")
        };
        std::array::from_fn(|i| code(i) | code(i + 16) << 4)
    };
    if format == Format::Iq4Nl {
        let scale = f16::from_f32(needed(values));
        return [&scale.to_le_bytes()[..], &codes(values, scale.to_f32())].concat();
    }
    let mut all = [0.0; SUPER];
    all[..values.len()].copy_from_slice(values);
    let groups = all.as_chunks::<GROUP>().0;
    let d = f16::from_f32(needed(&all) / 31.0);
    let times = |group: &[f32]| (needed(group) * inverse(d.to_f32())).ceil().min(31.0) as u8;
    let times: Vec<u8> = groups.iter().map(|group| times(group)).collect();
    let mut block = d.to_le_bytes().to_vec();
    let scale = |group: usize| times[group] + 32;
    block.extend((0..2).map(|at| (0..4).map(|i| scale(4 * at + i) >> 4 << (2 * i)).sum::<u8>()));
    block.extend((0..4).map(|at| scale(2 * at) & 15 | scale(2 * at + 1) << 4));
    for (group, times) in groups.iter().zip(&times) {
        block.extend(codes(group, d.to_f32() * f32::from(*times)));
    }
    block
}

fn inverse(step: f32) -> f32 {
    if step == 0.0 { 0.0 } else { step.recip() }
}
