
// The values of a block of f32 weights.
fn decode_0(block: vec4<u32>) -> vec4<f32> {
    return bitcast<vec4<f32>>(block);
}
