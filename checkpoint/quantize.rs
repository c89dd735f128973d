//! Weights to 8 and 4 bits, in groups that share a scale.

use half::f16;

use crate::dtype::GROUP;

/// A group as `d: f16, q: [i8; 32]`; missing values are zero. The error is the first value that
/// the format can't hold.
pub(crate) fn int8_group(values: &[f32], out: &mut [u8]) -> Result<(), f32> {
    let largest = values.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    let scale = to_f16(largest / 127.0, values)?;
    let d = scale.to_f32();
    out.fill(0);
    out[..2].copy_from_slice(&scale.to_le_bytes());
    if d > 0.0 {
        for (out, value) in out[2..].iter_mut().zip(values) {
            *out = round(value / d).clamp(-127.0, 127.0) as i8 as u8;
        }
    }
    Ok(())
}

/// A row in groups, each as `d: f16, m: f16, q: [u8; 16]`; missing values are zero. Of several ways
/// to lay 16 levels over a group the one with the smallest squared error is taken. The error is the
/// first value that the format can't hold.
pub(crate) fn int4_row(values: &[f32], out: &mut [u8]) -> Result<(), f32> {
    let out = out.chunks_mut(LANES * INT4_BYTES);
    values.chunks(LANES * GROUP).zip(out).try_for_each(|(values, out)| int4_groups(values, out))
}

/// At most [`LANES`] of them.
fn int4_groups(values: &[f32], out: &mut [u8]) -> Result<(), f32> {
    let mut groups = [[0.0; LANES]; GROUP];
    for (lane, group) in values.chunks(GROUP).enumerate() {
        groups.iter_mut().zip(group).for_each(|(lanes, value)| lanes[lane] = *value);
    }
    let levels = Levels::best(&groups);
    let are_finite = values.iter().fold(true, |all, value| all & value.is_finite());
    if !are_finite || !levels.d.iter().chain(&levels.m).all(|number| number.is_finite()) {
        return Err(values.chunks(GROUP).find_map(beyond_int4).unwrap_or(f32::NAN));
    }
    let inverse = levels.inverse();
    let mut codes = [[0; GROUP]; LANES];
    for (i, values) in groups.iter().enumerate() {
        for (lane, codes) in codes.iter_mut().enumerate() {
            // The whole number that is added has none of these bits.
            codes[i] = (levels.place(&inverse, values, lane) + WHOLE).to_bits() as u8;
        }
    }
    for (lane, out) in out.chunks_mut(INT4_BYTES).enumerate() {
        out[..2].copy_from_slice(&f16::from_f32(levels.d[lane]).to_le_bytes());
        out[2..4].copy_from_slice(&f16::from_f32(levels.m[lane]).to_le_bytes());
        let (low, high) = codes[lane].split_at(GROUP / 2);
        for (out, (low, high)) in out[4..].iter_mut().zip(low.iter().zip(high)) {
            *out = low | high << 4;
        }
    }
    Ok(())
}

/// The first value of a group that it can't hold, or else the number that f16 can't.
fn beyond_int4(group: &[f32]) -> Option<f32> {
    let none = if group.len() < GROUP { 0.0 } else { group[0] };
    let min = group.iter().copied().fold(none, f32::min);
    let max = group.iter().copied().fold(none, f32::max);
    let infinite = group.iter().copied().find(|value| !value.is_finite());
    let numbers = [(max - min) / 15.0, min].into_iter();
    infinite.or_else(|| numbers.into_iter().find(|it| !f16::from_f32(*it).is_finite()))
}

fn to_f16(number: f32, values: &[f32]) -> Result<f16, f32> {
    let rounded = f16::from_f32(number);
    let first_infinite = values.iter().copied().find(|value| !value.is_finite());
    match first_infinite {
        Some(value) => Err(value),
        None if !rounded.is_finite() => Err(number),
        None => Ok(rounded),
    }
}

/// No f32 from here to its double has a fraction, so adding it rounds, to the even one of two. Not
/// every processor can otherwise, and a call for each value would take most of the time.
const WHOLE: f32 = (1 << 23) as f32;

/// As `f32::round`, of less than [`WHOLE`].
fn round(value: f32) -> f32 {
    let size = value.abs();
    let even = (size + WHOLE) - WHOLE;
    let rounded = if size - even == 0.5 { even + 1.0 } else { even };
    rounded.copysign(value)
}

/// Bytes of a group.
const INT4_BYTES: usize = 20;

/// Groups that are rounded side by side: a processor's vectors have a value of each.
const LANES: usize = 8;
type Lanes = [f32; LANES];

/// Of each group sixteen levels, `d q + m`, of numbers that f16 holds.
#[derive(Clone, Copy)]
struct Levels {
    d: Lanes,
    m: Lanes,
}

