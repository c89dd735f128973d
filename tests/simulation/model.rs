//! A model that hangs on everything that a real one hangs on: every token before, how it is
//! sampled, and what computes it. Whatever is told wrongly shows as another token.

use protocol::{Logprobs, SamplingParams, TokenId, TokenLogprob};

use super::random::mix;

/// Tokens that there are.
pub const VOCAB: u32 = 997;

/// A row before the first token.
pub const ROOT: u64 = 0x6a09_e667_f3bc_c908;

/// The row of a token: it tells of all before it.
pub fn row(before: u64, token: TokenId) -> u64 {
    mix(before, u64::from(token.0) + 1)
}

/// What penalties hang on: which tokens stand in prompt and answer.
pub fn history(before: u64, token: TokenId, is_prompt: bool) -> u64 {
    before.wrapping_add(mix(u64::from(token.0), u64::from(is_prompt)))
}

/// The token that takes `position`.
pub fn sample(
    row: u64,
    history: u64,
    sampling: &SamplingParams,
    position: u32,
    class: u64,
) -> TokenId {
    let seed = mix(sampling.seed, u64::from(sampling.choice));
    let parameters = mix(u64::from(sampling.temperature.to_bits()), u64::from(sampling.top_k));
    let drawn = mix(mix(row, history), mix(mix(seed, parameters), u64::from(position)));
    TokenId((mix(drawn, class) % u64::from(VOCAB)) as u32)
}

/// How probable a token is behind a row.
pub fn logprobs(row: u64, token: TokenId, class: u64) -> Logprobs {
    let bits = mix(mix(row, class), u64::from(token.0)) >> 44;
    let chosen = TokenLogprob { token, logprob: -(bits as f32) / 65536.0 };
    Logprobs { chosen, top: Vec::new() }
}
