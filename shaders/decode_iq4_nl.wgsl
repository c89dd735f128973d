// Groups of 32 values under a scale each, those of eight groups in 16 bytes.

// The scales of four groups, the next one first.
alias Quad = vec2<u32>;

// Vec4s of a row beside its blocks.
fn sides_of(num_blocks: u32) -> u32 {
    return (num_blocks + 7u) / 8u;
}

// Which of them a quad is made of.
fn side_at(block: u32, side: u32) -> u32 {
    return block / 8u;
}

// The four groups from `block` on, which begins a quad.
fn quad_of(side: vec4<u32>, block: u32) -> Quad {
    return select(side.xy, side.zw, (block & 4u) != 0u);
}

// The same of any block.
fn skipped(quad: Quad, block: u32) -> Quad {
    let later = select(quad, quad.yx, (block & 2u) != 0u);
    return select(later, after(later, block), (block & 1u) != 0u);
}

// Scale and offset of the next group.
fn factor_of(quad: Quad) -> vec2<f32> {
    return vec2<f32>(halves_of(quad.x).x, 0.0);
}

// The groups that follow.
fn after(quad: Quad, block: u32) -> Quad {
    return vec2<u32>((quad.x >> 16u) | (quad.y << 16u), quad.y >> 16u);
}
