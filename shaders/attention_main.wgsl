
// What a workgroup computes: a tile of tokens, whose kernel comes before this.

@compute @workgroup_size({LANES})
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    // Side by side, a workgroup has a partition; else all of them, one after another. Those that
    // read the same follow each other, so that caches still hold it: heads of one kv head, and then
    // tokens, whose sequences may have blocks in common.
    var first_head = workgroup.x * {QUERIES}u;
    var tile = workgroup.z;
    var partitions = vec2<u32>(workgroup.y, workgroup.y + 1u);
    if (params.num_partitions == 0u) {
        first_head += workgroup.z * (params.num_heads / params.num_kv_heads);
        tile = workgroup.y;
        partitions = vec2<u32>(0u, 0xffffffffu);
    }
    let first = params.first_token + tile * {TOKENS}u;
    let last = min(first + {TOKENS}u, params.num_tokens) - 1u;
//! if TILED
    // Never the lone tokens of decoding, nor those of two sequences.
    var together = last > first;
    for (var token = first + 1u; token <= last; token++) {
        together = together && table_start(token) == table_start(first);
    }
    if (together) {
        attend_{TOKENS}(first, last, first_head, partitions, lane);
        return;
    }
    for (var token = first; token <= last; token++) {
        attend_1(token, token, first_head, partitions, lane);
    }
//! else
    attend_1(first, first, first_head, partitions, lane);
//! end
}

fn table_start(token: u32) -> u32 {
    return inputs[2u * params.num_tokens + token];
}
