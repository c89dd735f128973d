//! Multiply-adds in registers, to measure how fast arithmetic is.

use bytemuck::{Pod, Zeroable};

use crate::error::GpuError;
use crate::gpu::Gpu;
use crate::kernel::{Bound, Kernel, KernelSource, Pass};
use crate::tensor::Tensor;

/// The parameters of `fma.wgsl`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct Params {
    num_rounds: u32,
    factor: f32,
}

/// The kernel bound to the tensor that its sums go to.
pub struct BoundFma {
    bound: Bound,
    num_lanes: u32,
}

impl BoundFma {
    /// One lane for each element of `out`, whose number is a multiple of 64.
    pub fn new(gpu: &Gpu, out: &Tensor) -> Result<Self, GpuError> {
        assert!(out.len().is_multiple_of(WORKGROUP as usize), "lanes fill workgroups");
        let kernel = Kernel::new(gpu, &source())?;
        Ok(Self { bound: kernel.bind(gpu, &[out])?, num_lanes: out.len() as u32 })
    }

    /// Computes `num_rounds` rounds; the number of floating-point operations that they are, a
    /// multiply-add counted as two.
    pub fn record(&self, pass: &mut Pass, num_rounds: u32) -> f64 {
        let params = Params { num_rounds, factor: 0.5 };
        pass.dispatch(&self.bound, &params, [self.num_lanes / WORKGROUP, 1, 1]);
        2.0 * f64::from(self.num_lanes) * f64::from(num_rounds) * f64::from(ROUND * CHAINS)
    }
}

/// What a lane computes: with a factor of a half, each chain nears twice `x`.
pub fn reference(lane: usize, num_rounds: u32) -> f32 {
    let x = (lane & 7) as f32;
    (0..CHAINS)
        .map(|chain| {
            let first = x + chain as f32;
            (0..num_rounds * ROUND).fold(first, |acc, _| acc.mul_add(0.5, x))
        })
        .sum()
}

const WORKGROUP: u32 = 64;
/// As many as hide how long one multiply-add takes: 4 cycles, two of them a cycle.
const CHAINS: u32 = 12;
const ROUND: u32 = 8;

pub(crate) fn source() -> KernelSource {
    let constants = [("WORKGROUP", WORKGROUP), ("CHAINS", CHAINS), ("ROUND", ROUND)];
    KernelSource::declared::<Params>("fma", include_str!("fma.wgsl"), false, &constants)
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;
    use crate::testing::{self, assert_close};

    #[test]
    fn params_are_the_shader_s() {
        testing::assert_kernel(&source());
        let fields = [
            ("num_rounds", offset_of!(Params, num_rounds)),
            ("factor", offset_of!(Params, factor)),
        ];
        testing::assert_params(&source(), &fields);
    }

    #[test]
    fn computes_what_it_counts() {
        let Some(gpu) = testing::gpu() else { return };
        let out = gpu.alloc_f32(128).unwrap();
        let mut pass = Pass::new();
        let num_operations = BoundFma::new(&gpu, &out).unwrap().record(&mut pass, 3);
        assert_eq!(num_operations, 2.0 * 128.0 * 3.0 * 8.0 * 12.0);
        gpu.run(&pass).unwrap();
        let expected: Vec<f32> = (0..128).map(|lane| reference(lane, 3)).collect();
        assert_close(&gpu.read_f32(&out).unwrap(), &expected, 1e-6);
    }
}
