// The products of matmul.wgsl for many rows: operands pass through workgroup memory, so that each
// is loaded and decoded once for a whole tile of the product
// one workgroup per GROUPS * TM rows t, LANES * TN columns n; additions in matmul.wgsl's order

var<workgroup> sh_x: array<vec4<f32>, {TILE_X}>;              // [GROUP / 4, GROUPS * TM]
var<workgroup> sh_weights: array<vec4<f32>, {TILE_WEIGHTS}>;  // [GROUP / 4, TN, LANES]
//! if OFFSET
var<workgroup> sh_x_parts: array<f32, {TILE_X}>;              // [GROUP / 4, GROUPS * TM]
//! end
//! if GROUPED
var<workgroup> sh_factors: array<vec2<f32>, {STRIP}>;         // [TN, LANES], scale and offset
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
    let strip = (workgroup.x % {STRIPS}u) * {STRIP}u;
//! if STACKED
    let part = part_of(p, p.first_part + workgroup.y);
    let stored_tile = part.matrix * p.matrix_tiles + tile - p.first_tile;
    // Less than none is more than all.
    if (part.count == 0u || stored_tile >= p.num_tiles) {
        return;
    }
    let first_row = 0u;
    for (var r = local; r < {TILE_ROWS}u; r += {WORKGROUP}u) {
        sh_rows[r] = pair_of(p, part, min(r, part.count - 1u)) / p.pairs_per_row * p.x_stride;
    }
    workgroupBarrier();
//! else
    let stored_tile = tile;
    let first_row = workgroup.y * {TILE_ROWS}u;
//! end
    let tile_start = stored_tile * p.num_blocks * {TILE}u + strip * {SIDE_BY_SIDE}u;
//! if GROUPED
    let scales_start = stored_tile * sides_of(p.num_blocks) * {TILE}u + strip;
//! end
//! for m in 0..TM
//! for j in 0..TN
    var total_{m}_{j} = 0.0;
//! end
//! end

//! if OWN_NORM
    scale_rows(p, first_row, local);
//! end
    for (var chunk = 0u; chunk < p.num_blocks; chunk += {CHUNK_BLOCKS}u) {
//! for m in 0..TM
//! for j in 0..TN
        var sum_{m}_{j} = 0.0;
//! end
//! end
        let end = min(chunk + {CHUNK_BLOCKS}u, p.num_blocks);
        for (var block = chunk; block < end; block += {STEP_BLOCKS}u) {
            workgroupBarrier();
            for (var i = local; i < {TILE_X}u; i += {WORKGROUP}u) {
                let r = i / 8u;
                let value = staged_x(p, first_row, r, block * {PARTS}u + i % 8u);
                sh_x[i % 8u * {TILE_ROWS}u + r] = value;
//! if OFFSET
                // Of products, as in matmul.wgsl: a driver may add products in a way of its own, so
                // that the sum of what was stored would have other bits.
                sh_x_parts[i % 8u * {TILE_ROWS}u + r] =
                    (value.x + value.y) + (value.z + value.w);
//! end
            }
            for (var i = local; i < {STRIP}u * {STEP_BLOCKS}u; i += {WORKGROUP}u) {
                let column = i % {STRIP}u;
                let b = i / {STRIP}u;
                let stored =
                    weights_in(tile_start + block_at(block + b) + column * {SIDE_BY_SIDE}u);
//! if GROUPED
                let w = whole(stored, quad_at(scales_start, block, column));
//! else
                let w = stored;
//! end
                let place = b * {PARTS}u * {STRIP}u + place_in_strip(column);
//! for q in 0..PARTS
                sh_weights[place + {q}u * {STRIP}u] = decode_{q}(w);
//! end
            }
//! if GROUPED
            for (var i = local; i < {STRIP}u; i += {WORKGROUP}u) {
                sh_factors[place_in_strip(i)] = factor_of(quad_at(scales_start, block, i));
            }
//! end
            workgroupBarrier();
//! if GROUPED
//! for m in 0..TM
//! if OFFSET
            var x_sum_{m} = 0.0;
//! end
//! for j in 0..TN
            var acc_{m}_{j} = 0.0;
//! end
//! end
//! end
            for (var q = 0u; q < 8u; q++) {
//! for j in 0..TN
                let w_{j} = sh_weights[q * {STRIP}u + {j}u * {LANES}u + lane];
//! end
//! for m in 0..TM
                let x_{m} = sh_x[q * {TILE_ROWS}u + {m}u * {GROUPS}u + group];
//! if OFFSET
                x_sum_{m} += sh_x_parts[q * {TILE_ROWS}u + {m}u * {GROUPS}u + group];
//! end
//! for j in 0..TN
//! if GROUPED
                acc_{m}_{j} = fma(w_{j}.x, x_{m}.x, acc_{m}_{j});
                acc_{m}_{j} = fma(w_{j}.y, x_{m}.y, acc_{m}_{j});
                acc_{m}_{j} = fma(w_{j}.z, x_{m}.z, acc_{m}_{j});
                acc_{m}_{j} = fma(w_{j}.w, x_{m}.w, acc_{m}_{j});
//! else
                sum_{m}_{j} = fma(w_{j}.x, x_{m}.x, sum_{m}_{j});
                sum_{m}_{j} = fma(w_{j}.y, x_{m}.y, sum_{m}_{j});
                sum_{m}_{j} = fma(w_{j}.z, x_{m}.z, sum_{m}_{j});
                sum_{m}_{j} = fma(w_{j}.w, x_{m}.w, sum_{m}_{j});
//! end
//! end
//! end
            }
//! if GROUPED
//! for j in 0..TN
            let factor_{j} = sh_factors[{j}u * {LANES}u + lane];
//! for m in 0..TM
            sum_{m}_{j} = fma(factor_{j}.x, acc_{m}_{j}, sum_{m}_{j});
//! if OFFSET
            sum_{m}_{j} = fma(factor_{j}.y, x_sum_{m}, sum_{m}_{j});
//! end
//! end
//! end
//! end
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

// Where a column of the strip is kept: lanes side by side read side by side.
fn place_in_strip(column: u32) -> u32 {
    return column % {TN}u * {LANES}u + column / {TN}u;
}
