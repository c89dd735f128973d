
// What is known of the positions of some partitions (the largest score; relative to it the sum of
// weights and that of weighted values), and how that of the next partition is merged into it.

const LEAST = -3.4028234e38;

// The largest score and the sum of weights.
fn no_positions() -> vec2<f32> {
    return vec2<f32>(LEAST, 0.0);
}

// What sums so far are multiplied with, and what those of the next partition.
fn merge_factors(most: f32, next: f32) -> vec2<f32> {
    let larger = max(most, next);
    return vec2<f32>(exp(most - larger), exp(next - larger));
}

fn merged(state: vec2<f32>, next: vec2<f32>, factors: vec2<f32>) -> vec2<f32> {
    return vec2<f32>(max(state.x, next.x), fma(next.y, factors.y, state.y * factors.x));
}

fn merged_values(values: vec4<f32>, next: vec4<f32>, factors: vec2<f32>) -> vec4<f32> {
    return fma(next, vec4<f32>(factors.y), values * factors.x);
}

// Weighted values over weights. A zero of either sign is one: nothing, added by positions without
// weight, turns it.
fn attended(values: vec4<f32>, state: vec2<f32>) -> vec4<f32> {
    return select(values / state.y, vec4<f32>(0.0), values == vec4<f32>(0.0));
}
