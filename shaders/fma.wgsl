// out[i] = a sum of CHAINS chains of num_rounds * ROUND fmas each, which nothing but a multiplier
// can hold up          one lane per i

struct Params {
    num_rounds: u32,
    factor: f32,
}

var<immediate> params: Params;
//! write out f32

@compute @workgroup_size({WORKGROUP})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let x = f32(id.x & 7u);
    // Read once: a software driver would read them lane by lane in every round.
    let p = params;
//! for c in 0..CHAINS
    var acc_{c} = x + f32({c}u);
//! end
    for (var round = 0u; round < p.num_rounds; round++) {
//! for r in 0..ROUND
//! for c in 0..CHAINS
        acc_{c} = fma(acc_{c}, p.factor, x);
//! end
//! end
    }
    var sum = 0.0;
//! for c in 0..CHAINS
    sum += acc_{c};
//! end
    out[id.x] = sum;
}
