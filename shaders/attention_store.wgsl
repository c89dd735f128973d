
// Where what a workgroup found goes.

// A vec4 of what a head of a token attends to, or, of partitions side by side, of its part of one.
fn store_values(
    token: u32, head: u32, nth: u32, d: u32, values: vec4<f32>, state: vec2<f32>,
) {
    if (params.num_partitions == 0u) {
        write_out((token * params.num_heads + head) * {VALUE_VEC4S}u + d, attended(values, state));
    } else {
        write_out(part_at(token, head, nth) + d, values);
    }
}

// By one lane.
fn store_state(token: u32, head: u32, nth: u32, state: vec2<f32>) {
    if (params.num_partitions > 0u) {
        write_out(part_at(token, head, nth) + {VALUE_VEC4S}u, vec4<f32>(state, 0.0, 0.0));
    }
}

// [tokens from first_token on, num_partitions, num_heads, VALUE_VEC4S + 1]
fn part_at(token: u32, head: u32, nth: u32) -> u32 {
    let row = (token - params.first_token) * params.num_partitions + nth;
    return (row * params.num_heads + head) * ({VALUE_VEC4S}u + 1u);
}
