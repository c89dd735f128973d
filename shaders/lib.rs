//! The compute path: WGSL kernels, each a `.wgsl` file beside the `.rs` file that launches it and
//! holds its plain reference.
//!
//! This crate is the only one that names wgpu, and its public face doesn't: it speaks of a
//! [`gpu::Gpu`], its [`tensor::Tensor`]s and the [`kernel::Pass`] that one step records. It knows
//! no model, no request and no network.
//!
//! **Invariant: row invariance.** The bits of a row of any result depend on that row's own inputs,
//! the weights and the device, never on how many rows were computed with it, on their order, or on
//! the variant of the kernel that was chosen for their number. Every kernel reduces in one order
//! that is a function of the shape of a row alone, and every multiply-add is written `fma`.
//!
//! Kernels check nothing on the device: launchers assert that shapes fit, and lengths that come
//! from outside are checked before they get here.

// The device and what is on it.
pub mod adapters;
pub mod ahead;
mod compile;
pub mod error;
mod format;
mod format_k;
mod format_levels;
pub mod gpu;
mod gpu_options;
mod halves;
pub mod inputs;
pub mod kernel;
pub mod kv_cache;
mod pipeline_cache;
mod processor_time;
pub mod profile;
#[cfg(feature = "raw")]
pub mod raw;
pub mod template;
pub mod tensor;
mod tuning;
mod turns;
pub mod weights;

// The kernels.
pub mod attention;
pub mod attention_beside;
mod attention_cooperative;
mod attention_variant;
pub mod copy_blocks;
pub mod embed;
pub mod experts;
pub mod gather_rows;
pub mod index;
pub mod matmul;
mod matmul_aside;
mod matmul_bound;
mod matmul_class;
mod matmul_form;
pub mod matmul_stacked;
mod matmul_variant;
pub mod mla;
pub mod products;
pub mod qk_norm;
pub mod quantize_rows;
pub mod rms_norm;
pub mod rotary;

// Sampling.
mod change;
pub mod logprobs;
pub mod mask;
pub mod penalize;
pub mod rng;
pub mod sample;
pub mod sampler;
mod sampler_check;

// What a device computes, and how fast it could.
pub mod copy;
pub mod fma;
pub mod self_test;
pub mod self_test_experts;
pub mod self_test_mla;
pub mod speed;

#[cfg(test)]
mod matmul_emulated;
#[cfg(test)]
mod proof;
#[cfg(test)]
mod testing;
