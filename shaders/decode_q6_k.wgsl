// Groups of 16 values under a scale of eight bits each, 256 values under one that these are
// multiples of. A quad of 128 values has what belongs to it in 48 bytes.
//
// Codes are multiplied with the scales of eight bits as they are decoded, which is exact: what
// remains is a scale for 256 values.

struct Quad {
    factor: f32,
    scales: vec2<u32>,    // a byte each, those of the next 32 values first
    high_0: vec4<u32>,    // of each 32 values the upper bits of the first 16, the next one's first
    high_1: vec4<u32>,    // of the last 16
}

// Vec4s of a row beside its blocks.
fn sides_of(num_blocks: u32) -> u32 {
    return (num_blocks + 3u) / 4u * 3u;
}

// Which of them a quad is made of.
fn side_at(block: u32, side: u32) -> u32 {
    return block / 4u * 3u + side;
}

// What belongs to the values from `block` on, which begins a quad, beside the lower bits of their
// codes.
fn quad_of(side: vec4<u32>, high_0: vec4<u32>, high_1: vec4<u32>, block: u32) -> Quad {
    return Quad(halves_of(side.z).x, side.xy, high_0, high_1);
}

// The same of any block.
fn skipped(quad: Quad, block: u32) -> Quad {
    let pair = select(quad.scales.x, quad.scales.y, (block & 2u) != 0u);
    let scales = vec2<u32>(pair >> (block % 2u * 16u), 0u);
    return Quad(quad.factor, scales, rotated(quad.high_0, block), rotated(quad.high_1, block));
}

// Scale and offset of the next 32 values.
fn factor_of(quad: Quad) -> vec2<f32> {
    return vec2<f32>(quad.factor, 0.0);
}

// What follows.
fn after(quad: Quad, block: u32) -> Quad {
    let scales = vec2<u32>((quad.scales.x >> 16u) | (quad.scales.y << 16u), quad.scales.y >> 16u);
    return Quad(quad.factor, scales, quad.high_0.yzwx, quad.high_1.yzwx);
}

struct Block {
    codes: Codes,
    scales: vec2<f32>,
}

fn whole(block: vec4<u32>, quad: Quad) -> Block {
    let nibbles = vec4<u32>(0x0f0f0f0fu);
    let codes = Codes(
        (block & nibbles) | upper(quad.high_0.x),
        ((block >> vec4<u32>(4u)) & nibbles) | upper(quad.high_1.x));
    let first = bitcast<i32>(quad.scales.x << 24u) >> 24u;
    let last = bitcast<i32>(quad.scales.x << 16u) >> 24u;
    return Block(codes, vec2<f32>(f32(first), f32(last)));
}

// The upper two bits of value 4 q + b, in the place that they have in a code: 4 q + b is at bit
// 8 b + 4, 6, 0 or 2.
fn upper(word: u32) -> vec4<u32> {
    return vec4<u32>(word, word >> 2u, word << 4u, word << 2u) & vec4<u32>(0x30303030u);
}

// Codes are 32 too large.
fn scaled(word: u32, scale: f32) -> vec4<f32> {
//! if SCALED
    let ones = vec4<f32>(1.0, 256.0, 65536.0, 1.0);
//! else
    let ones = vec4<f32>(1.0);
//! end
    return fma(bytes_of(word), vec4<f32>(scale), ones * (-32.0 * scale));
}

//! for q in 0..4
fn decode_{q}(block: Block) -> vec4<f32> {
    return scaled(block.codes.first[{q}u], block.scales.x);
}

fn decode_{q+4}(block: Block) -> vec4<f32> {
    return scaled(block.codes.last[{q}u], block.scales.y);
}

//! end
