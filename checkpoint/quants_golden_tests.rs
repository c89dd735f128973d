//! Blocks of ggml's types against what its own package says that they hold.

use std::fs;
use std::path::Path;

use crate::dtype::{DType, Format};
use crate::levels;
use crate::quants::decode_row;

const DTYPES: [DType; 11] = [
    DType::Q4_0,
    DType::Q4_1,
    DType::Q5_0,
    DType::Q5_1,
    DType::Q8_0,
    DType::Q4_K,
    DType::Q5_K,
    DType::Q6_K,
    DType::IQ4_NL,
    DType::IQ4_XS,
    DType::IQ3_XXS,
];

/// Blocks of a type, extreme ones first, and their values; `tests/quants_golden.py` writes them.
fn golden(dtype: DType) -> (Vec<u8>, Vec<f32>) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/quants");
    let read = |ending: &str| fs::read(folder.join(format!("{dtype}.{ending}"))).unwrap();
    let values = read("values");
    (read("blocks"), values.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
}

fn assert_same(found: &[f32], expected: &[f32], what: DType) {
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        // A zero may have either sign.
        let same = found.to_bits() == expected.to_bits() || (*found == 0.0 && *expected == 0.0);
        assert!(same, "{what} value {i}: {found} is not {expected}");
    }
    assert_eq!(found.len(), expected.len(), "{what}");
}

#[test]
fn blocks_hold_what_ggml_s_package_says_bit_by_bit() {
    for dtype in DTYPES {
        let (blocks, expected) = golden(dtype);
        assert!(expected.iter().all(|value| value.is_finite()), "{dtype}");
        let mut found = vec![f32::NAN; expected.len()];
        decode_row(dtype, &blocks, &mut found);
        assert_same(&found, &expected, dtype);
    }
}

/// Goal: three bits a weight become four, and stay the same numbers. Method: levels by hand.
#[test]
fn names_of_magnitudes_become_codes_of_the_same_values() {
    let (blocks, expected) = golden(DType::IQ3_XXS);
    let mut nibbles = vec![0; Format::Iq3.row_bytes(expected.len())];
    levels::row_as_nibbles(&blocks, &mut nibbles);
    let mut found = Vec::new();
    for block in nibbles.chunks(136) {
        let d = half::f16::from_le_bytes([block[0], block[1]]).to_f32();
        for group in 0..8 {
            let low = block[4 + group / 2] >> (group % 2 * 4) & 15;
            let high = block[2 + group / 4] >> (group % 4 * 2) & 3;
            let scale = d * (f32::from(low | high << 4) - 32.0);
            found.extend((0..32).map(|i| {
                let code = block[8 + 16 * group + i % 16] >> (i / 16 * 4) & 15;
                let odd = f32::from(2 * code) - 15.0;
                scale * if odd.abs() == 15.0 { odd * 31.0 / 30.0 } else { odd }
            }));
        }
    }
    assert_same(&found, &expected, DType::IQ3_XXS);
}
