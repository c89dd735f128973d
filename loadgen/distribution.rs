//! Distributions of lengths and times as they are written on a command line:
//! `64`, `uniform:10:90`, `50ms+lognormal:100ms:0.5`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rand_distr::Distribution as _;

use crate::numbers;

/// Longest length that is drawn, in tokens.
pub(crate) const MAX_TOKENS: u32 = 1 << 20;

/// A law that times follow.
#[derive(Clone, Debug, PartialEq)]
pub struct Delays(Shifted);

/// A law that lengths in tokens follow.
#[derive(Clone, Debug, PartialEq)]
pub struct Lengths(Shifted);

/// A law and what is added to its draws. Delays are in seconds.
#[derive(Clone, Debug, PartialEq)]
struct Shifted {
    base: f64,
    law: Law,
    /// As it was written.
    text: String,
}

#[derive(Clone, Debug, PartialEq)]
enum Law {
    Constant(f64),
    Uniform(rand_distr::Uniform<f64>),
    Normal(rand_distr::Normal<f64>),
    LogNormal(rand_distr::LogNormal<f64>),
    /// Of this mean.
    Exponential(f64),
    Gamma(rand_distr::Gamma<f64>),
}

/// What random numbers are for. Those of one purpose say nothing about those of another.
#[derive(Clone, Copy, Debug)]
pub enum Purpose {
    /// When requests start.
    Arrivals = 1,
    /// In which order prompts come.
    Order = 2,
    /// What a conversation says, whose it is, how long it is.
    Conversation = 3,
    /// Beginnings that prompts share.
    Prefix = 4,
    /// When a mock server's tokens come.
    MockTimes = 5,
    /// What a mock server says.
    MockText = 6,
}

/// The random numbers of the `index`th thing of a run: the same ones however many others are
/// drawn, and in whatever order.
pub fn random(purpose: Purpose, seed: u64, index: u64) -> StdRng {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    bytes[8..16].copy_from_slice(&index.to_le_bytes());
    bytes[16..24].copy_from_slice(&(purpose as u64).to_le_bytes());
    StdRng::from_seed(bytes)
}

impl Delays {
    /// One draw; what no duration can hold is the longest that a wait can be.
    pub fn sample(&self, random: &mut impl Rng) -> Duration {
        Duration::try_from_secs_f64(self.0.sample(random)).unwrap_or(Duration::MAX / 4)
    }
}

impl Default for Delays {
    fn default() -> Self {
        Self(Shifted { base: 0.0, law: Law::Constant(0.0), text: "0s".to_owned() })
    }
}

impl Lengths {
    /// A draw: at least one token, at most `MAX_TOKENS`.
    pub fn sample(&self, random: &mut impl Rng) -> u32 {
        (self.0.sample(random).round() as u32).clamp(1, MAX_TOKENS)
    }
}

impl Shifted {
    fn parse(text: &str, unit: fn(&str) -> Result<f64, String>) -> Result<Self, String> {
        let (base, law) = match text.split_once('+') {
            Some((base, law)) => (unit(base)?, law),
            None => (0.0, text),
        };
        let parts: Vec<&str> = law.split(':').collect();
        let plain = |number: &str| match number.parse::<f64>() {
            Ok(number) if number.is_finite() && number > 0.0 => Ok(number),
            _ => Err(format!("{number:?} in {text:?} is no number above 0")),
        };
        let wrong = |_| format!("no such distribution: {text:?}");
        let law = match parts[..] {
            [value] | ["constant", value] => Law::Constant(unit(value)?),
            ["uniform", low, high] => {
                let (low, high) = (unit(low)?, unit(high)?);
                if low > high {
                    return Err(format!("{text:?} ends below where it begins"));
                }
                Law::Uniform(
                    rand_distr::Uniform::new_inclusive(low, high).map_err(|e| e.to_string())?,
                )
            }
            ["normal", mean, deviation] => {
                Law::Normal(rand_distr::Normal::new(unit(mean)?, unit(deviation)?).map_err(wrong)?)
            }
            ["lognormal", median, sigma] => {
                let median = unit(median)?;
                if median <= 0.0 {
                    return Err(format!("the median in {text:?} must be above 0"));
                }
                let law = rand_distr::LogNormal::new(median.ln(), plain(sigma)?);
                Law::LogNormal(law.map_err(wrong)?)
            }
            ["exponential", mean] => Law::Exponential(unit(mean)?),
            ["gamma", mean, shape] => {
                let shape = plain(shape)?;
                let law = rand_distr::Gamma::new(shape, unit(mean)? / shape);
                Law::Gamma(law.map_err(|cause| format!("{text:?}: {cause}"))?)
            }
            _ => {
                return Err(format!(
                    "{text:?} is no distribution: use VALUE, uniform:LOW:HIGH, \
                     normal:MEAN:DEVIATION, lognormal:MEDIAN:SIGMA, exponential:MEAN or \
                     gamma:MEAN:SHAPE, with BASE+ before it if something is to be added"
                ));
            }
        };
        Ok(Self { base, law, text: text.to_owned() })
    }

