enable f16;
enable wgpu_cooperative_matrix;

// out[t, h, :] = sum over p <= positions[t] of
//     softmax(scale * q[t, h, :] . keys[p, :]) * values[p, :]
// by cooperative matrices of SIDE x SIDE values: queries, keys, weights and values rounded to f16,
// products and their sums as the matrix cores compute them, in f32, and what is between in f32
// one workgroup per TOKENS tokens t of one sequence, QUERIES heads h that share a kv head, and,
// where partitions are computed side by side, partition
//
// Positions are cut into partitions of PARTITION, counted from 0. Each subgroup scores SCORES *
// SIDE positions of one. Weights are relative to the partition's largest score, and summed by
// CHAINS chains, each of every CHAINS-th four positions, which are then added in order: of what
// they were rounded to, by which weighted values are divided. Values are summed over PART positions
// at a time, and those sums are added in order. Partitions are merged in ascending order
// (attention_parts.wgsl), here or by attention_merge.wgsl. A position after a row's own has no
// weight and changes nothing, since values are finite. Rows are as many as matrices have, with
// whatever is in those that no token has. One token or many, a row's matrices are the same: it
// doesn't depend on its batch where the cores treat the rows of a matrix alike.
//
// No subgroup operations here: a driver crashes on modules that have both.

// Padded rows: lanes that read one column each meet different banks.
var<workgroup> sh_q: array<vec4<f16>, {SHARED_Q}>;        // [ROWS, Q_STRIDE]
// keys [PARTITION, KEY_STRIDE]; where they are of f32, then values [PART, Q_STRIDE]
var<workgroup> sh_half: array<vec4<f16>, {SHARED_HALF}>;
var<workgroup> sh_p: array<vec4<f16>, {SHARED_P}>;        // [ROWS, P_STRIDE]
// Where the keys and values of a partition are: (block * num_kv_heads + kv_head) * BLOCK + slot.
var<workgroup> sh_slot: array<u32, {PARTITION}>;
// scores [ROWS, OUT_STRIDE], then weighted values
var<workgroup> sh_out: array<f32, {SHARED_OUT}>;
var<workgroup> sh_most: array<f32, {SHARED_CHAINS}>;      // [ROWS, CHAINS]
var<workgroup> sh_chain: array<f32, {SHARED_CHAINS}>;     // [ROWS, CHAINS]
// [ROWS]: state, then factors, of attention_parts.wgsl
var<workgroup> sh_state: array<vec4<f32>, {ROWS}>;

@compute @workgroup_size({LANES})
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let p = params;
    // Heads that share keys and values follow each other, so that caches still hold those.
    let first_head = workgroup.x * {QUERIES}u;
    let kv_head = first_head / (p.num_heads / p.num_kv_heads);
    let tile = p.first_token + workgroup.z * {TOKENS}u;
    // Side by side, a workgroup has a partition; else all of them, one after another.
    var partitions = vec2<u32>(0u, 0xffffffffu);
//! if TILED
    // The first of those of one sequence has the workgroup; that of another has nothing to do.
    let end_token = min(tile + {TOKENS}u, p.num_tokens);
    let first = min(tile + workgroup.y, end_token - 1u);
    let follows = first > tile && table_start(first - 1u) == table_start(first);
    let has_none = follows || first != tile + workgroup.y;
    var last = first;
    while (last + 1u < end_token && table_start(last + 1u) == table_start(first)) {
        last++;
    }
//! else
    let has_none = false;
    let first = tile;
    let last = tile;
    if (p.num_partitions > 0u) {
        partitions = vec2<u32>(workgroup.y, workgroup.y + 1u);
    }
//! end
    let table = p.tables_at + table_start(first);
    let last_position = inputs[p.num_tokens + last];
    // No return: what follows has to be in uniform control flow, as far as a compiler sees.
    let some_partition = min(partitions.y, last_position / {PARTITION}u + 1u);
    let end_partition = select(some_partition, 0u, has_none);
    let some_rows = (last - first + 1u) * {QUERIES}u;
    let num_rows = select(0u, some_rows, partitions.x < end_partition);
    let subgroup = local / {SUBGROUP_LANES}u;
    let own_scores = subgroup * {SCORES}u * {SIDE}u;

    for (var i = local; i < num_rows * {HEAD_VEC4S}u; i += {LANES}u) {
        let row = i / {HEAD_VEC4S}u;
        let d = i % {HEAD_VEC4S}u;
        let head = (first + row / {QUERIES}u) * p.num_heads + first_head + row % {QUERIES}u;
        sh_q[row * {Q_STRIDE}u + d] = halves(q_in(head * {HEAD_VEC4S}u + d) * p.scale);
    }
    for (var row = local; row < {ROWS}u; row += {LANES}u) {
        sh_state[row] = vec4<f32>(no_positions(), 0.0, 0.0);
    }
    // Each lane has every LANES-th vec4 of what its rows attend to.
