
// What a workgroup computes: a tile of tokens, whose kernel comes before this.

@compute @workgroup_size({LANES})
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    // Heads that share keys and values follow each other, so that caches still hold those.
    let first_head = workgroup.x * {QUERIES}u;
    let first = params.first_token + workgroup.z * {TOKENS}u;
    let last = min(first + {TOKENS}u, params.num_tokens) - 1u;
    // Side by side, a workgroup has a partition; else all of them, one after another.
    var partitions = vec2<u32>(0u, 0xffffffffu);
    if (params.num_partitions > 0u) {
        partitions = vec2<u32>(workgroup.y, workgroup.y + 1u);
    }
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
