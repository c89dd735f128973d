//! The gate to the sampler: kernels check nothing, so whatever passes here is safe to run.

use crate::mask;
use crate::sampler::{Row, SamplerLimits, Sampling};

impl SamplerLimits {
    /// Says what of `rows` is impossible.
    pub(crate) fn check<'a>(
        &self,
        rows: impl Iterator<Item = Row<'a>>,
    ) -> Result<(), &'static str> {
        let ensure = |holds: bool, what| if holds { Ok(()) } else { Err(what) };
        let is_token = |token: u32| (token as usize) < self.vocab_size;
        for (index, row) in rows.enumerate() {
            ensure(index < self.max_rows, "too many rows")?;
            ensure(row.score.is_none_or(is_token), "an unknown token is scored")?;
            let max = self.max_logprobs;
            ensure(row.num_logprobs.is_none_or(|num| num as usize <= max), "too many logprobs")?;
            let has_token = row.sampling.is_some() || row.score.is_some();
            ensure(row.num_logprobs.is_none() || has_token, "logprobs of no token")?;
            let tokens = || row.adjustments.iter().map(|adjustment| adjustment.token);
            ensure(tokens().all(is_token), "an unknown token is adjusted")?;
            ensure(tokens().is_sorted_by(|a, b| a < b), "adjustments aren't ascending")?;
            let has_nan = row.adjustments.iter().any(|adjustment| adjustment.bias.is_nan());
            ensure(!has_nan, "a bias is no number")?;
            let is_whole = |mask: &[u32]| mask.len() == mask::num_words(self.vocab_size);
            ensure(row.mask.is_none_or(is_whole), "a mask has other tokens")?;
            ensure(row.mask.is_none() || row.sampling.is_some(), "a mask of no sample")?;
            if let Some(sampling) = &row.sampling {
                sampling.check()?;
            }
        }
        Ok(())
    }
}

impl Sampling {
    fn check(&self) -> Result<(), &'static str> {
        let ensure = |holds: bool, what| if holds { Ok(()) } else { Err(what) };
        ensure(self.temperature.is_finite() && self.temperature >= 0.0, "a bad temperature")?;
        ensure((0.0..=1.0).contains(&self.top_p), "a bad top_p")?;
        ensure((0.0..=1.0).contains(&self.min_p), "a bad min_p")?;
        let penalty = self.repetition_penalty;
        ensure(penalty.is_finite() && penalty > 0.0, "a bad repetition penalty")?;
        ensure(self.frequency_penalty.is_finite(), "a bad frequency penalty")?;
        ensure(self.presence_penalty.is_finite(), "a bad presence penalty")
    }
}
