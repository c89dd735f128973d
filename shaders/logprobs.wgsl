// ln p[t] = (z[t] - max z) - ln(sum over u of exp(z[u] - max z)), for the token that stands there
// and for the num_top best, best first                          one workgroup per row

struct Params {
    vocab_size: u32,
    first_row: u32,  // of the group, whose logits start at 0
}

var<immediate> params: Params;
@group(0) @binding(0) var<storage, read> rows: array<RowParams>;   // [num_rows]
@group(0) @binding(1) var<storage, read> logits: array<u32>;       // [group_rows, vocab_size], bits
@group(0) @binding(2) var<storage, read_write> results: array<u32>;

var<workgroup> sh_sums: array<f32, {LANES}>;
var<workgroup> sh_partial_sums: array<f32, 16>;

@compute @workgroup_size({LANES})
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = rows[params.first_row + workgroup.x];
    if (row.wants_logprobs == 0u) {
        return;
    }
    let start = workgroup.x * params.vocab_size;
    var candidate = vec2<u32>(0u, NONE);
    for (var i = lane; i < params.vocab_size; i += {LANES}u) {
        candidate = better(candidate, vec2<u32>(key_of(logits[start + i]), i));
    }
    let best = best_of_lanes(lane, candidate).x;

    var sum = 0.0;
    for (var i = lane; i < params.vocab_size; i += {LANES}u) {
        let key = key_of(logits[start + i]);
        if (key > 0u) {
            sum += exp(2.0 * half_above(key, best));
        }
    }
    let log_sum = log(sum_of_lanes(lane, sum));

    if (lane == 0u) {
        // The sample kernel has run: with nothing to score, its token stands there.
        var token = row.scored;
        if (token == NONE) {
            token = results[row.result_at];
        }
        let key = key_of(logits[start + token]);
        results[row.result_at + 1u] = logprob_bits(key, best, log_sum);
    }
    // Every lane offers the best of its tokens that were not taken; only the one whose token is
    // taken must look for another.
    for (var n = 0u; n < row.num_top; n++) {
        let taken = best_of_lanes(lane, candidate);
        if (taken.y == candidate.y) {
            let at = row.result_at + 2u + 2u * n;
            results[at] = taken.y;
            results[at + 1u] = logprob_bits(taken.x, best, log_sum);
            candidate = vec2<u32>(0u, NONE);
            for (var i = lane; i < params.vocab_size; i += {LANES}u) {
                let token = vec2<u32>(key_of(logits[start + i]), i);
                if (is_better(taken, token)) {
                    candidate = better(candidate, token);
                }
            }
        }
    }
}

fn logprob_bits(key: u32, best: u32, log_sum: f32) -> u32 {
    if (key == 0u) {
        return MINUS_INFINITY;
    }
    return bitcast<u32>(min(2.0 * half_above(key, best) - log_sum, 0.0));
}

fn sum_of_lanes(lane: u32, own: f32) -> f32 {
    sh_sums[lane] = own;
    workgroupBarrier();
    if (lane < 16u) {
        var sum = own;
        for (var i = lane + 16u; i < {LANES}u; i += 16u) {
            sum += sh_sums[i];
        }
        sh_partial_sums[lane] = sum;
    }
    workgroupBarrier();
    var sum = 0.0;
    for (var i = 0u; i < 16u; i++) {
        sum += sh_partial_sums[i];
    }
    return sum;
}
