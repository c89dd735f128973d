//! Names by shares: `interactive:0.7,batch:0.3`.

use std::str::FromStr;
use std::sync::Arc;

use rand::RngExt;
use rand::rngs::StdRng;

/// Names in one mix: each has histograms of its own.
const MAX_NAMES: usize = 64;

/// Names, each with its share. Empty where there are none.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Mix(Vec<(Arc<str>, f64)>);

impl Mix {
    /// One of them, as often as its share says.
    pub(crate) fn draw(&self, random: &mut StdRng) -> Option<Arc<str>> {
        let whole: f64 = self.0.iter().map(|(_, share)| share).sum();
        let mut rest = random.random::<f64>() * whole;
        let drawn = self.0.iter().find(|(_, share)| {
            rest -= share;
            rest < 0.0
        });
        drawn.or(self.0.last()).map(|(name, _)| name.clone())
    }
}

impl FromStr for Mix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut mix: Vec<(Arc<str>, f64)> = Vec::new();
        for part in text.split(',') {
            let (name, share) = part.split_once(':').unwrap_or((part, "1"));
            let share = share.parse::<f64>().ok().filter(|share| (1e-9..=1e9).contains(share));
            let share = share.ok_or_else(|| {
                format!("{part:?} is no NAME:SHARE: write a name and a number above 0, as in a:0.3")
            })?;
            let is_name = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
            if name.is_empty() || !name.chars().all(is_name) {
                return Err(format!("{name:?} is no name: use letters, digits, -, _ and ."));
            }
            if mix.iter().any(|(other, _)| **other == *name) {
                return Err(format!("{name:?} is there twice"));
            }
            mix.push((name.into(), share));
        }
        if mix.len() > MAX_NAMES {
            return Err(format!("{} names are more than {MAX_NAMES}", mix.len()));
        }
        Ok(Self(mix))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::distribution::{Purpose, random};

    #[test]
    fn names_come_as_often_as_their_shares_say() {
        let mix: Mix = "a:3,b:1".parse().unwrap();
        let drawn = (0..10_000)
            .map(|index| mix.draw(&mut random(Purpose::Conversation, 1, index)).unwrap());
        let num = drawn.filter(|name| **name == *"a").count();
        assert!((7_300..7_700).contains(&num), "{num}");
        assert_eq!(Mix::default().draw(&mut random(Purpose::Conversation, 1, 1)), None);
    }

    #[test]
    fn what_is_no_mix_is_refused() {
        for (text, said) in [
            ("a:0", "is no NAME:SHARE"),
            ("a:x", "is no NAME:SHARE"),
            ("a,,b", "is no name"),
            ("a b", "is no name"),
            ("a:1,a:2", "twice"),
        ] {
            let error = text.parse::<Mix>().unwrap_err();
            assert!(error.contains(said), "{error}");
        }
    }
}
