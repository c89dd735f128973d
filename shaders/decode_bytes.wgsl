
// Values from bytes, the lowest of a word first, without a sign: they need no shift.
//! if SCALED
// Left in their places, each a power of two too large (`x_scale` makes up for it).
fn bytes_of(word: u32) -> vec4<f32> {
    return vec4<f32>(vec4<u32>(word & 0xffu, word & 0xff00u, word & 0xff0000u, word >> 24u));
}

// What the four values of x of a part of a group are multiplied with.
fn x_scale(part: u32) -> vec4<f32> {
    return vec4<f32>(1.0, 0.00390625, 0.0000152587890625, 1.0);
}
//! else
fn bytes_of(word: u32) -> vec4<f32> {
    return vec4<f32>((vec4<u32>(word) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(255u));
}
//! end
