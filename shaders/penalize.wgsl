// z[r, t] += bias, then if t was seen: z = z > 0 ? z / repetition : z * repetition,
//     z -= frequency * num_in_answer, z -= presence * (num_in_answer > 0)
// With RESTORE: z[r, t] becomes what it was.              one lane per adjustment

struct Params {
    vocab_size: u32,
    first_row: u32,         // of the group, whose logits start at 0
    first_adjustment: u32,
    num_adjustments: u32,
}

struct Adjustment {
    row: u32,
    token: u32,
    num_in_answer: u32,
    in_prompt: u32,
    bias: f32,
}

var<immediate> params: Params;
//! read rows RowParams  [num_rows]
//! read adjustments Adjustment
//! write raw f32  [num_adjustments]
//! write logits f32  [group_rows, vocab_size]

@compute @workgroup_size({LANES})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x >= params.num_adjustments) {
        return;
    }
    let index = params.first_adjustment + id.x;
    let adjustment = adjustments[index];
    let at = (adjustment.row - params.first_row) * params.vocab_size + adjustment.token;
//! if RESTORE
    logits[at] = raw[index];
//! else
    let logit = logits[at];
    raw[index] = logit;
    let row = rows[adjustment.row];
    var z = logit + adjustment.bias;
    if (adjustment.num_in_answer > 0u || adjustment.in_prompt != 0u) {
        z = select(z * row.repetition_penalty, z / row.repetition_penalty, z > 0.0);
    }
    z = fma(-row.frequency_penalty, f32(adjustment.num_in_answer), z);
    z -= select(0.0, row.presence_penalty, adjustment.num_in_answer > 0u);
    logits[at] = z;
//! end
}
