//! Durations, counted by how long they are: percentiles within an eighth of an octave.

use std::time::Duration;

/// Parts of an octave.
const PARTS_LOG2: u32 = 3;

/// Shorter ones count as this long: 8 microseconds.
const SHORTEST_LOG2: u32 = 3;

/// Longer ones count as about this long: 9 minutes.
const LONGEST_LOG2: u32 = 29;

const SLOTS: usize = ((LONGEST_LOG2 - SHORTEST_LOG2) << PARTS_LOG2) as usize;

#[derive(Clone, Debug)]
pub(crate) struct Spread {
    slots: Box<[u32; SLOTS]>,
    num: u64,
}

impl Default for Spread {
    fn default() -> Self {
        Self { slots: Box::new([0; SLOTS]), num: 0 }
    }
}

impl Spread {
    pub(crate) fn add(&mut self, duration: Duration) {
        let longest = (1 << LONGEST_LOG2) - 1;
        let micros = duration.as_micros().clamp(1 << SHORTEST_LOG2, longest) as u64;
        let octave = micros.ilog2();
        let part = (micros >> (octave - PARTS_LOG2)) as usize & ((1 << PARTS_LOG2) - 1);
        let slot = (((octave - SHORTEST_LOG2) << PARTS_LOG2) as usize) + part;
        self.slots[slot] = self.slots[slot].saturating_add(1);
        self.num += 1;
    }

    /// None is counted any more.
    pub(crate) fn clear(&mut self) {
        if self.num > 0 {
            self.slots.fill(0);
            self.num = 0;
        }
    }

    /// Milliseconds below which half of them are, nine of ten, and 99 of 100.
    pub(crate) fn band_ms(&self) -> Option<[f64; 3]> {
        (self.num > 0).then(|| [0.5, 0.9, 0.99].map(|share| self.percentile_us(share) / 1e3))
    }

    /// In microseconds. Between the ends of a slot as if all in it were evenly apart.
    fn percentile_us(&self, share: f64) -> f64 {
        let wanted = (share * self.num as f64).max(1.0);
        let mut before = 0.0;
        for (slot, num) in self.slots.iter().enumerate() {
            let num = f64::from(*num);
            if num > 0.0 && before + num >= wanted {
                let [start, end] = [slot, slot + 1].map(start_us);
                return start + (end - start) * (wanted - before) / num;
            }
            before += num;
        }
        start_us(SLOTS)
    }
}

fn start_us(slot: usize) -> f64 {
    let parts = 1 << PARTS_LOG2;
    let (octave, part) = (slot / parts, slot % parts);
    let start = 2f64.powi(octave as i32 + SHORTEST_LOG2 as i32);
    start * (1.0 + part as f64 / parts as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_right_to_an_eighth_of_an_octave_at_any_scale() {
        for unit_us in [10, 1_000, 100_000] {
            let mut spread = Spread::default();
            (1..=1000).for_each(|number| spread.add(Duration::from_micros(number * unit_us)));
            let band = spread.band_ms().unwrap();
            for (found, exact) in band.into_iter().zip([500.0, 900.0, 990.0]) {
                let exact = exact * unit_us as f64 / 1e3;
                assert!((found / exact - 1.0).abs() < 0.07, "{found} for {exact}");
            }
        }
    }

    #[test]
    fn what_is_out_of_range_counts_as_the_nearest_that_is_not() {
        let mut spread = Spread::default();
        assert_eq!(spread.band_ms(), None);
        spread.add(Duration::ZERO);
        let [half, ..] = spread.band_ms().unwrap();
        assert!((0.008..0.01).contains(&half), "{half}");
        spread.clear();
        spread.add(Duration::MAX);
        let [half, ..] = spread.band_ms().unwrap();
        assert!((500_000.0..600_000.0).contains(&half), "{half}");
    }
}
