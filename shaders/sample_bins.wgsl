// Of each partition of a row that filters tokens: how many tokens that min_p leaves lie in each
// bin, and the sum of their w. A bin has the tokens whose exponents begin with the same whole
// number.
//                                                     one workgroup per partition and row

// Each lane adds to its own column.
var<workgroup> sh_weights: array<f32, {BINS}>;      // [16, LANES]
var<workgroup> sh_counts: array<u32, {HALF_BINS}>;  // [8, LANES], two in a word

@compute @workgroup_size({LANES})
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let row = rows[params.first_row + workgroup.y];
    if (row.samples != {FILTERING}u) {
        return;
    }
    begin(workgroup.y, index, row.scale);
    best_key = best_of_row().x;
    for (var bin = 0u; bin < 16u; bin++) {
        sh_weights[bin * {LANES}u + lane] = 0.0;
        sh_counts[bin / 2u * {LANES}u + lane] = 0u;
    }
    for (var i = workgroup.x * {PARTITION}u + lane; i < end_of(workgroup.x); i += {LANES}u) {
        let key = key_of(logits[start + i]);
        if (key > 0u && exponent(key) >= row.min_exponent) {
            let bin = bin_of(key);
            sh_weights[bin * {LANES}u + lane] += weight(key);
            sh_counts[bin / 2u * {LANES}u + lane] += 1u << (bin % 2u * 16u);
        }
    }
    workgroupBarrier();
    // Sixteen lanes add up a bin.
    let bin = lane % 16u;
    let eighth = lane / 16u;
    var sum = 0.0;
    for (var i = eighth * 16u; i < eighth * 16u + 16u; i++) {
        sum += sh_weights[bin * {LANES}u + i];
    }
    sh_sums[lane] = sum;
    workgroupBarrier();
    if (lane < 16u) {
        var total = 0.0;
        for (var i = 0u; i < {SIXTEENTH}u; i++) {
            total += sh_sums[i * 16u + lane];
        }
        var count = 0u;
        for (var i = 0u; i < {LANES}u; i++) {
            count += sh_counts[lane / 2u * {LANES}u + i] >> (lane % 2u * 16u) & 0xffffu;
        }
        let at = part_at(workgroup.x);
        work[at + COUNTS + lane] = count;
        work[at + WEIGHTS + lane] = bitcast<u32>(total);
    }
}
