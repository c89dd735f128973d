enable f16;
enable wgpu_cooperative_matrix;

// The products of matmul.wgsl by cooperative matrices: x and weights rounded to f16, products and
// their sums as the matrix cores compute them, in f32
// one workgroup per GROUPS * 16 rows t, STRIP columns n; a subgroup of 32 lanes per 16 columns
//
// Sums run over k in ascending steps of 16, one row or many, so a row doesn't depend on its batch
// where the cores treat the rows of a tile alike. The bits are those of a class of its own.
//
// No subgroup operations here: a driver crashes on modules that have both.

// Padded rows: 16 lanes that read one column each meet different banks.
var<workgroup> sh_x: array<f16, {HALF_X}>;             // [TILE_ROWS, GROUP + 8]
var<workgroup> sh_weights: array<f16, {HALF_WEIGHTS}>; // [STRIP, GROUP + 8]
var<workgroup> sh_out: array<f32, {COOPERATIVE_OUT}>;  // [TILE_ROWS, STRIP]

@compute @workgroup_size({WORKGROUP})
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let p = params;
    let tile = workgroup.x;
    let tile_start = tile * p.num_blocks * {TILE}u;
    let first_row = workgroup.y * {TILE_ROWS}u;
    let first_column = local / 32u * 16u;
//! if GROUPED
    let num_quads = (p.num_blocks + {QUAD_BLOCKS}u - 1u) / {QUAD_BLOCKS}u;
    let scales_start = tile * num_quads * {TILE}u;
//! end
//! for m in 0..GROUPS
    var sum_{m}: coop_mat16x16<f32, C>;
//! end

//! if NORM
    scale_rows(p, first_row, local);
//! end
    for (var block = 0u; block < p.num_blocks; block += {STEP_BLOCKS}u) {
        workgroupBarrier();
        for (var i = local; i < {TILE_X}u; i += {WORKGROUP}u) {
            let value = vec4<f16>(staged_x(p, first_row, i / 8u, block * {PARTS}u + i % 8u));
            let place = i / 8u * 40u + i % 8u * 4u;
//! for c in 0..4
            sh_x[place + {c}u] = value[{c}u];
//! end
        }
        for (var i = local; i < {STRIP}u * {STEP_BLOCKS}u; i += {WORKGROUP}u) {
            let column = i % {STRIP}u;
            let b = i / {STRIP}u;
            let w = weights_at(tile_start + (block + b) * {TILE}u + column);
            let place = column * 40u + b * {PARTS}u * 4u;
//! if GROUPED
            let factor = factor_at(scales_start, block, column);
//! end
//! for q in 0..PARTS
//! if GROUPED
            let w_{q} = vec4<f16>(fma(decode_{q}(w), vec4<f32>(factor.x), vec4<f32>(factor.y)));
//! else
            let w_{q} = vec4<f16>(decode_{q}(w));
//! end
//! for c in 0..4
            sh_weights[place + {q}u * 4u + {c}u] = w_{q}[{c}u];
//! end
//! end
        }
        workgroupBarrier();
//! for k in 0..32 by SIDE
        let b_{k} = coopLoad<coop_mat16x16<f16, B>>(&sh_weights[first_column * 40u + {k}u], 40u);
//! for m in 0..GROUPS
        let a_{k}_{m} = coopLoadT<coop_mat16x16<f16, A>>(&sh_x[{m}u * 640u + {k}u], 40u);
        sum_{m} = coopMultiplyAdd(a_{k}_{m}, b_{k}, sum_{m});
//! end
//! end
    }

//! for m in 0..GROUPS
    coopStoreT(sum_{m}, &sh_out[{m}u * 16u * {STRIP}u + first_column], {STRIP}u);
//! end
    workgroupBarrier();
    for (var unit = local; unit < {TILE_ROWS}u * {STRIP}u / {UNIT}u; unit += {WORKGROUP}u) {
        let row = first_row + unit / ({STRIP}u / {UNIT}u);
        let first = unit * {UNIT}u;
        if (row < p.num_rows) {
            finish(p, row, tile * {TILE}u + first % {STRIP}u, place_of(p, row),
                vec4<f32>(sh_out[first], sh_out[first + 1u], sh_out[first + 2u],
                    sh_out[first + 3u]),
//! if SWIGLU
                vec4<f32>(sh_out[first + 4u], sh_out[first + 5u], sh_out[first + 6u],
                    sh_out[first + 7u]),
//! end
            );
        }
    }
}
