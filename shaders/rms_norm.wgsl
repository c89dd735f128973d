// out[t, :] = residual[t, :] + x[t, :] / rms(x[t, :]) * weight          one workgroup per token t

struct Params {
    num_vec4s: u32,  // hidden_size / 4
    eps: f32,
}

var<immediate> params: Params;
//! read x vec4<f32>  [num_tokens, hidden_size / 4]
//! read weight vec4s  [hidden_size / 4]
//! read residual vec4s  [num_tokens, hidden_size / 4]
//! write out vec4s  [num_tokens, hidden_size / 4]

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
        write_out(row + i, fma(normed, weight_in(i), residual_in(row + i)));
    }
}
