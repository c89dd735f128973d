//! Random numbers without a state: Threefry-2x32 with 20 rounds, a function of a key and a counter.
//!
//! Salmon, Moraes, Dror, Shaw: *Parallel random numbers: as easy as 1, 2, 3* (2011). It adds,
//! rotates and xors 32-bit words, so every device and this reference agree in every bit.

/// The kernels' twin of [`uniform`], a helper that `sample.wgsl` ends with.
pub(crate) const WGSL: &str = include_str!("rng.wgsl");

/// The number that decides the token at `position` of choice `choice` of a request with `seed`:
/// one of 2^24 in [0, 1).
pub fn uniform(seed: u64, choice: u32, position: u32) -> f32 {
    let key = [seed as u32, (seed >> 32) as u32];
    let [word, _] = threefry(key, [position, choice]);
    (word >> 8) as f32 / (1 << 24) as f32
}

/// Threefry-2x32-20 of a key and a counter.
pub fn threefry(key: [u32; 2], counter: [u32; 2]) -> [u32; 2] {
    const ROTATIONS: [u32; 8] = [13, 15, 26, 6, 17, 29, 16, 24];
    let keys = [key[0], key[1], 0x1bd1_1bda ^ key[0] ^ key[1]];
    let mut x = [counter[0].wrapping_add(keys[0]), counter[1].wrapping_add(keys[1])];
    for round in 0..20 {
        x[0] = x[0].wrapping_add(x[1]);
        x[1] = x[1].rotate_left(ROTATIONS[round % 8]) ^ x[0];
        if round % 4 == 3 {
            let turn = round / 4 + 1;
            x[0] = x[0].wrapping_add(keys[turn % 3]);
            x[1] = x[1].wrapping_add(keys[(turn + 1) % 3]).wrapping_add(turn as u32);
        }
    }
    x
}

#[cfg(test)]
mod tests {
    use bytemuck::{Pod, Zeroable};

    use super::*;
    use crate::kernel::{Access, Kernel, KernelSource, Pass};
    use crate::testing;

    /// From Random123: key, counter, result.
    const KNOWN: [[[u32; 2]; 3]; 3] = [
        [[0, 0], [0, 0], [0x6b20_0159, 0x99ba_4efe]],
        [[u32::MAX, u32::MAX], [u32::MAX, u32::MAX], [0x1cb9_96fc, 0xbb00_2be7]],
        [[0x1319_8a2e, 0x0370_7344], [0x243f_6a88, 0x85a3_08d3], [0xc492_3a9c, 0x483d_f7a0]],
    ];

    const KERNEL: &str = "
        struct Params { num_calls: u32 }
        var<immediate> params: Params;
        @group(0) @binding(0) var<storage, read> calls: array<vec4<u32>>;
        @group(0) @binding(1) var<storage, read_write> out: array<vec4<u32>>;
        @compute @workgroup_size(64)
        fn main(@builtin(global_invocation_id) id: vec3<u32>) {
            if (id.x < params.num_calls) {
                let call = calls[id.x];
                let number = uniform_number(call.xy, call.zw);
                out[id.x] = vec4<u32>(threefry(call.xy, call.zw), bitcast<u32>(number), 0u);
            }
        }
    ";

    #[repr(C)]
    #[derive(Clone, Copy, Pod, Zeroable)]
    struct Params {
        num_calls: u32,
    }

    fn source() -> KernelSource {
        let wgsl = [KERNEL, WGSL].concat();
        KernelSource::new::<Params>("rng", wgsl, &[Access::Read, Access::ReadWrite])
    }

    #[test]
    fn known_answers() {
        testing::assert_kernel(&source());
        for [key, counter, answer] in KNOWN {
            assert_eq!(threefry(key, counter), answer);
        }
    }

    #[test]
    fn numbers_are_below_one_and_even() {
        let numbers: Vec<f32> = (0..1 << 16).map(|position| uniform(7, 0, position)).collect();
        assert!(numbers.iter().all(|number| (0.0..1.0).contains(number)));
        let mean = numbers.iter().map(|&number| f64::from(number)).sum::<f64>() / 65536.0;
        // Four standard deviations of the mean of 2^16 numbers.
        assert!((mean - 0.5).abs() < 4.0 * (1.0f64 / 12.0 / 65536.0).sqrt(), "{mean}");
    }

    #[test]
    fn the_device_agrees() {
        let Some(gpu) = testing::gpu() else { return };
        let mut random = testing::Random::new(1);
        let mut calls: Vec<[u32; 4]> =
            KNOWN.map(|[[k0, k1], [c0, c1], _]| [k0, k1, c0, c1]).to_vec();
        calls.extend((0..1000).map(|_| [(); 4].map(|()| random.next_u32())));
        let (input, out) = (gpu.upload(&calls).unwrap(), gpu.alloc_u32(4 * calls.len()).unwrap());
        let kernel = Kernel::new(&gpu, &source()).unwrap();
        let bound = kernel.bind(&gpu, &[&input, &out]).unwrap();
        let mut pass = Pass::new();
        let params = Params { num_calls: calls.len() as u32 };
        pass.dispatch(&bound, &params, [params.num_calls.div_ceil(64), 1, 1]);
        gpu.run(&pass).unwrap();
        let out = gpu.read_u32(&out).unwrap();
        for ([k0, k1, c0, c1], result) in calls.into_iter().zip(out.chunks_exact(4)) {
            assert_eq!(result[..2], threefry([k0, k1], [c0, c1]));
            let number = uniform(u64::from(k0) | u64::from(k1) << 32, c1, c0);
            assert_eq!(result[2], number.to_bits());
        }
    }
}
