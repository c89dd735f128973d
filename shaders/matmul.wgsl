// y[t, n] = sum over k of x[t, k] * weights[n, k], and what becomes of y (matmul_out.wgsl)
// one workgroup per TM rows t, LANES * TN columns n
//
// With NORM, x is normalised first: x[t, k] / rms(x[t, :]) * norm[k].
//
// STORE:    out[t, n] = y[t, n]
// RESIDUAL: out[t, n] = residual[t, n] + y[t, n]
// SWIGLU:   out[t, i] = silu(gate) * up; the columns are four of gate, the same four of up, ...
// QKV:      of y + bias, queries and keys are rotated; keys and values go to the cache, queries to
//           out
//
// The order of additions is one for all variants, and a function of K alone: one chain of fma in
// ascending k, from zero. Where weights share a scale, the chain runs in a group of 32 values, and
// another takes in scale * sum, then, of formats that have one, offset * (sum of the group's x).
// CUT: workgroups have chunks side by side, whose sums matmul_sum.wgsl adds. APART: the scales of a
// norm were computed before (row_scales.wgsl).
// CHUNKED: K is cut into chunks of CHUNK values that have such chains each; their sums are added in
// ascending order. LONG_GROUPS: groups that share a scale stand side by side, as many as half a
// chunk.

//! if SPLIT
var<workgroup> sh_sums: array<f32, {SPLIT_SUMS}>;  // [SPLIT, TM, TN, LANES]
//! end
//! if OWN_NORM
//! if SUBGROUP
//! else
var<workgroup> sh_squares: array<f32, {SQUARES}>;  // [TM, NORM_LANES]
//! end
//! end

@compute @workgroup_size({WORKGROUP})
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
//! if SUBGROUP
    @builtin(subgroup_invocation_id) subgroup_lane: u32,
