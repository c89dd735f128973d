// out[t, h, :] = sum over p <= positions[t] of
//     softmax(scale * q[t, h, :] . keys[p, :]) * values[p, :]
// one workgroup per TOKENS tokens t, QUERIES heads h that share a kv head, and, where partitions
// are computed side by side, partition
//
// On GPUs: many lanes, which exchange what they found through workgroup memory.
//
// Positions are cut into partitions of PARTITION, counted from 0. In one, every lane scores its
// own KEYS positions. Weights are relative to the partition's largest score, and summed by CHAINS
// chains, each of every CHAINS-th position, which are then added in order. Values are summed over
// each of VALUE_PARTS parts of the partition, which are added in order, too. Partitions are merged
// in ascending order (attention_parts.wgsl), here or by attention_merge.wgsl. A position after a
// row's own has no weight and changes nothing, since values are finite. None of this hangs on how
// many lanes, tokens or heads a workgroup has: the bits of a row depend on its own position and
// sequence only.

var<workgroup> sh_q: array<vec4<f32>, {SHARED_Q}>;      // [TOKENS, QUERIES, KEY_VEC4S]
var<workgroup> sh_p: array<f32, {SHARED_P}>;            // [TOKENS, QUERIES, PARTITION]
var<workgroup> sh_value: array<u32, {PARTITION}>;
var<workgroup> sh_most: array<f32, {SHARED_CHAINS}>;    // [TOKENS, QUERIES, CHAINS]
var<workgroup> sh_chain: array<f32, {SHARED_CHAINS}>;   // [TOKENS, QUERIES, CHAINS]
// [TOKENS, QUERIES]: state, then factors, of attention_parts.wgsl
var<workgroup> sh_state: array<vec4<f32>, {SHARED_ROWS}>;
//! if PARTED
var<workgroup> sh_part: array<vec4<f32>, {SHARED_PARTS}>;  // [VALUE_PARTS, VALUE_VEC4S]
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
    for (var i = lane; i < {ROWS}u * {QUERIES}u * {KEY_VEC4S}u; i += {LANES}u) {
        let token = min(first + i / ({QUERIES}u * {KEY_VEC4S}u), last);
        sh_q[i] = q_in((token * params.num_heads + first_head) * {KEY_VEC4S}u
            + i % ({QUERIES}u * {KEY_VEC4S}u)) * params.scale;
    }
    for (var row = lane; row < {ROWS}u * {QUERIES}u; row += {LANES}u) {
        sh_state[row] = vec4<f32>(no_positions(), 0.0, 0.0);
    }
    // Lane l sums dimensions 4l .. 4l + 4 of each slice, over its part of the positions.
    let part = lane / {SLICE}u;
//! for t in 0..ROWS
//! for r in 0..QUERIES
//! for i in 0..SLICES
    var all_{t}_{r}_{i} = vec4<f32>(0.0);
