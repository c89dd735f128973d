// The values of a block of e4m3 numbers, the lowest byte of a word first, each 2^-8 of its size.
//
// Exponent and mantissa become an f32's with an exponent that is 112 larger: a normal number, since
// a device may take others for zero. For the numbers whose exponent is zero, which e4m3 has without
// a leading one, that is (2^-14 + v) / 2 in place of v. Twice that without 2^-14 is right for them,
// and larger than what is right for all others.
fn values_of(word: u32) -> vec4<f32> {
    let places = vec4<u32>(word << 20u, word << 12u, word << 4u, word >> 4u);
    let high = bitcast<vec4<f32>>((places & vec4<u32>(0x07f00000u)) | vec4<u32>(0x38000000u));
    let value = min(high, fma(vec4<f32>(2.0), high, vec4<f32>(-0.00006103515625)));
    let sign = vec4<u32>(word << 24u, word << 16u, word << 8u, word) & vec4<u32>(0x80000000u);
    return bitcast<vec4<f32>>(bitcast<vec4<u32>>(value) | sign);
}

// Scale of a group; there is no offset.
fn scale_of(word: u32) -> vec2<f32> {
    return vec2<f32>(bitcast<f32>(word) * 256.0, 0.0);
}

fn decode_0(block: vec4<u32>) -> vec4<f32> {
    return values_of(block.x);
}

fn decode_1(block: vec4<u32>) -> vec4<f32> {
    return values_of(block.y);
}

fn decode_2(block: vec4<u32>) -> vec4<f32> {
    return values_of(block.z);
}

fn decode_3(block: vec4<u32>) -> vec4<f32> {
    return values_of(block.w);
}