//! for n in 0..HELD
    var all_{n} = vec4<f32>(0.0);
//! end

    for (var nth = partitions.x; nth < end_partition; nth++) {
        let start = nth * {PARTITION}u;
        // Past the last position keys and values are whatever is finite, and have no weight.
        for (var at = local; at < {PARTITION}u; at += {LANES}u) {
            let position = min(start + at, last_position);
            let head = inputs[table + position / {BLOCK}u] * p.num_kv_heads + kv_head;
            sh_slot[at] = head * {BLOCK}u + position % {BLOCK}u;
        }
//! for m in 0..MATRICES
//! for j in 0..SCORES
        var score_{m}_{j} = coop_mat{SIDE}x{SIDE}<f32, C>();
//! end
//! end
        for (var d = 0u; d < {HEAD_VEC4S}u; d += {KEY_VEC4S}u) {
            workgroupBarrier();
            for (var i = local; i < {PARTITION}u * {KEY_VEC4S}u; i += {LANES}u) {
                let at = i % {PARTITION}u;
                let slot = sh_slot[at];
                let key = (slot / {BLOCK}u * {HEAD_VEC4S}u + d + i / {PARTITION}u) * {BLOCK}u;
                sh_half[at * {KEY_STRIDE}u + i / {PARTITION}u] = key_halves(key + slot % {BLOCK}u);
            }
            workgroupBarrier();
//! for k in 0..KEY_VALUES by SIDE
//! for j in 0..SCORES
            let key_{k}_{j} = coopLoad<coop_mat{SIDE}x{SIDE}<f16, B>>(
                &sh_half[(own_scores + {j}u * {SIDE}u) * {KEY_STRIDE}u + {k}u / 4u], {KEY_STRIDE}u);
//! end
//! for m in 0..MATRICES
            let q_{k}_{m} = coopLoadT<coop_mat{SIDE}x{SIDE}<f16, A>>(
                &sh_q[{m}u * {SIDE}u * {Q_STRIDE}u + d + {k}u / 4u], {Q_STRIDE}u);
//! for j in 0..SCORES
            score_{m}_{j} = coopMultiplyAdd(q_{k}_{m}, key_{k}_{j}, score_{m}_{j});
//! end
//! end
//! end
        }
//! for m in 0..MATRICES
//! for j in 0..SCORES
        let place_{m}_{j} = {m}u * {SIDE}u * {OUT_STRIDE}u + own_scores + {j}u * {SIDE}u;
        coopStoreT(score_{m}_{j}, &sh_out[place_{m}_{j}], {OUT_STRIDE}u);
//! end
//! end
        workgroupBarrier();

        // The largest score, exact in any order.
        for (var i = local; i < {ROWS}u * {CHAINS}u; i += {LANES}u) {
            let row = i / {CHAINS}u;
            let own = inputs[p.num_tokens + min(first + row / {QUERIES}u, last)];
            var most = LEAST;
            for (var k = i % {CHAINS}u * 4u; k < {PARTITION}u; k += {CHAINS}u * 4u) {
                let scores = scores_at(row, k);
                let bounded = select(vec4<f32>(LEAST), scores, attends(start + k, own));
                most = max(most, max(max(bounded.x, bounded.y), max(bounded.z, bounded.w)));
            }
            sh_most[i] = most;
        }
        workgroupBarrier();
        for (var i = local; i < {ROWS}u * {CHAINS}u; i += {LANES}u) {
            let row = i / {CHAINS}u;
            let own = inputs[p.num_tokens + min(first + row / {QUERIES}u, last)];
            let most = most_of(row);
            var sum = 0.0;
            for (var k = i % {CHAINS}u * 4u; k < {PARTITION}u; k += {CHAINS}u * 4u) {
                let exact = exp(scores_at(row, k) - most);
                let weights =
                    vec4<f16>(select(vec4<f32>(0.0), exact, attends(start + k, own)));
                sh_p[row * {P_STRIDE}u + k / 4u] = weights;
                let rounded = vec4<f32>(weights);
                sum += rounded.x;
                sum += rounded.y;
                sum += rounded.z;
                sum += rounded.w;
            }
            sh_chain[i] = sum;
        }
        workgroupBarrier();
        merge_rows(local, {ROWS}u);

        // Each subgroup has every SUBGROUPS-th matrix of columns; past the last one it is the last.
//! for j in 0..COLUMNS
        let column_{j} = min(subgroup + {j}u * {SUBGROUPS}u, {LAST_COLUMN}u) * {SIDE}u;
//! for m in 0..MATRICES
        var total_{m}_{j} = coop_mat{SIDE}x{SIDE}<f32, C>();
//! end
//! end
        let count = min({PARTITION}u, last_position + 1u - start);
        for (var part = 0u; part < count; part += {PART}u) {
//! for m in 0..MATRICES
//! for j in 0..COLUMNS
            var sum_{m}_{j} = coop_mat{SIDE}x{SIDE}<f32, C>();
//! end
//! end
//! if KV_F16
//! for k in 0..PART by SIDE
            let place_{k} = sh_slot[part + {k}u] / {SIDE}u * {SIDE}u * {HEAD_VEC4S}u;
//! for j in 0..COLUMNS
            let value_{k}_{j} = coopLoadT<coop_mat{SIDE}x{SIDE}<f16, B>>(
                &values[place_{k} + column_{j} / 4u], {HEAD_VEC4S}u);
//! end
//! end
//! else
            workgroupBarrier();
            for (var i = local; i < {PART}u * {HEAD_VEC4S}u; i += {LANES}u) {
                let at = i / {HEAD_VEC4S}u;
                let d = i % {HEAD_VEC4S}u;
                sh_half[at * {Q_STRIDE}u + d] =
                    halves(values_in(sh_slot[part + at] * {HEAD_VEC4S}u + d));
            }
            workgroupBarrier();
//! for k in 0..PART by SIDE
//! for j in 0..COLUMNS
            let value_{k}_{j} = coopLoadT<coop_mat{SIDE}x{SIDE}<f16, B>>(
                &sh_half[{k}u * {Q_STRIDE}u + column_{j} / 4u], {Q_STRIDE}u);
//! end
//! end
//! end
//! for k in 0..PART by SIDE
//! for m in 0..MATRICES
            let p_{k}_{m} = coopLoadT<coop_mat{SIDE}x{SIDE}<f16, A>>(
                &sh_p[{m}u * {SIDE}u * {P_STRIDE}u + (part + {k}u) / 4u], {P_STRIDE}u);
//! for j in 0..COLUMNS
            sum_{m}_{j} = coopMultiplyAdd(p_{k}_{m}, value_{k}_{j}, sum_{m}_{j});
//! end
//! end
//! end
//! for m in 0..MATRICES
//! for j in 0..COLUMNS
            total_{m}_{j} = total_{m}_{j} + sum_{m}_{j};
//! end
//! end
        }
        // Scores have become weights: their place is free.
//! for m in 0..MATRICES
//! for j in 0..COLUMNS
        let out_{m}_{j} = {m}u * {SIDE}u * {OUT_STRIDE}u + column_{j};
        coopStoreT(total_{m}_{j}, &sh_out[out_{m}_{j}], {OUT_STRIDE}u);
//! end
//! end
        workgroupBarrier();
//! for n in 0..HELD
        let row_{n} = min((local + {n}u * {LANES}u) / {HEAD_VEC4S}u, {ROWS}u - 1u);
        let whole_{n} = scores_at(row_{n}, (local + {n}u * {LANES}u) % {HEAD_VEC4S}u * 4u);
        all_{n} = merged_values(all_{n}, whole_{n}, sh_state[row_{n}].zw);
//! end
    }

