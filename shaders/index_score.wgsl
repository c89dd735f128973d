// scores[t, p] = sum over heads h of weights[t, h] / sqrt(HEADS)
//     * max(0, queries[t, h, :] . rows[p, :] / sqrt(head_dim))
//                                                         one lane per token t and position p

struct Params {
    num_tokens: u32,
    tables_at: u32,    // in inputs
    first_token: u32,  // of those that are scored together
    head_vec4s: u32,
    stride: u32,       // of a token in scores
    query_scale: f32,
    head_scale: f32,
}

var<immediate> params: Params;
//! read inputs u32  ..., positions, table_starts, ..., tables
//! read queries vec4<f32>  [num_tokens, HEADS, head]
//! read weights f32  [num_tokens, HEADS]
//! write scores f32  [tokens, stride]
//! read rows cache  [num_blocks, head, BLOCK]

@compute @workgroup_size({WORKGROUP})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let p = params;
    let token = p.first_token + id.y;
    let last = inputs[p.num_tokens + token];
    if (id.x > last) {
        return;
    }
    let table = p.tables_at + inputs[2u * p.num_tokens + token];
    let block = inputs[table + id.x / {BLOCK}u];
    let first = block * p.head_vec4s * {BLOCK}u + id.x % {BLOCK}u;
    let query = token * {HEADS}u * p.head_vec4s;
//! for h in 0..HEADS
    var dot_{h} = 0.0;
//! end
    for (var d = 0u; d < p.head_vec4s; d++) {
        let key = rows_in(first + d * {BLOCK}u);
//! for h in 0..HEADS
        let q_{h} = queries[query + {h}u * p.head_vec4s + d];
        dot_{h} = fma(q_{h}.x, key.x, dot_{h});
        dot_{h} = fma(q_{h}.y, key.y, dot_{h});
        dot_{h} = fma(q_{h}.z, key.z, dot_{h});
        dot_{h} = fma(q_{h}.w, key.w, dot_{h});
//! end
    }
    var score = 0.0;
//! for h in 0..HEADS
    score = fma(weights[token * {HEADS}u + {h}u] * p.head_scale,
        max(dot_{h} * p.query_scale, 0.0), score);
//! end
    scores[id.y * p.stride + id.x] = score;
}
