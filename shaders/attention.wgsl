// out[t, h, :] = sum over p <= positions[t] of
//     softmax(scale * q[t, h, :] . keys[p, :]) * values[p, :]
// one workgroup per TOKENS tokens t, QUERIES heads h that share a kv head
//
// Tokens of one sequence share the reading of keys and values; others are taken one by one.
//
// Positions are taken in partitions of LANES * KEYS, counted from 0, in ascending order. When one
// brings a larger score, what was summed before is made as much smaller; values are then added in
// ascending order. Each lane adds the weights of the positions that it scores, and the lanes' sums
// are added at the end, in order. A position after a row's own has no weight, and changes nothing:
// values are finite, and what was summed is kept as it is where no score is larger (exp(0) is 1
// where tokens share a reading). So the bits of a row depend on its own position and sequence only.

//! if SUBGROUP
//! else
var<workgroup> sh_q: array<vec4<f32>, {SHARED_Q}>;  // [TOKENS, QUERIES, HEAD_VEC4S]
var<workgroup> sh_lane: array<f32, {SHARED_LANE}>;  // [TOKENS, QUERIES, LANES]
var<workgroup> sh_p: array<f32, {SHARED_P}>;        // [TOKENS, QUERIES, PARTITION]
var<workgroup> sh_value: array<u32, {PARTITION}>;
//! end

@compute @workgroup_size({LANES})
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let first_head = workgroup.y * {QUERIES}u;
    let first = workgroup.x * {TOKENS}u;
//! if TILED
    let end = min(first + {TOKENS}u, params.num_tokens);
    // Never by the lone tokens of decoding, nor by those of two sequences.
    var together = end - first > 1u;
    for (var token = first + 1u; token < end; token++) {
        together = together && table_start(token) == table_start(first);
    }
    if (together) {
        attend_{TOKENS}(first, end - 1u, first_head, lane);
        return;
    }
    for (var token = first; token < end; token++) {
        attend_1(token, token, first_head, lane);
    }
//! else
    attend_1(first, first, first_head, lane);
//! end
}

fn table_start(token: u32) -> u32 {
    return inputs[2u * params.num_tokens + token];
}

// Those from `first` to `last`, of one sequence and in its order, at most ROWS.
//! for ROWS in 1..TOKENS+1 by FURTHER
fn attend_{ROWS}(first: u32, last: u32, first_head: u32, lane: u32) {
    let kv_head = first_head / (params.num_heads / params.num_kv_heads);
    let table = params.tables_at + table_start(first);
    let last_position = inputs[params.num_tokens + last];
//! for t in 0..ROWS
    let token_{t} = min(first + {t}u, last);
    let position_{t} = inputs[params.num_tokens + token_{t}];
//! end

    // Lane l holds dimensions 4l .. 4l + 4 of each slice of a head.
//! for t in 0..ROWS
//! for r in 0..QUERIES
//! for i in 0..SLICES
    let q_{t}_{r}_{i} = q_at((token_{t} * params.num_heads + first_head + {r}u) * {HEAD_VEC4S}u
        + {i}u * {SLICE}u + lane % {SLICE}u) * params.scale;
    var total_{t}_{r}_{i} = vec4<f32>(0.0);
//! if SUBGROUP
//! else
    if (lane < {SLICE}u) {
        sh_q[({t}u * {QUERIES}u + {r}u) * {HEAD_VEC4S}u + {i}u * {SLICE}u + lane] = q_{t}_{r}_{i};
    }
//! end
//! end
    var max_{t}_{r} = -3.4028234e38;
    var sum_{t}_{r} = 0.0;
//! end
//! end
//! if SUBGROUP
//! else
    workgroupBarrier();
//! end

    for (var start = 0u; start <= last_position; start += {PARTITION}u) {
        // Each lane scores every LANES-th position; those after its own take no part.
//! for u in 0..KEYS
        let key_{u} = start + {u}u * {LANES}u + lane;
        let row_{u} = min(key_{u}, last_position);
        let head_{u} = inputs[table + row_{u} / {BLOCK}u] * params.num_kv_heads + kv_head;
        let key_at_{u} = head_{u} * {HEAD_VEC4S}u * {BLOCK}u + row_{u} % {BLOCK}u;
        let value_at_{u} = (head_{u} * {BLOCK}u + row_{u} % {BLOCK}u) * {HEAD_VEC4S}u;
//! for t in 0..ROWS
//! for r in 0..QUERIES
        var score_{t}_{r}_{u} = 0.0;
//! end
//! end
//! end
//! for i in 0..SLICES
//! for l in 0..SLICE
//! for u in 0..KEYS
        let key_{u}_{i}_{l} = key_at(key_at_{u} + ({i}u * {SLICE}u + {l}u) * {BLOCK}u);
//! end
//! for t in 0..ROWS
//! for r in 0..QUERIES
//! if SUBGROUP
        let q_{t}_{r}_{i}_{l} = subgroupBroadcast(q_{t}_{r}_{i}, {l}u);
//! else
        let q_{t}_{r}_{i}_{l} = sh_q[({t}u * {QUERIES}u + {r}u) * {HEAD_VEC4S}u + {i}u * {SLICE}u
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
        var lane_max_{t}_{r} = -3.4028234e38;
//! for u in 0..KEYS
        lane_max_{t}_{r} = select(lane_max_{t}_{r}, max(lane_max_{t}_{r}, score_{t}_{r}_{u}),
            key_{u} <= position_{t});
//! end
        var new_max_{t}_{r} = max_{t}_{r};
//! if SUBGROUP
//! if FEW_LANES
        // A software driver would reduce them in a loop.
//! for l in 0..LANES
        new_max_{t}_{r} = max(new_max_{t}_{r}, subgroupBroadcast(lane_max_{t}_{r}, {l}u));
//! end
//! else
        new_max_{t}_{r} = max(new_max_{t}_{r}, subgroupMax(lane_max_{t}_{r}));
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
        sh_p[({t}u * {QUERIES}u + {r}u) * {PARTITION}u + {u}u * {LANES}u + lane] = p_{t}_{r}_{u};
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
        let value_{u}_{l}_{i} = value_at(value_at_{u}_{l} + {i}u * {SLICE}u);
//! end
//! for t in 0..ROWS
//! for r in 0..QUERIES
//! if SUBGROUP
        let p_{t}_{r}_{u}_{l} = subgroupBroadcast(p_{t}_{r}_{u}, {l}u);
//! else
        let p_{t}_{r}_{u}_{l} =
            sh_p[({t}u * {QUERIES}u + {r}u) * {PARTITION}u + {u}u * {LANES}u + {l}u];
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
    if (lane < {SLICE}u) {
//! for t in 0..ROWS
//! for r in 0..QUERIES
//! for i in 0..SLICES
        // A zero of either sign is one: nothing, added by positions without weight, turns it.
        store((token_{t} * params.num_heads + first_head + {r}u) * {HEAD_VEC4S}u
            + {i}u * {SLICE}u + lane,
            select(total_{t}_{r}_{i} / weight_{t}_{r}, vec4<f32>(0.0),
                total_{t}_{r}_{i} == vec4<f32>(0.0)));
//! end
//! end
//! end
    }
}
//! end
