
// The values of a block of f16 weights, the lower half of a word first.
fn decode_0(block: vec4<u32>) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(block.x), unpack2x16float(block.y));
}

fn decode_1(block: vec4<u32>) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(block.z), unpack2x16float(block.w));
}
