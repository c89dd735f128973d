
// The values of a block of nibbles: the low ones of all bytes, then the high ones.
fn low_of(word: u32) -> vec4<f32> {
    return vec4<f32>((vec4<u32>(word) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(15u));
}

fn high_of(word: u32) -> vec4<f32> {
    return vec4<f32>((vec4<u32>(word) >> vec4<u32>(4u, 12u, 20u, 28u)) & vec4<u32>(15u));
}

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
