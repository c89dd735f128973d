// chosen[t, :] = the best TOP_K experts by sigmoid(logits[t, :]) + bias, of the best TOP_GROUPS
// groups; weights[t, :] = their sigmoids, scaled                        one workgroup per token t
//
// Of equal experts, and of equal groups, the first is better.

struct Params {
    weights_at: u32,  // in routes
    scale: f32,
}

var<immediate> params: Params;
//! read logits f32  [num_tokens, EXPERTS]
//! read bias f32  [EXPERTS]
//! write routes u32  chosen [num_tokens, TOP_K], weights [num_tokens, TOP_K], ...

const LEAST = -3.4028234e38;

var<workgroup> sh_score: array<f32, {EXPERTS}>;
var<workgroup> sh_choice: array<f32, {EXPERTS}>;
var<workgroup> sh_taken: array<u32, {EXPERTS}>;
var<workgroup> sh_best: array<u32, {LANES}>;
//! if IN_GROUPS
var<workgroup> sh_group: array<f32, {GROUPS}>;
//! end

@compute @workgroup_size({LANES})
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let token = workgroup.x;
    for (var expert = lane; expert < {EXPERTS}u; expert += {LANES}u) {
        let score = 1.0 / (1.0 + exp(-logits[token * {EXPERTS}u + expert]));
        let choice = score + bias[expert];
        sh_score[expert] = score;
        // What is no number is chosen last: there are always enough.
        sh_choice[expert] = select(LEAST, choice, choice > LEAST);
        sh_taken[expert] = 0u;
    }
    workgroupBarrier();
//! if IN_GROUPS
    for (var group = lane; group < {GROUPS}u; group += {LANES}u) {
        var first = LEAST;
        var second = LEAST;
        for (var i = 0u; i < {GROUP}u; i++) {
            let choice = sh_choice[group * {GROUP}u + i];
            second = max(second, min(first, choice));
            first = max(first, choice);
        }
        sh_group[group] = first + second;
    }
    workgroupBarrier();
    for (var group = lane; group < {GROUPS}u; group += {LANES}u) {
        var better = 0u;
        for (var other = 0u; other < {GROUPS}u; other++) {
            if (sh_group[other] > sh_group[group]
                || (sh_group[other] == sh_group[group] && other < group)) {
                better++;
            }
        }
        if (better >= {TOP_GROUPS}u) {
            for (var i = 0u; i < {GROUP}u; i++) {
                sh_choice[group * {GROUP}u + i] = LEAST;
            }
        }
    }
    workgroupBarrier();
//! end

    var sum = 0.0;
    for (var k = 0u; k < {TOP_K}u; k++) {
        var best = {EXPERTS}u;
        for (var expert = lane; expert < {EXPERTS}u; expert += {LANES}u) {
            let is_better = best == {EXPERTS}u || sh_choice[expert] > sh_choice[best];
            if (sh_taken[expert] == 0u && is_better) {
                best = expert;
            }
        }
        sh_best[lane] = best;
        workgroupBarrier();
        var chosen = {EXPERTS}u;
        for (var other = 0u; other < {LANES}u; other++) {
            let expert = sh_best[other];
            if (expert < {EXPERTS}u) {
                let is_better = chosen == {EXPERTS}u || sh_choice[expert] > sh_choice[chosen]
                    || (sh_choice[expert] == sh_choice[chosen] && expert < chosen);
                chosen = select(chosen, expert, is_better);
            }
        }
        workgroupBarrier();
        if (lane == 0u) {
            routes[token * {TOP_K}u + k] = chosen;
            sum += sh_score[chosen];
            sh_taken[chosen] = 1u;
        }
        workgroupBarrier();
    }
    if (lane == 0u) {
        for (var k = 0u; k < {TOP_K}u; k++) {
            let at = token * {TOP_K}u + k;
            var weight = sh_score[routes[at]];
//! if NORMALIZED
            weight = weight / (sum + 1e-20);
//! end
            routes[params.weights_at + at] = bitcast<u32>(weight * params.scale);
        }
    }
}
