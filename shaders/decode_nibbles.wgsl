
// The values of a block of nibbles: the low ones of all bytes, then the high ones.
//! if SCALED
// Left in their places, each a power of two too large (`x_scale` makes up for it): a shift less for
// each. The highest is moved, since it would be a sign.
fn low_of(word: u32) -> vec4<f32> {
    return vec4<f32>(vec4<u32>(word) & vec4<u32>(0xfu, 0xf00u, 0xf0000u, 0xf000000u));
}

fn high_of(word: u32) -> vec4<f32> {
    return vec4<f32>(vec4<u32>(word & 0xf0u, word & 0xf000u, word & 0xf00000u, word >> 28u));
}

// What the four values of x of a part of a group are multiplied with.
fn x_scale(part: u32) -> vec4<f32> {
    return select(
        vec4<f32>(0.0625, 0.000244140625, 9.5367431640625e-7, 1.0),
        vec4<f32>(1.0, 0.00390625, 0.0000152587890625, 5.9604644775390625e-8),
        part < 4u);
}
//! else
fn low_of(word: u32) -> vec4<f32> {
    return vec4<f32>((vec4<u32>(word) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(15u));
}

fn high_of(word: u32) -> vec4<f32> {
    return vec4<f32>((vec4<u32>(word) >> vec4<u32>(4u, 12u, 20u, 28u)) & vec4<u32>(15u));
}
//! end

fn decode_0(block: vec4<u32>) -> vec4<f32> {
    return low_of(block.x);
}

fn decode_1(block: vec4<u32>) -> vec4<f32> {
    return low_of(block.y);
}

fn decode_2(block: vec4<u32>) -> vec4<f32> {
    return low_of(block.z);
}

fn decode_3(block: vec4<u32>) -> vec4<f32> {
    return low_of(block.w);
}

fn decode_4(block: vec4<u32>) -> vec4<f32> {
    return high_of(block.x);
}

fn decode_5(block: vec4<u32>) -> vec4<f32> {
    return high_of(block.y);
}

fn decode_6(block: vec4<u32>) -> vec4<f32> {
    return high_of(block.z);
}

fn decode_7(block: vec4<u32>) -> vec4<f32> {
    return high_of(block.w);
}
