
// What kernels share whose lanes have a row together.

var<workgroup> sh_lanes: array<f32, {LANES}>;

// The sum of what the lanes have, in their order.
fn sum_of_lanes(lane: u32, own: f32) -> f32 {
    // What was there may still be read.
    workgroupBarrier();
    sh_lanes[lane] = own;
    workgroupBarrier();
    var sum = 0.0;
    for (var other = 0u; other < {LANES}u; other++) {
        sum += sh_lanes[other];
    }
    return sum;
}

fn with_squares(sum: f32, value: vec4<f32>) -> f32 {
    var squares = fma(value.x, value.x, sum);
    squares = fma(value.y, value.y, squares);
    squares = fma(value.z, value.z, squares);
    return fma(value.w, value.w, squares);
}

// Two pairs, turned by their angles.
fn rotated(value: vec4<f32>, a: vec4<f32>) -> vec4<f32> {
    return vec4<f32>(
        fma(value.x, a.x, -(value.y * a.y)),
        fma(value.x, a.y, value.y * a.x),
        fma(value.z, a.z, -(value.w * a.w)),
        fma(value.z, a.w, value.w * a.z));
}

// A number that the cache can hold, but for NaN.
fn bounded(value: vec4<f32>) -> vec4<f32> {
//! if KV_F16
    let most = vec4<f32>(65504.0);
//! else
    let most = vec4<f32>(3.4028234e38);
//! end
    return clamp(value, -most, most);
}
