// token = the first one, lane after lane, where the sum of w up to it exceeds uniform * sum of w
//     w[t] = exp((z[t] - max z) / temperature) for tokens that min_p, top_k, top_p leave, else 0
// With scale 0: the token with the largest z, of equals the lowest.    one workgroup per row
//
// Rows that filter and rows that don't have a kernel each; samples says which a row belongs to. In
// the order of z, of equals by id, each filter keeps a beginning. So what is left is known by its
// last token, and that is found without sorting: by the bits of its key, four at a time.

struct Params {
    vocab_size: u32,
    first_row: u32,  // of the group, whose logits start at 0
}

var<immediate> params: Params;
@group(0) @binding(0) var<storage, read> rows: array<RowParams>;   // [num_rows]
@group(0) @binding(1) var<storage, read> logits: array<u32>;       // [group_rows, vocab_size], bits
@group(0) @binding(2) var<storage, read_write> results: array<u32>;

// What every function needs of the row that the workgroup is at.
var<private> lane: u32;
var<private> start: u32;      // of the row in logits
var<private> best_key: u32;
var<private> scale: f32;
var<private> num_own: u32;      // tokens that a search must look at in this lane
var<private> are_listed: bool;  // whether they are in its list

var<workgroup> sh_bins: array<f32, {BINS}>;  // [16, LANES]: each lane adds to its own column
var<workgroup> sh_ids: array<u32, {LIST}>;   // [LIST_SLOTS, LANES]: each lane's own list
var<workgroup> sh_sums: array<f32, {LANES}>;
var<workgroup> sh_totals: array<f32, 16>;
var<workgroup> sh_answer: u32;

@compute @workgroup_size({LANES})
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let row = rows[params.first_row + workgroup.x];
    if (row.samples != {SAMPLES}u) {
        return;
    }
    lane = index;
    start = workgroup.x * params.vocab_size;
    scale = row.scale;
    var own = vec2<u32>(0u, NONE);
    for (var i = lane; i < params.vocab_size; i += {LANES}u) {
        own = better(own, vec2<u32>(key_of(logits[start + i]), i));
    }
    let best = best_of_lanes(lane, own);
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
    var cut = Cut(1u, NONE);
//! if FILTERS
    if (row.min_exponent > -1e38) {
        cut.key = lowest_key(row.min_exponent);
    }
    let has_top_k = row.top_k > 0u && row.top_k < params.vocab_size;
    // One place in the text for all searches: drivers write out every call.
    for (var step = BY_COUNT; step <= BY_WEIGHT; step++) {
        var measure = step;
        var goal = select(row.top_p, f32(row.top_k), step == BY_COUNT);
        var searches = select(row.top_p < 1.0, has_top_k, step == BY_COUNT);
        are_listed = false;
        num_own = (params.vocab_size + {LANES}u - 1u - lane) / {LANES}u;
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
                goal = max(ceil((found.goal - found.above) / each), 1.0);
                // Where not all tokens with the last key stay, those with the lowest ids do.
                searches = goal < floor(found.here / each + 0.5);
                measure = BY_ID;
                cut = Cut(found.value, select(NONE, cut.last, found.value == cut.key));
            }
        }
    }
//! end
    let key = vec2<u32>(row.seed_lo, row.seed_hi);
    let number = uniform_number(key, vec2<u32>(row.position, row.choice));
    draw(cut, number, row.result_at);
}

// What stays: tokens with larger keys, and those with this key up to an id.
struct Cut {
    key: u32,
    last: u32,
}

fn stays(cut: Cut, key: u32, id: u32) -> bool {
    return key > cut.key || (key == cut.key && id <= cut.last);
}

fn exponent(key: u32) -> f32 {
    return half_above(key, best_key) * scale;
}

fn weight(key: u32) -> f32 {
    // e^-200 is 0 in f32.
    return exp(max(exponent(key), -200.0));
}

//! if FILTERS
// The lowest key whose exponent is not below `min_exponent`.
fn lowest_key(min_exponent: f32) -> u32 {
    var own = vec2<u32>(0u, NONE);
    for (var i = lane; i < params.vocab_size; i += {LANES}u) {
        let key = key_of(logits[start + i]);
        if (key > 0u && exponent(key) >= min_exponent) {
            own = better(own, vec2<u32>(~key, i));
        }
    }
    return ~best_of_lanes(lane, own).x;
}

// What a search adds up, and along what.
const BY_COUNT = 0u;   // tokens, from the largest key
const BY_WEIGHT = 1u;  // weights, from the largest key; the goal is a share of their sum
const BY_ID = 2u;      // the tokens with the cut's own key, from the lowest id

