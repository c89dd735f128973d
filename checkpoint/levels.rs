//! Blocks of ggml whose codes name levels that aren't evenly spaced.
//!
//! All products here are exact: a scale has 11 digits, what it is multiplied with 6 at most, a
//! level 7.

use half::f16;

/// `kvalues_iq4nl`.
const LEVELS: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// What codes of three bits name: levels of ggml's grid, over 4.
const MAGNITUDES: [f32; 8] = [1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.5];

/// `iq3xxs_grid`: a byte names the magnitudes of four values, the last digit that of the first.
#[rustfmt::skip]
const GRID: [u16; 256] = [
    0o0000, 0o0002, 0o0004, 0o0011, 0o0013, 0o0017, 0o0020, 0o0022, 0o0031, 0o0042, 0o0073,
    0o0075, 0o0101, 0o0103, 0o0110, 0o0112, 0o0121, 0o0125, 0o0130, 0o0132, 0o0141, 0o0154,
    0o0170, 0o0200, 0o0202, 0o0204, 0o0211, 0o0220, 0o0222, 0o0231, 0o0233, 0o0237, 0o0251,
    0o0257, 0o0275, 0o0301, 0o0307, 0o0310, 0o0312, 0o0325, 0o0370, 0o0413, 0o0437, 0o0444,
    0o0457, 0o0473, 0o0475, 0o0501, 0o0507, 0o0532, 0o0552, 0o0635, 0o0664, 0o0710, 0o0714,
    0o0716, 0o0743, 0o0761, 0o1001, 0o1003, 0o1010, 0o1012, 0o1021, 0o1023, 0o1030, 0o1032,
    0o1034, 0o1047, 0o1050, 0o1100, 0o1102, 0o1111, 0o1120, 0o1122, 0o1201, 0o1203, 0o1210,
    0o1212, 0o1221, 0o1230, 0o1272, 0o1300, 0o1302, 0o1320, 0o1331, 0o1346, 0o1366, 0o1401,
    0o1405, 0o1450, 0o1520, 0o1524, 0o1546, 0o1571, 0o1605, 0o1722, 0o1740, 0o2000, 0o2002,
    0o2011, 0o2013, 0o2020, 0o2022, 0o2026, 0o2031, 0o2042, 0o2101, 0o2103, 0o2105, 0o2110,
    0o2112, 0o2121, 0o2130, 0o2163, 0o2167, 0o2170, 0o2200, 0o2202, 0o2211, 0o2217, 0o2220,
    0o2222, 0o2237, 0o2240, 0o2255, 0o2301, 0o2310, 0o2314, 0o2370, 0o2374, 0o2435, 0o2453,
    0o2503, 0o2527, 0o2541, 0o2574, 0o2701, 0o2703, 0o2716, 0o2745, 0o3001, 0o3010, 0o3012,
    0o3021, 0o3023, 0o3050, 0o3065, 0o3072, 0o3100, 0o3102, 0o3120, 0o3131, 0o3144, 0o3146,
    0o3201, 0o3203, 0o3210, 0o3225, 0o3252, 0o3272, 0o3311, 0o3333, 0o3430, 0o3447, 0o3472,
    0o3500, 0o3506, 0o3522, 0o3555, 0o3614, 0o3636, 0o3663, 0o3733, 0o3760, 0o4004, 0o4017,
    0o4035, 0o4037, 0o4053, 0o4057, 0o4174, 0o4220, 0o4237, 0o4240, 0o4260, 0o4266, 0o4307,
    0o4345, 0o4404, 0o4451, 0o4464, 0o4525, 0o4543, 0o4570, 0o4705, 0o4710, 0o4712, 0o4730,
    0o5012, 0o5041, 0o5070, 0o5100, 0o5106, 0o5126, 0o5155, 0o5214, 0o5232, 0o5272, 0o5302,
    0o5353, 0o5410, 0o5423, 0o5427, 0o5472, 0o5502, 0o5531, 0o5650, 0o5724, 0o5742, 0o6024,
    0o6044, 0o6046, 0o6064, 0o6121, 0o6161, 0o6217, 0o6264, 0o6330, 0o6336, 0o6444, 0o6505,
    0o6552, 0o6633, 0o6703, 0o6721, 0o7003, 0o7005, 0o7007, 0o7010, 0o7032, 0o7052, 0o7126,
    0o7140, 0o7212, 0o7245, 0o7252, 0o7300, 0o7315, 0o7333, 0o7360, 0o7421, 0o7441, 0o7500,
    0o7502, 0o7524, 0o7630,
];

