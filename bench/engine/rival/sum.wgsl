// out[i] = sum over s of parts[s, i]

struct Params {
    num_parts: u32,
    len: u32,
}

var<immediate> params: Params;
@group(0) @binding(0) var<storage, read>       parts: array<f32>;  // [num_parts, len]
@group(0) @binding(1) var<storage, read_write> out: array<f32>;    // [len]

@compute @workgroup_size({WORKGROUP})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x >= params.len) {
        return;
    }
    var sum = 0.0;
    for (var part = 0u; part < params.num_parts; part++) {
        sum += parts[part * params.len + id.x];
    }
    out[id.x] = sum;
}
