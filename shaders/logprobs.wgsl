// ln p[t] = (z[t] - max z) - ln(sum over u of exp(z[u] - max z)), for the token that stands there
// and for the num_top best, best first, from what is known of partitions (sample_parts.wgsl)
//                                                                      one workgroup per row

@compute @workgroup_size({LANES})
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let row = rows[params.first_row + workgroup.x];
    if (row.wants_logprobs == 0u) {
        return;
    }
    begin(workgroup.x, index, 2.0);
    best_key = best_of_row().x;
    let log_sum = log(sum_of_partitions());
    if (lane == 0u) {
        // The sample kernel has run: with nothing to score, its token stands there.
        var token = row.scored;
        if (token == NONE) {
            token = results[row.result_at];
        }
        let key = key_of(logits[start + token]);
        results[row.result_at + 1u] = logprob_bits(key, log_sum);
    }
    // Every partition offers the best of its tokens that were not taken; only for the one whose
    // token is taken must another be found. A partition is told of by one lane alone.
    for (var n = 0u; n < row.num_top; n++) {
        let taken = best_of_row();
        if (lane == 0u) {
            let at = row.result_at + 2u + 2u * n;
            results[at] = taken.y;
            results[at + 1u] = logprob_bits(taken.x, log_sum);
        }
        let nth = taken.y / {PARTITION}u;
        var candidate = vec2<u32>(0u, NONE);
        for (var i = nth * {PARTITION}u + lane; i < end_of(nth); i += {LANES}u) {
            let token = vec2<u32>(key_of(logits[start + i]), i);
            if (is_better(taken, token)) {
                candidate = better(candidate, token);
            }
        }
        let next = best_of_lanes(lane, candidate);
        if (lane == nth % {LANES}u) {
            let at = part_at(nth);
            work[at] = next.x;
            work[at + 1u] = next.y;
        }
    }
}

fn logprob_bits(key: u32, log_sum: f32) -> u32 {
    if (key == 0u) {
        return MINUS_INFINITY;
    }
    return bitcast<u32>(min(2.0 * half_above(key, best_key) - log_sum, 0.0));
}
