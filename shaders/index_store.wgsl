// Before positions are chosen: the key of each token, normalised and rotated, to the cache; its
// queries, rotated where they are.                 one workgroup per token, and per token and head

struct Params {
    num_tokens: u32,
    tables_at: u32,   // in inputs
    num_heads: u32,
    head_vec4s: u32,
    rope_vec4s: u32,  // the first ones
}

var<immediate> params: Params;
// ..., positions, table_starts, ..., tables
@group(0) @binding(0) var<storage, read>       inputs: array<u32>;
@group(0) @binding(1) var<storage, read>       x: array<vec4<f32>>;      // [num_tokens, head_vec4s]
// weight, bias [2, head_vec4s]
@group(0) @binding(2) var<storage, read>       norm: array<vec4<f32>>;
// [num_tokens, num_heads, head_vec4s]
@group(0) @binding(3) var<storage, read_write> queries: array<vec4<f32>>;
//! if IMAGES
@group(0) @binding(4) var cos_sin: texture_storage_2d<rgba32float, read>;
//! if KV_F16
// [num_blocks, head, BLOCK]
@group(0) @binding(5) var rows: texture_storage_2d<rg32uint, write>;
//! else
// [num_blocks, head, BLOCK]
@group(0) @binding(5) var rows: texture_storage_2d<rgba32float, write>;
//! end
//! else
@group(0) @binding(4) var<storage, read>       cos_sin: array<vec4<f32>>;
//! if KV_F16
@group(0) @binding(5) var<storage, read_write> rows: array<vec2<u32>>;
//! else
@group(0) @binding(5) var<storage, read_write> rows: array<vec4<f32>>;
//! end
//! end

var<workgroup> sh_sums: array<f32, {LANES}>;
var<workgroup> sh_squares: array<f32, {LANES}>;

@compute @workgroup_size({LANES})
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let p = params;
    let token = workgroup.x;
    let position = inputs[p.num_tokens + token];
    if (workgroup.y > 0u) {
        let start = (token * p.num_heads + workgroup.y - 1u) * p.head_vec4s;
        for (var d = lane; d < p.rope_vec4s; d += {LANES}u) {
            let angles = cos_sin_in(position * p.rope_vec4s + d);
            queries[start + d] = rotated(queries[start + d], angles);
        }
        return;
    }

    let start = token * p.head_vec4s;
    let size = f32(4u * p.head_vec4s);
    var sum = 0.0;
    for (var d = lane; d < p.head_vec4s; d += {LANES}u) {
        let value = x[start + d];
        sum += (value.x + value.y) + (value.z + value.w);
    }
    sh_sums[lane] = sum;
    workgroupBarrier();
    var mean = 0.0;
    for (var other = 0u; other < {LANES}u; other++) {
        mean += sh_sums[other];
    }
    mean = mean / size;
    var squares = 0.0;
    for (var d = lane; d < p.head_vec4s; d += {LANES}u) {
        let value = x[start + d] - vec4<f32>(mean);
        squares = fma(value.x, value.x, squares);
        squares = fma(value.y, value.y, squares);
        squares = fma(value.z, value.z, squares);
        squares = fma(value.w, value.w, squares);
    }
    sh_squares[lane] = squares;
    workgroupBarrier();
    var variance = 0.0;
    for (var other = 0u; other < {LANES}u; other++) {
        variance += sh_squares[other];
    }
    let scale = inverseSqrt(variance / size + 1e-6);
    let table = p.tables_at + inputs[2u * p.num_tokens + token];
    let block = inputs[table + position / {BLOCK}u];
    let first = block * p.head_vec4s * {BLOCK}u + position % {BLOCK}u;
    for (var d = lane; d < p.head_vec4s; d += {LANES}u) {
        let centred = (x[start + d] - vec4<f32>(mean)) * scale;
        var value = fma(centred, norm[d], norm[p.head_vec4s + d]);
        if (d < p.rope_vec4s) {
            value = rotated(value, cos_sin_in(position * p.rope_vec4s + d));
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

fn store(index: u32, value: vec4<f32>) {
//! if KV_F16
    let bounded = clamp(value, vec4<f32>(-65504.0), vec4<f32>(65504.0));
    let words = vec2<u32>(pack2x16float(bounded.xy), pack2x16float(bounded.zw));
//! if IMAGES
    textureStore(rows, texel(index), vec4<u32>(words, 0u, 0u));
//! else
    rows[index] = words;
//! end
//! else
//! if IMAGES
    textureStore(rows, texel(index), value);
//! else
    rows[index] = value;
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
