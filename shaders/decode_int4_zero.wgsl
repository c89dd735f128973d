// Scale and offset of a group: its zero is in the last byte of its scale, which has no digits
// there.
fn scale_of(word: u32) -> vec2<f32> {
    let scale = bitcast<f32>(word & 0xffffff00u);
    return vec2<f32>(scale, -scale * f32(word & 255u));
}
