// Scale and offset of a group.
fn scale_of(word: u32) -> vec2<f32> {
    return unpack2x16float(word);
}
