//! How fast an adapter and a link are, as they were measured.

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

/// What an adapter's kernels do, by a short probe when it is opened.
#[derive(Clone, Copy, Debug, PartialEq, Encode, Decode, Deserialize, Serialize)]
pub struct Speed {
    /// Bytes of weights a second that products of one row read.
    pub weight_bytes_per_s: f64,
    /// Multiply-adds a second in products of many rows.
    pub multiply_adds_per_s: f64,
    /// Microseconds of a kernel that has next to nothing to do.
    pub kernel_us: f64,
    /// Microseconds of a step beside its kernels.
    pub step_us: f64,
}

impl Default for Speed {
    /// Of an adapter of which nothing is known: all such are alike, and only bytes count.
    fn default() -> Self {
        Self { weight_bytes_per_s: 10e9, multiply_adds_per_s: 100e9, kernel_us: 0.0, step_us: 0.0 }
    }
}

impl Speed {
    /// It, or the default where it can't be true: it came over the network, or from a file.
    pub fn checked(self) -> Self {
        let rates = [self.weight_bytes_per_s, self.multiply_adds_per_s];
        let times = [self.kernel_us, self.step_us];
        let is_possible = rates.iter().all(|rate| (1e3..1e18).contains(rate))
            && times.iter().all(|micros| (0.0..1e9).contains(micros));
        if is_possible { self } else { Self::default() }
    }

    /// It, slowed down so many times.
    pub fn slowed(self, factor: f64) -> Self {
        Self {
            weight_bytes_per_s: self.weight_bytes_per_s / factor,
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
    }

    #[test]
    fn a_message_takes_half_a_round_trip_and_its_bytes() {
        let link = LinkSpeed { rtt_us: 1000.0, bytes_per_s: 1e6 };
        assert!((link.seconds(500) - 0.001).abs() < 1e-12);
        assert!((Speed::default().slowed(2.0).weight_bytes_per_s - 5e9).abs() < 1.0);
    }
}
