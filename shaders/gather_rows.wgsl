// out[i, :] = x[output_rows[i], :]          one lane per output i and vec4 of the row

struct Params {
    output_rows_at: u32,  // in inputs
    row_vec4s: u32,       // hidden_size / 4
}

var<immediate> params: Params;
//! read inputs u32  ..., output_rows [num_outputs], ...
//! read x vec4s  [num_tokens, hidden_size / 4]
//! write out vec4s  [num_outputs, hidden_size / 4]

@compute @workgroup_size({WORKGROUP})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x < params.row_vec4s) {
        let row = inputs[params.output_rows_at + id.y];
        let source = row * params.row_vec4s + id.x;
        let target_index = id.y * params.row_vec4s + id.x;
        write_out(target_index, x_in(source));
    }
}
