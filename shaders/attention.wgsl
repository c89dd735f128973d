// out[t, h, :] = sum over p <= positions[t] of
//     softmax(scale * q[t, h, :] . keys[p, :]) * values[p, :]
// one workgroup per TOKENS tokens t, QUERIES heads h that share a kv head, and, where partitions
// are computed side by side, partition
//
// On software drivers, where a workgroup is one subgroup; attention_wide.wgsl elsewhere.
//
// Positions are cut into partitions of PARTITION, counted from 0. In one, LANES * KEYS are taken at
// a time, in ascending order. When some bring a larger score, what was summed before is made as
// much smaller; values are then added in ascending order. Each lane adds the weights of the
// positions that it scores, and the lanes' sums are added at the end, in order. Partitions are
// merged in ascending order (attention_in.wgsl), here or by attention_merge.wgsl. A position after
// a row's own has no weight, and changes nothing: values are finite, and what was summed is kept as
// it is where no score is larger (exp(0) is 1 where tokens share a reading). So the bits of a row
// depend on its own position and sequence only.

//! if SUBGROUP
//! else
var<workgroup> sh_q: array<vec4<f32>, {SHARED_Q}>;  // [TOKENS, QUERIES, KEY_VEC4S]
var<workgroup> sh_lane: array<f32, {SHARED_LANE}>;  // [TOKENS, QUERIES, LANES]
var<workgroup> sh_p: array<f32, {SHARED_P}>;        // [TOKENS, QUERIES, STEP]
var<workgroup> sh_value: array<u32, {STEP}>;
//! end

