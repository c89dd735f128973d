// out[s, t, n] = sum over the k of part s of x[t, k] * weights[n, k], in whatever order is fast
// one workgroup per TM rows t, STRIP columns n, part s
//
// ALONG_K: the lanes of a workgroup share TN columns and take every LANES-th group of k; their sums
// are added at the end. Otherwise a lane has TN columns of its own, and GROUPS groups of lanes
// share k. A column has CHAINS chains of multiply-adds. k is whole groups of 32.

//! if SHARED
var<workgroup> sh_sums: array<f32, {SHARED_SUMS}>;  // [WORKGROUP, TM, TN]
//! end

@compute @workgroup_size({WORKGROUP})
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let p = params;
    let lane = local % {LANES}u;
    let group = local / {LANES}u;
    let tile = workgroup.x / {STRIPS}u;
//! if ALONG_K
    let column = (workgroup.x % {STRIPS}u) * {STRIP}u;
//! else
    let column = (workgroup.x % {STRIPS}u) * {STRIP}u + lane * {TN}u;
//! end
    let tile_start = tile * p.num_blocks * {TILE}u + column;
    let first_row = workgroup.y * {TM}u;
    let num_units = (p.num_blocks + {UNIT}u - 1u) / {UNIT}u;
    let part_blocks = (num_units + num_workgroups.z - 1u) / num_workgroups.z * {UNIT}u;
    let part_start = workgroup.z * part_blocks;
    let part_end = min(part_start + part_blocks, p.num_blocks);
//! if GROUPED
    let num_quads = (p.num_blocks + {QUAD_BLOCKS}u - 1u) / {QUAD_BLOCKS}u;
    let scales_start = tile * num_quads * {TILE}u + column;
//! end
//! for m in 0..TM
    let row_{m} = min(first_row + {m}u, p.num_rows - 1u) * p.row_vec4s;
//! for j in 0..TN
    var sum_{m}_{j} = 0.0;
//! for c in 0..CHAINS
    var acc_{m}_{j}_{c} = 0.0;
//! end
//! end
//! end

