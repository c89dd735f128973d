//! Where an answer stands in its grammar.

use llguidance::Matcher;
use llguidance::toktrie::SimpleVob;
use protocol::TokenId;

use crate::request::{Constraint, Going};

/// From where an answer keeps to its grammar.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Begins {
    /// At once.
    #[default]
    First,
    /// After reasoning, which has begun already and ends with this text.
    After(String),
    /// At once, or after reasoning that the answer begins with this token and ends with this text.
    FirstOrAfter(TokenId, String),
}

/// An answer that keeps to a grammar.
#[derive(Clone)]
pub struct Kept {
    matcher: Matcher,
    place: Place,
    // Which tokens may come next, where not all may.
    mask: Vec<u32>,
    num_words: usize,
}

#[derive(Clone, Debug)]
enum Place {
    /// At the beginning, where this token begins reasoning that ends with this text.
    Start(TokenId, String),
    /// Before this text, of which these bytes may be the beginning.
    Before(String, Vec<u8>),
    Within,
}

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kept").field("place", &self.place).finish_non_exhaustive()
    }
}

impl Kept {
    /// Nothing was said yet.
    ///
    /// # Errors
    /// When there is nothing that could be.
    pub(super) fn new(matcher: Matcher, begins: Begins, num_words: usize) -> Result<Self, String> {
        let place = match begins {
            Begins::First => Place::Within,
            Begins::After(end) => Place::Before(end, Vec::new()),
            Begins::FirstOrAfter(opening, end) => Place::Start(opening, end),
        };
        let mut kept = Self { matcher, place, mask: Vec::new(), num_words };
        kept.look()?;
        if let Place::Start(opening, _) = &kept.place {
            let word = kept.mask.get_mut(opening.0 as usize / 32);
            let word = word.ok_or("it is of another vocabulary")?;
            *word |= 1 << (opening.0 % 32);
        }
        Ok(kept)
    }

    /// Finds out which tokens may come next.
    fn look(&mut self) -> Result<(), String> {
        let allowed = self.matcher.compute_mask();
        let allowed: SimpleVob = allowed.map_err(|cause| super::sentence(&cause.to_string()))?;
        self.mask.clear();
        self.mask.extend(allowed.as_slice().iter().take(self.num_words));
        self.mask.resize(self.num_words, 0);
        if self.mask.iter().all(|word| *word == 0) {
            return Err("no token of this model's vocabulary may come next".into());
        }
        Ok(())
    }

    fn within(&mut self, token: TokenId) -> Result<Going, String> {
        let taken = self.matcher.consume_token(token.0);
        taken.map_err(|cause| super::sentence(&cause.to_string()))?;
        if !self.matcher.is_stopped() {
            return self.look().map(|()| Going::On);
        }
        let reason = self.matcher.stop_reason();
        if reason.is_ok() { Ok(Going::Over) } else { Err(reason.to_string()) }
    }
}

impl Constraint for Kept {
    fn mask(&self) -> Option<&[u32]> {
        (!matches!(self.place, Place::Before(..))).then_some(&self.mask)
    }

    fn push(&mut self, token: TokenId) -> Result<Going, String> {
        match &mut self.place {
            Place::Within => self.within(token),
            Place::Start(opening, end) => {
                if token == *opening {
                    self.place = Place::Before(std::mem::take(end), Vec::new());
                    return Ok(Going::On);
                }
                self.place = Place::Within;
                self.within(token)
            }
            Place::Before(end, seen) => {
                let vocabulary = self.matcher.tok_env().map_err(|cause| cause.to_string())?;
                seen.extend_from_slice(vocabulary.tok_trie().token(token.0));
                let found = seen.windows(end.len()).position(|part| part == end.as_bytes());
                let Some(at) = found else {
                    let unneeded = seen.len().saturating_sub(end.len());
                    seen.drain(..unneeded);
                    return Ok(Going::On);
                };
                if !seen[at + end.len()..].trim_ascii().is_empty() {
                    return Err(format!("a token holds {end} and what follows"));
                }
                self.place = Place::Within;
                self.look().map(|()| Going::On)
            }
        }
    }

    fn copy(&self) -> Box<dyn Constraint> {
        Box::new(self.clone())
    }
}
