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
//! end
}

var<immediate> params: Params;
//! if SUMS
// [chunks of k, num_rows, columns in whole tiles / 4], of the chunks that matmul.wgsl summed
@group(0) @binding(0) var<storage, read>       parts: array<vec4<f32>>;
//! else
//! if PACKED
// [num_rows, groups, 3], of quantize_rows.wgsl
//! if IMAGES
@group(0) @binding(0) var x: texture_storage_2d<rgba32uint, read>;
//! else
@group(0) @binding(0) var<storage, read>       x: array<vec4<u32>>;
//! end
//! else
//! if IMAGES
@group(0) @binding(0) var x: texture_storage_2d<rgba32float, read>; // [num_rows, K / 4]
//! else
@group(0) @binding(0) var<storage, read>       x: array<vec4<f32>>; // [num_rows, K / 4]
//! end
//! end
//! if IMAGES
// [tiles of TILE columns, num_blocks, TILE]
@group(0) @binding(1) var weights: texture_storage_2d<rgba32uint, read>;
//! else
// [tiles of TILE columns, num_blocks, TILE]
@group(0) @binding(1) var<storage, read>       weights: array<vec4<u32>>;
//! end
//! if GROUPED
// [tiles of TILE columns, num_quads, TILE], a word for each of four groups: scale, offset
//! if IMAGES
@group(0) @binding({AT_SCALES}) var scales: texture_storage_2d<rgba32uint, read>;
//! else
@group(0) @binding({AT_SCALES}) var<storage, read>       scales: array<vec4<u32>>;
//! end
//! end
//! end
//! if NORM
//! if IMAGES
@group(0) @binding({AT_NORM}) var norm: texture_storage_2d<rgba32float, read>; // [K / 4]
//! else
@group(0) @binding({AT_NORM}) var<storage, read>       norm: array<vec4<f32>>;   // [K / 4]
//! end
//! end
//! if APART
@group(0) @binding({AT_ROW_SCALES}) var<storage, read>       row_scales: array<f32>;  // [num_rows]
//! end
//! if STORE
// [num_rows, num_columns], CUT: as parts of matmul_sum.wgsl
@group(0) @binding({AT_OUT}) var<storage, read_write> out: array<f32>;
//! else
//! if IMAGES
// [num_rows, num_columns / 4], SWIGLU: / 8, QKV: the queries of it
@group(0) @binding({AT_OUT}) var out: texture_storage_2d<rgba32float, write>;
//! else
// [num_rows, num_columns / 4], SWIGLU: / 8, QKV: the queries of it
@group(0) @binding({AT_OUT}) var<storage, read_write> out: array<vec4<f32>>;
//! end
//! end
//! if ROUTED
// chosen [pairs], weights [pairs], sorted [pairs], counts [num_matrices], parts [num_parts, 3]
@group(0) @binding({AT_ROUTES}) var<storage, read>       routes: array<u32>;
//! end
//! if RESIDUAL
//! if IMAGES
// [num_rows, num_columns / 4]
@group(0) @binding({AT_RESIDUAL}) var residual: texture_storage_2d<rgba32float, read>;
//! else
// [num_rows, num_columns / 4]
@group(0) @binding({AT_RESIDUAL}) var<storage, read>       residual: array<vec4<f32>>;
//! end
//! end
//! if QKV
// ..., positions, table_starts, ..., tables
@group(0) @binding({AT_INPUTS}) var<storage, read>       inputs: array<u32>;
//! if IMAGES
@group(0) @binding({AT_BIAS}) var bias: texture_storage_2d<rgba32float, read>; // [num_columns / 4]
// [max_positions, rotary dimensions / 4], cosine and sine of two pairs
@group(0) @binding({AT_COS_SIN}) var cos_sin: texture_storage_2d<rgba32float, read>;
//! if KV_F16
// [num_blocks, num_kv_heads, head_dim / 4, BLOCK]
@group(0) @binding({AT_KEYS}) var keys: texture_storage_2d<rg32uint, write>;
// [num_blocks, num_kv_heads, BLOCK, head_dim / 4]
@group(0) @binding({AT_VALUES}) var values: texture_storage_2d<rg32uint, write>;
//! else
// [num_blocks, num_kv_heads, head_dim / 4, BLOCK]
@group(0) @binding({AT_KEYS}) var keys: texture_storage_2d<rgba32float, write>;
// [num_blocks, num_kv_heads, BLOCK, head_dim / 4]
@group(0) @binding({AT_VALUES}) var values: texture_storage_2d<rgba32float, write>;
//! end
//! else
@group(0) @binding({AT_BIAS}) var<storage, read>       bias: array<vec4<f32>>;
// [max_positions, rotary dimensions / 4], cosine and sine of two pairs
@group(0) @binding({AT_COS_SIN}) var<storage, read>       cos_sin: array<vec4<f32>>;
//! if KV_F16
// [num_blocks, num_kv_heads, head_dim / 4, BLOCK]
@group(0) @binding({AT_KEYS}) var<storage, read_write> keys: array<vec2<u32>>;
// [num_blocks, num_kv_heads, BLOCK, head_dim / 4]
@group(0) @binding({AT_VALUES}) var<storage, read_write> values: array<vec2<u32>>;
//! else
// [num_blocks, num_kv_heads, head_dim / 4, BLOCK]
@group(0) @binding({AT_KEYS}) var<storage, read_write> keys: array<vec4<f32>>;
// [num_blocks, num_kv_heads, BLOCK, head_dim / 4]
@group(0) @binding({AT_VALUES}) var<storage, read_write> values: array<vec4<f32>>;
//! end
//! end
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
fn packed_x(index: u32) -> vec4<u32> {
//! if IMAGES
    return textureLoad(x, texel(index));
//! else
    return x[index];
//! end
}
//! else
// A vec4 of x; zero where the weights are padded, since whatever follows a row in memory may be
// infinite.
fn x_at(p: Params, row: u32, index: u32) -> vec4<f32> {
    let value = x_in(row + min(index, p.row_vec4s - 1u));
    return select(vec4<f32>(0.0), value, index < p.row_vec4s);
}

fn x_in(index: u32) -> vec4<f32> {
//! if IMAGES
    return textureLoad(x, texel(index));
//! else
    return x[index];
//! end
}
//! end

//! if NORM
fn norm_in(index: u32) -> vec4<f32> {
//! if IMAGES
    return textureLoad(norm, texel(index));
//! else
    return norm[index];
//! end
}
//! end

fn weights_at(index: u32) -> vec4<u32> {
//! if IMAGES
    return textureLoad(weights, texel(index));
//! else
    return weights[index];
//! end
}

//! if GROUPED
fn scales_at(index: u32) -> vec4<u32> {
//! if IMAGES
    return textureLoad(scales, texel(index));
//! else
    return scales[index];
//! end
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
