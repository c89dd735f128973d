
// What x is scaled by before it is multiplied, for the TILE_ROWS rows of a workgroup that stages x,
// where that wasn't computed before. As in matmul.wgsl: NORM_LANES lanes take every NORM_LANES-th
// vec4 of a row; their sums are added in order, eight at a time.

//! if OWN_NORM
var<workgroup> sh_squares: array<f32, {WORKGROUP}>;  // [NORM_ROWS, NORM_LANES]
var<workgroup> sh_scales: array<f32, {TILE_ROWS}>;

fn scale_rows(p: Params, first_row: u32, local: u32) {
//! if STACKED
    let num_rows = {TILE_ROWS}u;
//! else
    let num_rows = min(p.num_rows - first_row, {TILE_ROWS}u);
//! end
    for (var first = 0u; first < num_rows; first += {NORM_ROWS}u) {
        let r = first + local / {NORM_LANES}u;
        let row = row_start(p, first_row, min(r, {TILE_ROWS}u - 1u));
        var squares = 0.0;
        for (var i = local % {NORM_LANES}u; i < p.row_vec4s; i += {NORM_LANES}u) {
            let s = x_in(row + i);
            squares = fma(s.x, s.x, squares);
            squares = fma(s.y, s.y, squares);
            squares = fma(s.z, s.z, squares);
            squares = fma(s.w, s.w, squares);
        }
        sh_squares[local] = squares;
        workgroupBarrier();
        if (local % {NORM_LANES}u == 0u && r < {TILE_ROWS}u) {
            var mean = 0.0;
            for (var e = 0u; e < {NORM_LANES}u; e += 8u) {
                var eight = 0.0;
                for (var i = 0u; i < 8u; i++) {
                    eight += sh_squares[local + e + i];
                }
                mean += eight;
            }
            sh_scales[r] = inverseSqrt(mean / f32(4u * p.row_vec4s) + p.eps);
        }
        workgroupBarrier();
    }
}
//! end

//! if STACKED
var<workgroup> sh_rows: array<u32, {TILE_ROWS}>;  // where those of a part begin

fn row_start(p: Params, first_row: u32, r: u32) -> u32 {
    return sh_rows[r];
}
//! else
fn row_start(p: Params, first_row: u32, r: u32) -> u32 {
    return min(first_row + r, p.num_rows - 1u) * p.row_vec4s;
}
//! end

// The vec4 of x at `index` of the tile's row `r`, scaled.
fn staged_x(p: Params, first_row: u32, r: u32, index: u32) -> vec4<f32> {
    let value = x_at(p, row_start(p, first_row, r), index);
//! if APART
    let scale = row_scales[min(first_row + r, p.num_rows - 1u)];
    return value * scale * norm_in(min(index, p.row_vec4s - 1u));
//! else
//! if NORM
    return value * sh_scales[r] * norm_in(min(index, p.row_vec4s - 1u));
//! else
    return value;
//! end
//! end
}

//! if GROUPED
// What belongs to the group that `block` is in, of one column, beside its codes.
fn quad_at(scales_start: u32, block: u32, column: u32) -> Quad {
    return skipped(
        quad_of(
//! for s in 0..SIDES
            scales_in(scales_start + side_at(block, {s}u) * {TILE}u + column),
//! end
            block),
        block);
}
//! end
