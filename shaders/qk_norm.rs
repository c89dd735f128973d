//! RMS normalisation of each head of queries and keys, where a model has it, between the product
//! that makes them and their rotation.

use bytemuck::{Pod, Zeroable};

use crate::attention;
use crate::error::GpuError;
use crate::gpu::{Caps, Gpu};
use crate::inputs::StepShape;
use crate::kernel::{Bound, Kernel, KernelSource, Pass};
use crate::kv_cache::KvFormat;
use crate::matmul::Qkv;
use crate::tensor::Tensor;

/// The parameters of `qk_norm.wgsl`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct Params {
    num_rows: u32,
    num_computed: u32,
    first_column: u32,
    tables_at: u32,
    num_heads: u32,
    num_kv_heads: u32,
    head_vec4s: u32,
    rotary_vec4s: u32,
    has_bias: u32,
    eps: f32,
}

/// The kernel bound to a layer's tensors.
pub struct BoundQkNorm {
    bound: Bound,
    params: Params,
    max_tokens: usize,
}

impl BoundQkNorm {
    /// Queries, keys and values of `x` to where `qkv` says.
    ///
    /// * `x`: [num_tokens, num_heads + 2 num_kv_heads, head_dim]
    /// * `norms`: of queries, then of keys, [2, head_dim]
    ///
    /// # Errors
    /// When the device fails.
    pub fn new(
        gpu: &Gpu,
        x: &Tensor,
        (norms, eps): (&Tensor, f32),
        qkv: Qkv<'_>,
    ) -> Result<Self, GpuError> {
        let Qkv { bias, inputs, rotary, cache, queries } = qkv;
        let shape = cache.shape;
        assert!(norms.len() == 2 * shape.head_dim, "a weight per value of a head");
        assert!(bias.is_none_or(|bias| bias.len() == shape.qkv_size()), "a bias per column");
        assert!(rotary.rotary_dim <= shape.head_dim, "no more is rotated than there is");
        assert!(
            inputs.limits().max_positions <= rotary.max_positions,
            "every position has its angles"
        );
        let kernel = Kernel::new(gpu, &source(gpu.caps(), cache.format))?;
        let params = Params {
            num_rows: 0,
            num_computed: shape.qkv_size() as u32,
            first_column: 0,
            tables_at: 0,
            num_heads: shape.num_heads as u32,
            num_kv_heads: shape.num_kv_heads as u32,
            head_vec4s: shape.head_vec4s() as u32,
            rotary_vec4s: (rotary.rotary_dim / 4) as u32,
            has_bias: bias.is_some().into(),
            eps,
        };
        // A binding can't be empty, though without a bias it isn't read.
        let bias = bias.unwrap_or(&rotary.cos_sin);
        let (keys, values) = (&cache.keys, &cache.values);
        let tensors = [x, norms, queries, &inputs.tensor, bias, &rotary.cos_sin, keys, values];
        let max_tokens = (x.len() / shape.qkv_size()).min(queries.len() / shape.q_size());
        let max_tokens = max_tokens.min(inputs.limits().max_tokens);
        Ok(Self { bound: kernel.bind(gpu, &tensors)?, params, max_tokens })
    }

    /// Takes the tokens of a step.
    pub fn record(&self, pass: &mut Pass, step: StepShape) {
        assert!(step.num_tokens <= self.max_tokens, "a batch fits the tensors of its stage");
        let num_rows = step.num_tokens as u32;
        let params = Params { num_rows, tables_at: step.tables_at(), ..self.params };
        let num_heads = params.num_heads + 2 * params.num_kv_heads;
        pass.dispatch(&self.bound, &params, [num_rows, num_heads, 1]);
    }
}