//! if ALONG_K
    let first_unit = part_start + local * {UNIT}u;
    for (var unit = first_unit; unit < part_end; unit += {WORKGROUP}u * {UNIT}u) {
//! else
    let first_unit = part_start + group * {UNIT}u;
    for (var unit = first_unit; unit < part_end; unit += {GROUPS}u * {UNIT}u) {
//! end
//! if GROUPED
//! for j in 0..TN
        var scales_{j} = scales_at(scales_start + (unit / {QUAD_BLOCKS}u) * {TILE}u + {j}u);
//! end
        let unit_end = min(unit + {UNIT}u, part_end);
        for (var block = unit; block < unit_end; block += {STEP_BLOCKS}u) {
//! for m in 0..TM
//! if OFFSET
            var x_sum_{m} = 0.0;
//! end
//! for j in 0..TN
//! for c in 0..CHAINS
            acc_{m}_{j}_{c} = 0.0;
//! end
//! end
//! end
//! else
            let block = unit;
//! end
//! if BROADCAST
            // Eight lanes load one vec4 each: the 32 values of this step.
//! for m in 0..TM
            var x_{m} = x_in(row_{m} + block * {PARTS}u + (local & 7u));
//! if OFFSET
            let x_part_{m} = (x_{m}.x + x_{m}.y) + (x_{m}.z + x_{m}.w);
//! for i in 0..8
            x_sum_{m} += subgroupBroadcast(x_part_{m}, {i}u);
//! end
//! end
//! if SCALED
            x_{m} *= x_scale(local & 7u);
//! end
//! end
//! end
//! for b in 0..STEP_BLOCKS
//! for first in 0..TN by AT_ONCE
//! for j in first..first+AT_ONCE
            let w_{b}_{j} = weights_at(tile_start + (block + {b}u) * {TILE}u + {j}u);
//! end
//! for q in 0..PARTS
//! for m in 0..TM
//! if BROADCAST
            let x_{m}_{b}_{q}_{first} = subgroupBroadcast(x_{m}, {b}u * {PARTS}u + {q}u);
//! else
            let x_{m}_{b}_{q}_{first} = x_in(row_{m} + (block + {b}u) * {PARTS}u + {q}u);
//! if OFFSET
            x_sum_{m} += (x_{m}_{b}_{q}_{first}.x + x_{m}_{b}_{q}_{first}.y)
                + (x_{m}_{b}_{q}_{first}.z + x_{m}_{b}_{q}_{first}.w);
//! end
//! end
//! end
//! for j in first..first+AT_ONCE
            let w_{b}_{j}_{q} = decode_{q}(w_{b}_{j});
//! for m in 0..TM
            acc_{m}_{j}_{C0} = fma(w_{b}_{j}_{q}.x, x_{m}_{b}_{q}_{first}.x, acc_{m}_{j}_{C0});
            acc_{m}_{j}_{C1} = fma(w_{b}_{j}_{q}.y, x_{m}_{b}_{q}_{first}.y, acc_{m}_{j}_{C1});
            acc_{m}_{j}_{C2} = fma(w_{b}_{j}_{q}.z, x_{m}_{b}_{q}_{first}.z, acc_{m}_{j}_{C2});
            acc_{m}_{j}_{C3} = fma(w_{b}_{j}_{q}.w, x_{m}_{b}_{q}_{first}.w, acc_{m}_{j}_{C3});
//! end
//! end
//! end
//! end
//! end
//! if GROUPED
//! for j in 0..TN
            let factor_{j} = scale_of(scales_{j}.x);
//! if LONG_GROUPS
            if ((block + {STEP_BLOCKS}u) % {GROUP_BLOCKS}u == 0u) {
                scales_{j} = scales_{j}.yzwx;
            }
//! else
            scales_{j} = scales_{j}.yzwx;
//! end
//! for m in 0..TM
            var group_{m}_{j} = 0.0;
//! for c in 0..CHAINS
            group_{m}_{j} += acc_{m}_{j}_{c};
//! end
            sum_{m}_{j} = fma(factor_{j}.x, group_{m}_{j}, sum_{m}_{j});
//! if OFFSET
            sum_{m}_{j} = fma(factor_{j}.y, x_sum_{m}, sum_{m}_{j});
//! end
//! end
//! end
        }
//! end
    }
//! if GROUPED
//! else
//! for m in 0..TM
//! for j in 0..TN
//! for c in 0..CHAINS
    sum_{m}_{j} += acc_{m}_{j}_{c};
//! end
//! end
//! end
//! end

//! if ALONG_K
//! if SHARED
//! for m in 0..TM
//! for j in 0..TN
    sh_sums[(local * {TM}u + {m}u) * {TN}u + {j}u] = sum_{m}_{j};
//! end
//! end
    workgroupBarrier();
    for (var at = local; at < {TM}u * {TN}u; at += {WORKGROUP}u) {
        var sum = 0.0;
        for (var other = 0u; other < {WORKGROUP}u; other++) {
            sum += sh_sums[other * {TM}u * {TN}u + at];
        }
        store(p, workgroup.z, first_row + at / {TN}u, tile * {TILE}u + column + at % {TN}u, sum);
    }
//! else
//! for m in 0..TM
//! for j in 0..TN
    let whole_{m}_{j} = subgroupAdd(sum_{m}_{j});
    if (local == {j}u) {
        store(p, workgroup.z, first_row + {m}u, tile * {TILE}u + column + {j}u, whole_{m}_{j});
    }
//! end
//! end
//! end
//! else
//! if SHARED
//! for m in 0..TM
//! for j in 0..TN
    sh_sums[(local * {TM}u + {m}u) * {TN}u + {j}u] = sum_{m}_{j};
//! end
//! end
    workgroupBarrier();
    if (group == 0u) {
        for (var other = 1u; other < {GROUPS}u; other++) {
            let at = (other * {LANES}u + lane) * {TM}u * {TN}u;
//! for m in 0..TM
//! for j in 0..TN
            sum_{m}_{j} += sh_sums[at + {m}u * {TN}u + {j}u];
//! end
//! end
        }
    }
//! end
    if (group == 0u) {
//! for m in 0..TM
//! for j in 0..TN
        store(p, workgroup.z, first_row + {m}u, tile * {TILE}u + column + {j}u, sum_{m}_{j});
//! end
//! end
    }
//! end
}

fn store(p: Params, part: u32, row: u32, computed: u32, sum: f32) {
    if (row < p.num_rows && computed < p.num_computed) {
        out[(part * p.num_rows + row) * p.num_columns + p.first_column + computed] = sum;
    }
}
