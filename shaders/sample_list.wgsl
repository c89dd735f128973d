// Of each partition of a row that filters tokens: those that top_k and top_p may leave, lane after
// lane, in each by id. What these filters leave begins with the best, so it lies in the first bins.
//                                                     one workgroup per partition and row

var<workgroup> sh_found: array<u32, {LANES}>;
var<workgroup> sh_found_before: array<u32, 16>;

@compute @workgroup_size({LANES})
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let row = rows[params.first_row + workgroup.y];
    if (row.samples != {FILTERING}u) {
        return;
    }
    begin(workgroup.y, index, row.scale);
    best_key = best_of_row().x;
    total_bins_of_row();
    let has_top_k = row.top_k > 0u && row.top_k < params.vocab_size;
    var all = 0.0;
    for (var bin = 0u; bin < 16u; bin++) {
        all += sh_totals[bin];
    }
    // By a little more than is asked for: the sum of what is listed is rounded otherwise.
    let goal = all * row.top_p * 1.0001;
    var last = 15u;
    if (has_top_k || row.top_p < 1.0) {
        var count = 0u;
        var sum = 0.0;
        for (var bin = 16u; bin > 0u; bin--) {
            let at = 16u - bin;
            count += sh_counted[at];
            sum += sh_totals[at];
            let reaches = select(sum >= goal, count >= row.top_k, has_top_k);
            last = select(last, min(last, at), reaches);
        }
    }
    var num_found = 0u;
    let first = workgroup.x * {PARTITION}u + lane;
    for (var i = first; i < end_of(workgroup.x); i += {LANES}u) {
        num_found += u32(is_listed(row, key_of(logits[start + i]), last));
    }
    sh_found[lane] = num_found;
    workgroupBarrier();
    if (lane < 16u) {
        var count = 0u;
        for (var i = 0u; i < {SIXTEENTH}u; i++) {
            count += sh_found[lane * {SIXTEENTH}u + i];
        }
        sh_found_before[lane] = count;
    }
    workgroupBarrier();
    var before = 0u;
    for (var i = 0u; i < lane / {SIXTEENTH}u; i++) {
        before += sh_found_before[i];
    }
    for (var i = lane / {SIXTEENTH}u * {SIXTEENTH}u; i < lane; i++) {
        before += sh_found[i];
    }
    if (lane == {LANES}u - 1u) {
        work[part_at(workgroup.x) + NUM_LISTED] = before + num_found;
    }
    var at = list_at(workgroup.x) + before;
    for (var i = first; i < end_of(workgroup.x); i += {LANES}u) {
        if (is_listed(row, key_of(logits[start + i]), last)) {
            work[at] = i;
            at++;
        }
    }
}

fn is_listed(row: RowParams, key: u32, last: u32) -> bool {
    return key > 0u && exponent(key) >= row.min_exponent && bin_of(key) <= last;
}
