// out[t, h, :] = sum over p <= positions[t] of softmax(scale * q[t, h, :] . keys[p, :]) * values[p,
// :] One workgroup per token t and QUERIES heads h that share a kv head.
//
// Keys are taken in partitions of PARTITION positions, counted from 0. In a partition scores,
// weights and the weighted sum of values are computed in ascending order; partitions are merged in
// ascending order. So the bits of a row depend on its own position and sequence only.

struct Params {
    num_tokens: u32,
    tables_at: u32,     // in inputs
    num_heads: u32,
    num_kv_heads: u32,
    scale: f32,
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
// [num_tokens, num_heads, HEAD_VEC4S]
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
// [num_tokens, num_heads, HEAD_VEC4S]
@group(0) @binding(4) var<storage, read_write> out: array<vec4<f32>>;
//! end

//! if SUBGROUP
//! else
var<workgroup> sh_q: array<vec4<f32>, {SHARED_Q}>;  // [QUERIES, HEAD_VEC4S]
var<workgroup> sh_max: array<f32, {SHARED_MAX}>;    // [QUERIES, LANES]
var<workgroup> sh_p: array<f32, {SHARED_P}>;        // [QUERIES, PARTITION]
var<workgroup> sh_value: array<u32, {PARTITION}>;
//! end

@compute @workgroup_size({LANES})
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let token = workgroup.x;
    let first_head = workgroup.y * {QUERIES}u;
    let kv_head = first_head / (params.num_heads / params.num_kv_heads);
    let position = inputs[params.num_tokens + token];
    let table = params.tables_at + inputs[2u * params.num_tokens + token];

    // Lane l holds dimensions 4l .. 4l + 4 of each slice of a head.
//! for r in 0..QUERIES
//! for i in 0..SLICES
    let q_{r}_{i} = q_at((token * params.num_heads + first_head + {r}u) * {HEAD_VEC4S}u
        + {i}u * {SLICE}u + lane % {SLICE}u);
    var total_{r}_{i} = vec4<f32>(0.0);
//! if SUBGROUP
//! else
    if (lane < {SLICE}u) {
        sh_q[{r}u * {HEAD_VEC4S}u + {i}u * {SLICE}u + lane] = q_{r}_{i};
    }
//! end
//! end
    var max_{r} = 0.0;
    var sum_{r} = 0.0;
//! end
//! if SUBGROUP
//! else
    workgroupBarrier();
//! end

