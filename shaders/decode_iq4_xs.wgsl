// Blocks of 256 values, eight groups: a scale of six bits for each group, 32 too large, and what
// all of them are multiples of. Those of two blocks are in 16 bytes, as a file has them.

struct Quad {
    factor: f32,
    low: u32,   // four bits of each scale, that of the next group first
    high: u32,  // two bits of each
}

// Vec4s of a row beside its blocks.
fn sides_of(num_blocks: u32) -> u32 {
    return (num_blocks + 15u) / 16u;
}

// Which of them a quad is made of.
fn side_at(block: u32, side: u32) -> u32 {
    return block / 16u;
}

// The four groups from `block` on, which begins a quad.
fn quad_of(side: vec4<u32>, block: u32) -> Quad {
    let words = select(side.xy, side.zw, (block & 8u) != 0u);
    let first = block & 4u;
    return Quad(halves_of(words.x).x, words.y >> (first * 4u), words.x >> (16u + first * 2u));
}

// The same of any block.
fn skipped(quad: Quad, block: u32) -> Quad {
    let groups = block & 3u;
    return Quad(quad.factor, quad.low >> (groups * 4u), quad.high >> (groups * 2u));
}

// Scale and offset of the next group.
fn factor_of(quad: Quad) -> vec2<f32> {
    let scale = (quad.low & 15u) | ((quad.high & 3u) << 4u);
    return vec2<f32>(quad.factor * (f32(scale) - 32.0), 0.0);
}

// The groups that follow.
fn after(quad: Quad, block: u32) -> Quad {
    return Quad(quad.factor, quad.low >> 4u, quad.high >> 2u);
}
