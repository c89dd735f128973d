// z[r, t] = -inf where the mask of row r forbids t           one lane per token of a masked row
// With RESTORE: z[r, t] becomes what it was there.

struct Params {
    vocab_size: u32,
    first_row: u32,         // of the group, whose logits start at 0
    first_mask: u32,
    num_words: u32,         // of a mask
}

const MINUS_INFINITY = 0xff800000u;

// Logits are bits here: compilers may assume that no float is infinite.
var<immediate> params: Params;
//! read rows u32  [num_masks]
//! read masks u32  [num_masks, num_words]
//! write raw u32  [group_masks, vocab_size]
//! write logits u32  [group_rows, vocab_size]

@compute @workgroup_size({LANES})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let token = id.x;
    if (token >= params.vocab_size) {
        return;
    }
    let mask = params.first_mask + id.y;
    let word = masks[mask * params.num_words + token / 32u];
    if ((word >> (token % 32u) & 1u) != 0u) {
        return;
    }
    let at = (rows[mask] - params.first_row) * params.vocab_size + token;
    let kept = id.y * params.vocab_size + token;
//! if RESTORE
    logits[at] = raw[kept];
//! else
    raw[kept] = logits[at];
    logits[at] = MINUS_INFINITY;
//! end
}
