// out[t, :] = table[token_ids[t], :]          one lane per token t and block of the row, for the
// rows of one shard

struct Params {
    first_row: u32,   // of the table, in this shard
    num_rows: u32,    // in this shard
    num_blocks: u32,  // of a row, padding included
    row_vec4s: u32,   // hidden_size / 4
}

var<immediate> params: Params;
//! read inputs u32  token_ids [num_tokens], ...
//! read table blocks  [tiles of TILE rows, num_blocks, TILE]
//! write out vec4s  [num_tokens, hidden_size / 4]
//! if GROUPED
// a word for each of four groups: scale, offset
//! read scales blocks  [tiles of TILE rows, num_quads, TILE]
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
    let tile_start = (row / {TILE}u) * params.num_blocks * {TILE}u;
    let stored = table_in(tile_start + block_at(block) + row % {TILE}u * {SIDE_BY_SIDE}u);
//! if GROUPED
    let start = row / {TILE}u * sides_of(params.num_blocks);
    let quad = skipped(
        quad_of(
//! for s in 0..SIDES
            scales_in((start + side_at(block, {s}u)) * {TILE}u + row % {TILE}u),
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
        write_out(at_{p}, value_{p});
    }
//! end
}
