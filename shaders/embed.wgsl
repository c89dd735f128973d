// out[t, :] = table[token_ids[t], :]          one lane per token t and block of the row, for the
// rows of one shard

struct Params {
    first_row: u32,   // of the table, in this shard
    num_rows: u32,    // in this shard
    num_blocks: u32,  // of a row, padding included
    row_vec4s: u32,   // hidden_size / 4
}

var<immediate> params: Params;
// token_ids [num_tokens], ...
@group(0) @binding(0) var<storage, read>       inputs: array<u32>;
//! if IMAGES
// [tiles of TILE rows, num_blocks, TILE]
@group(0) @binding(1) var table: texture_storage_2d<rgba32uint, read>;
//! else
// [tiles of TILE rows, num_blocks, TILE]
@group(0) @binding(1) var<storage, read>       table: array<vec4<u32>>;
//! end
//! if IMAGES
// [num_tokens, hidden_size / 4]
@group(0) @binding(2) var out: texture_storage_2d<rgba32float, write>;
//! else
// [num_tokens, hidden_size / 4]
@group(0) @binding(2) var<storage, read_write> out: array<vec4<f32>>;
//! end

//! if GROUPED
// [tiles of TILE rows, num_quads, TILE], a word for each of four groups: scale, offset
//! if IMAGES
@group(0) @binding(3) var scales: texture_storage_2d<rgba32uint, read>;
//! else
@group(0) @binding(3) var<storage, read>       scales: array<vec4<u32>>;
//! end
//! end

@compute @workgroup_size({WORKGROUP})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let token = id.y;
    let block = id.x;
    // Wraps around for a row of an earlier shard, and is then too large.
    let row = inputs[token] - params.first_row;
    if (row >= params.num_rows || block >= params.num_blocks) {
        return;
    }
    let index = ((row / {TILE}u) * params.num_blocks + block) * {TILE}u + row % {TILE}u;
//! if IMAGES
    let stored = textureLoad(table, texel(index));
//! else
    let stored = table[index];
//! end
//! if GROUPED
    let start = row / {TILE}u * sides_of(params.num_blocks);
    let quad = skipped(
        quad_of(
//! for s in 0..SIDES
            scales_at((start + side_at(block, {s}u)) * {TILE}u + row % {TILE}u),
//! end
            block),
        block);
    let scale = factor_of(quad);
    let values = whole(stored, quad);
//! else
    let values = stored;
//! end
//! for p in 0..PARTS
    if (block * {PARTS}u + {p}u < params.row_vec4s) {
//! if OFFSET
        let value_{p} = decode_{p}(values) * scale.x + scale.y;
//! else
//! if GROUPED
        let value_{p} = decode_{p}(values) * scale.x;
//! else
        let value_{p} = decode_{p}(values);
//! end
//! end
        let at_{p} = token * params.row_vec4s + block * {PARTS}u + {p}u;
//! if IMAGES
        textureStore(out, texel(at_{p}), value_{p});
//! else
        out[at_{p}] = value_{p};
//! end
    }
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
