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

// The number of its array; whether values follow each other in a row, or in a column; in vec4s:
// where it begins, and the distance of its rows, or of its columns.
struct Operand {
    array: u32,
    by_rows: bool,
    place: u32,
    stride: u32,
}

fn loaded(array: u32, at: u32) -> vec4<f32> {
    switch array {
        LOADS
        default: { return vec4<f32>(0.0); }
    }
}

fn multiply_add(a: Operand, b: Operand, c: Sums) -> Sums {
    var sums = c;
    for (var k = 0u; k < side / 4u; k++) {
        let x = loaded(a.array, a.place + own_row * a.stride + k);
        if (b.by_rows) {
//! for i in 0..4
            let row_{i} = b.place + (4u * k + {i}u) * b.stride;
//! for c in 0..SIDE
            sums.at_{c} = fma(x[{i}], loaded(b.array, row_{i} + {c}u / 4u)[{c}u % 4u], sums.at_{c});
//! end
//! end
        } else {
//! for c in 0..SIDE
            let w_{c} = loaded(b.array, b.place + {c}u * b.stride + k);
            sums.at_{c} = fma(x.x, w_{c}.x, sums.at_{c});
            sums.at_{c} = fma(x.y, w_{c}.y, sums.at_{c});
            sums.at_{c} = fma(x.z, w_{c}.z, sums.at_{c});
            sums.at_{c} = fma(x.w, w_{c}.w, sums.at_{c});
//! end
        }
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
