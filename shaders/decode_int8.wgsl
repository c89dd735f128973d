// A block of bytes, each 128 too large.

// Scale and offset of a group.
fn scale_of(word: u32) -> vec2<f32> {
    return unpack2x16float(word).x * vec2<f32>(1.0, -128.0);
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
