//! The short proof: every class of the adapter, in as little time as its driver compiles kernels on
//! all processors. `cargo test -p shaders proof` runs this and what else is named so, on a GPU in
//! less than a minute; all tests of kernels together take one several.

use crate::gpu::{Gpu, GpuOptions};
use crate::kv_cache::{HeadShape, KvFormat};
use crate::matmul::Products;
use crate::self_test::SelfTest;
use crate::testing;
use crate::weights::Format;

const HEADS: HeadShape = HeadShape { num_heads: 8, num_kv_heads: 2, head_dim: 64 };

/// Of every number format: rows are the same bits in any batch, laid out in any way, and near what
/// plain kernels compute.
#[test]
fn every_class_is_what_it_should_be() {
    for products in Products::ALL {
        let options = GpuOptions { products, ..GpuOptions::default() };
        let gpu = match Gpu::open_with(testing::adapter().as_deref(), options) {
            Ok(gpu) => gpu,
            Err(error) => {
                println!("skipped: {products} products ({error})");
                continue;
            }
        };
        // A software driver takes seconds for each kernel.
        let formats = if gpu.caps().is_cpu { &[Format::Int4][..] } else { &Format::ALL[..] };
        let is_own = |format: &&Format| products != Products::PackedDot || format.is_integer();
        let caches = Format::ALL.iter().zip(KvFormat::ALL.into_iter().cycle());
        let cache_of = |format| caches.clone().find(|(of, _)| **of == format).unwrap().1;
        let tests: Vec<_> = formats
            .iter()
            .filter(is_own)
            .map(|&format| SelfTest::new(&gpu, format, HEADS, cache_of(format)).unwrap())
            .collect();
        assert!(!tests.is_empty());
        gpu.compile(&mut |_, _| ()).unwrap();
        for test in tests {
            test.run(&gpu).unwrap();
        }
    }
}
