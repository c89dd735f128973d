//! How fast a model runs on this machine's adapter, without servers: the tests of llama-bench and
//! llama-batched-bench.
//!
//! Every round runs every test once, so that whatever disturbs the machine disturbs all alike;
//! what is reported are medians over the rounds.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use protocol::BLOCK_TOKENS;
use serde_json::{Value, json};

use crate::engine::{Engine, Matrices, OWN_TOKENS, Sequence};
use crate::processes;
use loadgen::numbers::median;

/// A test, as llama-bench and llama-batched-bench have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Test {
    /// The tokens of one prompt, in as many steps as they need.
    Prompt {
        /// Tokens of the prompt.
        num_tokens: usize,
    },
    /// Tokens one after another, for several sequences at once.
    Decode {
        /// Sequences.
        batch: usize,
        /// Tokens before the first, the same for all sequences.
        context: usize,
        /// Tokens that each sequence decodes.
        num_tokens: usize,
    },
}

impl Test {
    /// llama-bench's name: `pp512`, `tg128`, and for batches `tg32 x8 @ 4096`.
    pub fn name(&self) -> String {
        match *self {
            Self::Prompt { num_tokens } => format!("pp{num_tokens}"),
            Self::Decode { batch, context, num_tokens } => {
                let batch = if batch > 1 { format!(" x{batch}") } else { String::new() };
                let context = if context > 0 { format!(" @ {context}") } else { String::new() };
                format!("tg{num_tokens}{batch}{context}")
            }
        }
    }

    /// Tokens of the longest sequence.
    pub fn max_len(&self) -> usize {
        match *self {
            Self::Prompt { num_tokens } => num_tokens,
            Self::Decode { context, num_tokens, .. } => context + num_tokens,
        }
    }

    fn num_tokens(&self) -> usize {
        match *self {
            Self::Prompt { num_tokens } => num_tokens,
            Self::Decode { batch, num_tokens, .. } => batch * num_tokens,
        }
    }
}

/// What a test took, round by round.
#[derive(Debug, Clone)]
pub struct TestTimes {
    /// What was timed.
    pub test: Test,
    /// Seconds by the clock, round by round.
    pub seconds: Vec<f64>,
    /// Seconds of processor time of each round; empty where the system doesn't say.
    pub processor_seconds: Vec<f64>,
    /// Microseconds of processor time that the encoding of a step took, the mean of each round.
    pub encoding_us: Vec<f64>,
}

impl TestTimes {
    /// Tokens a second, the median round's.
    pub(crate) fn rate(&self) -> f64 {
        self.test.num_tokens() as f64 / median(&self.seconds)
    }

    /// Tokens a second of processor time.
    pub(crate) fn processor_rate(&self) -> Option<f64> {
        (!self.processor_seconds.is_empty())
            .then(|| self.test.num_tokens() as f64 / median(&self.processor_seconds))
    }

    fn rates(&self) -> Vec<f64> {
        self.seconds.iter().map(|seconds| self.test.num_tokens() as f64 / seconds).collect()
    }
}

/// Runs every test in every round, after one that doesn't count. `progress` hears of each.
///
/// # Errors
/// When a test asks for more than the engine was loaded for, or the device fails.
pub fn measure(
    engine: &mut Engine,
    tests: &[Test],
    (num_rounds, max_batched_tokens): (usize, usize),
    mut progress: impl FnMut(&str),
) -> Result<Vec<TestTimes>> {
    let mut contexts: Vec<Sequence> = Vec::new();
    for test in tests {
        if let Test::Decode { context, .. } = *test
            && context > 0
            && !contexts.iter().any(|found| found.num_tokens() == context)
        {
            ensure!(context % BLOCK_TOKENS == 0, "a context is a multiple of {BLOCK_TOKENS}");
            progress(&format!("computing a context of {context} tokens"));
            let mut sequence = [engine.begin(None)];
            prefill(engine, &mut sequence, context, max_batched_tokens)?;
            contexts.extend(sequence);
        }
    }
    let mut measured: Vec<_> = tests
        .iter()
        .map(|&test| TestTimes {
            test,
            seconds: Vec::new(),
            processor_seconds: Vec::new(),
            encoding_us: Vec::new(),
        })
        .collect();
    for round in 0..=num_rounds {
        for measured in &mut measured {
            progress(&format!("round {round} of {num_rounds}: {}", measured.test.name()));
            // The first round compiles and fills caches: a few steps do.
            let test = if round == 0 { measured.test.shortened() } else { measured.test };
            let before = engine.gpu().usage();
            let (time, processor) = run(engine, test, &contexts, max_batched_tokens)?;
            if round > 0 {
                measured.seconds.push(time.as_secs_f64());
                measured.processor_seconds.extend(processor);
                let usage = engine.gpu().usage();
                let encoding = usage.encoding - before.encoding;
                let num_encoded = usage.num_encoded - before.num_encoded;
                measured.encoding_us.push(encoding.as_secs_f64() * 1e6 / f64::from(num_encoded));
            }
        }
    }
    contexts.into_iter().for_each(|context| engine.end(context));
    Ok(measured)
}

impl Test {
    fn shortened(self) -> Self {
        match self {
            Self::Prompt { .. } => self,
            Self::Decode { batch, context, num_tokens } => {
                Self::Decode { batch, context, num_tokens: num_tokens.min(4) }
            }
        }
    }
}

