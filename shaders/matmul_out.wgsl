
// What becomes of a vec4 of the product: the end of matmul.wgsl.

//! if QKV
// Position of a row and its block in the cache.
fn place_of(p: Params, row: u32) -> vec2<u32> {
    let position = inputs[p.num_rows + row];
    let table = p.tables_at + inputs[2u * p.num_rows + row];
    return vec2<u32>(position, inputs[table + position / {BLOCK}u]);
}

fn finish(p: Params, row: u32, computed: u32, place: vec2<u32>, total: vec4<f32>) {
    if (computed >= p.num_computed) {
        return;
    }
    let at = (p.first_column + computed) / 4u;
    var value = total;
    if (p.has_bias != 0u) {
        value += bias_in(at);
    }
    let head = at / p.head_vec4s;
    let d = at % p.head_vec4s;
    if (head < p.num_heads + p.num_kv_heads && d < p.rotary_vec4s) {
        let a = cos_sin_in(place.x * p.rotary_vec4s + d);
        value = vec4<f32>(
            fma(value.x, a.x, -(value.y * a.y)),
            fma(value.x, a.y, value.y * a.x),
            fma(value.z, a.z, -(value.w * a.w)),
            fma(value.z, a.w, value.w * a.z));
    }
    if (head < p.num_heads) {
        write_out((row * p.num_heads + head) * p.head_vec4s + d, value);
        return;
    }
    let is_value = head >= p.num_heads + p.num_kv_heads;
    // Attention has positions without weight, whose values must be numbers for that to be nothing;
    // of a key that is none only the score is. What a half out of range would become is left to the
    // device, too.
//! if KV_F16
    let most = vec4<f32>(65504.0);
//! else
    let most = vec4<f32>(3.4028234e38);
//! end
    let is_nan = (bitcast<vec4<u32>>(value) & vec4<u32>(0x7fffffffu)) > vec4<u32>(0x7f800000u);
    let instead = select(value, most, is_value);
    let bounded = select(clamp(value, -most, most), instead, is_nan);
    let slot = place.x % {BLOCK}u;
    if (!is_value) {
        let kv_head = place.y * p.num_kv_heads + head - p.num_heads;
        let index = (kv_head * p.head_vec4s + d) * {BLOCK}u + slot;
        write_keys(index, bounded);
    } else {
        let kv_head = place.y * p.num_kv_heads + head - p.num_heads - p.num_kv_heads;
        let index = (kv_head * {BLOCK}u + slot) * p.head_vec4s + d;
        write_values(index, bounded);
    }
}
//! else
fn place_of(p: Params, row: u32) -> vec2<u32> {
    return vec2<u32>(0u);
}
//! end

//! if STORE
fn finish(p: Params, row: u32, computed: u32, place: vec2<u32>, total: vec4<f32>) {
    let index = row * p.num_columns + p.first_column + computed;
//! for i in 0..4
    if (computed + {i}u < p.num_computed) {
        out[index + {i}u] = total[{i}u];
    }
//! end
}
//! end

//! if VEC4S
fn finish(p: Params, row: u32, computed: u32, place: vec2<u32>, total: vec4<f32>) {
    if (computed < p.num_computed) {
//! if STACKED
        write_out((row * p.out_values + computed) / 4u, total);
//! else
        write_out((row * p.num_columns + p.first_column + computed) / 4u, total);
//! end
    }
}
//! end

//! if RESIDUAL
fn finish(p: Params, row: u32, computed: u32, place: vec2<u32>, total: vec4<f32>) {
    if (computed < p.num_computed) {
        let index = (row * p.num_columns + p.first_column + computed) / 4u;
        write_out(index, residual_in(index) + total);
    }
}
//! end

//! if SWIGLU
fn finish(
    p: Params, row: u32, computed: u32, place: vec2<u32>, gate: vec4<f32>, up: vec4<f32>,
) {
    if (computed < p.num_computed) {
        let index = (row * p.num_columns + p.first_column + computed) / 8u;
        write_out(index, gate / (1.0 + exp(-gate)) * up);
    }
}
//! end

//! if OUT_ROWS
// Of lanes that leave results to each other.
var<workgroup> sh_out: array<f32, {SHARED_OUT}>;  // [CHUNKS, OUT_ROWS, STRIP]

//! if STACKED
// What becomes of the rows of a part in sh_out.
fn finish_part(p: Params, part: Part, first_column: u32, local: u32) {
    for (var unit = local; unit < {OUT_ROWS}u * {STRIP}u / {UNIT}u; unit += {WORKGROUP}u) {
        let r = unit / ({STRIP}u / {UNIT}u);
        let first = unit * {UNIT}u;
        if (r < part.count) {
            let row = pair_of(p, part, r);
            finish(p, row, first_column + first % {STRIP}u, place_of(p, row),
                vec4<f32>(sh_out[first], sh_out[first + 1u], sh_out[first + 2u],
                    sh_out[first + 3u]),
//! if SWIGLU
                vec4<f32>(sh_out[first + 4u], sh_out[first + 5u], sh_out[first + 6u],
                    sh_out[first + 7u]),
//! end
            );
        }
    }
}
//! else
// What becomes of the first OUT_ROWS rows in sh_out: SIDE of the product from `first_row` on, SIDE
// from MATRICES * SIDE further on, ...
fn finish_shared(p: Params, first_row: u32, first_column: u32, local: u32) {
    for (var unit = local; unit < {OUT_ROWS}u * {STRIP}u / {UNIT}u; unit += {WORKGROUP}u) {
        let r = unit / ({STRIP}u / {UNIT}u);
        let row = first_row + r / {SIDE}u * {MATRICES}u * {SIDE}u + r % {SIDE}u;
        let first = unit * {UNIT}u;
        if (row < p.num_rows) {
            finish(p, row, first_column + first % {STRIP}u, place_of(p, row),
                vec4<f32>(sh_out[first], sh_out[first + 1u], sh_out[first + 2u],
                    sh_out[first + 3u]),
//! if SWIGLU
                vec4<f32>(sh_out[first + 4u], sh_out[first + 5u], sh_out[first + 6u],
                    sh_out[first + 7u]),
//! end
            );
        }
    }
}
//! end
//! end
