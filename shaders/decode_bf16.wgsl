
// The values of a block of bf16 weights, the lower half of a word first: the upper half of an f32
// each.
fn decode_0(block: vec4<u32>) -> vec4<f32> {
    return bitcast<vec4<f32>>(vec4<u32>(
        block.x << 16u, block.x & 0xffff0000u, block.y << 16u, block.y & 0xffff0000u));
}

fn decode_1(block: vec4<u32>) -> vec4<f32> {
    return bitcast<vec4<f32>>(vec4<u32>(
        block.z << 16u, block.z & 0xffff0000u, block.w << 16u, block.w & 0xffff0000u));
}
