// out[t, n] (+)= sum over k of x[t, k] * weights[n, k]  (+ bias[n])          one workgroup per TM
// rows t, LANES * TN columns n
//
// The order of additions is one for all variants, and a function of K alone: K is cut into chunks
// of CHUNK values; in a chunk one chain of fma in ascending k, from zero; the sums of the chunks
// are added in ascending order. Where the weights of a group of 32 share a scale, the chain runs in
// the group, and the chunk's chain takes in scale * sum, then offset * (sum of the group's x).

struct Params {
    num_rows: u32,      // of x
    num_columns: u32,   // of out
    first_column: u32,  // of out that these weights compute
    num_computed: u32,  // columns that these weights compute, without padding
    row_vec4s: u32,     // K / 4
    num_blocks: u32,    // blocks of a row of weights, padding included
    has_bias: u32,
    adds: u32,          // whether the result is added to what is in out
}

var<immediate> params: Params;
//! if IMAGES
@group(0) @binding(0) var x: texture_2d<f32>;                              // [num_rows, K / 4]
// [tiles of TILE columns, num_blocks, TILE]
@group(0) @binding(1) var weights: texture_2d<u32>;
//! else
@group(0) @binding(0) var<storage, read>       x: array<vec4<f32>>;        // [num_rows, K / 4]
// [tiles of TILE columns, num_blocks, TILE]
@group(0) @binding(1) var<storage, read>       weights: array<vec4<u32>>;
//! end
@group(0) @binding(2) var<storage, read>       bias: array<f32>;           // [num_columns]
// [num_rows, num_columns]
@group(0) @binding(3) var<storage, read_write> out: array<f32>;

//! if GROUPED
// [tiles of TILE columns, num_quads, TILE], a word for each of four groups: scale, offset
//! if IMAGES
@group(0) @binding(4) var scales: texture_2d<u32>;
//! else
@group(0) @binding(4) var<storage, read>       scales: array<vec4<u32>>;
//! end
//! end

//! if SPLIT
var<workgroup> sh_sums: array<f32, {SPLIT_SUMS}>;  // [SPLIT, TM, TN, LANES]
//! end

@compute @workgroup_size({WORKGROUP})
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
//! if SUBGROUP
    @builtin(subgroup_invocation_id) subgroup_lane: u32,
