//! Stored numbers to f32, exactly as ggml's `dequantize_row_*` (`ggml-quants.c`) computes them.
//!
//! The order of operations is part of the format: another one rounds differently.

use half::{bf16, f16};

use crate::dtype::DType;
use crate::levels;

/// Decodes one row. `out` fills whole blocks and `stored` holds exactly these.
pub(crate) fn decode_row(dtype: DType, stored: &[u8], out: &mut [f32]) {
    debug_assert_eq!(out.len() % dtype.block_values(), 0);
    debug_assert_eq!(out.len() / dtype.block_values() * dtype.block_bytes(), stored.len());
    let blocks = stored.chunks_exact(dtype.block_bytes());
    let values = out.chunks_exact_mut(dtype.block_values());
    match dtype {
        DType::F32 => {
            for (block, out) in stored.as_chunks().0.iter().zip(out) {
                *out = f32::from_le_bytes(*block);
            }
        }
        DType::F16 => {
            for (block, out) in stored.as_chunks().0.iter().zip(out) {
                *out = f16::from_le_bytes(*block).to_f32();
            }
        }
        DType::BF16 => {
            for (block, out) in stored.as_chunks().0.iter().zip(out) {
                *out = bf16::from_le_bytes(*block).to_f32();
            }
        }
        DType::F8_E4M3 => {
            for (code, out) in stored.iter().zip(out) {
                *out = e4m3(*code);
            }
        }
        // Whoever has its scales decodes it.
        DType::I4 => out.fill(0.0),
        DType::Q8_0 => blocks.zip(values).for_each(|(block, out)| q8_0(block, out)),
        DType::Q4_0 => blocks.zip(values).for_each(|(block, out)| q4_0(block, out)),
        DType::Q4_1 => blocks.zip(values).for_each(|(block, out)| q4_1(block, out)),
        DType::Q5_0 => blocks.zip(values).for_each(|(block, out)| q5_0(block, out)),
        DType::Q5_1 => blocks.zip(values).for_each(|(block, out)| q5_1(block, out)),
        DType::Q4_K => blocks.zip(values).for_each(|(block, out)| q4_k(block, out)),
        DType::Q5_K => blocks.zip(values).for_each(|(block, out)| q5_k(block, out)),
        DType::Q6_K => blocks.zip(values).for_each(|(block, out)| q6_k(block, out)),
        DType::IQ4_NL => blocks.zip(values).for_each(|(block, out)| levels::iq4_nl(block, out)),
        DType::IQ4_XS => blocks.zip(values).for_each(|(block, out)| levels::iq4_xs(block, out)),
        DType::IQ3_XXS => blocks.zip(values).for_each(|(block, out)| levels::iq3_xxs(block, out)),
    }
}

