// out[t, :] = residual[t, :] + sum over k of weights[t, k] * given[t, k, :]
//                                                       one lane per token t and vec4 of a row

struct Params {
    row_vec4s: u32,   // hidden_size / 4
    top_k: u32,
    weights_at: u32,  // in routes
}

var<immediate> params: Params;
// [num_tokens, top_k, row_vec4s]
@group(0) @binding(0) var<storage, read>       given: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read>       routes: array<u32>;
//! if IMAGES
// [num_tokens, row_vec4s]
@group(0) @binding(2) var residual: texture_storage_2d<rgba32float, read>;
// [num_tokens, row_vec4s]
@group(0) @binding(3) var out: texture_storage_2d<rgba32float, write>;
//! else
// [num_tokens, row_vec4s]
@group(0) @binding(2) var<storage, read>       residual: array<vec4<f32>>;
// [num_tokens, row_vec4s]
@group(0) @binding(3) var<storage, read_write> out: array<vec4<f32>>;
//! end

@compute @workgroup_size({WORKGROUP})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x >= params.row_vec4s) {
        return;
    }
    let token = id.y;
    let index = token * params.row_vec4s + id.x;
    var sum = vec4<f32>(0.0);
    for (var k = 0u; k < params.top_k; k++) {
        let pair = token * params.top_k + k;
        let weight = bitcast<f32>(routes[params.weights_at + pair]);
        sum = fma(vec4<f32>(weight), given[pair * params.row_vec4s + id.x], sum);
    }
//! if IMAGES
    textureStore(out, texel(index), textureLoad(residual, texel(index)) + sum);
//! else
    out[index] = residual[index] + sum;
//! end
}