//! end
) {
    // Read once: a software driver would read each of them lane by lane wherever it is named.
    let p = params;
    let lane = local % {LANES}u;
    let group = local / {LANES}u;
    let tile = workgroup.x / {STRIPS}u;
//! if STACKED
    let part = part_of(p, p.first_part + workgroup.y);
    let stored_tile = part.matrix * p.matrix_tiles + tile - p.first_tile;
    // Less than none is more than all.
    if (part.count == 0u || stored_tile >= p.num_tiles) {
        return;
    }
//! else
    let stored_tile = tile;
//! end
    let strip = (workgroup.x % {STRIPS}u) * {STRIP}u;
    let column = strip + lane * {LANE_STRIDE}u;
    let tile_start = stored_tile * p.num_blocks * {TILE}u + column * {SIDE_BY_SIDE}u;
//! if STACKED
//! else
    let first_row = workgroup.y * {TM}u;
//! end
//! if GROUPED
    let scales_start = stored_tile * sides_of(p.num_blocks) * {TILE}u + column;
//! end
//! for m in 0..TM
    // Rows past the last one are computed like it and not stored.
//! if STACKED
    let pair_{m} = pair_of(p, part, min({m}u, part.count - 1u));
    let row_{m} = pair_{m} / p.pairs_per_row * p.x_stride;
//! else
    let row_{m} = min(first_row + {m}u, p.num_rows - 1u) * p.row_vec4s;
//! end
//! for j in 0..TN
    var total_{m}_{j} = 0.0;
//! end
//! end

//! if APART
//! for m in 0..TM
    let scale_{m} = row_scales[min(first_row + {m}u, p.num_rows - 1u)];
//! end
//! end
//! if OWN_NORM
    // NORM_LANES lanes take every NORM_LANES-th vec4 of a row; their sums are added in order, eight
    // at a time.
//! for m in 0..TM
    var squares_{m} = 0.0;
//! end
//! if SUBGROUP
    for (var i = subgroup_lane & 7u; i < p.row_vec4s; i += {NORM_LANES}u) {
//! else
    for (var i = local; i < select(0u, p.row_vec4s, local < {NORM_LANES}u); i += {NORM_LANES}u) {
//! end
//! for m in 0..TM
        let s_{m} = x_in(row_{m} + i);
        squares_{m} = fma(s_{m}.x, s_{m}.x, squares_{m});
        squares_{m} = fma(s_{m}.y, s_{m}.y, squares_{m});
        squares_{m} = fma(s_{m}.z, s_{m}.z, squares_{m});
        squares_{m} = fma(s_{m}.w, s_{m}.w, squares_{m});
//! end
    }
//! if SUBGROUP
//! else
    if (local < {NORM_LANES}u) {
//! for m in 0..TM
        sh_squares[{m}u * {NORM_LANES}u + local] = squares_{m};
//! end
    }
    workgroupBarrier();
//! end
//! for m in 0..TM
    var mean_{m} = 0.0;
//! for e in 0..NORM_EIGHTHS
    var eight_{m}_{e} = 0.0;
//! for i in 0..8
//! if SUBGROUP
    eight_{m}_{e} += subgroupBroadcast(squares_{m}, {i}u);
//! else
    eight_{m}_{e} += sh_squares[{m}u * {NORM_LANES}u + {e}u * 8u + {i}u];
//! end
//! end
    mean_{m} += eight_{m}_{e};
//! end
    let scale_{m} = inverseSqrt(mean_{m} / f32(4u * p.row_vec4s) + p.eps);
//! end
//! end

//! if CUT
    {
        let chunk = workgroup.z * {CHUNK_BLOCKS}u * {GROUPS}u;
        let start = chunk + group * {CHUNK_BLOCKS}u;
        let end = min(start + {CHUNK_BLOCKS}u, p.num_blocks);
//! else
//! if CHUNKED
    for (var chunk = 0u; chunk < p.num_blocks; chunk += {CHUNK_BLOCKS}u * {GROUPS}u) {
        let start = chunk + group * {CHUNK_BLOCKS}u;
        let end = min(start + {CHUNK_BLOCKS}u, p.num_blocks);
//! else
    {
        let start = 0u;
        let end = p.num_blocks;
//! end
//! end
//! for m in 0..TM
//! for j in 0..TN
        // Here also where it is a group's: a software driver's compiler then keeps more of a plain
        // product's tile in registers.
        var acc_{m}_{j} = 0.0;
//! if GROUPED
        var sum_{m}_{j} = 0.0;
//! end
//! end
//! end
//! if GROUPED
        for (var quad = start; quad < end; quad += {QUAD_BLOCKS}u) {
//! for j in 0..TN
        // Of the groups from this block on, whose scales are loaded at once.
        var quad_{j} = quad_of(
//! for s in 0..SIDES
            scales_in(scales_start + side_at(quad, {s}u) * {TILE}u + {j}u * {J_STRIDE}u),
//! end
            quad);
//! end
        let quad_end = min(quad + {QUAD_BLOCKS}u, end);
        for (var ahead = quad; ahead < quad_end; ahead += {STEPS}u * {STEP_BLOCKS}u) {
//! else
        let quad_end = end;
        for (var ahead = start; ahead < end; ahead += {STEPS}u * {STEP_BLOCKS}u) {
//! end
//! if AHEAD
            // Of all steps before the first is multiplied, so that as many loads are under way.
//! for s in 0..STEPS
//! for b in 0..STEP_BLOCKS
            let at_{s}_{b} = min(ahead + {s}u * {STEP_BLOCKS}u + {b}u, p.num_blocks - 1u);
//! for j in 0..TN
            let ahead_{s}_{b}_{j} = weights_in(
                tile_start + block_at(at_{s}_{b}) + {j}u * {J_STRIDE}u * {SIDE_BY_SIDE}u);
//! end
//! end
//! end
//! end
//! for s in 0..STEPS
//! if AHEAD
            if (ahead + {s}u * {STEP_BLOCKS}u < quad_end) {
//! end
            let block = ahead + {s}u * {STEP_BLOCKS}u;
//! if GROUPED
//! for m in 0..TM
//! for j in 0..TN
            acc_{m}_{j} = 0.0;
//! end
//! if OFFSET
            var x_sum_{m} = 0.0;
//! end
//! end
//! end
//! if SUBGROUP
            // Eight lanes load one vec4 each: the 32 values of this step.
            let at = block * {PARTS}u + (subgroup_lane & 7u);
//! if NORM
            let norm_at = norm_in(min(at, p.row_vec4s - 1u));
//! end
//! for m in 0..TM
//! if NORM
            var x_{m} = x_at(p, row_{m}, at) * scale_{m} * norm_at;
//! else
            var x_{m} = x_at(p, row_{m}, at);
//! end
//! if OFFSET
            let x_part_{m} = (x_{m}.x + x_{m}.y) + (x_{m}.z + x_{m}.w);
//! for i in 0..8
            x_sum_{m} += subgroupBroadcast(x_part_{m}, {i}u);
//! end
//! end
//! if SCALED
            x_{m} *= x_scale(subgroup_lane & 7u);
//! end
//! end
//! end
//! for b in 0..STEP_BLOCKS
//! for first in 0..TN by AT_ONCE
//! for j in first..first+AT_ONCE
//! if AHEAD
            let stored_{b}_{j} = ahead_{s}_{b}_{j};
//! else
            let stored_{b}_{j} = weights_in(
                tile_start + block_at(block + {b}u) + {j}u * {J_STRIDE}u * {SIDE_BY_SIDE}u);
//! end
//! if GROUPED
            let w_{b}_{j} = whole(stored_{b}_{j}, quad_{j});
//! else
            let w_{b}_{j} = stored_{b}_{j};
//! end
//! end
//! for q in 0..PARTS
//! if SUBGROUP
//! else
            let at_{b}_{q} = (block + {b}u) * {PARTS}u + {q}u;
//! if NORM
            let norm_{b}_{q} = norm_in(min(at_{b}_{q}, p.row_vec4s - 1u));
//! end
//! end
//! for m in 0..TM
//! if SUBGROUP
            let x_{m}_{b}_{q}_{first} = subgroupBroadcast(x_{m}, {b}u * {PARTS}u + {q}u);
//! else
//! if NORM
            let x_{m}_{b}_{q}_{first} =
                x_at(p, row_{m}, at_{b}_{q}) * scale_{m} * norm_{b}_{q};
//! else
            let x_{m}_{b}_{q}_{first} = x_at(p, row_{m}, at_{b}_{q});
//! end
//! end
//! if SUBGROUP
//! else
//! if OFFSET
            x_sum_{m} += (x_{m}_{b}_{q}_{first}.x + x_{m}_{b}_{q}_{first}.y)
                + (x_{m}_{b}_{q}_{first}.z + x_{m}_{b}_{q}_{first}.w);
//! end
//! end
//! end
//! for j in first..first+AT_ONCE
            let w_{b}_{j}_{q} = decode_{q}(w_{b}_{j});
//! for m in 0..TM
            acc_{m}_{j} = fma(w_{b}_{j}_{q}.x, x_{m}_{b}_{q}_{first}.x, acc_{m}_{j});
            acc_{m}_{j} = fma(w_{b}_{j}_{q}.y, x_{m}_{b}_{q}_{first}.y, acc_{m}_{j});
            acc_{m}_{j} = fma(w_{b}_{j}_{q}.z, x_{m}_{b}_{q}_{first}.z, acc_{m}_{j});
            acc_{m}_{j} = fma(w_{b}_{j}_{q}.w, x_{m}_{b}_{q}_{first}.w, acc_{m}_{j});
//! end
//! end
//! end
//! end
//! end
//! if GROUPED
//! for j in 0..TN
            let factor_{j} = factor_of(quad_{j});
            quad_{j} = after(quad_{j}, block);
//! for m in 0..TM
            sum_{m}_{j} = fma(factor_{j}.x, acc_{m}_{j}, sum_{m}_{j});
//! if OFFSET
            sum_{m}_{j} = fma(factor_{j}.y, x_sum_{m}, sum_{m}_{j});
//! end
//! end
//! end
//! end
//! if AHEAD
            }
//! end
//! end
        }
//! if GROUPED
        }
//! else
//! for m in 0..TM
//! for j in 0..TN
        let sum_{m}_{j} = acc_{m}_{j};
//! end
//! end
//! end
//! if CUT
        if (start < p.num_blocks) {
//! for m in 0..TM
            if (first_row + {m}u < p.num_rows) {
                let part_{m} = part_at(p, start / {CHUNK_BLOCKS}u, first_row + {m}u);
//! for j in 0..TN
                out[part_{m} + tile * {TILE}u + column + {j}u * {J_STRIDE}u] = sum_{m}_{j};
//! end
            }
//! end
        }
//! else
//! if SPLIT
        // The groups took a chunk each; every group adds their sums in the same order, the first
        // one stores the total.
        workgroupBarrier();
//! for m in 0..TM
//! for j in 0..TN
        sh_sums[((group * {TM}u + {m}u) * {TN}u + {j}u) * {LANES}u + lane] = sum_{m}_{j};
//! end
//! end
        workgroupBarrier();
        let num_groups = min({GROUPS}u,
            (p.num_blocks - chunk + {CHUNK_BLOCKS}u - 1u) / {CHUNK_BLOCKS}u);
        for (var other = 0u; other < num_groups; other++) {
//! for m in 0..TM
//! for j in 0..TN
            total_{m}_{j} += sh_sums[((other * {TM}u + {m}u) * {TN}u + {j}u) * {LANES}u + lane];
//! end
//! end
        }
//! else
//! for m in 0..TM
//! for j in 0..TN
        total_{m}_{j} += sum_{m}_{j};
//! end
//! end
//! end
//! end
    }

//! if CUT
//! else
//! if WIDE
    // A lane has whole vec4s of columns.
    if (group == 0u) {
//! for m in 0..TM
//! if STACKED
        let of_{m} = pair_{m};
        if ({m}u < part.count) {
//! else
        let of_{m} = first_row + {m}u;
        if (of_{m} < p.num_rows) {
//! end
            let place_{m} = place_of(p, of_{m});
//! for j in 0..TN by UNIT
            finish(p, of_{m}, tile * {TILE}u + column + {j}u, place_{m},
                vec4<f32>(total_{m}_{j}, total_{m}_{j+1}, total_{m}_{j+2}, total_{m}_{j+3}),
//! if SWIGLU
                vec4<f32>(total_{m}_{j+4}, total_{m}_{j+5}, total_{m}_{j+6}, total_{m}_{j+7}),
//! end
            );
//! end
        }
//! end
    }
//! else
    if (group == 0u) {
//! for m in 0..TM
//! for j in 0..TN
        sh_out[{m}u * {STRIP}u + lane + {j}u * {LANES}u] = total_{m}_{j};
//! end
//! end
    }
    workgroupBarrier();
//! if STACKED
    finish_part(p, part, tile * {TILE}u + strip, local);
//! else
    finish_shared(p, first_row, tile * {TILE}u + strip, local);
//! end
//! end
//! end
}
