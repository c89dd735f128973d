// token = the first one, in order, where the sum of w up to it exceeds uniform * sum of w
//     w[t] = exp((z[t] - max z) / temperature) for tokens that min_p, top_k, top_p leave, else 0
// With scale 0: the token with the largest z, of equals the lowest.    one workgroup per row
//
// In order: partition after partition, in each lane after lane, in each by id. Rows that filter and
// rows that don't have a kernel each; samples says which a row belongs to. In the order of z, of
// equals by id, each filter keeps a beginning. So what is left is known by its last token, and that
// is found without sorting: by the bits of its key, four at a time, among tokens that were listed.

//! if FILTERS
var<private> num_own: u32;        // listed tokens of this lane, which follow each other
var<private> first_part: u32;     // where they begin
var<private> first_in_part: u32;
var<workgroup> sh_bins: array<f32, {BINS}>;  // [16, LANES]: each lane adds to its own column
//! end
var<workgroup> sh_answer: u32;

@compute @workgroup_size({LANES})
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let row = rows[params.first_row + workgroup.x];
    if (row.samples != {SAMPLES}u) {
        return;
    }
    begin(workgroup.x, index, row.scale);
    let best = best_of_row();
    if (lane == 0u) {
        results[row.result_at] = best.y;
    }
    if (row.scale == 0.0) {
        return;
    }
    // Where no token is possible, the first stays the answer.
    if (!agreed(best.x > 0u)) {
        return;
    }
    best_key = best.x;
    let random = vec2<u32>(row.seed_lo, row.seed_hi);
    let share = uniform_number(random, vec2<u32>(row.position, row.choice));
//! if FILTERS
    find_own();
    var cut = Cut(1u, NONE);
    if (row.min_exponent > -1e38) {
        cut.key = lowest_key(row.min_exponent);
    }
    let has_top_k = row.top_k > 0u && row.top_k < params.vocab_size;
    var all = 0.0;
    total_bins_of_row();
    for (var bin = 0u; bin < 16u; bin++) {
        all += sh_totals[bin];
    }
    // One place in the text for all searches: drivers write out every call.
    for (var step = BY_COUNT; step <= BY_WEIGHT; step++) {
        var measure = step;
        var goal = select(row.top_p * all, f32(row.top_k), step == BY_COUNT);
        if (step == BY_WEIGHT && has_top_k) {
            goal = row.top_p * sum_of_lanes(weight_of_own(cut));
        }
        var searches = select(row.top_p < 1.0, has_top_k, step == BY_COUNT);
        loop {
            if (!agreed(searches)) {
                break;
            }
            let found = search(cut, measure, goal);
            searches = false;
            if (measure == BY_ID) {
                cut.last = ~found.value;
            } else {
                let each = select(1.0, weight(found.value), measure == BY_WEIGHT);
                goal = max(ceil((goal - found.above) / each), 1.0);
                // Where not all tokens with the last key stay, those with the lowest ids do.
                searches = goal < floor(found.here / each + 0.5);
                measure = BY_ID;
                cut = Cut(found.value, select(NONE, cut.last, found.value == cut.key));
            }
        }
    }
    let picked = pick(share * sum_of_lanes(weight_of_own(cut)));
    if (lane != picked.lane) {
        return;
    }
    var sum = 0.0;
    var at = vec2<u32>(first_part, first_in_part);
    for (var n = 0u; n < num_own && sum <= picked.rest; n++) {
        at = on_list(at);
        let id = work[list_at(at.x) + at.y];
        at.y++;
        let key = key_of(logits[start + id]);
        if (stays(cut, key, id) && weight(key) > 0.0) {
            results[row.result_at] = id;
            sum += weight(key);
        }
    }
//! else
    let of_partitions = pick(share * sum_of_partitions());
    let each = (num_partitions + {LANES}u - 1u) / {LANES}u;
    var nth = 0u;
    var rest = of_partitions.rest;
    var sum = 0.0;
    let end = min((of_partitions.lane + 1u) * each, num_partitions);
    for (var n = of_partitions.lane * each; n < end && sum <= of_partitions.rest; n++) {
        let here = weight_of_partition(n);
        if (here > 0.0) {
            nth = n;
            rest = of_partitions.rest - sum;
            sum += here;
        }
    }
    var own = 0.0;
    for (var i = nth * {PARTITION}u + lane; i < end_of(nth); i += {LANES}u) {
        let key = key_of(logits[start + i]);
        if (key > 0u) {
            own += weight(key);
        }
    }
    _ = sum_of_lanes(own);
    let picked = pick(rest);
    if (lane != picked.lane) {
        return;
    }
    sum = 0.0;
    for (var i = nth * {PARTITION}u + lane; i < end_of(nth) && sum <= picked.rest;
        i += {LANES}u) {
        let key = key_of(logits[start + i]);
        if (key > 0u && weight(key) > 0.0) {
            results[row.result_at] = i;
            sum += weight(key);
        }
    }
//! end
}

struct Picked {
    lane: u32,
    rest: f32,  // of the goal, in that lane
}

// The first lane where the sum over it and those before exceeds the goal. Should rounding keep all
// sums from it, the last that has something. After sum_of_lanes.
fn pick(goal: f32) -> Picked {
    var block = 0u;
    var before = 0.0;
    var sum = 0.0;
    for (var i = 0u; i < 16u && sum <= goal; i++) {
        if (sh_totals[i] > 0.0) {
            block = i;
            before = sum;
            sum += sh_totals[i];
        }
    }
    let rest = goal - before;
    var picked = Picked(block * {SIXTEENTH}u, rest);
    sum = 0.0;
    for (var i = block * {SIXTEENTH}u; i < (block + 1u) * {SIXTEENTH}u && sum <= rest; i++) {
        if (sh_sums[i] > 0.0) {
            picked = Picked(i, rest - sum);
            sum += sh_sums[i];
        }
    }
    return picked;
}

