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

/// A group as `d: f16, m: f16, q: [u8; 16]`; missing values are zero. Of several ways to lay 16
/// levels over the group the one with the smallest squared error is taken. The error is the first
/// value that the format can't hold.
pub(crate) fn int4_group(values: &[f32], out: &mut [u8]) -> Result<(), f32> {
    let mut group = [0.0; GROUP];
    group[..values.len()].copy_from_slice(values);
    let min = group.iter().copied().fold(f32::MAX, f32::min);
    let max = group.iter().copied().fold(f32::MIN, f32::max);
    let (d, m) = (to_f16((max - min) / 15.0, values)?, to_f16(min, values)?);
    let levels = Levels { d: d.to_f32(), m: m.to_f32() };
    let mut best = Best { levels, error: levels.error(&group) };
    // A narrower range serves the many values in its middle better than the few at its ends.
    for shrink in [0.92, 0.84, 0.76] {
        let width = (max - min) * shrink;
        best.replace(Levels::rounded(width / 15.0, ((max + min) - width) / 2.0), &group);
    }
    // As good as refitting each of more of them, in two thirds of the time.
    for _ in 0..2 {
        best.replace(best.levels.refit(&group), &group);
    }
    let best = best.levels;
    out[..2].copy_from_slice(&f16::from_f32(best.d).to_le_bytes());
    out[2..4].copy_from_slice(&f16::from_f32(best.m).to_le_bytes());
    let place = best.place();
    for (i, out) in out[4..].iter_mut().enumerate() {
        *out = place(group[i]) as u8 | (place(group[i + GROUP / 2]) as u8) << 4;
    }
    Ok(())
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

/// Sixteen levels, `d q + m`, of numbers that f16 holds.
#[derive(Clone, Copy)]
struct Levels {
    d: f32,
    m: f32,
}

/// Those with the smallest error so far.
struct Best {
    levels: Levels,
    error: f32,
}

impl Best {
    fn replace(&mut self, levels: Levels, group: &[f32; GROUP]) {
        let error = levels.error(group);
        if error < self.error {
            *self = Self { levels, error };
        }
    }
}

impl Levels {
    fn rounded(d: f32, m: f32) -> Self {
        Self { d: f16::from_f32(d).to_f32(), m: f16::from_f32(m).to_f32() }
    }

    /// The nearest level's number, the even one of two.
    fn place(self) -> impl Fn(f32) -> f32 {
        let Self { d, m } = self;
        let inverse = if d > 0.0 { d.recip() } else { 0.0 };
        move |value| (((value - m) * inverse).clamp(0.0, 15.0) + WHOLE) - WHOLE
    }

    fn error(self, group: &[f32; GROUP]) -> f32 {
        let (Self { d, m }, place) = (self, self.place());
        let [sum] = sums(group, |value| {
            let error = d * place(value) + m - value;
            [error * error]
        });
        sum
    }

    /// The levels that fit best while every value keeps its number: least squares.
    fn refit(self, group: &[f32; GROUP]) -> Self {
        let place = self.place();
        let [q_sum, qq_sum, x_sum, qx_sum] = sums(group, |x| {
            let q = place(x);
            [q, q * q, x, q * x]
        });
        let n = GROUP as f32;
        let spread = n * qq_sum - q_sum * q_sum;
        if spread <= 0.0 {
            return self;
        }
        let d = (n * qx_sum - q_sum * x_sum) / spread;
        let m = (x_sum - d * q_sum) / n;
        let fitted = Self::rounded(d, m);
        if fitted.d.is_finite() && fitted.m.is_finite() && d > 0.0 { fitted } else { self }
    }
}

/// Of each term over the group, by eight sums side by side, as processors add.
fn sums<const N: usize>(group: &[f32; GROUP], terms: impl Fn(f32) -> [f32; N]) -> [f32; N] {
    let mut sums = [[0.0; 8]; N];
    for values in group.as_chunks::<8>().0 {
        for (i, value) in values.iter().enumerate() {
            for (sums, term) in sums.iter_mut().zip(terms(*value)) {
                sums[i] += term;
            }
        }
    }
    sums.map(|sums| sums.iter().sum())
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
        let quantize = if dtype == DType::Q8_0 { int8_group } else { int4_group };
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
            let levels = Levels::rounded((max - min) / 15.0, min);
            let group: [f32; GROUP] = values.as_slice().try_into().unwrap();
            let norm = values.iter().map(|value| value * value).sum::<f32>();
            plain += (levels.error(&group) / norm).sqrt() / 200.0;
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
    fn groups_at_the_edge() {
        for values in [vec![0.0; 32], vec![-2.5; 32], vec![1.0; 4], vec![1e-7; 32]] {
            let mut out = [0; 34];
            int8_group(&values, &mut out).unwrap();
            int4_group(&values, &mut out[..20]).unwrap();
        }
        for bad in [f32::NAN, f32::INFINITY, 1e9] {
            let mut out = [0; 34];
            assert!(int8_group(&[1.0, bad], &mut out).is_err(), "{bad}");
            assert!(int4_group(&[1.0, bad], &mut out[..20]).is_err(), "{bad}");
        }
        let mut decoded = vec![0.0; 32];
        let mut out = [0; 20];
        int4_group(&[-2.5; 32], &mut out).unwrap();
        decode_row(DType::Q4_1, &out, &mut decoded);
        assert_eq!(decoded, [-2.5; 32]);
    }
}