/// Sign, four bits of exponent with a bias of 7, three of mantissa; NaN where all of the last
/// seven are set (OCP 8-bit Floating Point Specification, 5.1).
fn e4m3(code: u8) -> f32 {
    let sign = if code & 0x80 == 0 { 1.0 } else { -1.0 };
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    match (exponent, code & 7) {
        (15, 7) => f32::NAN,
        (0, _) => sign * mantissa / 512.0,
        _ => sign * (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    }
}

fn scale(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// `d: f16, q: [i8; 32]`
fn q8_0(block: &[u8], out: &mut [f32]) {
    let d = scale(block, 0);
    for (out, &q) in out.iter_mut().zip(&block[2..]) {
        *out = f32::from(q as i8) * d;
    }
}

/// `d: f16, q: [u8; 16]`: low nibbles are values 0 to 15, high ones 16 to 31.
fn q4_0(block: &[u8], out: &mut [f32]) {
    let d = scale(block, 0);
    for (i, &q) in block[2..].iter().enumerate() {
        out[i] = (f32::from(q & 15) - 8.0) * d;
        out[i + 16] = (f32::from(q >> 4) - 8.0) * d;
    }
}

/// `d: f16, m: f16, q: [u8; 16]`
fn q4_1(block: &[u8], out: &mut [f32]) {
    let (d, m) = (scale(block, 0), scale(block, 2));
    for (i, &q) in block[4..].iter().enumerate() {
        out[i] = f32::from(q & 15) * d + m;
        out[i + 16] = f32::from(q >> 4) * d + m;
    }
}

/// `d: f16, high: u32, q: [u8; 16]`: bit i of `high` is the fifth bit of value i.
fn q5_0(block: &[u8], out: &mut [f32]) {
    let d = scale(block, 0);
    let high = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
    let fifth = |i: usize| ((high >> i & 1) << 4) as u8;
    for (i, &q) in block[6..].iter().enumerate() {
        out[i] = (f32::from(q & 15 | fifth(i)) - 16.0) * d;
        out[i + 16] = (f32::from(q >> 4 | fifth(i + 16)) - 16.0) * d;
    }
}

/// `d: f16, m: f16, high: u32, q: [u8; 16]`: bit i of `high` is the fifth bit of value i.
fn q5_1(block: &[u8], out: &mut [f32]) {
    let (d, m) = (scale(block, 0), scale(block, 2));
    let high = u32::from_le_bytes([block[4], block[5], block[6], block[7]]);
    let fifth = |i: usize| ((high >> i & 1) << 4) as u8;
    for (i, &q) in block[8..].iter().enumerate() {
        out[i] = f32::from(q & 15 | fifth(i)) * d + m;
        out[i + 16] = f32::from(q >> 4 | fifth(i + 16)) * d + m;
    }
}

/// `d: f16, m: f16, scales: [u8; 12], q: [u8; 128]`: four times 64 values, in each the low
/// nibbles of 32 bytes under one scale, then the high ones under the next.
fn q4_k(block: &[u8], out: &mut [f32]) {
    let (d, m) = (scale(block, 0), scale(block, 2));
    let scales = &block[4..16];
    for (j, (q, out)) in block[16..].chunks_exact(32).zip(out.chunks_exact_mut(64)).enumerate() {
        let (low_scale, low_min) = six_bits(scales, 2 * j);
        let (high_scale, high_min) = six_bits(scales, 2 * j + 1);
        let (d1, m1) = (d * f32::from(low_scale), m * f32::from(low_min));
        let (d2, m2) = (d * f32::from(high_scale), m * f32::from(high_min));
        for (i, &q) in q.iter().enumerate() {
            out[i] = d1 * f32::from(q & 15) - m1;
            out[i + 32] = d2 * f32::from(q >> 4) - m2;
        }
    }
}

/// `d: f16, m: f16, scales: [u8; 12], high: [u8; 32], q: [u8; 128]`: as those of four bits; bit j
/// of `high[i]` is the fifth bit of value i of group j.
fn q5_k(block: &[u8], out: &mut [f32]) {
    let (d, m) = (scale(block, 0), scale(block, 2));
    let (scales, high) = (&block[4..16], &block[16..48]);
    for (j, (q, out)) in block[48..].chunks_exact(32).zip(out.chunks_exact_mut(64)).enumerate() {
        let (low_scale, low_min) = six_bits(scales, 2 * j);
        let (high_scale, high_min) = six_bits(scales, 2 * j + 1);
        let (d1, m1) = (d * f32::from(low_scale), m * f32::from(low_min));
        let (d2, m2) = (d * f32::from(high_scale), m * f32::from(high_min));
        for (i, &q) in q.iter().enumerate() {
            let fifths = high[i] >> (2 * j);
            out[i] = d1 * f32::from(q & 15 | (fifths & 1) << 4) - m1;
            out[i + 32] = d2 * f32::from(q >> 4 | (fifths >> 1 & 1) << 4) - m2;
        }
    }
}

/// Scale and minimum `j` of eight, packed as six bits each: `get_scale_min_k4` of ggml.
fn six_bits(packed: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        let (both, upper, upper_min) = (packed[j + 4], packed[j - 4] >> 6, packed[j] >> 6);
        (both & 15 | upper << 4, both >> 4 | upper_min << 4)
    }
}

/// `low: [u8; 128], high: [u8; 64], scales: [i8; 16], d: f16`: two times 128 values.
fn q6_k(block: &[u8], out: &mut [f32]) {
    let d = scale(block, 208);
    for (n, out) in out.chunks_exact_mut(128).enumerate() {
        let low = &block[64 * n..];
        let high = &block[128 + 32 * n..];
        let scales = &block[192 + 8 * n..];
        let d = |k: usize| d * f32::from(scales[k] as i8);
        let centred = |q: u8| f32::from(q as i8 - 32);
        for i in 0..32 {
            let (a, b, h) = (low[i], low[i + 32], high[i]);
            out[i] = d(i / 16) * centred(a & 15 | (h & 3) << 4);
            out[i + 32] = d(i / 16 + 2) * centred(b & 15 | (h >> 2 & 3) << 4);
            out[i + 64] = d(i / 16 + 4) * centred(a >> 4 | (h >> 4 & 3) << 4);
            out[i + 96] = d(i / 16 + 6) * centred(b >> 4 | (h >> 6) << 4);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(dtype: DType, block: &[u8]) -> Vec<f32> {
        let mut out = vec![f32::NAN; dtype.block_values()];
        decode_row(dtype, block, &mut out);
        out
    }

    fn half(value: f32) -> [u8; 2] {
        f16::from_f32(value).to_le_bytes()
    }

    #[test]
    fn plain_floats() {
        let mut out = [0.0; 2];
        decode_row(DType::F32, &[0, 0, 192, 63, 0, 0, 0, 192], &mut out);
        assert_eq!(out, [1.5, -2.0]);
        decode_row(DType::F16, &[0, 0x3e, 0, 0xc0], &mut out);
        assert_eq!(out, [1.5, -2.0]);
        decode_row(DType::BF16, &[0xc0, 0x3f, 0, 0xc0], &mut out);
        assert_eq!(out, [1.5, -2.0]);
    }

    #[test]
    fn e4m3_by_hand() {
        let mut out = [0.0; 8];
        let codes = [0x00, 0x01, 0x87, 0x08, 0x38, 0xb9, 0x7e, 0x7f];
        decode_row(DType::F8_E4M3, &codes, &mut out);
        let expected = [0.0, 1.0 / 512.0, -7.0 / 512.0, 1.0 / 64.0, 1.0, -1.125, 448.0];
        assert_eq!(out[..7], expected);
        assert!(out[7].is_nan());
        // Above zero a larger code is a larger number.
        let mut all = [0.0; 127];
        decode_row(DType::F8_E4M3, &(0..127).collect::<Vec<u8>>(), &mut all);
        assert!(all.is_sorted_by(|a, b| a < b));
    }

    #[test]
    fn q8_0_by_hand() {
        let mut block = half(0.5).to_vec();
        block.extend((0i32..32).map(|i| (i * 8 - 128) as i8 as u8));
        let out = decode(DType::Q8_0, &block);
        assert_eq!((out[0], out[1], out[16], out[31]), (-64.0, -60.0, 0.0, 60.0));
    }

    #[test]
    fn q4_0_by_hand() {
        let mut block = half(0.25).to_vec();
        block.extend((0..16).map(|i| i | (15 - i) << 4));
        let out = decode(DType::Q4_0, &block);
        for i in 0..16 {
            assert_eq!(out[i], (i as f32 - 8.0) * 0.25);
            assert_eq!(out[i + 16], (7.0 - i as f32) * 0.25);
        }
    }

    #[test]
    fn q4_1_by_hand() {
        let mut block = half(0.25).to_vec();
        block.extend(half(-3.0));
        block.extend((0..16).map(|i| i | (15 - i) << 4));
        let out = decode(DType::Q4_1, &block);
        for i in 0..16 {
            assert_eq!(out[i], i as f32 * 0.25 - 3.0);
            assert_eq!(out[i + 16], (15.0 - i as f32) * 0.25 - 3.0);
        }
    }

    #[test]
    fn q5_0_by_hand() {
        let mut block = half(2.0).to_vec();
        // The fifth bit of values 0, 15, 16 and 31.
        block.extend((1u32 | 1 << 15 | 1 << 16 | 1 << 31).to_le_bytes());
        block.extend((0..16).map(|i| i | (15 - i) << 4));
        let out = decode(DType::Q5_0, &block);
        assert_eq!((out[0], out[1], out[15]), (0.0, -30.0, 30.0));
        assert_eq!((out[16], out[17], out[31]), (30.0, -4.0, 0.0));
    }

    #[test]
    fn q4_k_by_hand() {
        let scales: [u8; 8] = [1, 2, 3, 63, 17, 33, 48, 62];
        let mins: [u8; 8] = [0, 5, 63, 7, 16, 31, 32, 63];
        let mut packed = [0u8; 12];
        for j in 0..4 {
            packed[j] = scales[j] | (scales[j + 4] >> 4) << 6;
            packed[j + 4] = mins[j] | (mins[j + 4] >> 4) << 6;
            packed[j + 8] = scales[j + 4] & 15 | (mins[j + 4] & 15) << 4;
        }
        let mut block = half(0.5).to_vec();
        block.extend(half(0.25));
        block.extend(packed);
        block.extend((0..128).map(|i: u8| (i % 16) | ((i % 13) << 4)));
        let out = decode(DType::Q4_K, &block);
        for (value, out) in out.iter().enumerate() {
            let (group, within) = (value / 32, value % 32);
            let byte = (value / 64 * 32 + within) as u8;
            let q = if group % 2 == 0 { byte % 16 } else { byte % 13 };
            let expected =
                0.5 * f32::from(scales[group]) * f32::from(q) - 0.25 * f32::from(mins[group]);
            assert_eq!(*out, expected, "value {value}");
        }
    }

    #[test]
    fn q6_k_by_hand() {
        // Value v is stored as number (v * 7) % 64 under scale v / 16 of sixteen.
        let number = |v: usize| (v * 7 % 64) as u8;
        let scales: Vec<i8> = (0..16).map(|k| k as i8 * 8 - 60).collect();
        let (mut low, mut high) = ([0u8; 128], [0u8; 64]);
        for v in 0..256 {
            let (half, quarter, i) = (v / 128, v % 128 / 32, v % 32);
            low[64 * half + i + 32 * (quarter % 2)] |= (number(v) & 15) << (4 * (quarter / 2));
            high[32 * half + i] |= (number(v) >> 4) << (2 * quarter);
        }
        let mut block = [low.as_slice(), &high].concat();
        block.extend(scales.iter().map(|&s| s as u8));
        block.extend(half(0.125));
        let out = decode(DType::Q6_K, &block);
        for (v, out) in out.iter().enumerate() {
            let expected = 0.125 * f32::from(scales[v / 16]) * (f32::from(number(v)) - 32.0);
            assert_eq!(*out, expected, "value {v}");
        }
    }
}
