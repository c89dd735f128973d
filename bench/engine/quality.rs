//! What rounding a model's weights costs: how probable it finds a text, and how far its logits are
//! from those of the weights as they are.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use checkpoint::Checkpoint;
use coordinator::tokenizer::Tokenizer;
use protocol::TokenId;
use protocol::config::{KvCacheDtype, Quantize};
use serde_json::{Value, json};
use shaders::matmul::Products;

use crate::engine::{Engine, EngineOptions, token};

/// Most tokens that see each other: longer texts are cut.
const MAX_WINDOW: usize = 512;

/// Windows where there is no text, and their tokens.
const RANDOM_WINDOWS: (usize, usize) = (8, 32);

/// What a model makes of some tokens.
#[derive(Debug)]
pub struct Said {
    /// How its weights were rounded.
    pub quantize: Quantize,
    /// How products with them were computed.
    pub products: Products,
    /// Sum of the natural logarithms of the probabilities of all tokens but the windows' first.
    log_likelihood: f64,
    num_scored: usize,
    /// After the last token of each window. `[windows, vocab_size]`
    logits: Vec<f32>,
}

impl Said {
    fn name(&self) -> String {
        match self.products {
            Products::Plain => self.quantize.to_string(),
            products => format!("{} {products}", self.quantize),
        }
    }

    /// `exp` of the mean negative log-likelihood of a token.
    pub fn perplexity(&self) -> f64 {
        (-self.log_likelihood / self.num_scored as f64).exp()
    }

    /// Root of the mean square of the difference of logits, as a share of that of `other`'s.
    pub fn logit_error(&self, other: &Self) -> f64 {
        let square = |x: f32| f64::from(x) * f64::from(x);
        let pairs = || self.logits.iter().zip(&other.logits);
        let error: f64 = pairs().map(|(own, other)| square(own - other)).sum();
        let size: f64 = other.logits.iter().map(|&x| square(x)).sum();
        (error / size).sqrt()
    }

    /// The largest difference of logits.
    pub(crate) fn worst_logit(&self, other: &Self) -> f32 {
        let pairs = self.logits.iter().zip(&other.logits);
        pairs.map(|(own, other)| (own - other).abs()).fold(0.0, f32::max)
    }
}

/// Tokens of `text` in windows of as many as the model sees, or of no text in particular.
///
/// # Errors
/// When the model has no tokenizer for the text, or the text is empty.
pub fn windows(model: &Path, text: Option<&str>) -> Result<Vec<Vec<TokenId>>> {
    let files = Checkpoint::open(model)?;
    let (vocab_size, longest) = (files.config().vocab_size, files.config().max_position_embeddings);
    let Some(text) = text else {
        let (num, len) = RANDOM_WINDOWS;
        let window = |w: usize| (0..len).map(|at| token(at + 997 * w, vocab_size)).collect();
        return Ok((0..num).map(window).collect());
    };
    let tokenizer = Tokenizer::from_source(&files.tokenizer()?)?;
    let tokens = tokenizer.encode(text, false).context("the text can't be tokenized")?;
    let windows = tokens.chunks(longest.min(MAX_WINDOW)).filter(|window| window.len() > 1);
    let windows: Vec<_> = windows.map(<[_]>::to_vec).collect();
    ensure!(!windows.is_empty(), "the text has less than two tokens");
    Ok(windows)
}

/// What `model` makes of `windows` with its weights rounded, and multiplied so.
///
/// # Errors
/// When it can't be loaded, or the device fails.
pub fn listen(
    model: &Path,
    adapter: Option<&str>,
    (quantize, products): (Quantize, Products),
    windows: &[Vec<TokenId>],
) -> Result<Said> {
    let longest = windows.iter().map(Vec::len).max().unwrap_or(1);
    let options = EngineOptions {
        adapter: adapter.map(str::to_owned),
        quantize,
        products,
        kv_cache_dtype: KvCacheDtype::Auto,
        max_batched_tokens: longest,
        max_num_seqs: 1,
        max_model_len: longest,
        profile: false,
    };
    let mut engine = Engine::load(model, &options)?;
    let vocab_size = engine.files().config().vocab_size;
    let mut said =
        Said { quantize, products, log_likelihood: 0.0, num_scored: 0, logits: Vec::new() };
    for window in windows {
        let logprobs = engine.score(window)?;
        said.num_scored += logprobs.len();
        said.log_likelihood += logprobs.iter().map(|&logprob| f64::from(logprob)).sum::<f64>();
        // The last row of the last group of rows that was computed.
        let row = (window.len() - 1) % node::model::head::MAX_ROWS;
        said.logits.extend(&engine.logits()?[row * vocab_size..][..vocab_size]);
    }
    Ok(said)
}

/// For people; the first is what the others are compared with.
pub fn table(all: &[Said], with_text: bool) -> String {
    let mut text = format!("{:<24}", "weights");
    if with_text {
        text += &format!(" {:>11} {:>8}", "perplexity", "change");
    }
    text += &format!(" {:>12} {:>12}\n", "logits, rms", "worst");
    for (index, said) in all.iter().enumerate() {
        text += &format!("{:<24}", said.name());
        if with_text {
            let change = 100.0 * (said.perplexity() / all[0].perplexity() - 1.0);
            text += &format!(" {:>11.4} {change:>+7.2}%", said.perplexity());
        }
        if index > 0 {
            let error = 100.0 * said.logit_error(&all[0]);
            text += &format!(" {error:>11.3}% {:>12.4}", said.worst_logit(&all[0]));
        }
        text += "\n";
    }
    text
}

/// For machines.
pub fn report(all: &[Said], with_text: bool) -> Value {
    let one = |said: &Said| {
        json!({
            "quantize": said.quantize,
            "products": said.products.to_string(),
            "tokens": said.num_scored,
            "perplexity": with_text.then(|| said.perplexity()),
            "logit_rms_error": said.logit_error(&all[0]),
            "logit_worst_error": said.worst_logit(&all[0]),
        })
    };
    all.iter().map(one).collect()
}
