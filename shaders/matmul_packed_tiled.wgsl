// The products of matmul_packed.wgsl for many rows: operands pass through workgroup memory, so that
// each is loaded once for a whole tile of the product
// one workgroup per GROUPS * TM rows t, LANES * TN columns n; additions in matmul_packed.wgsl's
// order

var<workgroup> sh_x: array<vec4<u32>, {PACKED_X}>;             // [STAGED, 2, GROUPS * TM]
var<workgroup> sh_x_factors: array<vec2<f32>, {X_FACTORS}>;    // [STAGED, GROUPS * TM]
var<workgroup> sh_weights: array<vec4<u32>, {PACKED_WEIGHTS}>; // [STAGED, 2, TN, LANES]
var<workgroup> sh_factors: array<vec2<f32>, {FACTORS}>;        // [STAGED, TN, LANES]

@compute @workgroup_size({WORKGROUP})
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let p = params;
    let lane = local % {LANES}u;
    let group = local / {LANES}u;
    let tile = workgroup.x / {STRIPS}u;
    let strip = (workgroup.x % {STRIPS}u) * {STRIP}u;
//! if STACKED
    let part = part_of(p, p.first_part + workgroup.y);
    let stored_tile = part.matrix * p.matrix_tiles + tile - p.first_tile;
    // Less than none is more than all.
    if (part.count == 0u || stored_tile >= p.num_tiles) {
        return;
    }
//! else
    let stored_tile = tile;
    let first_row = workgroup.y * {TILE_ROWS}u;
//! end
    let tile_start = stored_tile * p.num_blocks * {TILE}u + strip;
    let num_quads = (p.num_blocks + {QUAD_BLOCKS}u - 1u) / {QUAD_BLOCKS}u;
    let scales_start = stored_tile * num_quads * {TILE}u + strip;
//! for m in 0..TM
//! for j in 0..TN
    var total_{m}_{j} = 0.0;
//! end
//! end

    for (var chunk = 0u; chunk < p.num_blocks; chunk += {CHUNK_BLOCKS}u) {
//! for m in 0..TM
//! for j in 0..TN
        var sum_{m}_{j} = 0.0;
//! end
//! end
        let end = min(chunk + {CHUNK_BLOCKS}u, p.num_blocks);
        for (var block = chunk; block < end; block += {STAGED}u * {GROUP_BLOCKS}u) {
            let num_groups = min({STAGED}u, (end - block) / {GROUP_BLOCKS}u);
            let first_group = block / {GROUP_BLOCKS}u;
            workgroupBarrier();
            for (var i = local; i < num_groups * {TILE_ROWS}u; i += {WORKGROUP}u) {
                let g = i / {TILE_ROWS}u;
                let r = i % {TILE_ROWS}u;
//! if STACKED
                let row = pair_of(p, part, min(r, part.count - 1u)) / p.pairs_per_row * p.x_stride;
//! else
                let row = min(first_row + r, p.num_rows - 1u) * p.row_vec4s;
//! end
                let at = row + (first_group + g) * 3u;
                sh_x[g * 2u * {TILE_ROWS}u + r] = x_in(at);
                sh_x[(g * 2u + 1u) * {TILE_ROWS}u + r] = x_in(at + 1u);
                sh_x_factors[i] = bitcast<vec2<f32>>(x_in(at + 2u).xy);
            }
            for (var i = local; i < num_groups * {STRIP}u; i += {WORKGROUP}u) {
                let g = i / {STRIP}u;
                let column = i % {STRIP}u;
                let place = column % {TN}u * {LANES}u + column / {TN}u;
//! for b in 0..GROUP_BLOCKS
                let w_{b} = weights_in(
                    tile_start + (block + g * {GROUP_BLOCKS}u + {b}u) * {TILE}u + column);
//! end
                sh_weights[g * 2u * {STRIP}u + place] = codes_0(w_0, w_{LAST_BLOCK});
                sh_weights[(g * 2u + 1u) * {STRIP}u + place] = codes_1(w_0, w_{LAST_BLOCK});
                let quad = scales_in(scales_start + (first_group + g) / 4u * {TILE}u + column);
                sh_factors[g * {STRIP}u + place] = scale_of(quad[(first_group + g) % 4u]);
            }
            workgroupBarrier();
            for (var g = 0u; g < num_groups; g++) {
//! for m in 0..TM
//! for j in 0..TN
                var dot_{m}_{j} = 0;
//! end
//! end
                for (var half = g * 2u; half < g * 2u + 2u; half++) {
//! for j in 0..TN
                    let w_{j} = sh_weights[half * {STRIP}u + {j}u * {LANES}u + lane];
//! end
//! for m in 0..TM
                    let x_{m} = sh_x[half * {TILE_ROWS}u + {m}u * {GROUPS}u + group];
//! for j in 0..TN
                    dot_{m}_{j} += dot16(w_{j}, x_{m});
//! end
//! end
                }
//! for j in 0..TN
                let factor_{j} = sh_factors[g * {STRIP}u + {j}u * {LANES}u + lane];
//! end
//! for m in 0..TM
                let x_factor_{m} = sh_x_factors[g * {TILE_ROWS}u + {m}u * {GROUPS}u + group];
//! for j in 0..TN
                sum_{m}_{j} = fma(factor_{j}.x, f32(dot_{m}_{j}) * x_factor_{m}.x, sum_{m}_{j});
//! if NIBBLES
                sum_{m}_{j} = fma(factor_{j}.y, x_factor_{m}.y, sum_{m}_{j});
//! end
//! end
//! end
            }
        }
//! for m in 0..TM
//! for j in 0..TN
        total_{m}_{j} += sum_{m}_{j};
//! end
//! end
    }

//! for m in 0..TM
//! if STACKED
    let of_part_{m} = {m}u * {GROUPS}u + group;
    if (of_part_{m} < part.count) {
        let row_{m} = pair_of(p, part, of_part_{m});
//! else
    let row_{m} = first_row + {m}u * {GROUPS}u + group;
    if (row_{m} < p.num_rows) {
//! end
        let place_{m} = place_of(p, row_{m});
//! for j in 0..TN by UNIT
        finish(p, row_{m}, tile * {TILE}u + strip + lane * {TN}u + {j}u, place_{m},
            vec4<f32>(total_{m}_{j}, total_{m}_{j+1}, total_{m}_{j+2}, total_{m}_{j+3}),
//! if SWIGLU
            vec4<f32>(total_{m}_{j+4}, total_{m}_{j+5}, total_{m}_{j+6}, total_{m}_{j+7}),
//! end
        );
//! end
    }
//! end
}
