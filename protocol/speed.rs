//! How fast an adapter and a link are, as they were measured.

use bincode::de::Decoder;
use bincode::enc::Encoder;
use bincode::error::{DecodeError, EncodeError};
use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

/// What an adapter's kernels do, by a short probe when it is opened.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
pub struct Speed {
    /// Bytes of weights a second that products of one row read, where a weight has two bytes.
    pub weight_bytes_per_s: f64,
    /// Picoseconds of a weight of such products where it has fewer bytes: decoding it and adding it
    /// takes a processor as long whatever they are. Since wire version 5: an older process neither
    /// says nor hears it.
    #[serde(default)]
    pub narrow: Narrow,
    /// Multiply-adds a second in products of many rows.
    pub multiply_adds_per_s: f64,
    /// Microseconds of a kernel that has next to nothing to do.
    pub kernel_us: f64,
    /// Microseconds of a step beside its kernels.
    pub step_us: f64,
}

/// Picoseconds of a weight of less than two bytes; 0: what its bytes take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Encode, Decode, Deserialize, Serialize)]
pub struct Narrow {
    /// Of a byte and its share of a scale.
    pub int8_ps: f64,
    /// Of half a byte and its share of a scale and an offset.
    pub int4_ps: f64,
}

/// Bytes of a weight of each kind, scales included.
const INT4_BYTES: f64 = 0.625;
const INT8_BYTES: f64 = 1.125;
const WIDE_BYTES: f64 = 2.0;

impl Default for Speed {
    /// Of an adapter of which nothing is known: all such are alike, and only bytes count.
    fn default() -> Self {
        Self {
            weight_bytes_per_s: 10e9,
            narrow: Narrow::default(),
            multiply_adds_per_s: 100e9,
            kernel_us: 0.0,
            step_us: 0.0,
        }
    }
}

/// What every wire version says of it.
impl Encode for Speed {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        let Self { weight_bytes_per_s, multiply_adds_per_s, kernel_us, step_us, .. } = self;
        (weight_bytes_per_s, multiply_adds_per_s, kernel_us, step_us).encode(encoder)
    }
}

impl Decode<()> for Speed {
    fn decode<D: Decoder<Context = ()>>(decoder: &mut D) -> Result<Self, DecodeError> {
        let (weight_bytes_per_s, multiply_adds_per_s, kernel_us, step_us) =
            Decode::decode(decoder)?;
        let narrow = Narrow::default();
        Ok(Self { weight_bytes_per_s, narrow, multiply_adds_per_s, kernel_us, step_us })
    }
}

impl Speed {
    /// It, or the default where it can't be true: it came over the network, or from a file.
    pub fn checked(self) -> Self {
        let rates = [self.weight_bytes_per_s, self.multiply_adds_per_s];
        let Narrow { int8_ps, int4_ps } = self.narrow;
        let times = [int8_ps, int4_ps, self.kernel_us, self.step_us];
        let is_possible = rates.iter().all(|rate| (1e3..1e18).contains(rate))
            && times.iter().all(|time| (0.0..1e9).contains(time));
        if is_possible { self } else { Self::default() }
    }

    /// Seconds of products of one row with so many weights of so many bytes together. Between kinds
    /// that were measured, weights take what lies between them.
    pub fn one_row_s(&self, num_bytes: f64, num_weights: f64) -> f64 {
        let by_bytes = num_bytes / self.weight_bytes_per_s;
        let Narrow { int8_ps, int4_ps } = self.narrow;
        let is_wide = num_bytes >= num_weights * WIDE_BYTES;
        if is_wide || int8_ps == 0.0 || int4_ps == 0.0 {
            return by_bytes;
        }
        let bytes = num_bytes / num_weights;
        let wide_ps = WIDE_BYTES / self.weight_bytes_per_s * 1e12;
        let between = |(from, to): (f64, f64), (from_ps, to_ps): (f64, f64)| {
            from_ps + (to_ps - from_ps) * ((bytes - from) / (to - from)).max(0.0)
        };
        let ps = if bytes < INT8_BYTES {
            between((INT4_BYTES, INT8_BYTES), (int4_ps, int8_ps))
        } else {
            between((INT8_BYTES, WIDE_BYTES), (int8_ps, wide_ps))
        };
        num_weights * ps / 1e12
    }

