// out[row, :] = sum over s of exp(max_s - max) * parts[s, row, :], over the same sum of weights
// one lane per vec4 of a row

struct Params {
    num_parts: u32,
    num_rows: u32,      // tokens times heads
    head_vec4s: u32,
}

var<immediate> params: Params;
//! if IMAGES
// [num_parts, num_rows, head_vec4s]
@group(0) @binding(0) var parts: texture_storage_2d<rgba32float, read>;
@group(0) @binding(1) var<storage, read>       states: array<vec2<f32>>;  // [num_parts, num_rows]
// [num_rows, head_vec4s]
@group(0) @binding(2) var out: texture_storage_2d<rgba32float, write>;
//! else
// [num_parts, num_rows, head_vec4s]
@group(0) @binding(0) var<storage, read>       parts: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read>       states: array<vec2<f32>>;  // [num_parts, num_rows]
// [num_rows, head_vec4s]
@group(0) @binding(2) var<storage, read_write> out: array<vec4<f32>>;
//! end

@compute @workgroup_size({WORKGROUP})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let row = id.x / params.head_vec4s;
    if (row >= params.num_rows) {
        return;
    }
    var largest = -3.4028234e38;
    for (var part = 0u; part < params.num_parts; part++) {
        largest = max(largest, states[part * params.num_rows + row].x);
    }
    var total = vec4<f32>(0.0);
    var weight = 0.0;
    for (var part = 0u; part < params.num_parts; part++) {
        let state = states[part * params.num_rows + row];
        let keep = exp(state.x - largest);
        weight += keep * state.y;
        total += keep * part_at((part * params.num_rows * params.head_vec4s) + id.x);
    }
//! if IMAGES
    textureStore(out, texel(id.x), total / weight);
//! else
    out[id.x] = total / weight;
//! end
}

fn part_at(index: u32) -> vec4<f32> {
//! if IMAGES
    return textureLoad(parts, texel(index));
//! else
    return parts[index];
//! end
}

