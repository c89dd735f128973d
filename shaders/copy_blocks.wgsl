// out[out_blocks[z], :] = x[x_blocks[z], :]          one lane per copy z and element of a block

struct Params {
    blocks_at: u32,  // of the copies' sources or targets, in inputs
    block_len: u32,  // elements
}

var<immediate> params: Params;
//! read inputs u32  ..., sources [num_copies], targets [num_copies]
//! read x stored  [num_blocks or num_copies, block_len]
//! write out stored  the other of both

@compute @workgroup_size({WORKGROUP})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x < params.block_len) {
        let block = inputs[params.blocks_at + id.z];
//! if GATHERS
        let source = block * params.block_len + id.x;
        let target_index = id.z * params.block_len + id.x;
//! else
        let source = id.z * params.block_len + id.x;
        let target_index = block * params.block_len + id.x;
//! end
        write_out(target_index, x_in(source));
    }
}
