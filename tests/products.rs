//! A whole model by products that aren't plain: the bound of their error, row invariance, memory.

use checkpoint::{Checkpoint, Quantize};
use protocol::config::KvCacheDtype;
use shaders::matmul::Products;
use tests::golden::{self, Golden};

use crate::invariance::is_invariant_on;
use crate::stages::{Device, Pipeline, bytes_taken, device, worst};

/// What eight bits of activations may change logits by: root of the mean square, as a share of
/// that of the logits.
const PACKED: f64 = 0.05;

/// The same for eleven bits of activations and weights.
const HALF: f64 = 0.005;

/// Of one format: compiling takes the time here, and the kernels' own tests have both.
#[test]
fn packed_dot_products_keep_their_promises() {
    keep_their_promises(Products::PackedDot, Quantize::Int4, PACKED);
}

#[test]
fn cooperative_matrices_keep_their_promises() {
    keep_their_promises(Products::Cooperative, Quantize::None, HALF);
}

fn keep_their_promises(products: Products, quantize: Quantize, tolerance: f64) {
    let Some(plain) = device() else { return };
    let Some(device) = Device::open(products) else { return };
    let folder = golden::fixture("glm4");
    let files = Checkpoint::open(&folder.join("bf16")).unwrap().quantized(quantize);
    let golden = Golden::open(&folder);
    // Of the same weights: what they were rounded to is another matter.
    let expected = Pipeline::of(plain.as_ref().unwrap(), &files, &[0, 4, 4]).logits_of(&golden);
    drop(plain);
    let found = Pipeline::of(&device, &files, &[0, 2, 4]).logits_of(&golden);
    let square = |x: f32| f64::from(x) * f64::from(x);
    let error: f64 = found.iter().zip(&expected).map(|(a, b)| square(a - b)).sum();
    let share = (error / expected.iter().copied().map(square).sum::<f64>()).sqrt();
    println!("rms {share}, worst {}", worst(&found, &expected));
    // Nothing changed would mean that they aren't used.
    assert!((tolerance / 500.0..tolerance).contains(&share), "{share}");

    is_invariant_on(&device, &files, KvCacheDtype::Auto, &products.to_string());
    bytes_taken(&device, &files, &[0, 2, 4], KvCacheDtype::Auto);
}
