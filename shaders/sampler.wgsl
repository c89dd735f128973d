// What the kernels of the sampler share: the parameters of a row, the order of its logits, and
// reductions over the lanes of a workgroup, each in one order.

struct RowParams {
    scale: f32,                // 2 / temperature; 0: the most probable token
    top_k: u32,                // 0: all
    top_p: f32,                // 1: all
    min_exponent: f32,         // ln(min_p); the lowest number: all
    repetition_penalty: f32,
    frequency_penalty: f32,
    presence_penalty: f32,
    seed_lo: u32,
    seed_hi: u32,
    choice: u32,
    position: u32,
    samples: u32,              // 0: no token is sampled, 1: without filters, 2: with filters
    wants_logprobs: u32,
    scored: u32,               // whose logprob is wanted; NONE: the sampled token's
    num_top: u32,              // at most vocab_size
    result_at: u32,            // where in results: token, logprob, num_top x (token, logprob)
}

const NONE = 0xffffffffu;
const MINUS_INFINITY = 0xff800000u;

// A larger logit has a larger key, an equal one (as 0 and -0) the same. NaN and -inf have key 0:
// such a token is impossible. +inf counts as the largest number. Only bits are looked at, since
// compilers may assume that no float is NaN or infinite.
fn key_of(bits: u32) -> u32 {
    let magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u || bits == MINUS_INFINITY) {
        return 0u;
    }
    if (magnitude == 0u) {
        return 0x80000000u;
    }
    return select(0x80000000u | min(bits, 0x7f7fffffu), ~bits, magnitude != bits);
}

fn value_of(key: u32) -> f32 {
    return bitcast<f32>(select(~key, key ^ 0x80000000u, key >= 0x80000000u));
}

// Half of what a logit lies above `best`, which is not more than 0. Halves, so that the difference
// of two numbers is a number.
fn half_above(key: u32, best: u32) -> f32 {
    return max(0.5 * value_of(key) - 0.5 * value_of(best), -1e30);
}

// A token is a pair of key and id. The one with the larger key is better, of equals the lower id.
fn is_better(a: vec2<u32>, b: vec2<u32>) -> bool {
    return a.x > b.x || (a.x == b.x && a.y < b.y);
}

fn better(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    return select(b, a, is_better(a, b));
}

var<workgroup> sh_tokens: array<vec2<u32>, {LANES}>;
var<workgroup> sh_best_tokens: array<vec2<u32>, 16>;

// The best of all lanes' tokens. Memory is safe to be used again: a lane that is here a second time
// has passed a barrier after the others' last read.
fn best_of_lanes(lane: u32, own: vec2<u32>) -> vec2<u32> {
    sh_tokens[lane] = own;
    workgroupBarrier();
    if (lane < 16u) {
        var best = own;
        for (var i = lane + 16u; i < {LANES}u; i += 16u) {
            best = better(best, sh_tokens[i]);
        }
        sh_best_tokens[lane] = best;
    }
    workgroupBarrier();
    var best = sh_best_tokens[0];
    for (var i = 1u; i < 16u; i++) {
        best = better(best, sh_best_tokens[i]);
    }
    return best;
}
