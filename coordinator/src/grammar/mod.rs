//! Answers that keep to a grammar: JSON of a schema, a regular expression, one of several texts, a
//! call of a tool. A grammar is compiled once, where its request is parsed; what it allows after
//! each token is found out while the step that samples the next one is under way.

mod calls;
mod kept;
mod source;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, PoisonError};

use llguidance::api::{GrammarInit, ParserLimits};
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Logger, Matcher, ParserFactory};
use protocol::TokenId;
use protocol::config::Http;

pub(crate) use self::calls::{Calls, Or};
pub use self::kept::Begins;
pub(crate) use self::kept::Kept;
pub use self::source::Source;
use crate::guard::guarded;
use crate::tokenizer::Tokenizer;

/// A vocabulary, as grammars look at it: made once, which takes a while where it is large.
pub struct Vocabulary {
    factory: ParserFactory,
    num_words: usize,
    compiled: Mutex<VecDeque<Compiled>>,
}

/// What was asked for, by its hash first, and what came of it; those that were asked for last stand
/// at the end.
type Compiled = (u64, (Source, Begins), Kept);

impl std::fmt::Debug for Vocabulary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vocabulary").field("num_words", &self.num_words).finish()
    }
}

/// Parts of texts for which it is known in advance which tokens may come: strings of JSON.
fn slices() -> Vec<String> {
    llguidance::earley::SlicedBiasComputer::json_slices()
}

impl Vocabulary {
    /// That of a tokenizer; the model has so many tokens, and ends answers with those.
    ///
    /// # Errors
    /// When the library refuses it.
    pub fn new(tokenizer: &Tokenizer, vocab_size: u32, ends: &[TokenId]) -> Result<Self, String> {
        let bytes = |id: u32| {
            let (token, mut bytes) = (TokenId(id), Vec::new());
            if tokenizer.is_hidden(token) && !tokenizer.token_bytes(token).is_empty() {
                // Nothing that a grammar says is one.
                bytes.push(TokTrie::SPECIAL_TOKEN_MARKER);
            }
            bytes.extend_from_slice(tokenizer.token_bytes(token));
            bytes
        };
        Self::of(&(0..vocab_size).map(bytes).collect::<Vec<_>>(), ends)
    }

    /// Of these tokens, some of which end answers.
    ///
    /// # Errors
    /// When the library refuses it.
    pub fn of(words: &[Vec<u8>], ends: &[TokenId]) -> Result<Self, String> {
        let vocab_size = words.len() as u32;
        let ends: Vec<_> = ends.iter().map(|end| end.0).filter(|end| *end < vocab_size).collect();
        let made = guarded(|| {
            // A model without an end: its last token would be one, were it sampled.
            let end = ends.first().copied().unwrap_or(vocab_size.saturating_sub(1));
            let trie = TokTrie::from(&TokRxInfo::new(vocab_size, end), words);
            let trie = if ends.is_empty() { trie } else { trie.with_eos_tokens(&ends) };
            let tokens: TokEnv = std::sync::Arc::new(ApproximateTokEnv::new(trie));
            ParserFactory::new(&tokens, InferenceCapabilities::default(), &slices())
        });
        let mut factory = made?;
        factory.quiet();
        let num_words = vocab_size.div_ceil(32) as usize;
        Ok(Self { factory, num_words, compiled: Mutex::default() })
    }

    /// An answer that keeps to `source` from where it `begins`.
    ///
    /// # Errors
    /// When the grammar is too large, contradicts itself, or says what can't be.
    pub fn compile(&self, source: &Source, begins: Begins, config: &Http) -> Result<Kept, String> {
        let asked = (source.clone(), begins);
        let mut hasher = DefaultHasher::new();
        format!("{asked:?}").hash(&mut hasher);
        let hash = hasher.finish();
        let compiled = || self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        let found = {
            let mut compiled = compiled();
            let at = compiled.iter().position(|(of, it, _)| *of == hash && *it == asked);
            at.and_then(|at| compiled.remove(at))
        };
        let kept = match found {
            Some((.., kept)) => kept,
            // Nobody else waits meanwhile.
            None => self.compile_anew(source, asked.1.clone(), config)?,
        };
        if config.max_kept_grammars > 0 {
            let mut compiled = compiled();
            while compiled.len() >= config.max_kept_grammars {
                compiled.pop_front();
            }
            compiled.push_back((hash, asked, kept.apart()));
        }
        Ok(kept)
    }

    fn compile_anew(&self, source: &Source, begins: Begins, config: &Http) -> Result<Kept, String> {
        let grammar = source.grammar(config)?;
        let limits = ParserLimits {
            max_grammar_size: config.max_grammar_symbols,
            verbose_errors: false,
            ..ParserLimits::default()
        };
        let made = guarded(|| {
            self.factory.create_parser_from_init_ext(
                GrammarInit::Serialized(grammar),
                Logger::new(0, 0),
                InferenceCapabilities::default(),
                limits,
            )
        });
        Kept::new(Matcher::new(Ok(made?)), begins, self.num_words)
    }
}
