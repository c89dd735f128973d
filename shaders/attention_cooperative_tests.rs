//! Attention by cooperative matrices: against its reference and the bound of its error, and bit for
//! bit against itself in other batches, cuts and layouts.

use super::*;
use crate::self_test::SelfTest;
use crate::testing::rms_share;

/// A device that has such matrices.
fn caps(side: u32, lanes: u32) -> Caps {
    Caps {
        min_subgroup_size: lanes,
        max_subgroup_size: lanes,
        max_workgroup_bytes: 48 << 10,
        products: Products::Cooperative,
        cooperative_side: Some(side),
        ..gpu_caps()
    }
}

/// What it gets, with partitions of so many positions.
fn chosen(caps: Caps, shape: HeadShape, format: KvFormat, partition: u32) -> Vec<Variant> {
    let variants = Variant::choose(caps, shape, format);
    assert!(variants.iter().all(Variant::is_cooperative), "{shape:?}");
    let of = |variant: Variant| Variant { order: Order { partition, ..variant.order }, ..variant };
    variants.into_iter().map(of).collect()
}

/// Heads that share much and little: rows of matrices are of several tokens, or of one and more
/// than it has. Each with what the cache is of.
const HEADS: [(HeadShape, KvFormat); 4] = [
    (SMALL, KvFormat::F16),
    (HeadShape { num_heads: 12, num_kv_heads: 1, head_dim: 48 }, KvFormat::F32),
    (HeadShape { num_heads: 16, num_kv_heads: 1, head_dim: 64 }, KvFormat::F32),
    (SMALL, KvFormat::F16),
];

/// Devices and what is tried on each: a software driver takes long to compile.
fn devices() -> impl Iterator<Item = (Gpu, Vec<(HeadShape, KvFormat)>)> {
    let gpus = testing::cooperative_gpus();
    let every = gpus.len();
    gpus.into_iter()
        .enumerate()
        .map(move |(number, gpu)| (gpu, HEADS.into_iter().skip(number).step_by(every).collect()))
}

/// A driver gets what it can take.
#[test]
fn kernels_are_sound_and_become_spirv() {
    let heads = |num_heads, num_kv_heads, head_dim| HeadShape { num_heads, num_kv_heads, head_dim };
    let shapes = [SMALL, heads(9, 3, 64), heads(2, 2, 80), heads(32, 2, 128), heads(96, 8, 128)];
    for (side, lanes) in [(16, 32), (16, 64), (8, 8), (8, 32), (8, 4)] {
        for (shape, format) in shapes.iter().flat_map(|it| KvFormat::ALL.map(|kv| (*it, kv))) {
            let caps = caps(side, lanes);
            for variant in chosen(caps, shape, format, 128) {
                let source = variant.source(shape, format, false);
                testing::assert_kernel(&source);
                testing::assert_spirv(&source);
                assert!(testing::workgroup_bytes(&source) <= caps.max_workgroup_bytes);
            }
        }
    }
    // Where there is no room for it, or matrices don't fill a head, it is plain.
    let little = Caps { max_workgroup_bytes: 16 << 10, ..caps(16, 32) };
    for (caps, shape) in [(little, shapes[3]), (caps(16, 32), heads(4, 2, 72))] {
        let variants = Variant::choose(caps, shape, KvFormat::F16);
        assert_eq!(variants, Variant::plain(caps, shape));
    }
    // As many rows as there is room for.
    let tokens = |kib: u32| {
        let caps = Caps { max_workgroup_bytes: kib << 10, ..caps(16, 32) };
        chosen(caps, heads(16, 4, 128), KvFormat::F16, 128)[1].tokens
    };
    assert_eq!([32, 48].map(tokens), [4, 8]);
}

/// A row is off by no more than `(exp(2 s + 2^-9 + n 2^-22) - 1) sum w |v| + n 2^-24 max |v|`, of
/// n positions with weights w, where s is how much a score may be: as in products, x and w being
/// the scaled query and the key.
#[test]
fn agrees_with_the_reference_within_its_bound() {
    for (gpu, heads) in devices() {
        for (shape, format) in heads {
            let variants = chosen(gpu.caps(), shape, format, 64);
            let layer = Layer::of(&gpu, shape, format, variants);
            let mut sequence = Sequence::random(shape, 150, 51);
            sequence.table = vec![9, 3, 0, 8, 1, 4, 12, 2, 7, 5];
            let rows = layer.step(&[(&sequence, 0..150)]);
            let rotated = rotated(&layer, &sequence);
            let expected = expected(shape, &rotated);
            let error = rms_share(&rows.concat(), &expected.concat());
            // Nothing changed would mean that it isn't used.
            assert!((1e-5..1e-3).contains(&error), "{shape:?} {format:?}: {error}");
            for position in [0, 1, 62, 63, 64, 100, 149] {
                assert_within_bound(shape, format, &rotated[..=position], &rows[position]);
            }
        }
    }
}

