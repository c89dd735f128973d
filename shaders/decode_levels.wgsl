
// The values of a block of nibbles that name levels (`level_of`): the low ones of all bytes, then
// the high ones.
fn nibbles_of(word: u32) -> vec4<f32> {
    return vec4<f32>((vec4<u32>(word) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(15u));
}

// A block with what belongs to its codes.
fn whole(block: vec4<u32>, quad: Quad) -> vec4<u32> {
    return block;
}

//! for q in 0..4
fn decode_{q}(block: vec4<u32>) -> vec4<f32> {
    return level_of(nibbles_of(block[{q}u]));
}

fn decode_{q+4}(block: vec4<u32>) -> vec4<f32> {
    return level_of(nibbles_of(block[{q}u] >> 4u));
}

//! end
