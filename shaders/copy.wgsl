// out[i] = x[i]          each lane takes STRIDES vec4s, WORKGROUP apart

struct Params {
    num_vec4s: u32,
}

var<immediate> params: Params;
//! read x vec4s
//! write out vec4s

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
    write_out(index, x_in(index));
}
