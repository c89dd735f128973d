enable f16;
enable wgpu_cooperative_matrix;

// The products of matmul.wgsl by cooperative matrices of SIDE x SIDE values: x and weights rounded
// to f16, products and their sums as the matrix cores compute them, in f32
// one workgroup per GROUPS * SIDE rows t, STRIP columns n; ACROSS * DOWN subgroups share them, each
// with its own MATRICES * SIDE rows and TN * SIDE columns, and CHUNKS such sets have a chunk of K
//
// Sums run over a chunk of K in ascending steps of SIDE, and chunks are added in ascending order,
// one row or many, so a row doesn't depend on its batch where the cores treat the rows of a matrix
// alike. The bits are those of a class of its own.
//
// Weights are stored as halves in the order of such matrices, and are loaded from there.
//
// No subgroup operations here: a driver crashes on modules that have both.

// Padded rows: lanes that read one column each meet different banks.
var<workgroup> sh_x: array<vec4<f16>, {HALF_X}>;  // [CHUNKS, TILE_ROWS, PADDED]

@compute @workgroup_size({WORKGROUP})
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let p = params;
    let tile = workgroup.x / {STRIPS}u;
    let strip = (workgroup.x % {STRIPS}u) * {STRIP}u;
    let first_row = workgroup.y * {TILE_ROWS}u;
    let subgroup = local / {SUBGROUP_LANES}u;
    let across = subgroup % {ACROSS}u * {TN}u * {SIDE}u;
    let down = subgroup / {ACROSS}u % {DOWN}u;
    let part = subgroup / {ACROSS}u / {DOWN}u;
    // Of what this subgroup multiplies and stores, in workgroup memory.
    let own_x = (part * {TILE_ROWS}u + down * {MATRICES}u * {SIDE}u) * {PADDED}u;
    // Of weights: a block is two vec4s, a column of a matrix FRAGMENT_STRIDE.
    let own_weights = tile * p.num_blocks * {TILE}u * 2u + (strip + across) * {FRAGMENT_STRIDE}u;
    let last_fragment = p.num_blocks / {FRAGMENT_BLOCKS}u - 1u;
    let own_out = (part * {DOWN}u + down) * {SIDE}u * {STRIP}u + across;
//! for m in 0..MATRICES
//! for j in 0..TN
    var total_{m}_{j}: coop_mat{SIDE}x{SIDE}<f32, C>;
//! end
//! end

//! if OWN_NORM
    scale_rows(p, first_row, local);
//! end
    for (var chunk = 0u; chunk < p.num_blocks; chunk += {CHUNK_BLOCKS}u * {CHUNKS}u) {
//! for m in 0..MATRICES
//! for j in 0..TN
        var sum_{m}_{j} = coop_mat{SIDE}x{SIDE}<f32, C>();
//! end
//! end
        // Of the first part, which has no fewer than the others.
        let num_blocks = min({CHUNK_BLOCKS}u, p.num_blocks - chunk);
        for (var step = 0u; step < num_blocks; step += {STAGED}u * {STEP_BLOCKS}u) {
            workgroupBarrier();
            // Under way while x is staged. Past the last one x is zero, and weights are finite.
            let fragment = (chunk + part * {CHUNK_BLOCKS}u + step) / {FRAGMENT_BLOCKS}u;
//! for k in 0..STAGED_VALUES by SIDE
            let place_{k} = own_weights
                + min(fragment + {k}u / {SIDE}u, last_fragment) * {TILE}u * {FRAGMENT_STRIDE}u;
//! for j in 0..TN
            let b_{k}_{j} = coopLoad<coop_mat{SIDE}x{SIDE}<f16, B>>(
                &weights[place_{k} + {j}u * {FRAGMENT}u], {FRAGMENT_STRIDE}u);
//! end
//! end
            for (var i = local; i < {CHUNKS}u * {TILE_ROWS}u * {STAGED_VEC4S}u; i += {WORKGROUP}u) {
                let vec4_at = i % {STAGED_VEC4S}u;
                let r = i / {STAGED_VEC4S}u % {TILE_ROWS}u;
                let of_part = i / {STAGED_VEC4S}u / {TILE_ROWS}u;
                // Rows past the last one are whatever was there: no other row sees them.
                if (first_row + r < p.num_rows) {
                    let block = chunk + of_part * {CHUNK_BLOCKS}u + step;
                    let place = (of_part * {TILE_ROWS}u + r) * {PADDED}u + vec4_at;
                    let value = staged_x(p, first_row, r, block * {PARTS}u + vec4_at);
                    // What becomes of larger ones than f16 has is left to the device.
                    sh_x[place] =
                        vec4<f16>(clamp(value, vec4<f32>(-65504.0), vec4<f32>(65504.0)));
                }
            }
            workgroupBarrier();
//! for k in 0..STAGED_VALUES by SIDE
//! for m in 0..MATRICES
            let a_{k}_{m} = coopLoadT<coop_mat{SIDE}x{SIDE}<f16, A>>(
                &sh_x[own_x + {m}u * {SIDE}u * {PADDED}u + {k}u / 4u], {PADDED}u);
//! for j in 0..TN
            sum_{m}_{j} = coopMultiplyAdd(a_{k}_{m}, b_{k}_{j}, sum_{m}_{j});
//! end
//! end
//! end
        }
//! if SPLIT
        // Each set of subgroups took a chunk; all of them add their sums in the same order.
        workgroupBarrier();
//! for j in 0..TN
        coopStoreT(sum_0_{j}, &sh_out[own_out + {j}u * {SIDE}u], {STRIP}u);
//! end
        workgroupBarrier();
        let num_parts = min({CHUNKS}u,
            (p.num_blocks - chunk + {CHUNK_BLOCKS}u - 1u) / {CHUNK_BLOCKS}u);
        for (var other = 0u; other < num_parts; other++) {
//! for j in 0..TN
            total_0_{j} = total_0_{j} + coopLoadT<coop_mat{SIDE}x{SIDE}<f32, C>>(
                &sh_out[other * {SIDE}u * {STRIP}u + across + {j}u * {SIDE}u], {STRIP}u);
//! end
        }
//! else
//! for m in 0..MATRICES
//! for j in 0..TN
        total_{m}_{j} = total_{m}_{j} + sum_{m}_{j};
//! end
//! end
//! end
    }

//! for m in 0..MATRICES
    workgroupBarrier();
//! for j in 0..TN
    coopStoreT(total_{m}_{j}, &sh_out[own_out + {j}u * {SIDE}u], {STRIP}u);
//! end
    workgroupBarrier();
    finish_shared(p, first_row + {m}u * {SIDE}u, tile * {TILE}u + strip, local);
//! end
}
