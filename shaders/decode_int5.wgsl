// Groups of 32 values: a scale, an offset, and the fifth bits of codes, those of four groups side
// by side.

struct Quad {
    scales: vec4<u32>,  // a word each, that of the next group first
    high: vec4<u32>,
}

// Vec4s of a row beside its blocks.
fn sides_of(num_blocks: u32) -> u32 {
    return (num_blocks + 3u) / 4u * 2u;
}

// Which of them a quad is made of.
fn side_at(block: u32, side: u32) -> u32 {
    return block / 4u * 2u + side;
}

// What belongs to the four groups from `block` on, which begins a quad, beside their codes.
fn quad_of(scales: vec4<u32>, high: vec4<u32>, block: u32) -> Quad {
    return Quad(scales, high);
}

// The same of any block.
fn skipped(quad: Quad, block: u32) -> Quad {
    return Quad(rotated(quad.scales, block), rotated(quad.high, block));
}

// Scale and offset of the next group.
fn factor_of(quad: Quad) -> vec2<f32> {
    return unpack2x16float(quad.scales.x);
}

// The groups that follow.
fn after(quad: Quad, block: u32) -> Quad {
    return Quad(quad.scales.yzwx, quad.high.yzwx);
}

// A block with what belongs to its codes.
fn whole(block: vec4<u32>, quad: Quad) -> Codes {
    return with_fifths(block, quad.high.x);
}
