// out[i, :] = x[output_rows[i], :]          one lane per output i and vec4 of the row

struct Params {
    output_rows_at: u32,  // in inputs
    row_vec4s: u32,       // hidden_size / 4
}

var<immediate> params: Params;
// ..., output_rows [num_outputs], ...
@group(0) @binding(0) var<storage, read>       inputs: array<u32>;
//! if IMAGES
// [num_tokens, hidden_size / 4]
@group(0) @binding(1) var x: texture_storage_2d<rgba32float, read>;
// [num_outputs, hidden_size / 4]
@group(0) @binding(2) var out: texture_storage_2d<rgba32float, write>;
//! else
// [num_tokens, hidden_size / 4]
@group(0) @binding(1) var<storage, read>       x: array<vec4<f32>>;
// [num_outputs, hidden_size / 4]
@group(0) @binding(2) var<storage, read_write> out: array<vec4<f32>>;
//! end

@compute @workgroup_size({WORKGROUP})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x < params.row_vec4s) {
        let row = inputs[params.output_rows_at + id.y];
        let source = row * params.row_vec4s + id.x;
        let target_index = id.y * params.row_vec4s + id.x;
//! if IMAGES
        textureStore(out, texel(target_index), textureLoad(x, texel(source)));
//! else
        out[target_index] = x[source];
//! end
    }
}
