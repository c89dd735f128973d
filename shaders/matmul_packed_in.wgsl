// Products of codes, four at a time.

// The codes of the first and the last 16 values of a group of weights, of its first and last block.
//! if NIBBLES
fn codes_0(first: vec4<u32>, last: vec4<u32>) -> vec4<u32> {
    return first & vec4<u32>(0x0f0f0f0fu);
}

fn codes_1(first: vec4<u32>, last: vec4<u32>) -> vec4<u32> {
    return (first >> vec4<u32>(4u)) & vec4<u32>(0x0f0f0f0fu);
}
//! else
// Bytes are stored 128 too large.
fn codes_0(first: vec4<u32>, last: vec4<u32>) -> vec4<u32> {
    return first ^ vec4<u32>(0x80808080u);
}

fn codes_1(first: vec4<u32>, last: vec4<u32>) -> vec4<u32> {
    return last ^ vec4<u32>(0x80808080u);
}
//! end

fn dot16(weights: vec4<u32>, x: vec4<u32>) -> i32 {
    return (dot4I8Packed(weights.x, x.x) + dot4I8Packed(weights.y, x.y))
        + (dot4I8Packed(weights.z, x.z) + dot4I8Packed(weights.w, x.w));
}
