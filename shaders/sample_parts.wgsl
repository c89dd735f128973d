// Of each partition of a row: its best token, and, where all tokens may be drawn or logprobs are
// wanted, the sum of w = exp((z - max z) / temperature), relative to it
//                                                     one workgroup per partition and row

@compute @workgroup_size({LANES})
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let row = rows[params.first_row + workgroup.y];
    let is_raw = params.is_raw != 0u;
    if (select(row.samples, row.wants_logprobs, is_raw) == 0u) {
        return;
    }
    begin(workgroup.y, index, select(row.scale, 2.0, is_raw));
    let first = workgroup.x * {PARTITION}u;
    let end = end_of(workgroup.x);
    var own = vec2<u32>(0u, NONE);
    for (var i = first + lane; i < end; i += {LANES}u) {
        own = better(own, vec2<u32>(key_of(logits[start + i]), i));
    }
    let best = best_of_lanes(lane, own);
    best_key = best.x;
    let sums = is_raw || (row.samples == {PLAIN}u && row.scale > 0.0);
    var sum = 0.0;
    for (var i = first + lane; i < select(first, end, sums); i += {LANES}u) {
        let key = key_of(logits[start + i]);
        if (key > 0u) {
            sum += weight(key);
        }
    }
    let total = sum_of_lanes(sum);
    if (lane == 0u) {
        let at = part_at(workgroup.x);
        work[at] = best.x;
        work[at + 1u] = best.y;
        work[at + 2u] = bitcast<u32>(total);
    }
}
