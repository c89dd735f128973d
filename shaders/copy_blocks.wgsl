// out[out_blocks[z], :] = x[x_blocks[z], :]          one lane per copy z and element of a block

struct Params {
    blocks_at: u32,  // of the copies' sources or targets, in inputs
    block_len: u32,  // elements
}

var<immediate> params: Params;
// ..., sources [num_copies], targets [num_copies]
@group(0) @binding(0) var<storage, read>       inputs: array<u32>;
//! if IMAGES
//! if KV_F16
@group(0) @binding(1) var x: texture_storage_2d<rg32uint, read>;
@group(0) @binding(2) var out: texture_storage_2d<rg32uint, write>;
//! else
@group(0) @binding(1) var x: texture_storage_2d<rgba32float, read>;
@group(0) @binding(2) var out: texture_storage_2d<rgba32float, write>;
//! end
//! else
//! if KV_F16
@group(0) @binding(1) var<storage, read>       x: array<vec2<u32>>;
@group(0) @binding(2) var<storage, read_write> out: array<vec2<u32>>;
//! else
@group(0) @binding(1) var<storage, read>       x: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read_write> out: array<vec4<u32>>;
//! end
//! end

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
//! if IMAGES
        textureStore(out, texel(target_index), textureLoad(x, texel(source)));
//! else
        out[target_index] = x[source];
//! end
    }
}
