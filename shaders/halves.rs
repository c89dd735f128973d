//! Weights in bf16 on their way to cooperative matrices, which take halves with eleven digits and
//! five bits of exponent.
//!
//! A weight from 2^-17 to 65,280 is exact as such a half, a smaller one is off by no more than
//! 2^-25. A matrix with a larger weight, or with none of at least 2^-13, to which that would be
//! more than the 2^-12 that rounding x costs, isn't taken: it stays as it is, and is multiplied in
//! f32.

use half::{bf16, f16};

use crate::weights::Format;

/// Turns rows of one format into another of as many bytes.
pub(crate) struct Halves {
    /// Rows are of bf16 and become halves.
    converts: bool,
    /// What they become.
    pub(crate) stored: Format,
    /// The bits of the largest magnitude so far.
    largest: u16,
}

/// What a matrix that is taken has at least, apart from zeros.
const LEAST: bf16 = bf16::from_bits((127 - 13) << 7);

/// Exponents of bf16, with its bias, that halves have without loss of digits.
const NORMAL: std::ops::RangeInclusive<u16> = 127 - 14..=127 + 15;

impl Halves {
    pub(crate) fn new(format: Format, stored: Format) -> Self {
        Self { converts: format == Format::Bf16 && stored != Format::Bf16, stored, largest: 0 }
    }

    /// Converts rows where they are. False if one has a value that doesn't fit.
    pub(crate) fn take(&mut self, rows: &mut [u8]) -> bool {
        if !self.converts {
            return true;
        }
        let mut largest = self.largest;
        for bytes in rows.as_chunks_mut().0 {
            let bits = u16::from_le_bytes(*bytes);
            let magnitude = bits & 0x7fff;
            largest = largest.max(magnitude);
            let half = match NORMAL.contains(&(magnitude >> 7)) {
                true => (bits & 0x8000) | ((magnitude << 3).wrapping_sub((127 - 15) << 10)),
                false => f16::from_f32(bf16::from_bits(bits).to_f32()).to_bits(),
            };
            *bytes = half.to_le_bytes();
        }
        self.largest = largest;
        largest >> 7 <= *NORMAL.end()
    }

    /// Whether what was taken is large enough for its digits to be there.
    pub(crate) fn are_large_enough(&self) -> bool {
        !self.converts || self.largest == 0 || self.largest >= LEAST.to_bits()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bf16_that_fits_becomes_the_nearest_half() {
        for bits in 0..=u16::MAX {
            let value = bf16::from_bits(bits);
            let mut halves = Halves::new(Format::Bf16, Format::F16Fragments);
            let mut bytes = bits.to_le_bytes();
            let fits = halves.take(&mut bytes);
            assert_eq!(fits, value.to_f32().abs() < 65_536.0, "{value}");
            if fits {
                let half = f16::from_le_bytes(bytes);
                assert_eq!(half.to_bits(), f16::from_f32(value.to_f32()).to_bits(), "{value}");
                let error = (half.to_f32() - value.to_f32()).abs();
                let is_exact = value == bf16::ZERO || value.to_f32().abs() >= 2f32.powi(-17);
                assert!(error == 0.0 || !is_exact && error <= 2f32.powi(-25), "{value}");
            }
        }
    }

    #[test]
    fn a_matrix_of_small_values_stays_as_it_is() {
        let large_enough = |format, values: &[f32]| {
            let mut halves = Halves::new(format, Format::F16);
            for value in values {
                assert!(halves.take(&mut bf16::from_f32(*value).to_le_bytes()));
            }
            halves.are_large_enough()
        };
        assert!(large_enough(Format::Bf16, &[1e-9, -2f32.powi(-13)]));
        assert!(!large_enough(Format::Bf16, &[1e-9, -1.2e-4]));
        assert!(large_enough(Format::Bf16, &[0.0, -0.0]));
        assert!(large_enough(Format::F16, &[1e-9]));
    }
}
