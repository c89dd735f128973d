// out[t, :] = residual[t, :] + sum over k of weights[t, k] * given[t, k, :]
//                                                       one lane per token t and vec4 of a row

struct Params {
    row_vec4s: u32,   // hidden_size / 4
    top_k: u32,
    weights_at: u32,  // in routes
}

var<immediate> params: Params;
//! read given vec4<f32>  [num_tokens, top_k, row_vec4s]
//! read routes u32
//! read residual vec4s  [num_tokens, row_vec4s]
//! write out vec4s  [num_tokens, row_vec4s]

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
    write_out(index, residual_in(index) + sum);
}
