
// The values of a block of signed bytes, the lowest byte of a word first.
fn bytes_of(word: u32) -> vec4<f32> {
    return vec4<f32>((vec4<i32>(bitcast<i32>(word)) << vec4<u32>(24u, 16u, 8u, 0u))
        >> vec4<u32>(24u));
}

fn decode_0(block: vec4<u32>) -> vec4<f32> {
    return bytes_of(block.x);
}

fn decode_1(block: vec4<u32>) -> vec4<f32> {
    return bytes_of(block.y);
}

fn decode_2(block: vec4<u32>) -> vec4<f32> {
    return bytes_of(block.z);
}

fn decode_3(block: vec4<u32>) -> vec4<f32> {
    return bytes_of(block.w);
}
