//! Rotary positions, and the way of keys and values into the cache.

use bytemuck::{Pod, Zeroable};

use crate::error::GpuError;
use crate::gpu::Gpu;
use crate::inputs::{BLOCK_TOKENS, Inputs, StepShape};
use crate::kernel::{Access, Bound, Kernel, KernelSource, Pass};
use crate::kv_cache::{HeadShape, KvCache};
use crate::template::expand_vec4s;
use crate::tensor::Tensor;

/// The parameters of `rope_kv.wgsl`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct Params {
    num_tokens: u32,
    tables_at: u32,
    num_heads: u32,
    num_kv_heads: u32,
    head_vec4s: u32,
    rotary_vec4s: u32,
    half_split: u32,
}

/// Which two dimensions of a head turn together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RotaryPairs {
    /// 2i and 2i + 1.
    Interleaved,
    /// i and i + half of the rotary dimensions.
    HalfSplit,
}

/// How heads are rotated: the pairs, and cosine and sine of every angle.
pub struct Rotary {
    pairs: RotaryPairs,
    rotary_dim: usize,
    max_positions: usize,
    cos_sin: Tensor, // [max_positions, rotary_dim / 2, 2]
}

impl Rotary {
    /// `inv_freq[i]` is the angle of pair `i` at position 1. Angles are computed in f64: a device's
    /// sine is weak at the angles of long sequences.
    pub fn new(
        gpu: &Gpu,
        pairs: RotaryPairs,
        inv_freq: &[f64],
        max_positions: usize,
    ) -> Result<Self, GpuError> {
        let multiple = if pairs == RotaryPairs::HalfSplit { 4 } else { 2 };
        assert!(inv_freq.len().is_multiple_of(multiple), "pairs fill vec4s of dimensions");
        let mut table = Vec::with_capacity(max_positions * inv_freq.len() * 2);
        for position in 0..max_positions {
            for inv_freq in inv_freq {
                table.extend(cos_sin(position, *inv_freq));
            }
        }
        Ok(Self {
            pairs,
            rotary_dim: 2 * inv_freq.len(),
            max_positions,
            cos_sin: gpu.upload(&table)?,
        })
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

/// The compiled kernel.
pub struct RopeKv(Kernel);

/// The kernel bound to a layer's cache.
pub struct BoundRopeKv {
    bound: Bound,
    params: Params,
    max_tokens: usize,
}

impl RopeKv {
    /// Compiles the kernel.
    pub fn new(gpu: &Gpu) -> Result<Self, GpuError> {
        Kernel::new(gpu, &source(gpu.caps().images)).map(Self)
    }

    /// Rotates queries and keys, and stores keys and values in `cache`.
    ///
    /// * `qkv`: [num_tokens, num_heads + 2 num_kv_heads, head_dim]
    /// * `q`: [num_tokens, num_heads, head_dim], vec4s
    pub fn bind(
        &self,
        gpu: &Gpu,
        inputs: &Inputs,
        rotary: &Rotary,
        cache: &KvCache,
        (qkv, q): (&Tensor, &Tensor),
    ) -> Result<BoundRopeKv, GpuError> {
        let shape = cache.shape;
        assert!(rotary.rotary_dim <= shape.head_dim, "no more is rotated than there is");
        assert!(
            inputs.limits().max_positions <= rotary.max_positions,
            "every position has its angles"
        );
        Ok(BoundRopeKv {
            bound: self.0.bind(
                gpu,
                &[&inputs.tensor, qkv, &rotary.cos_sin, q, &cache.keys, &cache.values],
            )?,
            params: Params {
                num_tokens: 0,
                tables_at: 0,
                num_heads: shape.num_heads as u32,
                num_kv_heads: shape.num_kv_heads as u32,
                head_vec4s: shape.head_vec4s() as u32,
                rotary_vec4s: (rotary.rotary_dim / 4) as u32,
                half_split: (rotary.pairs == RotaryPairs::HalfSplit).into(),
            },
            max_tokens: (qkv.len() / shape.qkv_size()).min(q.len() / shape.q_size()),
        })
    }
}

impl BoundRopeKv {
    /// Takes the tokens of a step. Attention of the same layer and step follows it.
    pub fn record(&self, pass: &mut Pass, step: StepShape) {
        assert!(step.num_tokens <= self.max_tokens, "a batch fits the tensors of its stage");
        let params = Params {
            num_tokens: step.num_tokens as u32,
            tables_at: step.tables_at(),
            ..self.params
        };
        let row_vec4s = (params.num_heads + 2 * params.num_kv_heads) * params.head_vec4s;
        pass.dispatch(&self.bound, &params, [row_vec4s.div_ceil(WORKGROUP), params.num_tokens, 1]);
    }
}

/// One row of qkv with its queries and keys rotated.
///
/// * `qkv`: [num_heads + 2 num_kv_heads, head_dim]
pub fn reference(
    shape: HeadShape,
    pairs: RotaryPairs,
    inv_freqs: &[f64],
    position: usize,
    qkv: &[f32],
) -> Vec<f32> {
    let mut out = qkv.to_vec();
    for head in out.chunks_exact_mut(shape.head_dim).take(shape.num_heads + shape.num_kv_heads) {
        for (i, inv_freq) in inv_freqs.iter().enumerate() {
            let (a, b) = match pairs {
                RotaryPairs::Interleaved => (2 * i, 2 * i + 1),
                RotaryPairs::HalfSplit => (i, i + inv_freqs.len()),
            };
            let [cos, sin] = cos_sin(position, *inv_freq);
            (head[a], head[b]) = (head[a] * cos - head[b] * sin, head[a] * sin + head[b] * cos);
        }
    }
    out
}

const WORKGROUP: u32 = 64;

pub(crate) fn source(images: bool) -> KernelSource {
    let constants = [("WORKGROUP", WORKGROUP), ("BLOCK", BLOCK_TOKENS as u32)];
    let wgsl = expand_vec4s(include_str!("rope_kv.wgsl"), images, &constants);
    let write = Access::write_vec4s(images);
    KernelSource::new::<Params>(
        "rope_kv",
        wgsl,
        &[Access::Read, Access::Read, Access::Read, write, write, write],
    )
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;
    use crate::inputs::StepInputs;
    use crate::testing::{self, Random, assert_bits_eq, assert_close};

    #[test]
    fn params_are_the_shader_s() {
        for images in [false, true] {
            testing::assert_kernel(&source(images));
            testing::assert_params(
                &source(images),
                &[
                    ("num_tokens", offset_of!(Params, num_tokens)),
                    ("tables_at", offset_of!(Params, tables_at)),
                    ("num_heads", offset_of!(Params, num_heads)),
                    ("num_kv_heads", offset_of!(Params, num_kv_heads)),
                    ("head_vec4s", offset_of!(Params, head_vec4s)),
                    ("rotary_vec4s", offset_of!(Params, rotary_vec4s)),
                    ("half_split", offset_of!(Params, half_split)),
                ],
            );
        }
    }

    #[test]
    fn reference_by_hand() {
        let shape = HeadShape { num_heads: 1, num_kv_heads: 1, head_dim: 4 };
        let quarter = [std::f64::consts::FRAC_PI_2];
        let qkv = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 9.0, 9.0, 9.0];
        let out = reference(shape, RotaryPairs::Interleaved, &quarter, 1, &qkv);
        assert_close(&out, &[-2.0, 1.0, 3.0, 4.0, -6.0, 5.0, 7.0, 8.0, 9.0, 9.0, 9.0, 9.0], 1e-6);
        let both = [std::f64::consts::FRAC_PI_2, 0.0];
        let out = reference(shape, RotaryPairs::HalfSplit, &both, 1, &qkv);
        assert_close(&out[..4], &[-3.0, 2.0, 1.0, 4.0], 1e-6);
    }

    #[test]
    fn frequencies_by_hand() {
        assert_eq!(inverse_frequencies(10_000.0, 4), [1.0, 0.01]);
    }

    #[test]
    fn agrees_with_the_reference() {
        for gpu in testing::both_layouts() {
            let kernel = RopeKv::new(&gpu).unwrap();
            for pairs in [RotaryPairs::Interleaved, RotaryPairs::HalfSplit] {
                for (shape, rotary_dim) in [
                    (HeadShape { num_heads: 4, num_kv_heads: 2, head_dim: 16 }, 8),
                    (HeadShape { num_heads: 9, num_kv_heads: 3, head_dim: 64 }, 64),
                    (HeadShape { num_heads: 1, num_kv_heads: 1, head_dim: 32 }, 0),
                ] {
                    let inv_freq = inverse_frequencies(10_000.0, rotary_dim);
                    let positions = [0, 17, 4000];
                    let step = StepInputs {
                        token_ids: vec![0; 3],
                        positions: positions.to_vec(),
                        table_starts: vec![0, 1, 3],
                        output_rows: vec![2],
                        tables: [vec![5, 2, 4], vec![7; 251]].concat(),
                    };
                    let blocks = [(5, 0), (4, 1), (7, 0)];
                    let (inputs, step) = testing::inputs(&gpu, &step);
                    let qkv = Random::new(21).normal(3 * shape.qkv_size());
                    let qkv_tensor = gpu.upload(&qkv).unwrap();
                    let q = gpu.alloc_vec4s(3 * shape.q_size()).unwrap();
                    let cache = KvCache::new(&gpu, shape, 8).unwrap();
                    let rotary = Rotary::new(&gpu, pairs, &inv_freq, 4096).unwrap();
                    let bound =
                        kernel.bind(&gpu, &inputs, &rotary, &cache, (&qkv_tensor, &q)).unwrap();
                    let mut pass = Pass::new();
                    bound.record(&mut pass, step);
                    gpu.run(&pass).unwrap();

                    let (q, keys, values) = (
                        gpu.read_f32(&q).unwrap(),
                        gpu.read_f32(&cache.keys).unwrap(),
                        gpu.read_f32(&cache.values).unwrap(),
                    );
                    for token in 0..3 {
                        let row = &qkv[token * shape.qkv_size()..][..shape.qkv_size()];
                        let expected =
                            reference(shape, pairs, &inv_freq, positions[token] as usize, row);
                        let (expected_q, expected_kv) = expected.split_at(shape.q_size());
                        // A product is rounded before it is added, on one side or the other.
                        assert_close(
                            &q[token * shape.q_size()..][..shape.q_size()],
                            expected_q,
                            1e-6,
                        );
                        let (expected_k, expected_v) = expected_kv.split_at(expected_kv.len() / 2);
                        let (block, slot) = blocks[token];
                        for head in 0..shape.num_kv_heads {
                            let at =
                                (block * shape.num_kv_heads + head) * shape.head_dim * BLOCK_TOKENS;
                            let range = head * shape.head_dim..(head + 1) * shape.head_dim;
                            let key: Vec<f32> = (0..shape.head_dim)
                                .map(|d| keys[at + (d / 4 * BLOCK_TOKENS + slot) * 4 + d % 4])
                                .collect();
                            assert_close(&key, &expected_k[range.clone()], 1e-6);
                            let value = &values[at + slot * shape.head_dim..][..shape.head_dim];
                            assert_bits_eq(value, &expected_v[range]);
                        }
                    }
                }
            }
        }
    }
}