fn assert_within_bound(shape: HeadShape, format: KvFormat, rotated: &[Vec<f32>], found: &[f32]) {
    let size = shape.head_dim;
    let scale = 1.0 / f64::from(size as u32).sqrt();
    let (n, digits) = (rotated.len() as f64, 2f64.powi(-11));
    // Keys and values that are halves are taken as they are.
    let share = if format == KvFormat::F16 { 1.0 } else { 2.0 };
    let wide = |values: &[f32]| values.iter().map(|value| f64::from(*value)).collect::<Vec<_>>();
    for head in 0..shape.num_heads {
        let key_head = shape.num_heads + head / (shape.num_heads / shape.num_kv_heads);
        let value_head = key_head + shape.num_kv_heads;
        let of = |row: &Vec<f32>, head: usize| wide(&row[head * size..][..size]);
        let query: Vec<f64> =
            of(&rotated[rotated.len() - 1], head).iter().map(|q| q * scale).collect();
        let (mut scores, mut off) = (Vec::new(), 0f64);
        for row in rotated {
            let key = of(row, key_head);
            let products = || query.iter().zip(&key).map(|(q, k)| q * k);
            let products_size: f64 = products().map(f64::abs).sum();
            let small: f64 = query.iter().zip(&key).map(|(q, k)| q.abs() + k.abs()).sum();
            let additions = size as f64 * 2f64.powi(-23);
            // The query was rotated and scaled in f32, to 2^-20 at worst.
            let rounded = share * digits + additions + 2f64.powi(-20);
            off = off.max(rounded * products_size + share * 2f64.powi(-25) * small);
            scores.push(products().sum::<f64>());
        }
        let most = scores.iter().copied().fold(f64::MIN, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - most).exp()).collect();
        let sum: f64 = weights.iter().sum();
        for d in 0..size {
            let values = || rotated.iter().map(|row| f64::from(row[value_head * size + d]));
            let pairs = || values().zip(&weights).map(|(value, weight)| value * weight / sum);
            let exact: f64 = pairs().sum();
            let largest = values().map(f64::abs).fold(0.0, f64::max);
            let factor = (2.0 * off + 2f64.powi(-9) + n * 2f64.powi(-22)).exp_m1();
            let bound = factor * pairs().map(f64::abs).sum::<f64>() + n * 2f64.powi(-24) * largest;
            let found = f64::from(found[head * size + d]);
            let error = (found - exact).abs();
            assert!(error <= bound, "[{head}, {d}] of {n}: off by {error} > {bound}");
        }
    }
}

/// Decoded one by one and as chunks, in other blocks, beside another sequence; with partitions side
/// by side or one after another.
#[test]
fn chunks_batches_blocks_and_cuts_change_nothing() {
    for (number, gpu) in testing::cooperative_gpus().into_iter().enumerate() {
        let format = KvFormat::ALL[number % 2];
        for below in [None, Some(0), Some(u32::MAX)] {
            let variants = chosen(gpu.caps(), SMALL, format, 64);
            let mut layer = Layer::of(&gpu, SMALL, format, variants);
            let beside = layer.attention.beside.as_mut().unwrap();
            if let Some(below) = below {
                (beside.below, beside.max_parts) = (below, 4);
            }
            change_nothing(&layer);
        }
    }
}

/// With as many rows as it takes in one reading, more, and fewer, over several partitions.
#[test]
fn one_token_has_the_bits_that_it_has_among_many() {
    for (gpu, heads) in devices() {
        for (shape, format) in heads {
            let layer = Layer::new(&gpu, shape, format, None);
            let sequences = [52, 53].map(|seed| {
                let table =
                    (0..19).map(|block| (block * 7 + seed as u32) % 19 + 19 * (seed as u32 % 2));
                Sequence { table: table.collect(), ..Sequence::random(shape, 300, seed) }
            });
            let [a, b] = &sequences;
            let all = layer.step(&[(a, 0..300)]).concat();
            let row = |position: usize| &all[position * shape.q_size()..][..shape.q_size()];
            layer.step(&[(b, 0..299)]);
            for position in [0, 31, 32, 127, 128, 255, 256, 299] {
                let alone = layer.step(&[(a, position..position + 1)]);
                assert_bits_eq(&alone[0], row(position));
                // A tile's first, in its middle, and its last.
                for before in [0, 1, 2, 7, 15, 17] {
                    let rows = layer.step(&[
                        (b, 299 - before..299),
                        (a, position..position + 1),
                        (b, 280..299),
                    ]);
                    assert_bits_eq(&rows[before], row(position));
                }
            }
        }
    }
}

#[test]
fn what_a_later_token_holds_changes_nothing() {
    for gpu in testing::cooperative_gpus() {
        let layer = Layer::new(&gpu, SMALL, KvFormat::F32, None);
        let mut sequence = Sequence::random(SMALL, 40, 54);
        sequence.table = vec![2, 0, 1];
        let sound = layer.step(&[(&sequence, 0..40)]).concat();
        // Among the rows of one matrix. By the product that makes them, query, key and value are.
        sequence.qkv[21 * SMALL.qkv_size()] = f32::NAN;
        let broken = layer.step(&[(&sequence, 0..40)]).concat();
        let before = 21 * SMALL.q_size();
        assert_bits_eq(&broken[..before], &sound[..before]);
        assert!(broken[before..] != sound[before..], "it shows in later ones");
    }
}

/// Products with f32 weights are plain there, attention isn't, and is compared with what is.
#[test]
fn the_class_of_plain_products_is_another() {
    let Some(gpu) = testing::cooperative_gpus().into_iter().next() else { return };
    let class = |gpu: &Gpu| SelfTest::new(gpu, Format::F32, SMALL, KvFormat::F16)?.run(gpu);
    let plain = class(&testing::gpu().unwrap()).unwrap();
    assert_ne!(class(&gpu).unwrap(), plain);
}