pub(crate) fn source(caps: Caps, kv: KvFormat) -> KernelSource {
    let (lanes, _) = attention::lanes(caps);
    let constants = [
        ("LANES", lanes),
        ("QKV", 1),
        ("KV_F16", (kv == KvFormat::F16).into()),
        ("BLOCK", crate::inputs::BLOCK_TOKENS as u32),
        ("STORE", 0),
        ("VEC4S", 0),
        ("RESIDUAL", 0),
        ("SWIGLU", 0),
        ("STACKED", 0),
        ("OUT_ROWS", 0),
    ];
    let template = [include_str!("qk_norm.wgsl"), include_str!("matmul_out.wgsl")].concat();
    KernelSource::declared::<Params>("qk_norm", &template, caps.images, &constants)
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;
    use crate::inputs::StepInputs;
    use crate::kv_cache::{HeadShape, KvCache};
    use crate::rms_norm;
    use crate::rotary::{self, Rotary, inverse_frequencies};
    use crate::testing::{self, Random, assert_bits_eq, assert_close};

    #[test]
    fn params_are_the_shader_s() {
        let Some(gpu) = testing::gpu() else { return };
        for images in [false, true] {
            for kv in KvFormat::ALL {
                let source = source(Caps { images, ..gpu.caps() }, kv);
                testing::assert_kernel(&source);
                testing::assert_params(
                    &source,
                    &[
                        ("num_rows", offset_of!(Params, num_rows)),
                        ("num_computed", offset_of!(Params, num_computed)),
                        ("first_column", offset_of!(Params, first_column)),
                        ("tables_at", offset_of!(Params, tables_at)),
                        ("num_heads", offset_of!(Params, num_heads)),
                        ("num_kv_heads", offset_of!(Params, num_kv_heads)),
                        ("head_vec4s", offset_of!(Params, head_vec4s)),
                        ("rotary_vec4s", offset_of!(Params, rotary_vec4s)),
                        ("has_bias", offset_of!(Params, has_bias)),
                        ("eps", offset_of!(Params, eps)),
                    ],
                );
            }
        }
    }

    #[test]
    fn heads_of_queries_and_keys_are_normalised_and_values_are_not() {
        let shape = HeadShape { num_heads: 4, num_kv_heads: 2, head_dim: 24 };
        let num_tokens = 5;
        let mut random = Random::new(3);
        let x = random.normal(num_tokens * shape.qkv_size());
        let norms = random.normal(2 * shape.head_dim);
        let bias = random.normal(shape.qkv_size());
        let inv_freq = inverse_frequencies(10_000.0, 16);
        for gpu in testing::both_layouts() {
            let cache = KvCache::new(&gpu, shape, KvFormat::F32, 2).unwrap();
            let step = StepInputs {
                token_ids: vec![0; num_tokens],
                positions: (10..10 + num_tokens as u32).collect(),
                table_starts: vec![0; num_tokens],
                output_rows: Vec::new(),
                tables: vec![1, 0],
                copies: Vec::new(),
            };
            let (inputs, step) = testing::inputs(&gpu, &step);
            let rotary = Rotary::new(&gpu, &inv_freq, 4096).unwrap();
            let queries = gpu.alloc_vec4s(num_tokens * shape.q_size()).unwrap();
            let bias_tensor = gpu.upload_vec4s(&bias).unwrap();
            let qkv = Qkv {
                bias: Some(&bias_tensor),
                inputs: &inputs,
                rotary: &rotary,
                cache: &cache,
                queries: &queries,
            };
            let norms_tensor = gpu.upload(&norms).unwrap();
            let x_tensor = gpu.upload(&x).unwrap();
            let bound = BoundQkNorm::new(&gpu, &x_tensor, (&norms_tensor, 1e-5), qkv).unwrap();
            let mut pass = Pass::new();
            bound.record(&mut pass, step);
            gpu.run(&pass).unwrap();

            let [keys, values] = cache.read(&gpu);
            let found = gpu.read_f32(&queries).unwrap();
            for token in 0..num_tokens {
                let row = &x[token * shape.qkv_size()..][..shape.qkv_size()];
                let mut row: Vec<f32> = row.iter().zip(&bias).map(|(x, bias)| x + bias).collect();
                let heads = row.chunks_exact_mut(shape.head_dim).take(6).enumerate();
                for (head, values) in heads {
                    let norm = &norms[usize::from(head >= 4) * 24..][..24];
                    let normed = rms_norm::reference(1e-5, values, norm);
                    values.copy_from_slice(&normed);
                }
                let position = 10 + token;
                let row = rotary::reference(shape, &inv_freq, position, &row);
                assert_close(&found[token * 96..][..96], &row[..96], 1e-5);
                let (block, slot) = ([1, 0][position / 16], position % 16);
                for (head, key) in row[96..144].chunks_exact(24).enumerate() {
                    for (d, value) in key.iter().enumerate() {
                        let at = ((block * 2 + head) * 6 + d / 4) * 16 + slot;
                        assert_close(&[keys[at * 4 + d % 4]], &[*value], 1e-5);
                    }
                }
                for (head, value) in row[144..].chunks_exact(24).enumerate() {
                    let at = ((block * 2 + head) * 16 + slot) * 24;
                    assert_bits_eq(&values[at..at + 24], value);
                }
            }
        }
    }
}
