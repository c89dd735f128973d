// y[t, n] = sum over chunks of k, in ascending order, of parts[chunk, t, n], and what becomes of y
// (matmul_out.wgsl), where workgroups of matmul.wgsl had chunks side by side
//                                          one lane per row t and unit of UNIT columns n

@compute @workgroup_size({WORKGROUP})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let p = params;
    let computed = id.x * {UNIT}u;
    if (computed >= p.num_computed) {
        return;
    }
    let columns = (p.num_computed + {TILE}u - 1u) / {TILE}u * {TILE}u;
    let step = p.num_rows * columns / 4u;
    var at = (id.y * columns + computed) / 4u;
//! for i in 0..UNIT by 4
    var total_{i} = vec4<f32>(0.0);
//! end
    for (var chunk = 0u; chunk < p.num_blocks; chunk++) {
//! for i in 0..UNIT by 4
        total_{i} += parts[at + {i}u / 4u];
//! end
        at += step;
    }
    finish(p, id.y, computed, place_of(p, id.y), total_0,
//! if SWIGLU
        total_4,
//! end
    );
}
