// out[t, h, :] = sum over positions p of softmax(scale * q[t, h, :] . rows[p, :]) * rows[p, ..lora]
//        one workgroup per token t, QUERIES heads h, and, where they are side by side, partition
//
// All heads attend to the same latent rows. Positions are all up to the token's own, or those that
// it has chosen. They are cut into partitions of PARTITION, counted from 0, and in one taken STEP
// at a time, in ascending order: when a step brings a larger score, what was summed before is made
// as much smaller. Each lane adds the weights of the positions that it scores, and the lanes' sums
// are added at the partition's end, in order. Partitions are merged in ascending order
// (attention_parts.wgsl), here or by attention_merge.wgsl. So the bits of a row depend on its own
// position and sequence only.

struct Params {
    num_tokens: u32,
    tables_at: u32,    // in inputs
    num_heads: u32,
    scale: f32,
    first_token: u32,
    num_partitions: u32,  // that a token has room for; 0: they aren't side by side
}

var<immediate> params: Params;
//! read inputs u32  ..., positions, table_starts, ..., tables
//! read q vec4s  [num_tokens, num_heads, LATENT]
//! read rows cache  [num_blocks, LATENT, BLOCK]
//! write out vec4s  [num_tokens, num_heads, LORA], or as attention_merge.wgsl takes it
//! if CHOSEN
//! read chosen u32  for each token how many positions, and which, ascending [num_tokens, 1 + MOST]
//! end

var<workgroup> sh_lane: array<f32, {SHARED_LANE}>;   // [QUERIES, LANES]
var<workgroup> sh_weight: array<f32, {SHARED_P}>;    // [QUERIES, STEP]
var<workgroup> sh_at: array<u32, {STEP}>;

@compute @workgroup_size({LANES})
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let token = params.first_token + workgroup.z;
    let first_head = workgroup.x * {QUERIES}u;
    let table = params.tables_at + inputs[2u * params.num_tokens + token];
//! if CHOSEN
    let count = chosen[token * {CHOSEN_STRIDE}u];
//! else
    let count = inputs[params.num_tokens + token] + 1u;
//! end
    let first_query = (token * params.num_heads + first_head) * {LATENT}u;
    // Side by side, a workgroup has a partition; else all of them, one after another.
    var first = 0u;
    var end_partition = (count - 1u) / {PARTITION}u + 1u;
    if (params.num_partitions > 0u) {
        first = workgroup.y;
        end_partition = min(first + 1u, end_partition);
    }
//! for r in 0..QUERIES
    var state_{r} = no_positions();
//! for i in 0..SLICES
    var all_{r}_{i} = vec4<f32>(0.0);
