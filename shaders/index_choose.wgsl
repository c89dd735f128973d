// chosen[t, :] = how many positions up to the token's own have the TOP_K highest scores, and which,
// ascending; of equal ones the first                                   one workgroup per token t

struct Params {
    num_tokens: u32,
    first_token: u32,  // of those that are scored together
    stride: u32,       // of a token in scores
}

var<immediate> params: Params;
//! read inputs u32  ..., positions, ...
//! read scores f32  [tokens, stride]
//! write chosen u32  [num_tokens, 1 + TOP_K]

var<workgroup> sh_counts: array<u32, {LANES}>;
var<workgroup> sh_equal: array<u32, {LANES}>;

@compute @workgroup_size({LANES})
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let token = params.first_token + workgroup.x;
    let first = workgroup.x * params.stride;
    let count = inputs[params.num_tokens + token] + 1u;
    let out = token * ({TOP_K}u + 1u);
    if (count <= {TOP_K}u) {
        for (var position = lane; position < count; position += {LANES}u) {
            chosen[out + 1u + position] = position;
        }
        if (lane == 0u) {
            chosen[out] = count;
        }
        return;
    }

    // The lowest rank that is chosen, bit by bit: the largest that TOP_K positions reach.
    var least = 0u;
    for (var bit = 0u; bit < 32u; bit++) {
        let tried = least | (0x80000000u >> bit);
        var reach = 0u;
        for (var position = lane; position < count; position += {LANES}u) {
            reach += select(0u, 1u, rank(scores[first + position]) >= tried);
        }
        sh_counts[lane] = reach;
        workgroupBarrier();
        var all = 0u;
        for (var other = 0u; other < {LANES}u; other++) {
            all += sh_counts[other];
        }
        least = select(least, tried, all >= {TOP_K}u);
        workgroupBarrier();
    }

    // Each lane has neighbours, so that positions are in order.
    let share = (count + {LANES}u - 1u) / {LANES}u;
    let start = min(lane * share, count);
    let end = min(start + share, count);
    var higher = 0u;
    var equal = 0u;
    for (var position = start; position < end; position++) {
        let found = rank(scores[first + position]);
        higher += select(0u, 1u, found > least);
        equal += select(0u, 1u, found == least);
    }
    sh_counts[lane] = higher;
    sh_equal[lane] = equal;
    workgroupBarrier();
    var all_higher = 0u;
    var higher_before = 0u;
    var equal_before = 0u;
    for (var other = 0u; other < {LANES}u; other++) {
        all_higher += sh_counts[other];
        higher_before += select(0u, sh_counts[other], other < lane);
        equal_before += select(0u, sh_equal[other], other < lane);
    }
    let room = {TOP_K}u - all_higher;
    var at = out + 1u + higher_before + min(equal_before, room);
    for (var position = start; position < end; position++) {
        let found = rank(scores[first + position]);
        let has_room = found == least && equal_before < room;
        if (found > least || has_room) {
            chosen[at] = position;
            at++;
        }
        equal_before += select(0u, 1u, found == least);
    }
    if (lane == 0u) {
        chosen[out] = {TOP_K}u;
    }
}

// Ordered as scores are; zeros of both signs are one, what is no number is last.
fn rank(score: f32) -> u32 {
    let bits = bitcast<u32>(score + 0.0);
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        return 0u;
    }
    let zero = (bits & 0x7fffffffu) == 0u;
    let ordered = select(bits | 0x80000000u, ~bits, (bits & 0x80000000u) != 0u);
    return select(ordered, 0x80000000u, zero);
}