//! if FILTERS
// What stays: tokens with larger keys, and those with this key up to an id.
struct Cut {
    key: u32,
    last: u32,
}

fn stays(cut: Cut, key: u32, id: u32) -> bool {
    return key > cut.key || (key == cut.key && id <= cut.last);
}

fn num_listed(nth: u32) -> u32 {
    return work[part_at(nth) + NUM_LISTED];
}

// Which of the listed tokens are this lane's: lanes have parts of the list that follow each other.
fn find_own() {
    var total = 0u;
    for (var n = 0u; n < num_partitions; n++) {
        total += num_listed(n);
    }
    let each = (total + {LANES}u - 1u) / {LANES}u;
    let first = min(lane * each, total);
    num_own = min(each, total - first);
    var before = 0u;
    first_part = 0u;
    while (first_part + 1u < num_partitions && before + num_listed(first_part) <= first) {
        before += num_listed(first_part);
        first_part++;
    }
    first_in_part = first - before;
}

// A place in the list, where a partition's part of it may have ended.
fn on_list(at: vec2<u32>) -> vec2<u32> {
    var next = at;
    while (next.y >= num_listed(next.x)) {
        next = vec2<u32>(next.x + 1u, 0u);
    }
    return next;
}

// The lowest key whose exponent is not below `min_exponent`.
fn lowest_key(min_exponent: f32) -> u32 {
    var own = vec2<u32>(0u, NONE);
    var at = vec2<u32>(first_part, first_in_part);
    for (var n = 0u; n < num_own; n++) {
        at = on_list(at);
        let id = work[list_at(at.x) + at.y];
        at.y++;
        let key = key_of(logits[start + id]);
        if (exponent(key) >= min_exponent) {
            own = better(own, vec2<u32>(~key, id));
        }
    }
    return ~best_of_lanes(lane, own).x;
}

fn weight_of_own(cut: Cut) -> f32 {
    var sum = 0.0;
    var at = vec2<u32>(first_part, first_in_part);
    for (var n = 0u; n < num_own; n++) {
        at = on_list(at);
        let id = work[list_at(at.x) + at.y];
        at.y++;
        let key = key_of(logits[start + id]);
        if (stays(cut, key, id)) {
            sum += weight(key);
        }
    }
    return sum;
}

// What a search adds up, and along what.
const BY_COUNT = 0u;   // tokens, from the largest key
const BY_WEIGHT = 1u;  // weights, from the largest key
const BY_ID = 2u;      // the tokens with the cut's own key, from the lowest id

struct Found {
    value: u32,  // a key, or the complement of an id
    above: f32,  // the sum over larger values
    here: f32,   // the sum over this value
}

// The largest value for which the sum over it and all larger ones reaches the goal; if rounding
// keeps all from it, the smallest.
fn search(cut: Cut, measure: u32, goal: f32) -> Found {
    var found = Found(0u, 0.0, 0.0);
    var known = 0u;  // mask of the bits that are found
    for (var shift = 32u; shift > 0u; ) {
        shift -= 4u;
        add_to_bins(cut, measure, found.value, known, shift);
        total_bins();
        var sum = found.above;
        var digit = 0u;
        for (var bin = 16u; bin > 0u; bin--) {
            let total = sh_totals[bin - 1u];
            if (total > 0.0) {
                digit = bin - 1u;
                found.above = sum;
                found.here = total;
                sum += total;
                if (sum >= goal) {
                    break;
                }
            }
        }
        found.value |= digit << shift;
        known |= 15u << shift;
    }
    return found;
}

// Adds what each value counts to the bin of its four bits at `shift`.
fn add_to_bins(cut: Cut, measure: u32, value_so_far: u32, known: u32, shift: u32) {
    for (var bin = 0u; bin < 16u; bin++) {
        sh_bins[bin * {LANES}u + lane] = 0.0;
    }
    var at = vec2<u32>(first_part, first_in_part);
    for (var n = 0u; n < num_own; n++) {
        at = on_list(at);
        let id = work[list_at(at.x) + at.y];
        at.y++;
        let key = key_of(logits[start + id]);
        let value = select(key, ~id, measure == BY_ID);
        let counts = stays(cut, key, id) && (measure != BY_ID || key == cut.key);
        if (counts && (value & known) == value_so_far) {
            let bin = (value >> shift) & 15u;
            sh_bins[bin * {LANES}u + lane] += select(1.0, weight(key), measure == BY_WEIGHT);
        }
    }
}

// sh_totals[bin] = sum over lanes of sh_bins[bin, lane]
fn total_bins() {
    workgroupBarrier();
    var sum = 0.0;
    for (var i = 0u; i < 16u; i++) {
        sum += sh_bins[lane * 16u + i];
    }
    sh_sums[lane] = sum;
    workgroupBarrier();
    if (lane < 16u) {
        var total = 0.0;
        for (var i = 0u; i < {SIXTEENTH}u; i++) {
            total += sh_sums[lane * {SIXTEENTH}u + i];
        }
        sh_totals[lane] = total;
    }
    workgroupBarrier();
}
//! end

// What lane 0 says, so that the compiler, too, knows that all lanes go the same way.
fn agreed(own: bool) -> bool {
    if (lane == 0u) {
        sh_answer = u32(own);
    }
    return workgroupUniformLoad(&sh_answer) != 0u;
}
