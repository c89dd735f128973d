//! Number formats: how weights are stored, and as what they are handed over.

use std::fmt;

/// How a tensor is stored in its file. The quantised ones are ggml's block formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types, reason = "these are the names that everyone knows them by")]
pub enum DType {
    /// 32-bit floats.
    F32,
    /// IEEE 754 16-bit floats.
    F16,
    /// The upper half of 32-bit floats.
    BF16,
    /// Blocks of 32: a scale, 32 signed bytes.
    Q8_0,
    /// Blocks of 32: a scale, 32 four-bit numbers centred on 8.
    Q4_0,
    /// Blocks of 32: a scale, a minimum, 32 four-bit numbers.
    Q4_1,
    /// Blocks of 32: a scale, 32 five-bit numbers centred on 16.
    Q5_0,
    /// Blocks of 256: two scales, 8 six-bit scales and minimums, 256 four-bit numbers.
    Q4_K,
    /// Blocks of 256: a scale, 16 eight-bit scales, 256 six-bit numbers centred on 32.
    Q6_K,
}

impl DType {
    pub(crate) const NAMES: &'static str = "F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q4_K and Q6_K";

    /// Values in one block; 1 for plain floats.
    pub fn block_values(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q8_0 | Self::Q4_0 | Self::Q4_1 | Self::Q5_0 => 32,
            Self::Q4_K | Self::Q6_K => 256,
        }
    }

    /// Bytes of one block.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q8_0 => 34,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q4_K => 144,
            Self::Q6_K => 210,
        }
    }

    /// As what values stored like this are handed over. Quantised blocks become f16: their
    /// scales are f16 themselves and the numbers beside them have at most 8 bits, so that the
    /// rounding (2⁻¹¹ of a value) is far below the quantisation's own error.
    pub fn float_type(self) -> FloatType {
        match self {
            Self::F32 => FloatType::F32,
            Self::BF16 => FloatType::BF16,
            _ => FloatType::F16,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// As what a matrix is handed over, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FloatType {
    /// 32-bit floats.
    F32,
    /// IEEE 754 16-bit floats.
    F16,
    /// The upper half of 32-bit floats.
    BF16,
}

impl FloatType {
    /// Bytes of one value.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }

    /// The narrowest type that holds the values of both.
    pub(crate) fn widest(self, other: Self) -> Self {
        if self == other { self } else { Self::F32 }
    }
}

impl fmt::Display for FloatType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}
