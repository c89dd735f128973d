// Blocks of 256 values, eight groups: a scale and a minimum of six bits for each group, and what
// all of them are multiples of. They are kept as a file has them, in 16 bytes.

//! if HIGH_BITS
// Codes have a fifth bit, those of four groups in 16 bytes.
//! end
struct Quad {
    factors: vec2<f32>,  // of scales, of minimums
    scales: u32,         // a byte each, that of the next group first
    minimums: u32,
//! if HIGH_BITS
    high: vec4<u32>,     // a word each, that of the next group first
//! end
}

// Vec4s of a row beside its blocks.
fn sides_of(num_blocks: u32) -> u32 {
    return (num_blocks + 7u) / 8u * (1u + 2u * {HIGH_BITS}u);
}

// Which of them a quad is made of.
fn side_at(block: u32, side: u32) -> u32 {
    let start = block / 8u * (1u + 2u * {HIGH_BITS}u);
    return start + select(0u, 1u + block / 4u % 2u, side == 1u);
}

// What belongs to the four groups from `block` on, which begins a quad, beside their codes.
//! if HIGH_BITS
fn quad_of(side: vec4<u32>, high: vec4<u32>, block: u32) -> Quad {
//! else
fn quad_of(side: vec4<u32>, block: u32) -> Quad {
//! end
    let upper = (side.yz >> vec2<u32>(2u)) & vec2<u32>(0x30303030u);
    let last = (vec2<u32>(side.w, side.w >> 4u) & vec2<u32>(0x0f0f0f0fu)) | upper;
    let codes = select(side.yz & vec2<u32>(0x3f3f3f3fu), last, block % 8u >= 4u);
    let factors = halves_of(side.x) * vec2<f32>(1.0, -1.0);
//! if HIGH_BITS
    return Quad(factors, codes.x, codes.y, high);
//! else
    return Quad(factors, codes.x, codes.y);
//! end
}

// The same of any block.
fn skipped(quad: Quad, block: u32) -> Quad {
    let bits = block % 4u * 8u;
//! if HIGH_BITS
    let high = rotated(quad.high, block);
    return Quad(quad.factors, quad.scales >> bits, quad.minimums >> bits, high);
//! else
    return Quad(quad.factors, quad.scales >> bits, quad.minimums >> bits);
//! end
}

// Scale and offset of the next group.
fn factor_of(quad: Quad) -> vec2<f32> {
    return quad.factors * vec2<f32>(f32(quad.scales & 255u), f32(quad.minimums & 255u));
}

// The groups that follow.
fn after(quad: Quad, block: u32) -> Quad {
//! if HIGH_BITS
    return Quad(quad.factors, quad.scales >> 8u, quad.minimums >> 8u, quad.high.yzwx);
//! else
    return Quad(quad.factors, quad.scales >> 8u, quad.minimums >> 8u);
//! end
}

// A block with what belongs to its codes.
//! if HIGH_BITS
fn whole(block: vec4<u32>, quad: Quad) -> Codes {
    return with_fifths(block, quad.high.x);
}
//! else
fn whole(block: vec4<u32>, quad: Quad) -> vec4<u32> {
    return block;
}
//! end
