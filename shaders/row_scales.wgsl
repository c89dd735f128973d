// scales[t] = 1 / sqrt(mean of x[t, :]^2 + eps): a norm, for products whose workgroups would
// compute it again each                                              one workgroup per row t
//
// NORM_LANES lanes take every NORM_LANES-th vec4 of a row; their sums are added in order, eight at
// a time: as matmul.wgsl does.

struct Params {
    row_vec4s: u32,  // of a row of x: K / 4
    eps: f32,
}

var<immediate> params: Params;
//! read x vec4s  [num_rows, K / 4]
//! write scales f32  [num_rows]

var<workgroup> sh_squares: array<f32, {NORM_LANES}>;

@compute @workgroup_size({NORM_LANES})
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = workgroup.x * params.row_vec4s;
    var squares = 0.0;
    for (var i = lane; i < params.row_vec4s; i += {NORM_LANES}u) {
        let s = x_in(row + i);
        squares = fma(s.x, s.x, squares);
        squares = fma(s.y, s.y, squares);
        squares = fma(s.z, s.z, squares);
        squares = fma(s.w, s.w, squares);
    }
    sh_squares[lane] = squares;
    workgroupBarrier();
    if (lane == 0u) {
        var mean = 0.0;
        for (var e = 0u; e < {NORM_LANES}u; e += 8u) {
            var eight = 0.0;
            for (var i = 0u; i < 8u; i++) {
                eight += sh_squares[e + i];
            }
            mean += eight;
        }
        scales[workgroup.x] = inverseSqrt(mean / f32(4u * params.row_vec4s) + params.eps);
    }
}