    /// It, slowed down so many times.
    pub fn slowed(self, factor: f64) -> Self {
        Self {
            weight_bytes_per_s: self.weight_bytes_per_s / factor,
            narrow: Narrow {
                int8_ps: self.narrow.int8_ps * factor,
                int4_ps: self.narrow.int4_ps * factor,
            },
            multiply_adds_per_s: self.multiply_adds_per_s / factor,
            kernel_us: self.kernel_us * factor,
            step_us: self.step_us * factor,
        }
    }
}

/// What a way between two processes is like.
#[derive(Clone, Copy, Debug, PartialEq, Encode, Decode, Deserialize, Serialize)]
pub struct LinkSpeed {
    /// Its round trip in microseconds.
    pub rtt_us: f64,
    /// Bytes a second that it takes.
    pub bytes_per_s: f64,
}

impl Default for LinkSpeed {
    /// Of a link of which nothing is known: a good local network.
    fn default() -> Self {
        Self { rtt_us: 200.0, bytes_per_s: 1e9 }
    }
}

impl LinkSpeed {
    /// Of a way on which nobody is reached: the slowest there is.
    pub const NONE: Self = Self { rtt_us: 60e6, bytes_per_s: 1.0 };

    /// It, or the default where it can't be true.
    pub fn checked(self) -> Self {
        let is_possible =
            (0.0..1e9).contains(&self.rtt_us) && (1.0..1e15).contains(&self.bytes_per_s);
        if is_possible { self } else { Self::default() }
    }

    /// Seconds until so many bytes are on the other side.
    pub fn seconds(&self, num_bytes: u64) -> f64 {
        self.rtt_us / 2e6 + num_bytes as f64 / self.bytes_per_s
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_true_counts_for_nothing() {
        let fast = Speed { weight_bytes_per_s: 3e12, ..Speed::default() };
        assert_eq!(fast.checked(), fast);
        for wrong in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let said = Speed { weight_bytes_per_s: wrong, ..fast };
            assert_eq!(said.checked(), Speed::default());
            let said = LinkSpeed { bytes_per_s: wrong, rtt_us: 1.0 };
            assert_eq!(said.checked(), LinkSpeed::default());
        }
        assert_eq!(Speed { step_us: f64::NAN, ..fast }.checked(), Speed::default());
        let narrow = Narrow { int8_ps: -1.0, int4_ps: 1.0 };
        assert_eq!(Speed { narrow, ..fast }.checked(), Speed::default());
    }

    #[test]
    fn narrow_weights_take_what_they_were_measured_to_take() {
        let of_bytes = Speed { weight_bytes_per_s: 1e10, ..Speed::default() };
        assert!((of_bytes.one_row_s(625.0, 1000.0) - 62.5e-9).abs() < 1e-15);
        let speed = Speed { narrow: Narrow { int8_ps: 160.0, int4_ps: 110.0 }, ..of_bytes };
        // Narrower than any, int4, half-way to int8, int8, bf16, f32; weights that aren't read.
        for (bytes, ns) in [
            (500.0, 110.0),
            (625.0, 110.0),
            (875.0, 135.0),
            (1125.0, 160.0),
            (2000.0, 200.0),
            (4000.0, 400.0),
        ] {
            let found = speed.one_row_s(bytes, 1000.0);
            assert!((found - ns * 1e-9).abs() < 1e-15, "{bytes}: {found}");
            assert!((speed.slowed(2.0).one_row_s(bytes, 1000.0) - 2.0 * found).abs() < 1e-15);
        }
        assert_eq!(speed.one_row_s(0.0, 0.0), 0.0);
        assert!((speed.one_row_s(1e4, 0.0) - 1e-6).abs() < 1e-15);
    }

    #[test]
    fn a_message_takes_half_a_round_trip_and_its_bytes() {
        let link = LinkSpeed { rtt_us: 1000.0, bytes_per_s: 1e6 };
        assert!((link.seconds(500) - 0.001).abs() < 1e-12);
        assert!((Speed::default().slowed(2.0).weight_bytes_per_s - 5e9).abs() < 1.0);
    }
}