//! end
//! end

    for (var nth = first; nth < end_partition; nth++) {
//! for r in 0..QUERIES
    var max_{r} = LEAST;
    var sum_{r} = 0.0;
//! for i in 0..SLICES
    var total_{r}_{i} = vec4<f32>(0.0);
//! end
//! end
    let partition_end = min((nth + 1u) * {PARTITION}u, count);
    for (var start = nth * {PARTITION}u; start < partition_end; start += {STEP}u) {
//! for u in 0..KEYS
        let place_{u} = start + {u}u * {LANES}u + lane;
        let at_{u} = row_start(table, token, min(place_{u}, count - 1u));
        sh_at[{u}u * {LANES}u + lane] = at_{u};
//! for r in 0..QUERIES
        var score_{r}_{u} = 0.0;
//! end
//! end
        for (var d = 0u; d < {LATENT}u; d++) {
//! for u in 0..KEYS
            let key_{u} = rows_in(at_{u} + d * {BLOCK}u);
//! end
//! for r in 0..QUERIES
            let q_{r} = q_in(first_query + {r}u * {LATENT}u + d) * params.scale;
//! for u in 0..KEYS
            score_{r}_{u} = fma(q_{r}.x, key_{u}.x, score_{r}_{u});
            score_{r}_{u} = fma(q_{r}.y, key_{u}.y, score_{r}_{u});
            score_{r}_{u} = fma(q_{r}.z, key_{u}.z, score_{r}_{u});
            score_{r}_{u} = fma(q_{r}.w, key_{u}.w, score_{r}_{u});
//! end
//! end
        }

        // The largest score, exact in any order.
//! for r in 0..QUERIES
        var lane_max_{r} = LEAST;
//! for u in 0..KEYS
        lane_max_{r} = select(lane_max_{r}, max(lane_max_{r}, score_{r}_{u}), place_{u} < count);
//! end
        sh_lane[{r}u * {LANES}u + lane] = lane_max_{r};
//! end
        workgroupBarrier();
//! for r in 0..QUERIES
        var new_max_{r} = max_{r};
        for (var other = 0u; other < {LANES}u; other++) {
            new_max_{r} = max(new_max_{r}, sh_lane[{r}u * {LANES}u + other]);
        }
        let keep_{r} = exp(max_{r} - new_max_{r});
        max_{r} = new_max_{r};
        sum_{r} *= keep_{r};
//! for i in 0..SLICES
        total_{r}_{i} *= keep_{r};
//! end
//! for u in 0..KEYS
        let weight_{r}_{u} =
            select(0.0, exp(score_{r}_{u} - new_max_{r}), place_{u} < count);
        sum_{r} += weight_{r}_{u};
        sh_weight[{r}u * {STEP}u + {u}u * {LANES}u + lane] = weight_{r}_{u};
//! end
//! end
        workgroupBarrier();

        // Each lane sums some dimensions over all positions.
        let end = min({STEP}u, count - start);
        for (var j = 0u; j < end; j++) {
            let at = sh_at[j];
//! for i in 0..SLICES
            let value_{i} = rows_in(at + min({i}u * {LANES}u + lane, {LORA}u - 1u) * {BLOCK}u);
//! end
//! for r in 0..QUERIES
            let weight_{r} = vec4<f32>(sh_weight[{r}u * {STEP}u + j]);
//! for i in 0..SLICES
            total_{r}_{i} = fma(weight_{r}, value_{i}, total_{r}_{i});
//! end
//! end
        }
        workgroupBarrier();
    }

//! for r in 0..QUERIES
    sh_lane[{r}u * {LANES}u + lane] = sum_{r};
//! end
    workgroupBarrier();
//! for r in 0..QUERIES
    var weight_{r} = 0.0;
    for (var other = 0u; other < {LANES}u; other++) {
        weight_{r} += sh_lane[{r}u * {LANES}u + other];
    }
    let factors_{r} = merge_factors(state_{r}.x, max_{r});
    state_{r} = merged(state_{r}, vec2<f32>(max_{r}, weight_{r}), factors_{r});
//! for i in 0..SLICES
    all_{r}_{i} = merged_values(all_{r}_{i}, total_{r}_{i}, factors_{r});
//! end
//! end
    // Before a lane takes the memory for the next partition.
    workgroupBarrier();
    }

    if (first >= end_partition) {
        return;
    }
//! for r in 0..QUERIES
//! for i in 0..SLICES
    if ({i}u * {LANES}u + lane < {LORA}u) {
        store_values(token, first_head + {r}u, first, {i}u * {LANES}u + lane, all_{r}_{i},
            state_{r});
    }
//! end
    if (lane == 0u) {
        store_state(token, first_head + {r}u, first, state_{r});
    }
//! end
}

// Where the row of a position begins, or of that of this number among those chosen.
fn row_start(table: u32, token: u32, number: u32) -> u32 {
//! if CHOSEN
    let position = chosen[token * {CHOSEN_STRIDE}u + 1u + number];
//! else
    let position = number;
//! end
    return inputs[table + position / {BLOCK}u] * {LATENT}u * {BLOCK}u + position % {BLOCK}u;
}
