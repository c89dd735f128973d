// Before latent attention: the latent row of each token, normalised, and its key, rotated, to the
// cache; the parts of queries that rotate, rotated, beside those that don't.
//                                  one workgroup per token, and per token and head
struct Params {
    num_tokens: u32,
    tables_at: u32,    // in inputs
    num_heads: u32,
    lora_vec4s: u32,   // of a latent row: kv_lora_rank / 4
    nope_vec4s: u32,   // of a query, what doesn't rotate
    rope_vec4s: u32,   // of a query and a key, what does
    eps: f32,
}

var<immediate> params: Params;
//! read inputs u32  ..., positions, table_starts, ..., tables
//! read x vec4<f32>  [num_tokens, lora + rope]
//! read norm vec4<f32>  [lora]
//! read cos_sin vec4s  [max_positions, rope], cosine and sine of two pairs
//! read q vec4s  [num_tokens, num_heads, nope + rope]
//! write out vec4s  [num_tokens, num_heads, lora + rope]
//! write rows cache  [num_blocks, lora + rope, BLOCK]

@compute @workgroup_size({LANES})
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let p = params;
    let token = workgroup.x;
    let position = inputs[p.num_tokens + token];
    let latent_vec4s = p.lora_vec4s + p.rope_vec4s;
    if (workgroup.y > 0u) {
        let pair = token * p.num_heads + workgroup.y - 1u;
        let first = pair * (p.nope_vec4s + p.rope_vec4s) + p.nope_vec4s;
        let target_at = pair * latent_vec4s + p.lora_vec4s;
        for (var d = lane; d < p.rope_vec4s; d += {LANES}u) {
            let angles = cos_sin_in(position * p.rope_vec4s + d);
            write_out(target_at + d, rotated(q_in(first + d), angles));
        }
        return;
    }

    let start = token * latent_vec4s;
    var squares = 0.0;
    for (var d = lane; d < p.lora_vec4s; d += {LANES}u) {
        let value = x[start + d];
        squares = with_squares(squares, value);
    }
    let sum = sum_of_lanes(lane, squares);
    let scale = inverseSqrt(sum / f32(4u * p.lora_vec4s) + p.eps);
    let table = p.tables_at + inputs[2u * p.num_tokens + token];
    let block = inputs[table + position / {BLOCK}u];
    let first = block * latent_vec4s * {BLOCK}u + position % {BLOCK}u;
    for (var d = lane; d < latent_vec4s; d += {LANES}u) {
        var value = x[start + d];
        if (d < p.lora_vec4s) {
            value = value * scale * norm[d];
        } else {
            let turn = d - p.lora_vec4s;
            value = rotated(value, cos_sin_in(position * p.rope_vec4s + turn));
        }
        // As a number: what is none would spoil the sums of all that attend to it, whatever its
        // weight.
        let is_nan = (bitcast<vec4<u32>>(value) & vec4<u32>(0x7fffffffu)) > vec4<u32>(0x7f800000u);
        let most = bounded(vec4<f32>(3.4028234e38));
        write_rows(first + d * {BLOCK}u, select(bounded(value), most, is_nan));
    }
}
