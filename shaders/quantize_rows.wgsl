// out[t, g] = x[t, 32 g .. 32 g + 32] in bytes: codes, their scale, scale * (sum of the codes)
// one workgroup per row t, from the first on, and LANES groups g, a lane per group
//
// With NORM, x is normalised first: x[t, k] / rms(x[t, :]) * norm[k].
//
// scale = max |x| / 127; a code is x / scale, rounded to the nearest integer, the even one of two.

struct Params {
    first_row: u32,
    row_vec4s: u32,   // K / 4
    num_groups: u32,  // of a row, the last one padded with zeros
    eps: f32,         // NORM
}

var<immediate> params: Params;
//! read x vec4s  [num_rows, K / 4]
//! write out blocks  [num_rows, num_groups, 3]
//! if NORM
//! read norm vec4s  [K / 4]
//! end

//! if NORM
var<workgroup> sh_squares: array<f32, {LANES}>;
//! end

@compute @workgroup_size({LANES})
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let p = params;
    let t = p.first_row + workgroup.y;
    let row = t * p.row_vec4s;
//! if NORM
    var squares = 0.0;
    for (var i = lane; i < p.row_vec4s; i += {LANES}u) {
        let s = x_in(row + i);
        squares = fma(s.x, s.x, squares);
        squares = fma(s.y, s.y, squares);
        squares = fma(s.z, s.z, squares);
        squares = fma(s.w, s.w, squares);
    }
    sh_squares[lane] = squares;
    workgroupBarrier();
    var mean = 0.0;
    for (var e = 0u; e < {LANES}u; e += 8u) {
        var eight = 0.0;
        for (var i = 0u; i < 8u; i++) {
            eight += sh_squares[e + i];
        }
        mean += eight;
    }
    let norm_scale = inverseSqrt(mean / f32(4u * p.row_vec4s) + p.eps);
//! end
    let group = workgroup.x * {LANES}u + lane;
    if (group >= p.num_groups) {
        return;
    }
    var most = vec4<u32>(0u);
//! for i in 0..8
    let index_{i} = min(group * 8u + {i}u, p.row_vec4s - 1u);
//! if NORM
    let inside_{i} = x_in(row + index_{i}) * norm_scale * norm_in(index_{i});
//! else
    let inside_{i} = x_in(row + index_{i});
//! end
    let x_{i} = select(vec4<f32>(0.0), inside_{i}, group * 8u + {i}u < p.row_vec4s);
    // As integers, magnitudes are in the same order, and NaN is the largest: it isn't lost.
    most = max(most, bitcast<vec4<u32>>(x_{i}) & vec4<u32>(0x7fffffffu));
//! end
    let largest = max(max(most.x, most.y), max(most.z, most.w));
    // Below 2^-100 the inverse might not be finite: such a group is zero.
    let is_zero = largest < 0x0d800000u;
    let scale = select(bitcast<f32>(largest) / 127.0, 0.0, is_zero);
    // A GPU divides by way of the inverse of what is divided by, and takes that of very large
    // numbers for zero: these are made smaller by 2^64 first, which changes no bit.
    let shrink = select(1.0, 5.421010862427522e-20, largest > 0x5d800000u);
    let inverse = select(127.0 / (bitcast<f32>(largest) * shrink) * shrink, 0.0, is_zero);
    var sum = 0;
//! for i in 0..8
    let codes_{i} = pack4xI8(vec4<i32>(round(x_{i} * inverse)));
    sum += dot4I8Packed(codes_{i}, 0x01010101u);
//! end
    let at = (t * p.num_groups + group) * 3u;
    write_out(at, vec4<u32>(codes_0, codes_1, codes_2, codes_3));
    write_out(at + 1u, vec4<u32>(codes_4, codes_5, codes_6, codes_7));
    write_out(at + 2u, vec4<u32>(bitcast<u32>(scale), bitcast<u32>(scale * f32(sum)), 0u, 0u));
}
