// out[t, :] = residual[t, :] + x[t, :] / rms(x[t, :]) * weight          one workgroup per token t

struct Params {
    num_vec4s: u32,  // hidden_size / 4
    eps: f32,
}

var<immediate> params: Params;
// [num_tokens, hidden_size / 4]
@group(0) @binding(0) var<storage, read>       x: array<vec4<f32>>;
//! if IMAGES
@group(0) @binding(1) var weight: texture_storage_2d<rgba32float, read>;  // [hidden_size / 4]
//! else
@group(0) @binding(1) var<storage, read>       weight: array<vec4<f32>>;  // [hidden_size / 4]
//! end
//! if IMAGES
// [num_tokens, hidden_size / 4]
@group(0) @binding(2) var residual: texture_storage_2d<rgba32float, read>;
// [num_tokens, hidden_size / 4]
@group(0) @binding(3) var out: texture_storage_2d<rgba32float, write>;
//! else
// [num_tokens, hidden_size / 4]
@group(0) @binding(2) var<storage, read>       residual: array<vec4<f32>>;
// [num_tokens, hidden_size / 4]
@group(0) @binding(3) var<storage, read_write> out: array<vec4<f32>>;
//! end

var<workgroup> sh_sums: array<f32, {WORKGROUP}>;
var<workgroup> sh_levels: array<f32, {LEVEL}>;
var<workgroup> sh_total: f32;

@compute @workgroup_size({WORKGROUP})
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = workgroup.x * params.num_vec4s;
    var sum = 0.0;
    for (var i = lane; i < params.num_vec4s; i += {WORKGROUP}u) {
        let value = x[row + i];
        sum = fma(value.x, value.x, sum);
        sum = fma(value.y, value.y, sum);
        sum = fma(value.z, value.z, sum);
        sum = fma(value.w, value.w, sum);
    }
    sh_sums[lane] = sum;
    workgroupBarrier();
    // Sums of LEVEL lanes, then the sum of those: a tree of two levels, since every level costs a
    // barrier.
    if (lane < {LEVEL}u) {
        var level = 0.0;
        for (var i = lane * {LEVEL}u; i < (lane + 1u) * {LEVEL}u; i++) {
            level += sh_sums[i];
        }
        sh_levels[lane] = level;
    }
    workgroupBarrier();
    if (lane == 0u) {
        var total = 0.0;
        for (var i = 0u; i < {LEVEL}u; i++) {
            total += sh_levels[i];
        }
        sh_total = total;
    }
    workgroupBarrier();
    let scale = inverseSqrt(sh_total / f32(4u * params.num_vec4s) + params.eps);
    for (var i = lane; i < params.num_vec4s; i += {WORKGROUP}u) {
        let normed = x[row + i] * scale;
//! if IMAGES
        let at = texel(row + i);
        textureStore(out, at, fma(normed, weight_at(i), textureLoad(residual, at)));
//! else
        out[row + i] = fma(normed, weight_at(i), residual[row + i]);
//! end
    }
}

fn weight_at(index: u32) -> vec4<f32> {
//! if IMAGES
    return textureLoad(weight, texel(index));
//! else
    return weight[index];
//! end
}
