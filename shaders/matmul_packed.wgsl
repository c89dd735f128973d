// The products of matmul.wgsl with x in bytes, too (quantize_rows.wgsl), and integer weights: four
// products of codes and their sum are one instruction where a device has it
// one workgroup per TM rows t, LANES * TN columns n
//
// The sum of a group's products of codes is an integer below 2^24: exact in any order, and exact as
// an f32. The order of what follows is one for all variants, and a function of K alone: in a chunk
// one chain over its groups, from zero, takes in (weights' scale) * ((sum of codes) * (x's scale)),
// then, of weights with an offset, offset * (x's scale * sum of x's codes); the sums of the chunks
// are added in ascending order. CUT: as in matmul.wgsl.

//! if SPLIT
var<workgroup> sh_sums: array<f32, {SPLIT_SUMS}>;  // [SPLIT, TM, TN, LANES]
//! end

@compute @workgroup_size({WORKGROUP})
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
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
    let first_row = workgroup.y * {TM}u;
//! end
    let strip = (workgroup.x % {STRIPS}u) * {STRIP}u;
    let column = strip + lane;
    let tile_start = stored_tile * p.num_blocks * {TILE}u + column;
    let num_quads = (p.num_blocks + {QUAD_BLOCKS}u - 1u) / {QUAD_BLOCKS}u;
    let scales_start = stored_tile * num_quads * {TILE}u + column;
//! for m in 0..TM
    // Rows past the last one are computed like it and not stored.
//! if STACKED
    let row_{m} = pair_of(p, part, min({m}u, part.count - 1u)) / p.pairs_per_row * p.x_stride;
//! else
    let row_{m} = min(first_row + {m}u, p.num_rows - 1u) * p.row_vec4s;
//! end
//! for j in 0..TN
    var total_{m}_{j} = 0.0;
//! end
//! end

//! if CUT
    {
        let chunk = workgroup.z * {CHUNK_BLOCKS}u * {GROUPS}u;
//! else
    for (var chunk = 0u; chunk < p.num_blocks; chunk += {CHUNK_BLOCKS}u * {GROUPS}u) {
//! end
        let start = chunk + group * {CHUNK_BLOCKS}u;
        let end = min(start + {CHUNK_BLOCKS}u, p.num_blocks);
//! for m in 0..TM
//! for j in 0..TN
        var sum_{m}_{j} = 0.0;
//! end
//! end
        for (var quad = start; quad < end; quad += {QUAD_BLOCKS}u) {
//! for j in 0..TN
        var scales_{j} =
            scales_in(scales_start + (quad / {QUAD_BLOCKS}u) * {TILE}u + {j}u * {LANES}u);
//! end
        let quad_end = min(quad + {QUAD_BLOCKS}u, end);
        for (var ahead = quad; ahead < quad_end; ahead += {STEPS}u * {GROUP_BLOCKS}u) {
//! if AHEAD
            // Of all groups before the first is multiplied, so that as many loads are under way.
//! for s in 0..STEPS
//! for b in 0..GROUP_BLOCKS
            let at_{s}_{b} = min(ahead + {s}u * {GROUP_BLOCKS}u + {b}u, p.num_blocks - 1u);
//! for j in 0..TN
            let ahead_{s}_{j}_{b} = weights_in(tile_start + at_{s}_{b} * {TILE}u + {j}u * {LANES}u);
//! end
//! end
//! end
//! end
//! for s in 0..STEPS
//! if AHEAD
            if (ahead + {s}u * {GROUP_BLOCKS}u < quad_end) {
//! end
            let block = ahead + {s}u * {GROUP_BLOCKS}u;
            let at = block / {GROUP_BLOCKS}u * 3u;
//! for m in 0..TM
            let x_{m}_0 = x_in(row_{m} + at);
            let x_{m}_1 = x_in(row_{m} + at + 1u);
            let x_factor_{m} = bitcast<vec2<f32>>(x_in(row_{m} + at + 2u).xy);
//! end
//! for j in 0..TN
//! for b in 0..GROUP_BLOCKS
//! if AHEAD
            let w_{j}_{b} = ahead_{s}_{j}_{b};
//! else
            let w_{j}_{b} = weights_in(tile_start + (block + {b}u) * {TILE}u + {j}u * {LANES}u);
//! end
//! end
            let codes_{j}_0 = codes_0(w_{j}_0, w_{j}_{LAST_BLOCK});
            let codes_{j}_1 = codes_1(w_{j}_0, w_{j}_{LAST_BLOCK});
            let factor_{j} = scale_of(scales_{j}.x);
            // The next group's is the first again.
            scales_{j} = scales_{j}.yzwx;
//! for m in 0..TM
            let dot_{m}_{j} = dot16(codes_{j}_0, x_{m}_0) + dot16(codes_{j}_1, x_{m}_1);
            sum_{m}_{j} = fma(factor_{j}.x, f32(dot_{m}_{j}) * x_factor_{m}.x, sum_{m}_{j});
//! if NIBBLES
            sum_{m}_{j} = fma(factor_{j}.y, x_factor_{m}.y, sum_{m}_{j});
//! end
//! end
//! end
//! if AHEAD
            }
//! end
//! end
        }
        }
//! if CUT
        if (start < p.num_blocks) {
//! for m in 0..TM
            if (first_row + {m}u < p.num_rows) {
                let part_{m} = part_at(p, start / {CHUNK_BLOCKS}u, first_row + {m}u);
//! for j in 0..TN
                out[part_{m} + tile * {TILE}u + column + {j}u * {LANES}u] = sum_{m}_{j};
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
}
