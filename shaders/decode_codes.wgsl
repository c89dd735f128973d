
// The codes of a group of 32 values, a byte each: of the first 16, of the last.
struct Codes {
    first: vec4<u32>,
    last: vec4<u32>,
}

// With the word of a block first, of those of four blocks.
fn rotated(words: vec4<u32>, block: u32) -> vec4<u32> {
    let later = select(words, words.zwxy, (block & 2u) != 0u);
    return select(later, later.yzwx, (block & 1u) != 0u);
}

// Two numbers of half precision. Those without a leading one, which a device may take for zero,
// become normal numbers as those of decode_fp8.wgsl do.
fn halves_of(word: u32) -> vec2<f32> {
    let bits = vec2<u32>(word, word >> 16u);
    let places = (bits & vec2<u32>(0x7fffu)) << vec2<u32>(13u);
    let high = bitcast<vec2<f32>>(places + vec2<u32>(0x38000000u));
    let value = min(high, fma(vec2<f32>(2.0), high, vec2<f32>(-0.00006103515625)));
    let sign = (bits & vec2<u32>(0x8000u)) << vec2<u32>(16u);
    return bitcast<vec2<f32>>(bitcast<vec2<u32>>(value) | sign);
}
