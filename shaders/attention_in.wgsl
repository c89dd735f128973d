// What attention reads and writes, and how.

struct Params {
    num_tokens: u32,
    tables_at: u32,       // in inputs
    num_heads: u32,
    num_kv_heads: u32,
    scale: f32,
    first_token: u32,
    num_partitions: u32,  // side by side: room for each token's; 0: a workgroup takes them all
}

var<immediate> params: Params;
// ..., positions, table_starts, ..., tables
@group(0) @binding(0) var<storage, read>       inputs: array<u32>;
//! if IMAGES
// [num_tokens, num_heads, HEAD_VEC4S]
@group(0) @binding(1) var q: texture_storage_2d<rgba32float, read>;
//! if KV_F16
// [num_blocks, num_kv_heads, HEAD_VEC4S, BLOCK]
@group(0) @binding(2) var keys: texture_storage_2d<rg32uint, read>;
// [num_blocks, num_kv_heads, BLOCK, HEAD_VEC4S]
@group(0) @binding(3) var values: texture_storage_2d<rg32uint, read>;
//! else
// [num_blocks, num_kv_heads, HEAD_VEC4S, BLOCK]
@group(0) @binding(2) var keys: texture_storage_2d<rgba32float, read>;
// [num_blocks, num_kv_heads, BLOCK, HEAD_VEC4S]
@group(0) @binding(3) var values: texture_storage_2d<rgba32float, read>;
//! end
// [num_tokens, num_heads, HEAD_VEC4S], or what partitions leave (attention_main.wgsl)
@group(0) @binding(4) var out: texture_storage_2d<rgba32float, write>;
//! else
// [num_tokens, num_heads, HEAD_VEC4S]
@group(0) @binding(1) var<storage, read>       q: array<vec4<f32>>;
//! if KV_F16
// [num_blocks, num_kv_heads, HEAD_VEC4S, BLOCK]
@group(0) @binding(2) var<storage, read>       keys: array<vec2<u32>>;
// [num_blocks, num_kv_heads, BLOCK, HEAD_VEC4S]
@group(0) @binding(3) var<storage, read>       values: array<vec2<u32>>;
//! else
// [num_blocks, num_kv_heads, HEAD_VEC4S, BLOCK]
@group(0) @binding(2) var<storage, read>       keys: array<vec4<f32>>;
// [num_blocks, num_kv_heads, BLOCK, HEAD_VEC4S]
@group(0) @binding(3) var<storage, read>       values: array<vec4<f32>>;
//! end
// [num_tokens, num_heads, HEAD_VEC4S], or what partitions leave (attention_main.wgsl)
@group(0) @binding(4) var<storage, read_write> out: array<vec4<f32>>;
//! end

//! if IMAGES
fn q_at(index: u32) -> vec4<f32> {
    return textureLoad(q, texel(index));
}

//! if KV_F16
fn key_at(index: u32) -> vec4<f32> {
    return halves(textureLoad(keys, texel(index)).xy);
}

fn value_at(index: u32) -> vec4<f32> {
    return halves(textureLoad(values, texel(index)).xy);
}
//! else
fn key_at(index: u32) -> vec4<f32> {
    return textureLoad(keys, texel(index));
}

fn value_at(index: u32) -> vec4<f32> {
    return textureLoad(values, texel(index));
}
//! end

fn store(index: u32, value: vec4<f32>) {
    textureStore(out, texel(index), value);
}
//! else
fn q_at(index: u32) -> vec4<f32> {
    return q[index];
}

//! if KV_F16
fn key_at(index: u32) -> vec4<f32> {
    return halves(keys[index]);
}

fn value_at(index: u32) -> vec4<f32> {
    return halves(values[index]);
}
//! else
fn key_at(index: u32) -> vec4<f32> {
    return keys[index];
}

fn value_at(index: u32) -> vec4<f32> {
    return values[index];
}
//! end

fn store(index: u32, value: vec4<f32>) {
    out[index] = value;
}
//! end

//! if KV_F16
fn halves(words: vec2<u32>) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(words.x), unpack2x16float(words.y));
}
//! end