//! end
//! end
//! end
    workgroupBarrier();

    for (var nth = partitions.x; nth < end_partition; nth++) {
        let start = nth * {PARTITION}u;
//! for u in 0..KEYS
        let key_{u} = start + {u}u * {LANES}u + lane;
        let row_{u} = min(key_{u}, last_position);
        let head_{u} = inputs[table + row_{u} / {BLOCK}u] * params.num_kv_heads + kv_head;
        let key_at_{u} = head_{u} * {KEY_VEC4S}u * {BLOCK}u + row_{u} % {BLOCK}u;
        sh_value[{u}u * {LANES}u + lane] =
            (head_{u} * {BLOCK}u + row_{u} % {BLOCK}u) * {VALUE_VEC4S}u;
//! for t in 0..ROWS
//! for r in 0..QUERIES
        var score_{t}_{r}_{u} = 0.0;
//! end
//! end
//! end
        for (var d = 0u; d < {KEY_VEC4S}u; d += {AT_ONCE}u) {
//! for a in 0..AT_ONCE
//! for u in 0..KEYS
            let key_{a}_{u} = keys_in(key_at_{u} + (d + {a}u) * {BLOCK}u);
//! end
//! end
//! for a in 0..AT_ONCE
//! for t in 0..ROWS
//! for r in 0..QUERIES
            let q_{a}_{t}_{r} = sh_q[({t}u * {QUERIES}u + {r}u) * {KEY_VEC4S}u + d + {a}u];
//! for u in 0..KEYS
            score_{t}_{r}_{u} = fma(q_{a}_{t}_{r}.x, key_{a}_{u}.x, score_{t}_{r}_{u});
            score_{t}_{r}_{u} = fma(q_{a}_{t}_{r}.y, key_{a}_{u}.y, score_{t}_{r}_{u});
            score_{t}_{r}_{u} = fma(q_{a}_{t}_{r}.z, key_{a}_{u}.z, score_{t}_{r}_{u});
            score_{t}_{r}_{u} = fma(q_{a}_{t}_{r}.w, key_{a}_{u}.w, score_{t}_{r}_{u});
//! end
//! end
//! end
//! end
        }
//! for t in 0..ROWS
        let position_{t} = inputs[params.num_tokens + min(first + {t}u, last)];
//! for r in 0..QUERIES
//! for u in 0..KEYS
        sh_p[({t}u * {QUERIES}u + {r}u) * {PARTITION}u + {u}u * {LANES}u + lane] =
            select(LEAST, score_{t}_{r}_{u}, key_{u} <= position_{t});
//! end
//! end
//! end
        workgroupBarrier();

        // The largest score, exact in any order.
        for (var i = lane; i < {ROWS}u * {QUERIES}u * {CHAINS}u; i += {LANES}u) {
            let row = i / {CHAINS}u * {PARTITION}u;
            var most = LEAST;
            for (var k = i % {CHAINS}u; k < {PARTITION}u; k += {CHAINS}u) {
                most = max(most, sh_p[row + k]);
            }
            sh_most[i] = most;
        }
        workgroupBarrier();
        for (var i = lane; i < {ROWS}u * {QUERIES}u * {CHAINS}u; i += {LANES}u) {
            let row = i / {CHAINS}u;
            let most = most_of(row);
            let own = inputs[params.num_tokens + min(first + row / {QUERIES}u, last)];
            var sum = 0.0;
            for (var k = i % {CHAINS}u; k < {PARTITION}u; k += {CHAINS}u) {
                let at = row * {PARTITION}u + k;
                let p = select(0.0, exp(sh_p[at] - most), start + k <= own);
                sum += p;
                sh_p[at] = p;
            }
            sh_chain[i] = sum;
        }
        workgroupBarrier();
        merge_rows(lane, {ROWS}u * {QUERIES}u);

        // Of positions past the last one weights are zero, and values those of the last.
        let count = min({PARTITION}u, last_position + 1u - start);
//! for t in 0..ROWS
//! for r in 0..QUERIES
//! for i in 0..SLICES
        var whole_{t}_{r}_{i} = vec4<f32>(0.0);
//! end
//! end
//! end
//! if PARTED
        let first_part = part;
        let end_part = part + 1u;
//! else
        let first_part = 0u;
        let end_part = select({VALUE_PARTS}u, 0u, part > 0u);
//! end
        for (var own = first_part; own < end_part; own++) {
//! for t in 0..ROWS
//! for r in 0..QUERIES
//! for i in 0..SLICES
            var sum_{t}_{r}_{i} = vec4<f32>(0.0);
//! end
//! end
//! end
            let end = min((own + 1u) * {PART_POSITIONS}u, count);
            for (var n = own * {PART_POSITIONS}u; n < end; n += {VALUES_AT_ONCE}u) {
//! for a in 0..VALUES_AT_ONCE
                let value_at_{a} = sh_value[n + {a}u] + lane % {SLICE}u;
//! for i in 0..SLICES
                let value_{a}_{i} = values_in(value_at_{a} + {i}u * {SLICE}u);
//! end
//! end
//! for a in 0..VALUES_AT_ONCE
//! for t in 0..ROWS
//! for r in 0..QUERIES
                let p_{a}_{t}_{r} =
                    vec4<f32>(sh_p[({t}u * {QUERIES}u + {r}u) * {PARTITION}u + n + {a}u]);
//! for i in 0..SLICES
                sum_{t}_{r}_{i} = fma(p_{a}_{t}_{r}, value_{a}_{i}, sum_{t}_{r}_{i});
//! end
//! end
//! end
//! end
            }
//! for t in 0..ROWS
//! for r in 0..QUERIES
//! for i in 0..SLICES
            whole_{t}_{r}_{i} += sum_{t}_{r}_{i};
//! end
//! end
//! end
        }
        workgroupBarrier();
//! for t in 0..ROWS
//! for r in 0..QUERIES
//! if PARTED
        if (part < {VALUE_PARTS}u) {
//! for i in 0..SLICES
            sh_part[part * {VALUE_VEC4S}u + {i}u * {SLICE}u + lane % {SLICE}u] =
                whole_{t}_{r}_{i};
//! end
        }
        workgroupBarrier();
        if (part == 0u) {
            for (var other = 1u; other < {VALUE_PARTS}u; other++) {
//! for i in 0..SLICES
                whole_{t}_{r}_{i} += sh_part[other * {VALUE_VEC4S}u + {i}u * {SLICE}u + lane];
//! end
            }
        }
        workgroupBarrier();
//! end
        let factors_{t}_{r} = sh_state[{t}u * {QUERIES}u + {r}u].zw;
//! for i in 0..SLICES
        all_{t}_{r}_{i} = merged_values(all_{t}_{r}_{i}, whole_{t}_{r}_{i}, factors_{t}_{r});
//! end
//! end
//! end
        // Before a lane takes the memory for the next partition.
        workgroupBarrier();
    }

    if (part == 0u) {
//! for t in 0..ROWS
//! for r in 0..QUERIES
        let state_{t}_{r} = sh_state[{t}u * {QUERIES}u + {r}u].xy;
//! for i in 0..SLICES
        store_values(min(first + {t}u, last), first_head + {r}u, partitions.x,
            {i}u * {SLICE}u + lane, all_{t}_{r}_{i}, state_{t}_{r});
//! end
        if (lane == 0u) {
            store_state(min(first + {t}u, last), first_head + {r}u, partitions.x, state_{t}_{r});
        }
//! end
//! end
    }
    // Before the next token's queries and states take the place of these.
    workgroupBarrier();
}
//! end
