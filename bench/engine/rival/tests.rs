//! Every way of the rival's against plain references, on shapes that fill nothing; and the price
//! from times that are known.

use shaders::gpu::GpuOptions;
use shaders::inputs::BLOCK_TOKENS;
use shaders::kv_cache::HeadShape;
use shaders::matmul;
use shaders::weights::RowOrder;

use super::*;

/// The adapter with tensors in images, then in buffers; none on a machine without an adapter.
fn gpus() -> Vec<Gpu> {
    let open = |images| {
        let options = GpuOptions { images: Some(images), ..GpuOptions::default() };
        Gpu::open_with(None, options)
            .inspect_err(|error| eprintln!("skipped: no adapter ({error})"))
            .ok()
    };
    [true, false].into_iter().filter_map(open).collect()
}

fn assert_close(what: &str, actual: &[f32], expected: &[f32]) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    for (index, (a, e)) in actual.iter().zip(expected).enumerate() {
        assert!((a - e).abs() <= 1e-4 * e.abs().max(1.0), "{what}: [{index}] is {a}, not {e}");
    }
}

#[test]
fn products_are_the_reference_s() {
    // Columns end within a tile, k within a quad of groups, rows within a tile of rows.
    let (cols, rows) = (416, 100);
    for gpu in gpus() {
        let matrix = numbers(rows * cols);
        // Compiling is what takes time here, most of all with buffers.
        let formats: &[_] = match gpu.caps().images {
            true => &[Format::Bf16, Format::Int4, Format::Fp8],
            false => &[Format::Int4],
        };
        for &format in formats {
            let bytes = format.encode(cols, &matrix);
            let shape = (rows, cols);
            let order = (format, RowOrder::Plain);
            let weights = WeightMatrix::from_bytes(&gpu, shape, order, &bytes).unwrap();
            for num_rows in [1, 9] {
                let x = numbers(num_rows * cols);
                let expected = matmul::reference(cols, &x, &format.decode(cols, &bytes));
                let x = gpu.upload_vec4s(&x).unwrap();
                for way in product::Way::all(gpu.caps(), num_rows) {
                    let out = gpu.alloc_f32(num_rows * rows).unwrap();
                    let bound = BoundProduct::new(&gpu, way, &x, &weights, &out).unwrap();
                    let mut pass = Pass::new();
                    bound.record(&mut pass, num_rows);
                    gpu.run(&pass).unwrap();
                    assert_close(&bound.name(), &gpu.read_f32(&out).unwrap(), &expected);
                }
            }
        }
    }
}

#[test]
fn attention_is_the_reference_s() {
    let heads = HeadShape { num_heads: 4, num_kv_heads: 2, head_dim: 16 };
    let steps = [Step::Decode { sequences: 3, context: 75 }, Step::Prefill { num_tokens: 41 }];
    for gpu in gpus().into_iter().take(1) {
        for step in steps {
            let operands = Operands::new(&gpu, heads, KvFormat::F32, step).unwrap();
            let expected = expected_attention(&gpu, &operands);
            for way in flash::Way::all(gpu.caps(), heads, step) {
                let out = gpu.alloc_vec4s(expected.len()).unwrap();
                let bound = BoundFlash::new(&gpu, way, &operands, &out).unwrap();
                let mut pass = Pass::new();
                bound.record(&mut pass);
                gpu.run(&pass).unwrap();
                assert_close(&bound.name(), &gpu.read_f32(&out).unwrap(), &expected);
            }
        }
    }
}

/// What each row attends to, gathered from the cache position by position.
fn expected_attention(gpu: &Gpu, operands: &Operands) -> Vec<f32> {
    let Operands { inputs, shape, cache, q, .. } = operands;
    let HeadShape { num_heads, num_kv_heads, head_dim } = cache.shape;
    let words = gpu.read_u32(&inputs.tensor).unwrap();
    let [q, keys, values] = [q, &cache.keys, &cache.values].map(|t| gpu.read_f32(t).unwrap());
    let tables = shape.tables_at() as usize;
    let mut out = Vec::new();
    for token in 0..shape.num_tokens {
        let position = words[shape.num_tokens + token] as usize;
        let table = tables + words[2 * shape.num_tokens + token] as usize;
        for head in 0..num_heads {
            let kv_head = head / (num_heads / num_kv_heads);
            let (mut own_keys, mut own_values) = (Vec::new(), Vec::new());
            for at in 0..=position {
                let block = words[table + at / BLOCK_TOKENS] as usize * num_kv_heads + kv_head;
                let slot = at % BLOCK_TOKENS;
                for d in 0..head_dim {
                    let vec4 = block * head_dim / 4 + d / 4;
                    own_keys.push(keys[(vec4 * BLOCK_TOKENS + slot) * 4 + d % 4]);
                    own_values.push(values[(block * BLOCK_TOKENS + slot) * head_dim + d]);
                }
            }
            let q = &q[(token * num_heads + head) * head_dim..][..head_dim];
            let scale = attention::scale(cache.shape);
            out.extend(shaders::attention::reference(scale, q, &own_keys, &own_values));
        }
    }
    out
}

#[test]
fn the_price_weighs_kernels_by_how_often_they_run() {
    let decode = Phase::Decode { context: 512 };
    let pair = |format, times, seconds: [f64; 2]| Pair {
        what: String::new(),
        format,
        times,
        layouts: Default::default(),
        seconds: seconds.map(|seconds| vec![seconds; 3]),
    };
    let pairs = [
        pair(Some(Format::Int4), vec![(decode, 10), (Phase::Prefill, 1)], [1.1, 1.0]),
        pair(Some(Format::Bf16), vec![(decode, 10)], [9.0, 1.0]),
        pair(None, vec![(decode, 2)], [5.0, 5.0]),
    ];
    // (11 + 10) / (10 + 10), all rounds alike.
    for price in price(&pairs, Format::Int4, decode) {
        assert!((price - 0.05).abs() < 1e-9);
    }
    assert!((price(&pairs, Format::Int4, Phase::Prefill)[1] - 0.1).abs() < 1e-9);
    assert!((pairs[0].ratio() - 1.1).abs() < 1e-9);
}
