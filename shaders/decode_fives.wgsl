
// Codes of five bits: of value 4 q + b the fifth is bit 8 b + q of a word.
fn with_fifths(block: vec4<u32>, word: u32) -> Codes {
    let high = vec4<u32>(word);
    let first = (high << vec4<u32>(4u, 3u, 2u, 1u)) & vec4<u32>(0x10101010u);
    let last = (high >> vec4<u32>(0u, 1u, 2u, 3u)) & vec4<u32>(0x10101010u);
    let nibbles = vec4<u32>(0x0f0f0f0fu);
    return Codes((block & nibbles) | first, ((block >> vec4<u32>(4u)) & nibbles) | last);
}

//! for q in 0..4
fn decode_{q}(codes: Codes) -> vec4<f32> {
    return bytes_of(codes.first[{q}u]);
}

fn decode_{q+4}(codes: Codes) -> vec4<f32> {
    return bytes_of(codes.last[{q}u]);
}

//! end
