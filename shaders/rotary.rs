//! Rotary positions: cosine and sine of every angle, which the product that makes queries and keys
//! turns them by.
//!
//! Dimensions 2i and 2i + 1 of a head turn together. Models that pair i with i + half of the rotary
//! dimensions are the same with the rows of their weights reordered.

use crate::error::GpuError;
use crate::gpu::Gpu;
use crate::kv_cache::HeadShape;
use crate::tensor::Tensor;

/// Cosine and sine of every angle.
pub struct Rotary {
    pub(crate) rotary_dim: usize,
    pub(crate) max_positions: usize,
    pub(crate) cos_sin: Tensor, // [max_positions, rotary_dim / 2, 2]
}

impl Rotary {
    /// `inv_freq[i]` is the angle of pair `i` at position 1. Angles are computed in f64: a device's
    /// sine is weak at the angles of long sequences.
    pub fn new(gpu: &Gpu, inv_freq: &[f64], max_positions: usize) -> Result<Self, GpuError> {
        assert!(inv_freq.len().is_multiple_of(2), "pairs fill vec4s of dimensions");
        let mut table = Vec::with_capacity(max_positions * inv_freq.len() * 2);
        for position in 0..max_positions {
            for inv_freq in inv_freq {
                table.extend(cos_sin(position, *inv_freq));
            }
        }
        let rotary_dim = 2 * inv_freq.len();
        Ok(Self { rotary_dim, max_positions, cos_sin: gpu.upload_vec4s(&table)? })
    }
}

/// The angles at position 1 of a head that is rotated in its first `rotary_dim` dimensions:
/// `theta^(-2i / rotary_dim)`.
pub fn inverse_frequencies(theta: f64, rotary_dim: usize) -> Vec<f64> {
    (0..rotary_dim / 2).map(|i| theta.powf(-2.0 * i as f64 / rotary_dim as f64)).collect()
}

fn cos_sin(position: usize, inv_freq: f64) -> [f32; 2] {
    let (sin, cos) = (position as f64 * inv_freq).sin_cos();
    [cos as f32, sin as f32]
}

/// One row of qkv with its queries and keys rotated.
///
/// * `qkv`: [num_heads + 2 num_kv_heads, head_dim]
pub fn reference(shape: HeadShape, inv_freqs: &[f64], position: usize, qkv: &[f32]) -> Vec<f32> {
    let mut out = qkv.to_vec();
    for head in out.chunks_exact_mut(shape.head_dim).take(shape.num_heads + shape.num_kv_heads) {
        for (pair, inv_freq) in head.as_chunks_mut().0.iter_mut().zip(inv_freqs) {
            let [a, b] = *pair;
            let [cos, sin] = cos_sin(position, *inv_freq);
            *pair = [a * cos - b * sin, a * sin + b * cos];
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::assert_close;

    #[test]
    fn reference_by_hand() {
        let shape = HeadShape { num_heads: 1, num_kv_heads: 1, head_dim: 4 };
        let quarter = [std::f64::consts::FRAC_PI_2];
        let qkv = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 9.0, 9.0, 9.0];
        let out = reference(shape, &quarter, 1, &qkv);
        assert_close(&out, &[-2.0, 1.0, 3.0, 4.0, -6.0, 5.0, 7.0, 8.0, 9.0, 9.0, 9.0, 9.0], 1e-6);
    }

    #[test]
    fn frequencies_by_hand() {
        assert_eq!(inverse_frequencies(10_000.0, 4), [1.0, 0.01]);
    }
}
