//! Where an answer stands in its grammar.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use llguidance::Matcher;
use llguidance::toktrie::SimpleVob;
use protocol::TokenId;

use crate::request::{Constraint, Going, NextTokens};

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
pub struct Kept {
    matching: Arc<Mutex<Matching>>,
    place: Place,
}

/// How far the grammar is, for whoever has the time to look at it. What an answer says next is
/// known only once its mask is, so nobody waits here for another.
struct Matching {
    matcher: Matcher,
    // What may come besides at the beginning.
    opening: Option<TokenId>,
    // What came of looking, since the last token.
    found: Option<Result<Vec<u32>, String>>,
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

impl std::fmt::Debug for Matching {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Matching").finish_non_exhaustive()
    }
}

impl Matching {
    /// Finds out which tokens may come next. It never panics: whoever asks has others' masks in
    /// hand, and an answer whose mask is lost without a word would keep to nothing.
    fn look(&mut self) -> Result<&[u32], String> {
        if self.found.is_none() {
            let computed = catch_unwind(AssertUnwindSafe(|| self.compute()));
            let panicked = |_| Err("a mask could not be computed: that panicked".to_owned());
            self.found = Some(computed.unwrap_or_else(panicked));
        }
        self.found.as_ref().expect("it was just found").as_deref().map_err(Clone::clone)
    }

    fn compute(&mut self) -> Result<Vec<u32>, String> {
        let none = || "no token of this model's vocabulary may come next".to_owned();
        let allowed: SimpleVob = self.matcher.compute_mask().map_err(|cause| {
            // The library's name for it.
            let cause = cause.to_string();
            if cause.contains("NoExtensionBias") { none() } else { said(cause) }
        })?;
        let mut mask: Vec<_> = allowed.as_slice().iter().take(self.num_words).copied().collect();
        mask.resize(self.num_words, 0);
        if mask.iter().all(|word| *word == 0) {
            return Err(none());
        }
        if let Some(opening) = self.opening {
            let word = mask.get_mut(opening.0 as usize / 32);
            *word.ok_or("it is of another vocabulary")? |= 1 << (opening.0 % 32);
        }
        Ok(mask)
    }

    fn push(&mut self, token: TokenId) -> Result<Going, String> {
        self.opening = None;
        if let Some(Err(cause)) = &self.found {
            return Err(cause.clone());
        }
        self.found = None;
        self.matcher.consume_token(token.0).map_err(said)?;
        if !self.matcher.is_stopped() {
            return Ok(Going::On);
        }
        let reason = self.matcher.stop_reason();
        if reason.is_ok() { Ok(Going::Over) } else { Err(reason.to_string()) }
    }
}

fn said(cause: impl std::fmt::Display) -> String {
    crate::guard::sentence(&cause.to_string())
}

impl Kept {
    /// Nothing was said yet.
    ///
    /// # Errors
    /// When there is nothing that could be.
    pub(super) fn new(matcher: Matcher, begins: Begins, num_words: usize) -> Result<Self, String> {
        let (place, opening) = match begins {
            Begins::First => (Place::Within, None),
            Begins::After(end) => (Place::Before(end, Vec::new()), None),
            Begins::FirstOrAfter(opening, end) => (Place::Start(opening, end), Some(opening)),
        };
        let mut matching = Matching { matcher, opening, found: None, num_words };
        matching.look()?;
        Ok(Self { matching: Arc::new(Mutex::new(matching)), place })
    }

    fn matching(&self) -> MutexGuard<'_, Matching> {
        self.matching.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One that shares nothing with this one, so that neither ever waits for the other.
    pub(super) fn apart(&self) -> Self {
        let Matching { matcher, opening, found, num_words } = &*self.matching();
        let (matcher, found) = (matcher.deep_clone(), found.clone());
        let matching = Matching { matcher, opening: *opening, found, num_words: *num_words };
        Self { matching: Arc::new(Mutex::new(matching)), place: self.place.clone() }
    }
}

impl NextTokens for Mutex<Matching> {
    fn mask(&self) -> Option<Vec<u32>> {
        let mut matching = self.lock().unwrap_or_else(PoisonError::into_inner);
        matching.look().ok().map(<[u32]>::to_vec)
    }
}

impl Constraint for Kept {
    fn next(&self) -> Option<Arc<dyn NextTokens>> {
        let is_free = matches!(self.place, Place::Before(..));
        (!is_free).then(|| Arc::clone(&self.matching) as Arc<dyn NextTokens>)
    }

    fn push(&mut self, token: TokenId) -> Result<Going, String> {
        match &mut self.place {
            Place::Within => self.matching().push(token),
            Place::Start(opening, end) => {
                if token == *opening {
                    self.place = Place::Before(std::mem::take(end), Vec::new());
                    (self.matching().opening, self.matching().found) = (None, None);
                    return Ok(Going::On);
                }
                self.place = Place::Within;
                self.matching().push(token)
            }
            Place::Before(end, seen) => {
                let matching = self.matching.lock().unwrap_or_else(PoisonError::into_inner);
                let vocabulary = matching.matcher.tok_env().map_err(|cause| cause.to_string())?;
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
                drop(matching);
                self.place = Place::Within;
                Ok(Going::On)
            }
        }
    }

    fn end(&self) -> Result<(), String> {
        let is_free = matches!(self.place, Place::Before(..));
        match &self.matching().found {
            Some(Err(cause)) if !is_free => Err(cause.clone()),
            _ => Ok(()),
        }
    }

    fn copy(&self) -> Box<dyn Constraint> {
        Box::new(self.apart())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Source, Vocabulary};
    use super::*;

    #[test]
    fn an_answer_whose_mask_panics_fails_and_takes_nobody_along() {
        let words: Vec<_> = ["a", "b", ""].map(|word| word.as_bytes().to_vec()).into();
        let vocabulary = Vocabulary::of(&words, &[TokenId(2)]).unwrap();
        let source = Source::Choice(vec!["ab".into()]);
        let compiled = vocabulary.compile(&source, Begins::First, &Default::default());
        let mut kept = compiled.unwrap();
        assert_eq!(kept.next().unwrap().mask(), Some(vec![1]));
        kept.push(TokenId(0)).unwrap();
        // More than any memory holds.
        kept.matching().num_words = usize::MAX;
        assert_eq!(kept.next().unwrap().mask(), None);
        assert!(kept.end().unwrap_err().contains("panicked"));
        assert!(kept.push(TokenId(1)).unwrap_err().contains("panicked"));
    }
}