    /// Never below 0, whatever the law.
    fn sample(&self, random: &mut impl Rng) -> f64 {
        let drawn = match &self.law {
            Law::Constant(value) => *value,
            Law::Uniform(law) => law.sample(random),
            Law::Normal(law) => law.sample(random),
            Law::LogNormal(law) => law.sample(random),
            Law::Exponential(mean) => {
                let drawn: f64 = rand_distr::Exp1.sample(random);
                mean * drawn
            }
            Law::Gamma(law) => law.sample(random),
        };
        self.base + drawn.max(0.0)
    }
}

impl FromStr for Delays {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Shifted::parse(text, |time| Ok(numbers::parse_time(time)?.as_secs_f64())).map(Self)
    }
}

impl FromStr for Lengths {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let unit = |length: &str| match length.parse::<u32>() {
            Ok(length) if length <= MAX_TOKENS => Ok(f64::from(length)),
            _ => Err(format!("{length:?} is no length: use tokens, 0 to {MAX_TOKENS}")),
        };
        Shifted::parse(text, unit).map(Self)
    }
}

impl fmt::Display for Delays {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.text)
    }
}

impl fmt::Display for Lengths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mean and standard deviation over many draws.
    fn moments(law: &str) -> (f64, f64) {
        let law: Delays = law.parse().unwrap();
        let draws: Vec<f64> = (0..100_000)
            .map(|index| law.sample(&mut random(Purpose::Order, 1, index)).as_secs_f64() * 1e3)
            .collect();
        let mean = draws.iter().sum::<f64>() / draws.len() as f64;
        let square = draws.iter().map(|draw| (draw - mean).powi(2)).sum::<f64>();
        (mean, (square / draws.len() as f64).sqrt())
    }

    #[test]
    fn each_law_has_its_mean_and_deviation() {
        let sigma = 0.5_f64;
        let lognormal = 100.0 * (sigma * sigma / 2.0).exp();
        for (law, mean, deviation) in [
            ("50ms", 50.0, 0.0),
            ("uniform:100ms:0.2s", 150.0, 100.0 / 12.0_f64.sqrt()),
            ("normal:200ms:20ms", 200.0, 20.0),
            (
                "50ms+lognormal:100ms:0.5",
                50.0 + lognormal,
                lognormal * ((sigma * sigma).exp() - 1.0).sqrt(),
            ),
            ("exponential:80ms", 80.0, 80.0),
            ("gamma:80ms:4", 80.0, 40.0),
        ] {
            let (measured, spread) = moments(law);
            assert!((measured - mean).abs() <= mean * 0.02, "{law}: mean {measured}, not {mean}");
            assert!((spread - deviation).abs() <= deviation * 0.02 + 1e-9, "{law}: {spread}");
        }
    }

    #[test]
    fn what_is_no_law_is_refused_by_name() {
        for (law, said) in [
            ("zipf:3", "is no distribution: use VALUE"),
            ("normal:20ms", "is no distribution"),
            ("uniform:20ms:10ms", "ends below where it begins"),
            ("20", "\"20\" is no time"),
            ("lognormal:0ms:1", "must be above 0"),
            ("gamma:20ms:-1", "\"-1\" in"),
        ] {
            let error = law.parse::<Delays>().unwrap_err();
            assert!(error.contains(said), "{law}: {error}");
        }
        assert!("10ms".parse::<Lengths>().unwrap_err().contains("is no length"));
        assert!("4000000".parse::<Lengths>().unwrap_err().contains("is no length"));
    }
}
