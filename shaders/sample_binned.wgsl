// What bins of all partitions hold.

var<workgroup> sh_counted: array<u32, 16>;

fn bin_of(key: u32) -> u32 {
    return u32(min(-exponent(key), 15.0));
}

// sh_counted[bin] and sh_totals[bin], of the partitions in ascending order.
fn total_bins_of_row() {
    workgroupBarrier();
    if (lane < 16u) {
        var count = 0u;
        var total = 0.0;
        for (var n = 0u; n < num_partitions; n++) {
            let at = part_at(n);
            count += work[at + COUNTS + lane];
            total += bitcast<f32>(work[at + WEIGHTS + lane]);
        }
        sh_counted[lane] = count;
        sh_totals[lane] = total;
    }
    workgroupBarrier();
}