struct Found {
    value: u32,  // a key, or the complement of an id
    above: f32,  // the sum over larger values
    here: f32,   // the sum over this value
    goal: f32,
}

// The largest value for which the sum over it and all larger ones reaches the goal; if rounding
// keeps all from it, the smallest.
fn search(cut: Cut, measure: u32, goal: f32) -> Found {
    var found = Found(0u, 0.0, 0.0, goal);
    var known = 0u;  // mask of the bits that are found
    for (var shift = 32u; shift > 0u; ) {
        shift -= 4u;
        add_to_bins(cut, measure, found.value, known, shift);
        total_bins();
        if (measure == BY_WEIGHT && known == 0u) {
            var sum = 0.0;
            for (var bin = 0u; bin < 16u; bin++) {
                sum += sh_totals[bin];
            }
            found.goal = goal * sum;
        }
        var sum = found.above;
        var digit = 0u;
        for (var bin = 16u; bin > 0u; bin--) {
            let total = sh_totals[bin - 1u];
            if (total > 0.0) {
                digit = bin - 1u;
                found.above = sum;
                found.here = total;
                sum += total;
                if (sum >= found.goal) {
                    break;
                }
            }
        }
        found.value |= digit << shift;
        known |= 15u << shift;
    }
    return found;
}

// Adds what each value counts to the bin of its four bits at `shift`. The tokens that it finds are
// all that the next bits can concern, so a lane with few of them lists them and looks at no others
// from then on. It adds up the same numbers in the same order either way.
fn add_to_bins(cut: Cut, measure: u32, value_so_far: u32, known: u32, shift: u32) {
    for (var bin = 0u; bin < 16u; bin++) {
        sh_bins[bin * {LANES}u + lane] = 0.0;
    }
    var num_found = 0u;
    for (var n = 0u; n < num_own; n++) {
        var id = n * {LANES}u + lane;
        if (are_listed) {
            id = sh_ids[id];
        }
        let key = key_of(logits[start + id]);
        let value = select(key, ~id, measure == BY_ID);
        let counts = stays(cut, key, id) && (measure != BY_ID || key == cut.key);
        if (counts && (value & known) == value_so_far) {
            let bin = (value >> shift) & 15u;
            var amount = 1.0;
            if (measure == BY_WEIGHT) {
                amount = weight(key);
            }
            sh_bins[bin * {LANES}u + lane] += amount;
            if (num_found < {LIST_SLOTS}u) {
                sh_ids[num_found * {LANES}u + lane] = id;
            }
            num_found++;
        }
    }
    // While all tokens are looked at, writing to the list disturbs nothing; later it only shrinks.
    if (num_found <= {LIST_SLOTS}u) {
        are_listed = true;
        num_own = num_found;
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
        for (var i = 0u; i < {LANES}u / 16u; i++) {
            total += sh_sums[lane * ({LANES}u / 16u) + i];
        }
        sh_totals[lane] = total;
    }
    workgroupBarrier();
}
//! end

// Writes the token at which the sum of weights exceeds a share of all. Weights are added lane after
// lane, in each by id.
fn draw(cut: Cut, share: f32, result_at: u32) {
    var own = 0.0;
    for (var i = lane; i < params.vocab_size; i += {LANES}u) {
        let key = key_of(logits[start + i]);
        if (stays(cut, key, i)) {
            own += weight(key);
        }
    }
    sh_sums[lane] = own;
    workgroupBarrier();
    if (lane > 0u) {
        return;
    }
    var sum = 0.0;
    for (var i = 0u; i < {LANES}u; i++) {
        sum += sh_sums[i];
    }
    let goal = share * sum;
    var owner = 0u;
    var before = 0.0;
    sum = 0.0;
    // Should rounding keep all sums from the goal, the last possible token is taken.
    for (var i = 0u; i < {LANES}u && sum <= goal; i++) {
        if (sh_sums[i] > 0.0) {
            owner = i;
            before = sum;
            sum += sh_sums[i];
        }
    }
    sum = 0.0;
    for (var i = owner; i < params.vocab_size && sum <= goal - before; i += {LANES}u) {
        let key = key_of(logits[start + i]);
        if (stays(cut, key, i) && weight(key) > 0.0) {
            results[result_at] = i;
            sum += weight(key);
        }
    }
}

// What lane 0 says, so that the compiler, too, knows that all lanes go the same way.
fn agreed(own: bool) -> bool {
    if (lane == 0u) {
        sh_answer = u32(own);
    }
    return workgroupUniformLoad(&sh_answer) != 0u;
}
