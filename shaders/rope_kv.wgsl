// q[t, h, :] = rotate(qkv[t, h, :], positions[t]), and keys (rotated) and values go to the cache
// one lane per vec4 of qkv
//
// Of each head the first rotary dimensions are rotated, in pairs of two neighbours, or of one from
// each half.

struct Params {
    num_tokens: u32,
    tables_at: u32,        // in inputs
    num_heads: u32,
    num_kv_heads: u32,
    head_vec4s: u32,       // head_dim / 4
    rotary_vec4s: u32,     // rotary dimensions / 4
    half_split: u32,
}

var<immediate> params: Params;
// ..., positions, table_starts, ..., tables
@group(0) @binding(0) var<storage, read>       inputs: array<u32>;
// [num_tokens, num_heads + 2 num_kv_heads, head_dim / 4]
@group(0) @binding(1) var<storage, read>       qkv: array<vec4<f32>>;
// [max_positions, rotary dimensions / 2]
@group(0) @binding(2) var<storage, read>       cos_sin: array<vec2<f32>>;
//! if IMAGES
// [num_tokens, num_heads, head_dim / 4]
@group(0) @binding(3) var q: texture_storage_2d<rgba32float, write>;
// [num_blocks, num_kv_heads, head_dim / 4, BLOCK]
@group(0) @binding(4) var keys: texture_storage_2d<rgba32float, write>;
// [num_blocks, num_kv_heads, BLOCK, head_dim / 4]
@group(0) @binding(5) var values: texture_storage_2d<rgba32float, write>;
//! else
// [num_tokens, num_heads, head_dim / 4]
@group(0) @binding(3) var<storage, read_write> q: array<vec4<f32>>;
// [num_blocks, num_kv_heads, head_dim / 4, BLOCK]
@group(0) @binding(4) var<storage, read_write> keys: array<vec4<f32>>;
// [num_blocks, num_kv_heads, BLOCK, head_dim / 4]
@group(0) @binding(5) var<storage, read_write> values: array<vec4<f32>>;
//! end

@compute @workgroup_size({WORKGROUP})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let token = id.y;
    let row_vec4s = (params.num_heads + 2u * params.num_kv_heads) * params.head_vec4s;
    if (id.x >= row_vec4s) {
        return;
    }
    let head = id.x / params.head_vec4s;
    let d = id.x % params.head_vec4s;
    let index = token * row_vec4s + id.x;
    let position = inputs[params.num_tokens + token];

    var value = qkv[index];
    if (head < params.num_heads + params.num_kv_heads && d < params.rotary_vec4s) {
        value = rotated(value, index, d, position);
    }

    if (head < params.num_heads) {
        let target_index = (token * params.num_heads + head) * params.head_vec4s + d;
//! if IMAGES
        textureStore(q, texel(target_index), value);
//! else
        q[target_index] = value;
//! end
        return;
    }
    let table_start = inputs[2u * params.num_tokens + token];
    let block = inputs[params.tables_at + table_start + position / {BLOCK}u];
    let slot = position % {BLOCK}u;
    if (head < params.num_heads + params.num_kv_heads) {
        let kv_head = block * params.num_kv_heads + head - params.num_heads;
        let target_index = (kv_head * params.head_vec4s + d) * {BLOCK}u + slot;
//! if IMAGES
        textureStore(keys, texel(target_index), value);
//! else
        keys[target_index] = value;
//! end
    } else {
        let kv_head = block * params.num_kv_heads + head - params.num_heads - params.num_kv_heads;
        let target_index = (kv_head * {BLOCK}u + slot) * params.head_vec4s + d;
//! if IMAGES
        textureStore(values, texel(target_index), value);
//! else
        values[target_index] = value;
//! end
    }
}

fn rotated(value: vec4<f32>, index: u32, d: u32, position: u32) -> vec4<f32> {
    let angles = position * 2u * params.rotary_vec4s;
    if (params.half_split == 0u) {
        let a = cos_sin[angles + 2u * d];
        let b = cos_sin[angles + 2u * d + 1u];
        return vec4<f32>(
            fma(value.x, a.x, -(value.y * a.y)),
            fma(value.x, a.y, value.y * a.x),
            fma(value.z, b.x, -(value.w * b.y)),
            fma(value.z, b.y, value.w * b.x));
    }
    let half = params.rotary_vec4s / 2u;
    let first = d < half;
    let partner = qkv[select(index - half, index + half, first)];
    let i = angles + 4u * select(d - half, d, first);
    let c = vec4<f32>(cos_sin[i].x, cos_sin[i + 1u].x, cos_sin[i + 2u].x, cos_sin[i + 3u].x);
    let s = vec4<f32>(cos_sin[i].y, cos_sin[i + 1u].y, cos_sin[i + 2u].y, cos_sin[i + 3u].y);
    return fma(value, c, select(partner * s, -(partner * s), first));
}