fn run(
    engine: &mut Engine,
    test: Test,
    contexts: &[Sequence],
    max_batched_tokens: usize,
) -> Result<(Duration, Option<f64>)> {
    let (batch, context) = match test {
        Test::Prompt { .. } => (1, None),
        Test::Decode { batch, context, num_tokens } => {
            ensure!(num_tokens <= OWN_TOKENS, "a sequence decodes at most {OWN_TOKENS} tokens");
            (batch, contexts.iter().find(|found| found.num_tokens() == context))
        }
    };
    let mut sequences: Vec<_> = (0..batch).map(|_| engine.begin(context)).collect();
    let processor = || processes::seconds(std::process::id()).ok();
    let (start, before) = (Instant::now(), processor());
    match test {
        Test::Prompt { num_tokens } => {
            prefill(engine, &mut sequences, num_tokens, max_batched_tokens)?;
        }
        Test::Decode { num_tokens, .. } => {
            for _ in 0..num_tokens {
                engine.step(&mut sequences, 1)?;
            }
        }
    }
    let time = start.elapsed();
    let processor = processor().zip(before).map(|(after, before)| after - before);
    sequences.into_iter().for_each(|sequence| engine.end(sequence));
    Ok((time, processor))
}

fn prefill(
    engine: &mut Engine,
    sequence: &mut [Sequence],
    num_tokens: usize,
    max_batched_tokens: usize,
) -> Result<()> {
    let mut left = num_tokens;
    while left > 0 {
        let chunk = left.min(max_batched_tokens);
        engine.step(sequence, chunk)?;
        left -= chunk;
    }
    Ok(())
}

/// The head of a table: everything that its figures hang on.
#[derive(Debug, Clone)]
pub struct About {
    /// The model's file or shape.
    pub model: String,
    /// Format of the layers' weights on the device.
    pub format: String,
    /// Bytes on the device, KV cache and activations included.
    pub memory_bytes: u64,
    /// Bytes of weights on the device, and in their files.
    pub weights_bytes: (u64, u64),
    /// What tokens are multiplied with.
    pub matrices: Matrices,
    /// Tokens of a prompt's step.
    pub max_batched_tokens: usize,
    /// Seconds until it could compute.
    pub load_seconds: f64,
    /// Adapter, driver, backend.
    pub adapter: String,
}

impl About {
    /// Bytes of weights that a test reads, once a step, and the floating-point operations of its
    /// products; a multiply-add counts as two, and attention isn't in it.
    fn work(&self, test: Test) -> (f64, f64) {
        let Matrices { layer_values, head_values, num_bytes } = self.matrices;
        let (num_steps, num_sampled) = match test {
            Test::Prompt { num_tokens } => {
                let num_steps = num_tokens.div_ceil(self.max_batched_tokens);
                (num_steps, num_steps)
            }
            Test::Decode { batch, num_tokens, .. } => (num_tokens, batch * num_tokens),
        };
        let num_products =
            layer_values * test.num_tokens() as f64 + head_values * num_sampled as f64;
        (num_steps as f64 * num_bytes, 2.0 * num_products)
    }
}

/// The measurements for people.
pub fn table(about: &About, measured: &[TestTimes]) -> String {
    let About { model, format, memory_bytes, adapter, .. } = about;
    let mut text = format!(
        "{model}, {format}, {:.2} GiB on {adapter}, loaded in {:.1} s\n\
         weights take {:.2} times their file\n\n\
         {:<18} {:>10} {:>17} {:>13} {:>8} {:>9} {:>13}\n",
        *memory_bytes as f64 / f64::from(1 << 30),
        about.load_seconds,
        about.weights_bytes.0 as f64 / about.weights_bytes.1.max(1) as f64,
        "test",
        "tokens/s",
        "least … most",
        "tokens/CPU-s",
        "GB/s",
        "GFLOP/s",
        "encoding, µs",
    );
    for one in measured {
        let mut rates = one.rates();
        rates.sort_by(f64::total_cmp);
        let least = rates.first().copied().unwrap_or(f64::NAN);
        let most = rates.last().copied().unwrap_or(f64::NAN);
        let (num_bytes, num_operations) = about.work(one.test);
        text += &format!(
            "{:<18} {:>10.2} {:>17} {:>13} {:>8.2} {:>9.2} {:>13.0}\n",
            one.test.name(),
            one.rate(),
            format!("{least:.2} … {most:.2}"),
            one.processor_rate().map_or("?".to_owned(), |rate| format!("{rate:.2}")),
            num_bytes / 1e9 / median(&one.seconds),
            num_operations / 1e9 / median(&one.seconds),
            median(&one.encoding_us),
        );
    }
    text + "\nGB/s: of weights, read once a step; GFLOP/s: of products with them.\n"
}

/// The measurements for machines, with llama-bench's keys where it has one.
pub fn report(about: &About, measured: &[TestTimes]) -> Value {
    let tests: Vec<_> = measured
        .iter()
        .map(|one| {
            let (n_prompt, n_gen, n_depth, parallel) = match one.test {
                Test::Prompt { num_tokens } => (num_tokens, 0, 0, 1),
                Test::Decode { batch, context, num_tokens } => (0, num_tokens, context, batch),
            };
            let (num_bytes, num_operations) = about.work(one.test);
            json!({
                "test": one.test.name(),
                "n_prompt": n_prompt, "n_gen": n_gen, "n_depth": n_depth, "n_parallel": parallel,
                "median_ts": one.rate(),
                "median_ts_per_cpu": one.processor_rate(),
                "samples_ts": one.rates(),
                "median_encoding_us": median(&one.encoding_us),
                "weight_bytes_per_second": num_bytes / median(&one.seconds),
                "flops": num_operations / median(&one.seconds),
            })
        })
        .collect();
    json!({
        "model": about.model,
        "model_type": about.format,
        "memory_bytes": about.memory_bytes,
        "weights_bytes": about.weights_bytes.0,
        "file_bytes": about.weights_bytes.1,
        "load_seconds": about.load_seconds,
        "adapter": about.adapter,
        "tests": tests,
    })
}