    for (var start = 0u; start <= position; start += {PARTITION}u) {
        // Each lane scores every LANES-th position; those after its own take no part.
//! for u in 0..KEYS
        let key_{u} = start + {u}u * {LANES}u + lane;
        let row_{u} = min(key_{u}, position);
        let head_{u} = inputs[table + row_{u} / {BLOCK}u] * params.num_kv_heads + kv_head;
        let key_at_{u} = head_{u} * {HEAD_VEC4S}u * {BLOCK}u + row_{u} % {BLOCK}u;
        let value_at_{u} = (head_{u} * {BLOCK}u + row_{u} % {BLOCK}u) * {HEAD_VEC4S}u;
//! for r in 0..QUERIES
        var score_{r}_{u} = 0.0;
//! end
//! end
//! for i in 0..SLICES
//! for l in 0..SLICE
//! for u in 0..KEYS
        let key_{u}_{i}_{l} = key_at(key_at_{u} + ({i}u * {SLICE}u + {l}u) * {BLOCK}u);
//! end
//! for r in 0..QUERIES
//! if SUBGROUP
        let q_{r}_{i}_{l} = subgroupBroadcast(q_{r}_{i}, {l}u);
//! else
        let q_{r}_{i}_{l} = sh_q[{r}u * {HEAD_VEC4S}u + {i}u * {SLICE}u + {l}u];
//! end
//! for u in 0..KEYS
        score_{r}_{u} = fma(q_{r}_{i}_{l}.x, key_{u}_{i}_{l}.x, score_{r}_{u});
        score_{r}_{u} = fma(q_{r}_{i}_{l}.y, key_{u}_{i}_{l}.y, score_{r}_{u});
        score_{r}_{u} = fma(q_{r}_{i}_{l}.z, key_{u}_{i}_{l}.z, score_{r}_{u});
        score_{r}_{u} = fma(q_{r}_{i}_{l}.w, key_{u}_{i}_{l}.w, score_{r}_{u});
//! end
//! end
//! end
//! end

        // The largest score, exact in any order.
//! for r in 0..QUERIES
        var lane_max_{r} = -3.4028234e38;
//! for u in 0..KEYS
        score_{r}_{u} *= params.scale;
        lane_max_{r} = select(lane_max_{r}, max(lane_max_{r}, score_{r}_{u}), key_{u} <= position);
//! end
//! if SUBGROUP
        let part_max_{r} = subgroupMax(lane_max_{r});
//! else
        sh_max[{r}u * {LANES}u + lane] = lane_max_{r};
//! end
//! end
//! if SUBGROUP
//! else
        workgroupBarrier();
//! for r in 0..QUERIES
        var part_max_{r} = -3.4028234e38;
        for (var other = 0u; other < {LANES}u; other++) {
            part_max_{r} = max(part_max_{r}, sh_max[{r}u * {LANES}u + other]);
        }
//! end
//! end

//! for r in 0..QUERIES
//! for u in 0..KEYS
        let p_{r}_{u} = select(0.0, exp(score_{r}_{u} - part_max_{r}), key_{u} <= position);
//! if SUBGROUP
//! else
        sh_p[{r}u * {PARTITION}u + {u}u * {LANES}u + lane] = p_{r}_{u};
//! end
//! end
        var part_sum_{r} = 0.0;
//! for i in 0..SLICES
        var part_{r}_{i} = vec4<f32>(0.0);
//! end
//! end
//! if SUBGROUP
//! else
//! for u in 0..KEYS
        sh_value[{u}u * {LANES}u + lane] = value_at_{u};
//! end
        workgroupBarrier();
//! end

        // Each lane sums four dimensions of each slice, over all positions.
//! for u in 0..KEYS
        if (start + {u}u * {LANES}u <= position) {
//! for l in 0..LANES
//! if SUBGROUP
            let value_at_{u}_{l} = subgroupBroadcast(value_at_{u}, {l}u) + lane % {SLICE}u;
//! else
            let value_at_{u}_{l} = sh_value[{u}u * {LANES}u + {l}u] + lane % {SLICE}u;
//! end
//! for i in 0..SLICES
            let value_{u}_{l}_{i} = value_at(value_at_{u}_{l} + {i}u * {SLICE}u);
//! end
//! for r in 0..QUERIES
//! if SUBGROUP
            let p_{r}_{u}_{l} = subgroupBroadcast(p_{r}_{u}, {l}u);
//! else
            let p_{r}_{u}_{l} = sh_p[{r}u * {PARTITION}u + {u}u * {LANES}u + {l}u];
//! end
            part_sum_{r} += p_{r}_{u}_{l};
//! for i in 0..SLICES
            part_{r}_{i} = fma(vec4<f32>(p_{r}_{u}_{l}), value_{u}_{l}_{i}, part_{r}_{i});
//! end
//! end
//! end
        }
//! end

//! for r in 0..QUERIES
        // The first partition replaces the empty total.
        let new_max_{r} = select(max(max_{r}, part_max_{r}), part_max_{r}, start == 0u);
        let keep_{r} = select(exp(max_{r} - new_max_{r}), 0.0, start == 0u);
        let take_{r} = exp(part_max_{r} - new_max_{r});
        max_{r} = new_max_{r};
        sum_{r} = fma(sum_{r}, keep_{r}, part_sum_{r} * take_{r});
//! for i in 0..SLICES
        total_{r}_{i} = fma(total_{r}_{i}, vec4<f32>(keep_{r}), part_{r}_{i} * take_{r});
//! end
//! end
//! if SUBGROUP
//! else
        workgroupBarrier();
//! end
    }

    if (lane < {SLICE}u) {
//! for r in 0..QUERIES
//! for i in 0..SLICES
        store((token * params.num_heads + first_head + {r}u) * {HEAD_VEC4S}u
            + {i}u * {SLICE}u + lane, total_{r}_{i} / sum_{r});
//! end
//! end
    }
}

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