//! end
) {
    let lane = local % {LANES}u;
    let group = local / {LANES}u;
    let tile = workgroup.x / {STRIPS}u;
    let column = (workgroup.x % {STRIPS}u) * ({LANES}u * {TN}u) + lane;
    let tile_start = tile * params.num_blocks * {TILE}u + column;
    let first_row = workgroup.y * {TM}u;
//! if GROUPED
    let num_quads = (params.num_blocks + {QUAD_BLOCKS}u - 1u) / {QUAD_BLOCKS}u;
    let scales_start = tile * num_quads * {TILE}u + column;
//! end
//! for m in 0..TM
    // Rows past the last one are computed like it and not stored.
    let row_{m} = min(first_row + {m}u, params.num_rows - 1u) * params.row_vec4s;
//! for j in 0..TN
    var total_{m}_{j} = 0.0;
//! end
//! end

    for (var chunk = 0u; chunk < params.num_blocks; chunk += {CHUNK_BLOCKS}u * {GROUPS}u) {
        let start = chunk + group * {CHUNK_BLOCKS}u;
        let end = min(start + {CHUNK_BLOCKS}u, params.num_blocks);
//! if GROUPED
//! for m in 0..TM
//! for j in 0..TN
        var sum_{m}_{j} = 0.0;
//! end
//! end
        for (var quad = start; quad < end; quad += {QUAD_BLOCKS}u) {
//! for j in 0..TN
        var scales_{j} =
            scales_at(scales_start + (quad / {QUAD_BLOCKS}u) * {TILE}u + {j}u * {LANES}u);
//! end
        let quad_end = min(quad + {QUAD_BLOCKS}u, end);
        for (var block = quad; block < quad_end; block += {STEP_BLOCKS}u) {
//! for m in 0..TM
//! for j in 0..TN
            var acc_{m}_{j} = 0.0;
//! end
//! if OFFSET
            var x_sum_{m} = 0.0;
//! end
//! end
//! else
//! for m in 0..TM
//! for j in 0..TN
        var acc_{m}_{j} = 0.0;
//! end
//! end
        for (var block = start; block < end; block += {STEP_BLOCKS}u) {
//! end
//! if SUBGROUP
//! for m in 0..TM
            // Eight lanes load one vec4 each: the 32 values of this step.
            let x_{m} = x_at(row_{m}, block * {PARTS}u + (subgroup_lane & 7u));
//! end
//! end
//! for b in 0..STEP_BLOCKS
//! for j in 0..TN
            let w_{b}_{j} = weights_at(tile_start + (block + {b}u) * {TILE}u + {j}u * {LANES}u);
//! end
//! for p in 0..PARTS
//! for m in 0..TM
//! if SUBGROUP
            let x_{m}_{b}_{p} = subgroupBroadcast(x_{m}, {b}u * {PARTS}u + {p}u);
//! else
            let x_{m}_{b}_{p} = x_at(row_{m}, (block + {b}u) * {PARTS}u + {p}u);
//! end
//! if OFFSET
            x_sum_{m} += (x_{m}_{b}_{p}.x + x_{m}_{b}_{p}.y) + (x_{m}_{b}_{p}.z + x_{m}_{b}_{p}.w);
//! end
//! end
//! for j in 0..TN
            let w_{b}_{j}_{p} = decode_{p}(w_{b}_{j});
//! for m in 0..TM
            acc_{m}_{j} = fma(w_{b}_{j}_{p}.x, x_{m}_{b}_{p}.x, acc_{m}_{j});
            acc_{m}_{j} = fma(w_{b}_{j}_{p}.y, x_{m}_{b}_{p}.y, acc_{m}_{j});
            acc_{m}_{j} = fma(w_{b}_{j}_{p}.z, x_{m}_{b}_{p}.z, acc_{m}_{j});
            acc_{m}_{j} = fma(w_{b}_{j}_{p}.w, x_{m}_{b}_{p}.w, acc_{m}_{j});
//! end
//! end
//! end
//! end
//! if GROUPED
//! for j in 0..TN
            let scale_{j} = unpack2x16float(scales_{j}.x);
            // The next group's is the first again.
            scales_{j} = scales_{j}.yzwx;
//! for m in 0..TM
            sum_{m}_{j} = fma(scale_{j}.x, acc_{m}_{j}, sum_{m}_{j});
//! if OFFSET
            sum_{m}_{j} = fma(scale_{j}.y, x_sum_{m}, sum_{m}_{j});
//! end
//! end
//! end
        }
        }
//! else
        }
//! for m in 0..TM
//! for j in 0..TN
        let sum_{m}_{j} = acc_{m}_{j};
//! end
//! end
//! end
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
            (params.num_blocks - chunk + {CHUNK_BLOCKS}u - 1u) / {CHUNK_BLOCKS}u);
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
    }

    if (group != 0u) {
        return;
    }
//! for m in 0..TM
    if (first_row + {m}u < params.num_rows) {
//! for j in 0..TN
        store(first_row + {m}u, tile * {TILE}u + column + {j}u * {LANES}u, total_{m}_{j});
//! end
    }
//! end
}

// A vec4 of x; zero where the weights are padded, since whatever follows a row in memory may be
// infinite.
fn x_at(row: u32, index: u32) -> vec4<f32> {
    let i = row + min(index, params.row_vec4s - 1u);
//! if IMAGES
    let value = textureLoad(x, texel(i), 0);
//! else
    let value = x[i];
//! end
    return select(vec4<f32>(0.0), value, index < params.row_vec4s);
}

fn weights_at(index: u32) -> vec4<u32> {
//! if IMAGES
    return textureLoad(weights, texel(index), 0);
//! else
    return weights[index];
//! end
}

//! if GROUPED
fn scales_at(index: u32) -> vec4<u32> {
//! if IMAGES
    return textureLoad(scales, texel(index), 0);
//! else
    return scales[index];
//! end
}
//! end

fn store(row: u32, computed: u32, total: f32) {
    if (computed >= params.num_computed) {
        return;
    }
    let column = params.first_column + computed;
    let index = row * params.num_columns + column;
    var value = total;
    if (params.has_bias != 0u) {
        value += bias[column];
    }
    if (params.adds != 0u) {
        value += out[index];
    }
    out[index] = value;
}
