
// Where the vec4 with this index is in an image.
fn texel(index: u32) -> vec2<u32> {
    return vec2<u32>(index % {IMAGE_WIDTH}u, index / {IMAGE_WIDTH}u);
}