/// Values of a group, which has a scale of its own.
const GROUP: usize = 32;

/// Bytes of a block of IQ4_XS, and of what becomes of one of IQ3_XXS.
pub(crate) const XS_BYTES: usize = 136;

/// Bytes of a block of IQ3_XXS.
pub(crate) const GRID_BYTES: usize = 98;

fn scale(block: &[u8]) -> f32 {
    f16::from_le_bytes([block[0], block[1]]).to_f32()
}

/// `d: f16, q: [u8; 16]`: low nibbles are values 0 to 15, high ones 16 to 31.
pub(crate) fn iq4_nl(block: &[u8], out: &mut [f32]) {
    nibbles(scale(block), &block[2..], out);
}

/// `d: f16, high: u16, low: [u8; 4], q: [u8; 128]`: scale i of eight, 32 too large, has four bits
/// in `low` and two in `high`.
pub(crate) fn iq4_xs(block: &[u8], out: &mut [f32]) {
    let high = u16::from_le_bytes([block[2], block[3]]);
    for (i, (codes, out)) in block[8..].chunks(16).zip(out.chunks_exact_mut(GROUP)).enumerate() {
        let times = (block[4 + i / 2] >> (4 * (i % 2)) & 15) | ((high >> (2 * i) & 3) << 4) as u8;
        nibbles(scale(block) * (f32::from(times) - 32.0), codes, out);
    }
}

fn nibbles(d: f32, codes: &[u8], out: &mut [f32]) {
    for (i, code) in codes.iter().enumerate() {
        out[i] = d * f32::from(LEVELS[usize::from(code & 15)]);
        out[i + 16] = d * f32::from(LEVELS[usize::from(code >> 4)]);
    }
}

/// A group of IQ3_XXS: what `d` is multiplied with, and for each value whether it is negative, and
/// its magnitude.
fn grid_group(block: &[u8], group: usize) -> (u8, [(bool, u8); GROUP]) {
    let codes = &block[2 + 8 * group..][..8];
    let packed = block[66 + 4 * group..][..4].iter().rev();
    let packed = packed.fold(0, |word, byte| word << 8 | u32::from(*byte));
    let value = |i: usize| {
        let signs = packed >> (7 * (i / 8)) & 127;
        // The eighth is negative where an odd number of the others are.
        let signs = signs | (signs.count_ones() & 1) << 7;
        let magnitude = GRID[usize::from(codes[i / 4])] >> (3 * (i % 4)) & 7;
        (signs >> (i % 8) & 1 == 1, magnitude as u8)
    };
    (2 * (packed >> 28) as u8 + 1, std::array::from_fn(value))
}

/// `d: f16, q: [u8; 64], rest: [u32; 8]`: `rest` holds for each 32 values the signs of four times
/// eight, seven bits each, and a scale of four bits.
pub(crate) fn iq3_xxs(block: &[u8], out: &mut [f32]) {
    for (group, out) in out.chunks_exact_mut(GROUP).enumerate() {
        let (times, values) = grid_group(block, group);
        let d = scale(block) * f32::from(times);
        for (out, (is_negative, magnitude)) in out.iter_mut().zip(values) {
            let value = d * MAGNITUDES[usize::from(magnitude)];
            *out = if is_negative { -value } else { value };
        }
    }
}

/// The blocks of a row laid out as those of IQ4_XS, whose codes name -15.5, -13, -11 ... 11, 13,
/// 15.5.
pub(crate) fn row_as_nibbles(stored: &[u8], out: &mut [u8]) {
    let blocks = stored.chunks_exact(GRID_BYTES).zip(out.chunks_exact_mut(XS_BYTES));
    blocks.for_each(|(block, out)| as_nibbles(block, out));
}

fn as_nibbles(block: &[u8], out: &mut [u8]) {
    out[..2].copy_from_slice(&block[..2]);
    out[2..8].fill(0);
    for group in 0..8 {
        let (times, values) = grid_group(block, group);
        let times = times + 32;
        out[2 + group / 4] |= times >> 4 << (2 * (group % 4));
        out[4 + group / 2] |= (times & 15) << (4 * (group % 2));
        let code = |i: usize| match values[i] {
            (true, magnitude) => 7 - magnitude,
            (false, magnitude) => 8 + magnitude,
        };
        for (i, out) in out[8 + 16 * group..][..16].iter_mut().enumerate() {
            *out = code(i) | code(i + 16) << 4;
        }
    }
}