impl Levels {
    fn best(groups: &[Lanes; GROUP]) -> Self {
        let (mut min, mut max) = (groups[0], groups[0]);
        for values in groups {
            min = lanes(|l| if values[l] < min[l] { values[l] } else { min[l] });
            max = lanes(|l| if values[l] > max[l] { values[l] } else { max[l] });
        }
        let all = Self::rounded(lanes(|l| (max[l] - min[l]) / 15.0), min);
        let mut best = Best { levels: all, error: all.error(groups) };
        // A narrower range serves the many values in its middle better than the few at its ends.
        for shrink in [0.92, 0.84, 0.76] {
            let width = lanes(|l| (max[l] - min[l]) * shrink);
            let m = lanes(|l| ((max[l] + min[l]) - width[l]) / 2.0);
            best.replace(Self::rounded(width.map(|width| width / 15.0), m), groups);
        }
        // As good as refitting each of more of them, in two thirds of the time.
        for _ in 0..2 {
            best.replace(best.levels.refit(groups), groups);
        }
        best.levels
    }

    fn rounded(d: Lanes, m: Lanes) -> Self {
        Self { d: d.map(to_half), m: m.map(to_half) }
    }

    fn inverse(&self) -> Lanes {
        self.d.map(|d| if d > 0.0 { d.recip() } else { 0.0 })
    }

    /// The nearest level's number, the even one of two.
    #[inline(always)]
    fn place(&self, inverse: &Lanes, values: &Lanes, lane: usize) -> f32 {
        let place = (values[lane] - self.m[lane]) * inverse[lane];
        let place = if place > 0.0 { place } else { 0.0 };
        (if place < 15.0 { place } else { 15.0 } + WHOLE) - WHOLE
    }

    fn error(&self, groups: &[Lanes; GROUP]) -> Lanes {
        let inverse = self.inverse();
        let mut sum = [0.0; LANES];
        for values in groups {
            for lane in 0..LANES {
                let nearest = self.d[lane] * self.place(&inverse, values, lane) + self.m[lane];
                let error = nearest - values[lane];
                sum[lane] += error * error;
            }
        }
        sum
    }

    /// The levels that fit best while every value keeps its number: least squares.
    fn refit(&self, groups: &[Lanes; GROUP]) -> Self {
        let inverse = self.inverse();
        let [mut q_sum, mut qq_sum, mut x_sum, mut qx_sum] = [[0.0; LANES]; 4];
        for values in groups {
            for lane in 0..LANES {
                let (q, x) = (self.place(&inverse, values, lane), values[lane]);
                q_sum[lane] += q;
                qq_sum[lane] += q * q;
                x_sum[lane] += x;
                qx_sum[lane] += q * x;
            }
        }
        let n = GROUP as f32;
        let spread = lanes(|l| n * qq_sum[l] - q_sum[l] * q_sum[l]);
        let d = lanes(|l| (n * qx_sum[l] - q_sum[l] * x_sum[l]) / spread[l]);
        let m = lanes(|l| (x_sum[l] - d[l] * q_sum[l]) / n);
        let fitted = Self::rounded(d, m);
        let fits = |l: usize| {
            spread[l] > 0.0 && d[l] > 0.0 && fitted.d[l].is_finite() && fitted.m[l].is_finite()
        };
        self.replaced(&fitted, fits)
    }

    /// The others' where they are better.
    fn replaced(&self, others: &Self, are_better: impl Fn(usize) -> bool) -> Self {
        Self {
            d: lanes(|l| if are_better(l) { others.d[l] } else { self.d[l] }),
            m: lanes(|l| if are_better(l) { others.m[l] } else { self.m[l] }),
        }
    }
}

/// Those with the smallest error so far.
struct Best {
    levels: Levels,
    error: Lanes,
}

impl Best {
    fn replace(&mut self, levels: Levels, groups: &[Lanes; GROUP]) {
        let (error, least) = (levels.error(groups), self.error);
        self.levels = self.levels.replaced(&levels, |l| error[l] < least[l]);
        self.error = lanes(|l| if error[l] < least[l] { error[l] } else { least[l] });
    }
}

fn lanes(value: impl Fn(usize) -> f32) -> Lanes {
    std::array::from_fn(value)
}

