// out[t, h, :] from what attention's partitions know of it, in ascending order
// one workgroup per token t, head h; lanes have dimensions each

struct Params {
    num_tokens: u32,
    first_token: u32,
    num_partitions: u32,  // that a token has room for
    num_heads: u32,
}

var<immediate> params: Params;
//! read inputs u32  ..., positions, ...
//! read parts vec4s  [tokens from first_token on, num_partitions, num_heads, VALUE_VEC4S + 1]
//! write out vec4s  [num_tokens, num_heads, VALUE_VEC4S]
//! if CHOSEN
//! read chosen u32  for each token how many positions, and which [num_tokens, 1 + MOST]
//! end

@compute @workgroup_size({LANES})
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let p = params;
    let token = p.first_token + workgroup.x;
    let head = workgroup.y;
//! if CHOSEN
    let end = (chosen[token * {CHOSEN_STRIDE}u] - 1u) / {PARTITION}u + 1u;
//! else
    let end = inputs[p.num_tokens + token] / {PARTITION}u + 1u;
//! end
    let step = p.num_heads * ({VALUE_VEC4S}u + 1u);
    let first = workgroup.x * p.num_partitions * step + head * ({VALUE_VEC4S}u + 1u);
    for (var d = lane; d < {VALUE_VEC4S}u; d += {LANES}u) {
        var all = vec4<f32>(0.0);
        var state = no_positions();
        for (var nth = 0u; nth < end; nth++) {
            let at = first + nth * step;
            let next = parts_in(at + {VALUE_VEC4S}u).xy;
            let factors = merge_factors(state.x, next.x);
            state = merged(state, next, factors);
            all = merged_values(all, parts_in(at + d), factors);
        }
        write_out((token * p.num_heads + head) * {VALUE_VEC4S}u + d, attended(all, state));
    }
}
