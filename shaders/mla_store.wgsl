// Before latent attention: the latent row of each token, normalised, and its key, rotated, to the
// cache; the parts of queries that rotate, rotated, beside those that don't.
//                                  one workgroup per token, and per token and head
struct Params {
    num_tokens: u32,
    tables_at: u32,    // in inputs
    num_heads: u32,
    lora_vec4s: u32,   // of a latent row: kv_lora_rank / 4
    nope_vec4s: u32,   // of a query, what doesn't rotate
    rope_vec4s: u32,   // of a query and a key, what does
    eps: f32,
}

var<immediate> params: Params;
// ..., positions, table_starts, ..., tables
@group(0) @binding(0) var<storage, read>       inputs: array<u32>;
@group(0) @binding(1) var<storage, read>       x: array<vec4<f32>>;     // [num_tokens, lora + rope]
@group(0) @binding(2) var<storage, read>       norm: array<vec4<f32>>;  // [lora]
//! if IMAGES
// [max_positions, rope], cosine and sine of two pairs
@group(0) @binding(3) var cos_sin: texture_storage_2d<rgba32float, read>;
// [num_tokens, num_heads, nope + rope]
@group(0) @binding(4) var q: texture_storage_2d<rgba32float, read>;
// [num_tokens, num_heads, lora + rope]
@group(0) @binding(5) var out: texture_storage_2d<rgba32float, write>;
//! if KV_F16
// [num_blocks, lora + rope, BLOCK]
@group(0) @binding(6) var rows: texture_storage_2d<rg32uint, write>;
//! else
// [num_blocks, lora + rope, BLOCK]
@group(0) @binding(6) var rows: texture_storage_2d<rgba32float, write>;
//! end
//! else
// [max_positions, rope], cosine and sine of two pairs
@group(0) @binding(3) var<storage, read>       cos_sin: array<vec4<f32>>;
// [num_tokens, num_heads, nope + rope]
@group(0) @binding(4) var<storage, read>       q: array<vec4<f32>>;
// [num_tokens, num_heads, lora + rope]
@group(0) @binding(5) var<storage, read_write> out: array<vec4<f32>>;
//! if KV_F16
// [num_blocks, lora + rope, BLOCK]
@group(0) @binding(6) var<storage, read_write> rows: array<vec2<u32>>;
//! else
// [num_blocks, lora + rope, BLOCK]
@group(0) @binding(6) var<storage, read_write> rows: array<vec4<f32>>;
//! end
//! end

var<workgroup> sh_squares: array<f32, {LANES}>;

@compute @workgroup_size({LANES})
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let p = params;
    let token = workgroup.x;
    let position = inputs[p.num_tokens + token];
    let latent_vec4s = p.lora_vec4s + p.rope_vec4s;
    if (workgroup.y > 0u) {
        let pair = token * p.num_heads + workgroup.y - 1u;
        let first = pair * (p.nope_vec4s + p.rope_vec4s) + p.nope_vec4s;
        let target_at = pair * latent_vec4s + p.lora_vec4s;
        for (var d = lane; d < p.rope_vec4s; d += {LANES}u) {
            let angles = cos_sin_in(position * p.rope_vec4s + d);
            write_out(target_at + d, rotated(q_at(first + d), angles));
        }
        return;
    }

    let start = token * latent_vec4s;
    var squares = 0.0;
    for (var d = lane; d < p.lora_vec4s; d += {LANES}u) {
        let value = x[start + d];
        squares = fma(value.x, value.x, squares);
        squares = fma(value.y, value.y, squares);
        squares = fma(value.z, value.z, squares);
        squares = fma(value.w, value.w, squares);
    }
    sh_squares[lane] = squares;
    workgroupBarrier();
    var sum = 0.0;
    for (var other = 0u; other < {LANES}u; other++) {
        sum += sh_squares[other];
    }
    let scale = inverseSqrt(sum / f32(4u * p.lora_vec4s) + p.eps);
    let table = p.tables_at + inputs[2u * p.num_tokens + token];
    let block = inputs[table + position / {BLOCK}u];
    let first = block * latent_vec4s * {BLOCK}u + position % {BLOCK}u;
    for (var d = lane; d < latent_vec4s; d += {LANES}u) {
        var value = x[start + d];
        if (d < p.lora_vec4s) {
            value = value * scale * norm[d];
        } else {
            let turn = d - p.lora_vec4s;
            value = rotated(value, cos_sin_in(position * p.rope_vec4s + turn));
        }
        store(first + d * {BLOCK}u, value);
    }
}

fn rotated(value: vec4<f32>, a: vec4<f32>) -> vec4<f32> {
    return vec4<f32>(
        fma(value.x, a.x, -(value.y * a.y)),
        fma(value.x, a.y, value.y * a.x),
        fma(value.z, a.z, -(value.w * a.w)),
        fma(value.z, a.w, value.w * a.z));
}

// As a number: what is none would spoil the sums of all that attend to it, whatever its weight.
fn store(index: u32, value: vec4<f32>) {
//! if KV_F16
    let most = vec4<f32>(65504.0);
//! else
    let most = vec4<f32>(3.4028234e38);
//! end
    let is_nan = (bitcast<vec4<u32>>(value) & vec4<u32>(0x7fffffffu)) > vec4<u32>(0x7f800000u);
    let bounded = select(clamp(value, -most, most), most, is_nan);
//! if KV_F16
    let words = vec2<u32>(pack2x16float(bounded.xy), pack2x16float(bounded.zw));
//! if IMAGES
    textureStore(rows, texel(index), vec4<u32>(words, 0u, 0u));
//! else
    rows[index] = words;
//! end
//! else
//! if IMAGES
    textureStore(rows, texel(index), bounded);
//! else
    rows[index] = bounded;
//! end
//! end
}

fn cos_sin_in(index: u32) -> vec4<f32> {
//! if IMAGES
    return textureLoad(cos_sin, texel(index));
//! else
    return cos_sin[index];
//! end
}

fn q_at(index: u32) -> vec4<f32> {
//! if IMAGES
    return textureLoad(q, texel(index));
//! else
    return q[index];
//! end
}

fn write_out(index: u32, value: vec4<f32>) {
//! if IMAGES
    textureStore(out, texel(index), value);
//! else
    out[index] = value;
//! end
}
