
// What a workgroup computes: a tile of tokens, whose kernel comes before this.

@compute @workgroup_size({LANES})
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    // Heads that share keys and values follow each other, so that caches still hold those.
    let first_head = workgroup.x * {QUERIES}u;
    let first = params.first_token + workgroup.z * {TOKENS}u;
    let last = min(first + {TOKENS}u, params.num_tokens) - 1u;
    // Side by side, a workgroup has a partition; else all of them, one after another.
    var partitions = vec2<u32>(0u, 0xffffffffu);
    if (params.num_partitions > 0u) {
        partitions = vec2<u32>(workgroup.y, workgroup.y + 1u);
    }
//! if TILED
    // Never the lone tokens of decoding, nor those of two sequences.
    var together = last > first;
    for (var token = first + 1u; token <= last; token++) {
        together = together && table_start(token) == table_start(first);
    }
    if (together) {
        attend_{TOKENS}(first, last, first_head, partitions, lane);
        return;
    }
    for (var token = first; token <= last; token++) {
        attend_1(token, token, first_head, partitions, lane);
    }
//! else
    attend_1(first, first, first_head, partitions, lane);
//! end
}

fn table_start(token: u32) -> u32 {
    return inputs[2u * params.num_tokens + token];
}

// A vec4 of what a head of a token attends to, or, of partitions side by side, of its part of one.
fn store_values(
    token: u32, head: u32, nth: u32, d: u32, values: vec4<f32>, state: vec2<f32>,
) {
    if (params.num_partitions == 0u) {
        store((token * params.num_heads + head) * {VALUE_VEC4S}u + d, attended(values, state));
    } else {
        store(part_at(token, head, nth) + d, values);
    }
}

// By one lane.
fn store_state(token: u32, head: u32, nth: u32, state: vec2<f32>) {
    if (params.num_partitions > 0u) {
        store(part_at(token, head, nth) + {VALUE_VEC4S}u, vec4<f32>(state, 0.0, 0.0));
    }
}

// [tokens from first_token on, num_partitions, num_heads, VALUE_VEC4S + 1]
fn part_at(token: u32, head: u32, nth: u32) -> u32 {
    let row = (token - params.first_token) * params.num_partitions + nth;
    return (row * params.num_heads + head) * ({VALUE_VEC4S}u + 1u);
}
