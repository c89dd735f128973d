// What products read and write, and how: shared by the kernels that lay the work out differently.

struct Params {
    num_rows: u32,      // of x
    num_columns: u32,   // of y
    first_column: u32,  // of y that these weights compute
    num_computed: u32,  // columns that these weights compute, without padding
    row_vec4s: u32,     // of a row of x: K / 4; PACKED: groups * 3
    num_blocks: u32,    // blocks of a row of weights, padding included
    eps: f32,           // NORM
    tables_at: u32,     // QKV: in inputs
    num_heads: u32,     // QKV
    num_kv_heads: u32,  // QKV
    head_vec4s: u32,    // QKV: head_dim / 4
    rotary_vec4s: u32,  // QKV: rotary dimensions / 4
    has_bias: u32,      // QKV
//! if STACKED
    num_matrices: u32,
    matrix_tiles: u32,   // of one matrix
    first_tile: u32,     // of the stack that these weights have
    num_tiles: u32,      // of the stack that these weights have
    pairs_per_row: u32,  // of a row of x and a matrix: as many are neighbours in y
    x_stride: u32,       // vec4s from one row of x to the next
    out_values: u32,     // from one row of y to the next
    chosen_at: u32,      // ROUTED: in routes
    sorted_at: u32,      // ROUTED: in routes
    parts_at: u32,       // ROUTED: in routes
    first_part: u32,     // of this dispatch
//! end
}

var<immediate> params: Params;
//! if SUMS
// of the chunks that matmul.wgsl summed
//! read parts vec4<f32>  [chunks of k, num_rows, columns in whole tiles / 4]
//! else
//! if PACKED
//! read x blocks  [num_rows, groups, 3], of quantize_rows.wgsl
//! else
//! read x vec4s  [num_rows, K / 4]
//! end
//! if COOPERATIVE
//! read weights vec4<f16>  [tiles of TILE columns, K / SIDE, TILE, SIDE / 4]
//! else
//! read weights blocks  [tiles of TILE columns, num_blocks, TILE]
//! end
//! if GROUPED
// a word for each of four groups: scale, offset
//! read scales blocks  [tiles of TILE columns, num_quads, TILE]
//! end
//! end
//! if STORE
//! write out f32  [num_rows, num_columns], CUT: as parts of matmul_sum.wgsl
//! else
//! write out vec4s  [num_rows, num_columns / 4], SWIGLU: / 8, QKV: the queries of it
//! end
//! if RESIDUAL
//! read residual vec4s  [num_rows, num_columns / 4]
//! end
//! if QKV
//! read inputs u32  ..., positions, table_starts, ..., tables
//! read bias vec4s  [num_columns / 4]
//! read cos_sin vec4s  [max_positions, rotary dimensions / 4], cosine and sine of two pairs
//! write keys cache  [num_blocks, num_kv_heads, head_dim / 4, BLOCK]
//! write values cache  [num_blocks, num_kv_heads, BLOCK, head_dim / 4]
//! end
// Last, so that a product with a norm and a gate is bound as one with a residual is.
//! if NORM
//! read norm vec4s  [K / 4]
//! end
//! if APART
//! read row_scales f32  [num_rows]
//! end
//! if ROUTED
//! read routes u32  chosen [pairs], weights [pairs], sorted [pairs], counts, parts [num_parts, 3]
//! end

//! if CUT
// Where the sums of a chunk and a row begin.
fn part_at(p: Params, chunk: u32, row: u32) -> u32 {
    let columns = (p.num_computed + {TILE}u - 1u) / {TILE}u * {TILE}u;
    return (chunk * p.num_rows + row) * columns;
}
//! end

//! if SUMS
//! else
//! if PACKED
//! else
// A vec4 of x; zero where the weights are padded, since whatever follows a row in memory may be
// infinite.
fn x_at(p: Params, row: u32, index: u32) -> vec4<f32> {
    let value = x_in(row + min(index, p.row_vec4s - 1u));
    return select(vec4<f32>(0.0), value, index < p.row_vec4s);
}
//! end
//! end

//! if STACKED
// Rows that one workgroup multiplies with the same matrix of the stack. A row of x and a matrix
// that it is multiplied with are a pair, and a row of y.
struct Part {
    matrix: u32,
    first: u32,
    count: u32,
}

//! if ROUTED
//! if LONE
fn part_of(p: Params, number: u32) -> Part {
    return Part(routes[p.chosen_at + number], number, 1u);
}

fn pair_of(p: Params, part: Part, m: u32) -> u32 {
    return part.first;
}
//! else
fn part_of(p: Params, number: u32) -> Part {
    let at = p.parts_at + 3u * number;
    return Part(routes[at], routes[at + 1u], routes[at + 2u]);
}

fn pair_of(p: Params, part: Part, m: u32) -> u32 {
    return routes[p.sorted_at + part.first + m];
}
//! end
//! else
// Every row has a part for each matrix.
fn part_of(p: Params, number: u32) -> Part {
    let first = number / p.num_matrices * {TILE_ROWS}u;
    return Part(number % p.num_matrices, first, min({TILE_ROWS}u, p.num_rows - first));
}

fn pair_of(p: Params, part: Part, m: u32) -> u32 {
    return (part.first + m) * p.num_matrices + part.matrix;
}
//! end
//! end