// Those from `first` to `last`, of one sequence and in its order, at most ROWS.
//! for ROWS in 1..TOKENS+1 by FURTHER
fn attend_{ROWS}(first: u32, last: u32, first_head: u32, partitions: vec2<u32>, lane: u32) {
    let kv_head = first_head / (params.num_heads / params.num_kv_heads);
    let table = params.tables_at + table_start(first);
    let last_position = inputs[params.num_tokens + last];
    let end_partition = min(partitions.y, last_position / {PARTITION}u + 1u);
    if (partitions.x >= end_partition) {
        return;
    }
//! for t in 0..ROWS
    let token_{t} = min(first + {t}u, last);
    let position_{t} = inputs[params.num_tokens + token_{t}];
//! end

    // Lane l holds dimensions 4l .. 4l + 4 of each slice of a head.
//! for t in 0..ROWS
//! for r in 0..QUERIES
//! for i in 0..SLICES
    let q_{t}_{r}_{i} = q_in((token_{t} * params.num_heads + first_head + {r}u) * {KEY_VEC4S}u
        + {i}u * {SLICE}u + lane % {SLICE}u) * params.scale;
    var all_{t}_{r}_{i} = vec4<f32>(0.0);
//! if SUBGROUP
//! else
    if (lane < {SLICE}u) {
        sh_q[({t}u * {QUERIES}u + {r}u) * {KEY_VEC4S}u + {i}u * {SLICE}u + lane] = q_{t}_{r}_{i};
    }
//! end
//! end
    var state_{t}_{r} = no_positions();
//! end
//! end
//! if SUBGROUP
//! else
    workgroupBarrier();
//! end

    for (var nth = partitions.x; nth < end_partition; nth++) {
//! for t in 0..ROWS
//! for r in 0..QUERIES
        var max_{t}_{r} = LEAST;
        var sum_{t}_{r} = 0.0;
//! for i in 0..SLICES
        var total_{t}_{r}_{i} = vec4<f32>(0.0);
//! end
//! end
//! end
        let end = min((nth + 1u) * {PARTITION}u, last_position + 1u);
        for (var start = nth * {PARTITION}u; start < end; start += {STEP}u) {
            // Each lane scores every LANES-th position; those after its own take no part.
//! if ONE_BLOCK
            // A software driver reads a buffer lane by lane.
            let blocks = inputs[table + min(start / {BLOCK}u + lane, last_position / {BLOCK}u)];
//! end
//! for u in 0..KEYS
            let key_{u} = start + {u}u * {LANES}u + lane;
            let row_{u} = min(key_{u}, last_position);
//! if ONE_BLOCK
            let block_{u} = subgroupBroadcast(blocks, {u}u * {LANES}u / {BLOCK}u);
//! else
            let block_{u} = inputs[table + row_{u} / {BLOCK}u];
//! end
            let head_{u} = block_{u} * params.num_kv_heads + kv_head;
            let key_at_{u} = head_{u} * {KEY_VEC4S}u * {BLOCK}u + row_{u} % {BLOCK}u;
            let value_at_{u} = (head_{u} * {BLOCK}u + row_{u} % {BLOCK}u) * {VALUE_VEC4S}u;
//! for t in 0..ROWS
//! for r in 0..QUERIES
            var score_{t}_{r}_{u} = 0.0;
//! end
//! end
//! end
//! for i in 0..SLICES
//! for l in 0..SLICE
//! for u in 0..KEYS
            let key_{u}_{i}_{l} = keys_in(key_at_{u} + ({i}u * {SLICE}u + {l}u) * {BLOCK}u);
//! end
//! for t in 0..ROWS
//! for r in 0..QUERIES
//! if SUBGROUP
            let q_{t}_{r}_{i}_{l} = subgroupBroadcast(q_{t}_{r}_{i}, {l}u);
//! else
            let q_{t}_{r}_{i}_{l} = sh_q[({t}u * {QUERIES}u + {r}u) * {KEY_VEC4S}u + {i}u * {SLICE}u
                + {l}u];
//! end
//! for u in 0..KEYS
            score_{t}_{r}_{u} = fma(q_{t}_{r}_{i}_{l}.x, key_{u}_{i}_{l}.x, score_{t}_{r}_{u});
            score_{t}_{r}_{u} = fma(q_{t}_{r}_{i}_{l}.y, key_{u}_{i}_{l}.y, score_{t}_{r}_{u});
            score_{t}_{r}_{u} = fma(q_{t}_{r}_{i}_{l}.z, key_{u}_{i}_{l}.z, score_{t}_{r}_{u});
            score_{t}_{r}_{u} = fma(q_{t}_{r}_{i}_{l}.w, key_{u}_{i}_{l}.w, score_{t}_{r}_{u});
//! end
//! end
//! end
//! end
//! end

            // The largest score, exact in any order.
//! for t in 0..ROWS
//! for r in 0..QUERIES
            var lane_max_{t}_{r} = LEAST;
//! for u in 0..KEYS
            lane_max_{t}_{r} = select(lane_max_{t}_{r}, max(lane_max_{t}_{r}, score_{t}_{r}_{u}),
                key_{u} <= position_{t});
//! end
            var new_max_{t}_{r} = max_{t}_{r};
//! if SUBGROUP
            // A software driver would reduce them in a loop.
//! for l in 0..LANES
            new_max_{t}_{r} = max(new_max_{t}_{r}, subgroupBroadcast(lane_max_{t}_{r}, {l}u));
//! end
//! else
            sh_lane[({t}u * {QUERIES}u + {r}u) * {LANES}u + lane] = lane_max_{t}_{r};
//! end
//! end
//! end
//! if SUBGROUP
//! else
            workgroupBarrier();
//! for t in 0..ROWS
//! for r in 0..QUERIES
            for (var other = 0u; other < {LANES}u; other++) {
                new_max_{t}_{r} = max(new_max_{t}_{r},
                    sh_lane[({t}u * {QUERIES}u + {r}u) * {LANES}u + other]);
            }
//! end
//! end
//! end

//! for t in 0..ROWS
//! for r in 0..QUERIES
            let keep_{t}_{r} = exp(max_{t}_{r} - new_max_{t}_{r});
            max_{t}_{r} = new_max_{t}_{r};
            sum_{t}_{r} *= keep_{t}_{r};
//! for i in 0..SLICES
            total_{t}_{r}_{i} *= keep_{t}_{r};
//! end
//! for u in 0..KEYS
            let p_{t}_{r}_{u} =
                select(0.0, exp(score_{t}_{r}_{u} - new_max_{t}_{r}), key_{u} <= position_{t});
            sum_{t}_{r} += p_{t}_{r}_{u};
//! if SUBGROUP
//! else
            sh_p[({t}u * {QUERIES}u + {r}u) * {STEP}u + {u}u * {LANES}u + lane] = p_{t}_{r}_{u};
//! end
//! end
//! end
//! end
//! if SUBGROUP
//! else
//! for u in 0..KEYS
            sh_value[{u}u * {LANES}u + lane] = value_at_{u};
//! end
            workgroupBarrier();
//! end

            // Each lane sums four dimensions of each slice, over all positions.
//! for u in 0..KEYS
//! for l in 0..LANES
//! if SUBGROUP
            let value_at_{u}_{l} = subgroupBroadcast(value_at_{u}, {l}u) + lane % {SLICE}u;
//! else
            let value_at_{u}_{l} = sh_value[{u}u * {LANES}u + {l}u] + lane % {SLICE}u;
//! end
//! for i in 0..SLICES
            let value_{u}_{l}_{i} = values_in(value_at_{u}_{l} + {i}u * {SLICE}u);
//! end
//! for t in 0..ROWS
//! for r in 0..QUERIES
//! if SUBGROUP
            let p_{t}_{r}_{u}_{l} = subgroupBroadcast(p_{t}_{r}_{u}, {l}u);
//! else
            let p_{t}_{r}_{u}_{l} =
                sh_p[({t}u * {QUERIES}u + {r}u) * {STEP}u + {u}u * {LANES}u + {l}u];
//! end
//! for i in 0..SLICES
            total_{t}_{r}_{i} =
                fma(vec4<f32>(p_{t}_{r}_{u}_{l}), value_{u}_{l}_{i}, total_{t}_{r}_{i});
//! end
//! end
//! end
//! end
//! end
//! if SUBGROUP
//! else
            workgroupBarrier();
//! end
        }

//! for t in 0..ROWS
//! for r in 0..QUERIES
        var weight_{t}_{r} = 0.0;
//! if SUBGROUP
//! for l in 0..LANES
        weight_{t}_{r} += subgroupBroadcast(sum_{t}_{r}, {l}u);
//! end
//! else
        sh_lane[({t}u * {QUERIES}u + {r}u) * {LANES}u + lane] = sum_{t}_{r};
//! end
//! end
//! end
//! if SUBGROUP
//! else
        workgroupBarrier();
//! for t in 0..ROWS
//! for r in 0..QUERIES
        for (var other = 0u; other < {LANES}u; other++) {
            weight_{t}_{r} += sh_lane[({t}u * {QUERIES}u + {r}u) * {LANES}u + other];
        }
//! end
//! end
//! end
//! for t in 0..ROWS
//! for r in 0..QUERIES
        let factors_{t}_{r} = merge_factors(state_{t}_{r}.x, max_{t}_{r});
        state_{t}_{r} = merged(state_{t}_{r}, vec2<f32>(max_{t}_{r}, weight_{t}_{r}),
            factors_{t}_{r});
//! for i in 0..SLICES
        all_{t}_{r}_{i} =
            merged_values(all_{t}_{r}_{i}, total_{t}_{r}_{i}, factors_{t}_{r});
//! end
//! end
//! end
//! if SUBGROUP
//! else
        workgroupBarrier();
//! end
    }

    if (lane < {SLICE}u) {
//! for t in 0..ROWS
//! for r in 0..QUERIES
//! for i in 0..SLICES
        store_values(token_{t}, first_head + {r}u, partitions.x, {i}u * {SLICE}u + lane,
            all_{t}_{r}_{i}, state_{t}_{r});
//! end
        if (lane == 0u) {
            store_state(token_{t}, first_head + {r}u, partitions.x, state_{t}_{r});
        }
//! end
//! end
    }
}
//! end
