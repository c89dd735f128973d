//! How random weights are made and stored.

/// How the weights of matrices are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Storage {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// The upper half of 32-bit floats.
    Bf16,
    /// Blocks of 32 bytes with a scale.
    #[value(name = "q8_0")]
    Q8_0,
    /// Blocks of 32 nibbles with a scale; the embedding is Q8_0.
    #[value(name = "q4_0")]
    Q4_0,
    /// Blocks of 32 nibbles with a scale and a minimum; the embedding is Q8_0.
    #[value(name = "q4_1")]
    Q4_1,
    /// Blocks of 32 five-bit codes with a scale; the embedding is Q8_0.
    #[value(name = "q5_0")]
    Q5_0,
    /// Blocks of 256 nibbles, and of 256 six-bit codes where llama.cpp's mixture of this name has
    /// such: values and down projections of half the layers, and the head.
    #[value(name = "q4_k_m")]
    Q4KM,
    /// Blocks of 256 six-bit codes.
    #[value(name = "q6_k")]
    Q6K,
}

impl Storage {
    /// Its number in `enum ggml_type`.
    pub(super) fn ggml_type(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q5_0 => 6,
            Self::Q8_0 => 8,
            Self::Q4KM => 12,
            Self::Q6K => 14,
            Self::Bf16 => 30,
        }
    }

    /// Weights and bytes of what is written at a time.
    pub(super) fn block(self) -> (u64, u64) {
        match self {
            Self::F32 => (32, 128),
            Self::F16 | Self::Bf16 => (32, 64),
            Self::Q8_0 => (32, 34),
            Self::Q5_0 => (32, 22),
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q4KM => (256, 144),
            Self::Q6K => (256, 210),
        }
    }

    pub(super) fn of_table(self, is_head: bool) -> Self {
        match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 => Self::Q8_0,
            Self::Q4KM if is_head => Self::Q6K,
            _ => self,
        }
    }

    /// Of values and down projections of a layer: llama.cpp's `use_more_bits`.
    pub(super) fn of_more_bits(self, layer: u32, layers: u32) -> Self {
        let eighth = layers / 8;
        let has_more = layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2;
        if self == Self::Q4KM && has_more { Self::Q6K } else { self }
    }

    /// Of rows of so many values: what llama.cpp takes where they are no whole blocks.
    pub(super) fn of_rows(self, cols: u64) -> Self {
        match self {
            Self::Q4KM if !cols.is_multiple_of(256) => Self::Q5_0,
            Self::Q6K if !cols.is_multiple_of(256) => Self::Q8_0,
            _ => self,
        }
    }

    /// A block of weights, spread evenly about zero with [`DEVIATION`].
    pub(super) fn write_block(self, random: &mut Random, out: &mut Vec<u8>) {
        // A uniform distribution over n steps has a deviation of n / sqrt(12) of them.
        let step = |steps: f32| half::f16::from_f32(DEVIATION * 12f32.sqrt() / steps);
        match self {
            Self::F32 => (0..32).for_each(|_| out.extend(random.weight().to_le_bytes())),
            Self::F16 => {
                (0..32).for_each(|_| out.extend(half::f16::from_f32(random.weight()).to_le_bytes()))
            }
            Self::Bf16 => (0..32)
                .for_each(|_| out.extend(half::bf16::from_f32(random.weight()).to_le_bytes())),
            Self::Q8_0 => {
                out.extend(step(256.0).to_le_bytes());
                (0..4).for_each(|_| out.extend(random.next().to_le_bytes()));
            }
            Self::Q4_0 | Self::Q4_1 => {
                let scale = step(16.0);
                out.extend(scale.to_le_bytes());
                if self == Self::Q4_1 {
                    out.extend(half::f16::from_f32(-7.5 * scale.to_f32()).to_le_bytes());
                }
                (0..2).for_each(|_| out.extend(random.next().to_le_bytes()));
            }
            Self::Q5_0 => {
                out.extend(step(32.0).to_le_bytes());
                out.extend((random.next() as u32).to_le_bytes());
                (0..2).for_each(|_| out.extend(random.next().to_le_bytes()));
            }
            Self::Q4KM => {
                // Scales and minimums of 48 of their units.
                let scale = step(16.0).to_f32() / 48.0;
                out.extend(half::f16::from_f32(scale).to_le_bytes());
                out.extend(half::f16::from_f32(7.5 * scale).to_le_bytes());
                out.extend([48 | 3 << 6; 8]);
                out.extend([0; 4]);
                (0..16).for_each(|_| out.extend(random.next().to_le_bytes()));
            }
            Self::Q6K => {
                (0..24).for_each(|_| out.extend(random.next().to_le_bytes()));
                out.extend([64; 16]);
                out.extend(half::f16::from_f32(step(64.0).to_f32() / 64.0).to_le_bytes());
            }
        }
    }
}

/// What transformers initialises weights with.
pub(super) const DEVIATION: f32 = 0.02;

/// SplitMix64 (Steele, Lea and Flood, 2014): the same weights on every machine.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn weight(&mut self) -> f32 {
        let unit = (self.next() >> 40) as f32 / (1 << 24) as f32;
        (unit - 0.5) * DEVIATION * 12f32.sqrt()
    }
}
