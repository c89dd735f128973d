// What the kernels that sample share: the vocabulary is cut into partitions of PARTITION tokens, 16
// for each lane, which workgroups take side by side. What they find is merged in ascending order,
// so that who computed it doesn't matter.
//
// In work, a row has PART_WORDS words for each partition (the key and the id of its best token; the
// sum of w relative to that; how many tokens are listed; for each bin how many tokens it has, and
// the sum of their w), then the lists, each where its partition's tokens would stand.

struct Params {
    vocab_size: u32,
    first_row: u32,   // of the group, whose logits start at 0
    is_raw: u32,      // whether logprobs are wanted, of logits as they came
}

var<immediate> params: Params;
//! read rows RowParams  [num_rows]
//! read logits u32  [group_rows, vocab_size], bits
//! write results u32
//! write work u32  [group_rows, ...]

const PART_WORDS = 36u;
const NUM_LISTED = 3u;
const COUNTS = 4u;
const WEIGHTS = 20u;

// What every function needs of the row that the workgroup is at.
var<private> lane: u32;
var<private> start: u32;           // of the row in logits
var<private> own_work: u32;        // of the row in work
var<private> num_partitions: u32;
var<private> scale: f32;
var<private> best_key: u32;

var<workgroup> sh_sums: array<f32, {LANES}>;
var<workgroup> sh_totals: array<f32, 16>;

fn begin(row_of_group: u32, index: u32, row_scale: f32) {
    lane = index;
    start = row_of_group * params.vocab_size;
    num_partitions = (params.vocab_size + {PARTITION}u - 1u) / {PARTITION}u;
    own_work = row_of_group * (num_partitions * PART_WORDS + params.vocab_size);
    scale = row_scale;
}

fn part_at(nth: u32) -> u32 {
    return own_work + nth * PART_WORDS;
}

fn list_at(nth: u32) -> u32 {
    return own_work + num_partitions * PART_WORDS + nth * {PARTITION}u;
}

fn end_of(nth: u32) -> u32 {
    return min((nth + 1u) * {PARTITION}u, params.vocab_size);
}

fn best_of_partition(nth: u32) -> vec2<u32> {
    let at = part_at(nth);
    return vec2<u32>(work[at], work[at + 1u]);
}

// Of all partitions.
fn best_of_row() -> vec2<u32> {
    var own = vec2<u32>(0u, NONE);
    for (var n = lane; n < num_partitions; n += {LANES}u) {
        own = better(own, best_of_partition(n));
    }
    return best_of_lanes(lane, own);
}

fn exponent(key: u32) -> f32 {
    return half_above(key, best_key) * scale;
}

fn weight(key: u32) -> f32 {
    // e^-200 is 0 in f32.
    return exp(max(exponent(key), -200.0));
}

// Relative to the best of the row.
fn weight_of_partition(nth: u32) -> f32 {
    let at = part_at(nth);
    let key = work[at];
    return select(0.0, bitcast<f32>(work[at + 2u]) * weight(key), key > 0u);
}

// The sum of what lanes have: of sixteenths of them, lane after lane, then of those.
fn sum_of_lanes(own: f32) -> f32 {
    workgroupBarrier();
    sh_sums[lane] = own;
    workgroupBarrier();
    if (lane < 16u) {
        var sum = 0.0;
        for (var i = 0u; i < {SIXTEENTH}u; i++) {
            sum += sh_sums[lane * {SIXTEENTH}u + i];
        }
        sh_totals[lane] = sum;
    }
    workgroupBarrier();
    var sum = 0.0;
    for (var i = 0u; i < 16u; i++) {
        sum += sh_totals[i];
    }
    return sum;
}

// The sum of the partitions' sums; lanes have partitions that follow each other.
fn sum_of_partitions() -> f32 {
    let each = (num_partitions + {LANES}u - 1u) / {LANES}u;
    var own = 0.0;
    for (var n = lane * each; n < min((lane + 1u) * each, num_partitions); n++) {
        own += weight_of_partition(n);
    }
    return sum_of_lanes(own);
}
