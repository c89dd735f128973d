// out[i] = x[i]          each lane takes STRIDES vec4s, WORKGROUP apart

struct Params {
    num_vec4s: u32,
}

var<immediate> params: Params;
//! if IMAGES
@group(0) @binding(0) var x: texture_storage_2d<rgba32float, read>;
@group(0) @binding(1) var out: texture_storage_2d<rgba32float, write>;
//! else
@group(0) @binding(0) var<storage, read>       x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> out: array<vec4<f32>>;
//! end

@compute @workgroup_size({WORKGROUP})
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let first = workgroup.x * {WORKGROUP}u * {STRIDES}u + lane;
//! for i in 0..STRIDES
    copy(first + {i}u * {WORKGROUP}u);
//! end
}

fn copy(index: u32) {
    if (index >= params.num_vec4s) {
        return;
    }
//! if IMAGES
    textureStore(out, texel(index), textureLoad(x, texel(index)));
//! else
    out[index] = x[index];
//! end
}
