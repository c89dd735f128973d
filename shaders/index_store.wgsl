// Before positions are chosen: the key of each token, normalised and rotated, to the cache; its
// queries, rotated where they are.                 one workgroup per token, and per token and head

struct Params {
    num_tokens: u32,
    tables_at: u32,   // in inputs
    num_heads: u32,
    head_vec4s: u32,
    rope_vec4s: u32,  // the first ones
}

var<immediate> params: Params;
//! read inputs u32  ..., positions, table_starts, ..., tables
//! read x vec4<f32>  [num_tokens, head_vec4s]
//! read norm vec4<f32>  weight, bias [2, head_vec4s]
//! write queries vec4<f32>  [num_tokens, num_heads, head_vec4s]
//! read cos_sin vec4s  [max_positions, rope], cosine and sine of two pairs
//! write rows cache  [num_blocks, head, BLOCK]

@compute @workgroup_size({LANES})
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let p = params;
    let token = workgroup.x;
    let position = inputs[p.num_tokens + token];
    if (workgroup.y > 0u) {
        let start = (token * p.num_heads + workgroup.y - 1u) * p.head_vec4s;
        for (var d = lane; d < p.rope_vec4s; d += {LANES}u) {
            let angles = cos_sin_in(position * p.rope_vec4s + d);
            queries[start + d] = rotated(queries[start + d], angles);
        }
        return;
    }

    let start = token * p.head_vec4s;
    let size = f32(4u * p.head_vec4s);
    var sum = 0.0;
    for (var d = lane; d < p.head_vec4s; d += {LANES}u) {
        let value = x[start + d];
        sum += (value.x + value.y) + (value.z + value.w);
    }
    let mean = sum_of_lanes(lane, sum) / size;
    var squares = 0.0;
    for (var d = lane; d < p.head_vec4s; d += {LANES}u) {
        let value = x[start + d] - vec4<f32>(mean);
        squares = with_squares(squares, value);
    }
    let variance = sum_of_lanes(lane, squares);
    let scale = inverseSqrt(variance / size + 1e-6);
    let table = p.tables_at + inputs[2u * p.num_tokens + token];
    let block = inputs[table + position / {BLOCK}u];
    let first = block * p.head_vec4s * {BLOCK}u + position % {BLOCK}u;
    for (var d = lane; d < p.head_vec4s; d += {LANES}u) {
        let centred = (x[start + d] - vec4<f32>(mean)) * scale;
        var value = fma(centred, norm[d], norm[p.head_vec4s + d]);
        if (d < p.rope_vec4s) {
            value = rotated(value, cos_sin_in(position * p.rope_vec4s + d));
        }
//! if KV_F16
        value = bounded(value);
//! end
        write_rows(first + d * {BLOCK}u, value);
    }
}