//! for n in 0..HELD
    store(local + {n}u * {LANES}u, num_rows, first, first_head, partitions.x, all_{n});
//! end
}

// Which of four positions from `first` on a row attends to.
fn attends(first: u32, own: u32) -> vec4<bool> {
    return vec4<u32>(first, first + 1u, first + 2u, first + 3u) <= vec4<u32>(own);
}

fn scores_at(row: u32, column: u32) -> vec4<f32> {
    let at = row * {OUT_STRIDE}u + column;
    return vec4<f32>(sh_out[at], sh_out[at + 1u], sh_out[at + 2u], sh_out[at + 3u]);
}

// The vec4 numbered `i` of a workgroup's rows, where a token has it.
fn store(i: u32, num_rows: u32, first: u32, first_head: u32, nth: u32, values: vec4<f32>) {
    let row = i / {HEAD_VEC4S}u;
    if (row >= num_rows) {
        return;
    }
    let d = i % {HEAD_VEC4S}u;
    let token = first + row / {QUERIES}u;
    let head = first_head + row % {QUERIES}u;
    let state = sh_state[row].xy;
    store_values(token, head, nth, d, values, state);
    if (d == 0u) {
        store_state(token, head, nth, state);
    }
}

fn table_start(token: u32) -> u32 {
    return inputs[2u * params.num_tokens + token];
}

// What becomes of larger ones than f16 has is left to the device.
fn halves(value: vec4<f32>) -> vec4<f16> {
    return vec4<f16>(clamp(value, vec4<f32>(-65504.0), vec4<f32>(65504.0)));
}

fn key_halves(index: u32) -> vec4<f16> {
//! if KV_F16
    return keys[index];
//! else
    return halves(keys_in(index));
//! end
}

