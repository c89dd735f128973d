// out[t, i] = silu(gate_up[t, i]) * gate_up[t, width + i]          one lane per token t and vec4 of
// i

struct Params {
    row_vec4s: u32,  // width / 4
}

var<immediate> params: Params;
// [num_tokens, 2, width / 4]
@group(0) @binding(0) var<storage, read>       gate_up: array<vec4<f32>>;
//! if IMAGES
// [num_tokens, width / 4]
@group(0) @binding(1) var out: texture_storage_2d<rgba32float, write>;
//! else
// [num_tokens, width / 4]
@group(0) @binding(1) var<storage, read_write> out: array<vec4<f32>>;
//! end

@compute @workgroup_size({WORKGROUP})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x >= params.row_vec4s) {
        return;
    }
    let gate = gate_up[2u * id.y * params.row_vec4s + id.x];
    let up = gate_up[(2u * id.y + 1u) * params.row_vec4s + id.x];
    let value = gate / (1.0 + exp(-gate)) * up;
    let index = id.y * params.row_vec4s + id.x;
//! if IMAGES
    textureStore(out, texel(index), value);
//! else
    out[index] = value;
//! end
}
