// softmax(scale * q . keys) * values over the positions of part s, for TOKENS tokens and QUERIES
// heads that share a kv head; the tokens follow each other in one sequence (or TOKENS is 1)
// one workgroup per tile of tokens, tile of heads, part
//
// Sums run over whatever positions a part has, and are rescaled whenever a larger score comes.
// PARTED: unfinished sums go to parts, with their largest score and weight, for merge.wgsl.

//! if PARTED
// [num_parts, num_tokens, num_heads]: largest score, sum of weights
@group(0) @binding(5) var<storage, read_write> states: array<vec2<f32>>;
//! end

//! if SUBGROUP
//! else
var<workgroup> sh_q: array<vec4<f32>, {SHARED_Q}>;  // [TOKENS, QUERIES, HEAD_VEC4S]
var<workgroup> sh_lane: array<f32, {SHARED_LANE}>;  // [TOKENS, QUERIES, LANES]
var<workgroup> sh_p: array<f32, {SHARED_P}>;        // [TOKENS, QUERIES, PARTITION]
var<workgroup> sh_value: array<u32, {PARTITION}>;
//! end

@compute @workgroup_size({LANES})
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) num_workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let first_token = workgroup.x * {TOKENS}u;
    let first_head = workgroup.y * {QUERIES}u;
    let kv_head = first_head / (params.num_heads / params.num_kv_heads);
    let table = params.tables_at + inputs[2u * params.num_tokens + first_token];
    let last_token = min(first_token + {TOKENS}u, params.num_tokens) - 1u;
    let last = inputs[params.num_tokens + last_token];

//! for t in 0..TOKENS
    let token_{t} = min(first_token + {t}u, last_token);
    let position_{t} = inputs[params.num_tokens + token_{t}];
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
    // Of this lane's keys.
    var sum_{t}_{r} = 0.0;
//! end
//! end
//! if SUBGROUP
//! else
    workgroupBarrier();
//! end

    let num_partitions = last / {PARTITION}u + 1u;
    let part_span =
        (num_partitions + num_workgroups.z - 1u) / num_workgroups.z * {PARTITION}u;
    let part_start = workgroup.z * part_span;
    let part_end = min(part_start + part_span, last + 1u);
    for (var start = part_start; start < part_end; start += {PARTITION}u) {
//! for u in 0..KEYS
        let key_{u} = start + {u}u * {LANES}u + lane;
        let row_{u} = min(key_{u}, last);
        let head_{u} = inputs[table + row_{u} / {BLOCK}u] * params.num_kv_heads + kv_head;
        let key_at_{u} = head_{u} * {HEAD_VEC4S}u * {BLOCK}u + row_{u} % {BLOCK}u;
        let value_at_{u} = (head_{u} * {BLOCK}u + row_{u} % {BLOCK}u) * {HEAD_VEC4S}u;
//! for t in 0..TOKENS
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
//! for t in 0..TOKENS
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

//! for t in 0..TOKENS
//! for r in 0..QUERIES
        var lane_max_{t}_{r} = -3.4028234e38;
//! for u in 0..KEYS
        lane_max_{t}_{r} = select(lane_max_{t}_{r}, max(lane_max_{t}_{r}, score_{t}_{r}_{u}),
            key_{u} <= position_{t});
//! end
//! if SUBGROUP
//! if FEW_LANES
        // A software driver would reduce them in a loop.
        var new_max_{t}_{r} = max_{t}_{r};
//! for l in 0..LANES
        new_max_{t}_{r} = max(new_max_{t}_{r}, subgroupBroadcast(lane_max_{t}_{r}, {l}u));
//! end
//! else
        let new_max_{t}_{r} = max(max_{t}_{r}, subgroupMax(lane_max_{t}_{r}));
//! end
//! else
        sh_lane[({t}u * {QUERIES}u + {r}u) * {LANES}u + lane] = lane_max_{t}_{r};
//! end
//! end
//! end
//! if SUBGROUP
//! else
        workgroupBarrier();
//! for t in 0..TOKENS
//! for r in 0..QUERIES
        var new_max_{t}_{r} = max_{t}_{r};
        for (var other = 0u; other < {LANES}u; other++) {
            new_max_{t}_{r} = max(new_max_{t}_{r},
                sh_lane[({t}u * {QUERIES}u + {r}u) * {LANES}u + other]);
        }
//! end
//! end
//! end

//! for t in 0..TOKENS
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
//! for t in 0..TOKENS
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

//! for t in 0..TOKENS
//! for r in 0..QUERIES
//! if SUBGROUP
    let weight_{t}_{r} = subgroupAdd(sum_{t}_{r});
//! else
    sh_lane[({t}u * {QUERIES}u + {r}u) * {LANES}u + lane] = sum_{t}_{r};
//! end
//! end
//! end
//! if SUBGROUP
//! else
    workgroupBarrier();
//! for t in 0..TOKENS
//! for r in 0..QUERIES
    var weight_{t}_{r} = 0.0;
    for (var other = 0u; other < {LANES}u; other++) {
        weight_{t}_{r} += sh_lane[({t}u * {QUERIES}u + {r}u) * {LANES}u + other];
    }
//! end
//! end
//! end
    if (lane < {SLICE}u) {
//! for t in 0..TOKENS
        if (first_token + {t}u <= last_token) {
//! for r in 0..QUERIES
            let row_{t}_{r} =
//! if PARTED
                workgroup.z * params.num_tokens * params.num_heads +
//! end
                token_{t} * params.num_heads + first_head + {r}u;
//! for i in 0..SLICES
//! if PARTED
            store(row_{t}_{r} * {HEAD_VEC4S}u + {i}u * {SLICE}u + lane, total_{t}_{r}_{i});
//! else
            store(row_{t}_{r} * {HEAD_VEC4S}u + {i}u * {SLICE}u + lane,
                total_{t}_{r}_{i} / weight_{t}_{r});
//! end
//! end
//! if PARTED
            if (lane == 0u) {
                states[row_{t}_{r}] = vec2<f32>(max_{t}_{r}, weight_{t}_{r});
            }
//! end
//! end
        }
//! end
    }
}