/// Rounded to f16, without a call for each: only numbers that are none come out as others.
fn to_half(value: f32) -> f32 {
    let size = value.abs();
    let bits = size.to_bits();
    let normal = f32::from_bits((bits + 0xfff + (bits >> 13 & 1)) & !0x1fff);
    // Numbers from 0.5 on are as far apart as f16's least.
    let small = (size + 0.5) - 0.5;
    let rounded = if size < 2f32.powi(-14) { small } else { normal };
    (if rounded < 65_536.0 { rounded } else { f32::INFINITY }).copysign(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use crate::quants::decode_row;

    fn random(seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1u32 << 24) as f32
        };
        // Nearly normal: weights are.
        (0..GROUP).map(|_| (0..6).map(|_| next()).sum::<f32>() - 3.0).collect()
    }

    fn error(dtype: DType, values: &[f32]) -> f32 {
        let mut out = vec![0; dtype.block_bytes()];
        let quantize = if dtype == DType::Q8_0 { int8_group } else { int4_row };
        quantize(values, &mut out).unwrap();
        let mut decoded = vec![0.0; GROUP];
        decode_row(dtype, &out, &mut decoded);
        let square = |(a, b): (&f32, &f32)| (a - b) * (a - b);
        let sum: f32 = decoded.iter().zip(values).map(square).sum();
        (sum / values.iter().map(|value| value * value).sum::<f32>()).sqrt()
    }

    #[test]
    fn errors_are_small_and_the_search_pays() {
        let (mut int8, mut int4, mut plain) = (0.0, 0.0, 0.0);
        for seed in 0..200 {
            let values = random(seed);
            int8 += error(DType::Q8_0, &values) / 200.0;
            int4 += error(DType::Q4_1, &values) / 200.0;
            // Levels from the smallest value to the largest.
            let min = values.iter().copied().fold(f32::MAX, f32::min);
            let max = values.iter().copied().fold(f32::MIN, f32::max);
            let levels = Levels::rounded([(max - min) / 15.0; LANES], [min; LANES]);
            let group = std::array::from_fn(|i| [values[i]; LANES]);
            let norm = values.iter().map(|value| value * value).sum::<f32>();
            plain += (levels.error(&group)[0] / norm).sqrt() / 200.0;
        }
        assert!(int8 < 0.006, "{int8}");
        assert!(int4 < 0.08 && int4 < plain * 0.96, "{int4}, without the search {plain}");
    }

    #[test]
    fn rounds_as_the_library_does() {
        for tenth in -3000..3000 {
            for value in [tenth as f32 / 10.0, tenth as f32 / 2.0] {
                for value in [value.next_down(), value, value.next_up()] {
                    assert_eq!(round(value).to_bits(), value.round().to_bits(), "{value}");
                }
            }
        }
    }

    #[test]
    fn halves_are_the_library_s() {
        for bits in (0..=u32::MAX).step_by(4093) {
            let value = f32::from_bits(bits);
            let expected = f16::from_f32(value).to_f32();
            if !value.is_nan() {
                assert_eq!(to_half(value).to_bits(), expected.to_bits(), "{value}");
            }
        }
        for bits in 0..0x7c00 {
            // Between two of them, at both of the ends of it and in the middle.
            let [low, high] = [bits, bits + 1].map(|bits| f16::from_bits(bits).to_f32());
            let middle = (low + high) / 2.0;
            for value in [low, low.next_up(), middle.next_down(), middle, middle.next_up()] {
                assert_eq!(to_half(-value), -f16::from_f32(value).to_f32(), "{value}");
            }
        }
    }

    #[test]
    fn groups_side_by_side_are_what_they_are_alone() {
        // More than are side by side, and a part of one.
        let values: Vec<f32> = (0..19).flat_map(random).take(18 * GROUP + 4).collect();
        let mut together = vec![0; 19 * INT4_BYTES];
        int4_row(&values, &mut together).unwrap();
        for (values, together) in values.chunks(GROUP).zip(together.chunks(INT4_BYTES)) {
            let mut alone = [0; INT4_BYTES];
            int4_row(values, &mut alone).unwrap();
            assert_eq!(alone, together);
        }
    }

    #[test]
    fn groups_at_the_edge() {
        for values in [vec![0.0; 32], vec![-2.5; 32], vec![1.0; 4], vec![1e-7; 32]] {
            let mut out = [0; 34];
            int8_group(&values, &mut out).unwrap();
            int4_row(&values, &mut out[..20]).unwrap();
        }
        for bad in [f32::NAN, f32::INFINITY, 1e9] {
            let mut out = [0; 34];
            assert!(int8_group(&[1.0, bad], &mut out).is_err(), "{bad}");
            assert!(int4_row(&[1.0, bad], &mut out[..20]).is_err(), "{bad}");
        }
        let mut decoded = vec![0.0; 32];
        let mut out = [0; 20];
        int4_row(&[-2.5; 32], &mut out).unwrap();
        decode_row(DType::Q4_1, &out, &mut decoded);
        assert_eq!(decoded, [-2.5; 32]);
    }
}
