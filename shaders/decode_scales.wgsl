
// What belongs to groups beside their codes is a word each, four groups side by side, the next one
// first.
alias Quad = vec4<u32>;

// Vec4s of a row beside its blocks.
fn sides_of(num_blocks: u32) -> u32 {
    return (num_blocks + {QUAD_BLOCKS}u - 1u) / {QUAD_BLOCKS}u;
}

// Which of them holds the scale of a block.
fn side_at(block: u32, side: u32) -> u32 {
    return block / {QUAD_BLOCKS}u;
}

// The groups from `block` on, which begins a quad or a chunk.
fn quad_of(side: vec4<u32>, block: u32) -> Quad {
//! if HALF_QUADS
    // A chunk has two of the four.
    return select(side, side.zwxy, block / {GROUP_BLOCKS}u % 4u >= 2u);
//! else
    return side;
//! end
}

// The same of any block of it.
fn skipped(quad: Quad, block: u32) -> Quad {
//! if HALF_QUADS
    return select(quad, quad.yzwx, (block / {GROUP_BLOCKS}u) % 2u != 0u);
//! else
    return Quad(quad[(block / {GROUP_BLOCKS}u) % 4u]);
//! end
}

// Scale and offset of the next group.
fn factor_of(quad: Quad) -> vec2<f32> {
    return scale_of(quad.x);
}

// The groups that follow after a step that begins with `block`: the first is the last again.
fn after(quad: Quad, block: u32) -> Quad {
//! if LONG_GROUPS
    return select(quad, quad.yzwx, (block + {STEP_BLOCKS}u) % {GROUP_BLOCKS}u == 0u);
//! else
    return quad.yzwx;
//! end
}

// A block with what belongs to its codes.
fn whole(block: vec4<u32>, quad: Quad) -> vec4<u32> {
    return block;
}
