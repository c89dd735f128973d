// Heads of queries and keys, normalised and rotated, and values, to where they belong.
//                                                        one workgroup per token and head
// What becomes of a vec4 of a head is said in matmul_out.wgsl.

struct Params {
    num_rows: u32,
    num_computed: u32,
    first_column: u32,
    tables_at: u32,     // in inputs
    num_heads: u32,
    num_kv_heads: u32,
    head_vec4s: u32,    // head_dim / 4
    rotary_vec4s: u32,  // rotary dimensions / 4
    has_bias: u32,
    eps: f32,
}

var<immediate> params: Params;
//! read x vec4<f32>  [num_rows, num_heads + 2 num_kv_heads, head_vec4s]
//! read norms vec4<f32>  of queries, then of keys [2, head_vec4s]
//! write out vec4s  [num_rows, num_heads, head_vec4s]
//! read inputs u32  ..., positions, table_starts, ..., tables
//! read bias vec4s  [num_heads + 2 num_kv_heads, head_vec4s]
//! read cos_sin vec4s  [max_positions, rotary dimensions / 4], cosine and sine of two pairs
//! write keys cache  [num_blocks, num_kv_heads, head_vec4s, BLOCK]
//! write values cache  [num_blocks, num_kv_heads, BLOCK, head_vec4s]

var<workgroup> sh_squares: array<f32, {LANES}>;

@compute @workgroup_size({LANES})
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    var p = params;
    let row = workgroup.x;
    let head = workgroup.y;
    let first = head * p.head_vec4s;
    let start = (row * (p.num_heads + 2u * p.num_kv_heads) + head) * p.head_vec4s;
    var squares = 0.0;
    for (var d = lane; d < p.head_vec4s; d += {LANES}u) {
        let value = with_bias(start + d, first + d, p.has_bias);
        squares = fma(value.x, value.x, squares);
        squares = fma(value.y, value.y, squares);
        squares = fma(value.z, value.z, squares);
        squares = fma(value.w, value.w, squares);
    }
    sh_squares[lane] = squares;
    workgroupBarrier();
    var sum = 0.0;
    for (var other = 0u; other < {LANES}u; other++) {
        sum += sh_squares[other];
    }
    let scale = inverseSqrt(sum / f32(4u * p.head_vec4s) + p.eps);
    let place = place_of(p, row);
    let has_bias = p.has_bias;
    p.has_bias = 0u;
    let norm = select(p.head_vec4s, 0u, head < p.num_heads);
    for (var d = lane; d < p.head_vec4s; d += {LANES}u) {
        let value = with_bias(start + d, first + d, has_bias);
        let normed = value * scale * norms[norm + d];
        let is_value = head >= p.num_heads + p.num_kv_heads;
        finish(p, row, 4u * (first + d), place, select(normed, value, is_value));
    }
}

fn with_bias(at: u32, column: u32, has_bias: u32) -> vec4<f32> {
    if (has_bias != 0u) {
        return x[at] + bias_in(column);
    }
    return x[at];
}
