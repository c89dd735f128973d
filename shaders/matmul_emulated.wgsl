// What matmul_emulated.rs puts in the place of cooperative matrices. Nothing but tests runs it.

// Which row of a matrix of sums a lane has.
var<private> own_row: u32;

// SIDE, though no compiler knows: loops that were written out would take it minutes.
var<private> side: u32;

struct Sums {
//! for c in 0..SIDE
    at_{c}: f32,
//! end
}

// In vec4s: where it begins, and the distance of its rows, or of its columns.
struct Operand {
    place: u32,
    stride: u32,
}

fn multiply_add(a: Operand, b: Operand, c: Sums) -> Sums {
    var sums = c;
    for (var k = 0u; k < side / 4u; k++) {
        let x = vec4<f32>(LEFT[a.place + own_row * a.stride + k]);
//! for c in 0..SIDE
        let w_{c} = vec4<f32>(RIGHT[b.place + {c}u * b.stride + k]);
        sums.at_{c} = fma(x.x, w_{c}.x, sums.at_{c});
        sums.at_{c} = fma(x.y, w_{c}.y, sums.at_{c});
        sums.at_{c} = fma(x.z, w_{c}.z, sums.at_{c});
        sums.at_{c} = fma(x.w, w_{c}.w, sums.at_{c});
//! end
    }
    return sums;
}

fn add(a: Sums, b: Sums) -> Sums {
    return Sums(
//! for c in 0..SIDE
        a.at_{c} + b.at_{c},
//! end
    );
}

fn load_sum(place: u32, stride: u32) -> Sums {
    return Sums(
//! for c in 0..SIDE
        sh_out[place + own_row * stride + {c}u],
//! end
    );
}

fn store_sum(sums: Sums, place: u32, stride: u32) {
//! for c in 0..SIDE
    sh_out[place + own_row * stride + {c}u] = sums.at_{c};
//! end
}
