//! `autoglm-bench model` and `random-model`.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bench::engine::model::{About, Test, measure, report, table};
use bench::engine::random_model::{SHAPES, Shape, Storage};
use bench::engine::{Engine, EngineOptions, OWN_TOKENS};
use checkpoint::Checkpoint;
use protocol::BLOCK_TOKENS;
use protocol::config::{KvCacheDtype, Quantize};
use serde_json::json;
use shaders::matmul::Products;
use shaders::profile::Timed;

use super::terminal::{dim, say, write_json};

#[derive(clap::Args)]
pub(crate) struct ModelArguments {
    /// A model directory, a GGUF file, or a shape, computed with random weights.
    #[arg(value_name = "PATH|SHAPE")]
    model: String,
    /// Which adapter: its number, or a part of its name [default: the fastest kind there is].
    #[arg(long, value_name = "NAME|INDEX")]
    adapter: Option<String>,
    /// How the random weights of a shape are stored.
    #[arg(long, value_name = "FORMAT", default_value = "bf16")]
    storage: Storage,
    /// What float weights are rounded to while they are loaded: none, int8 or int4.
    #[arg(long, value_name = "FORMAT", default_value = "none")]
    quantize: Quantize,
    /// How keys and values are stored: auto, f32 or f16.
    #[arg(long, value_name = "DTYPE", default_value = "auto")]
    kv_cache_dtype: KvCacheDtype,
    /// How products are computed: plain, cooperative-matrix or packed-dot, as by
    /// `autoglm-node --products`.
    #[arg(long, value_name = "HOW", default_value = "plain")]
    products: Products,
    /// Tokens of a prompt.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "512")]
    prompt: Vec<NonZeroUsize>,
    /// Tokens of an answer.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "128")]
    tokens: Vec<NonZeroUsize>,
    /// Sequences that decode at once, 32 tokens each.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,4,8,16,32")]
    batches: Vec<NonZeroUsize>,
    /// Tokens before those that a batch decodes.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "0,4096")]
    contexts: Vec<usize>,
    /// Tokens of one step.
    #[arg(long, value_name = "N", default_value = "512")]
    max_batched_tokens: NonZeroUsize,
    /// Rounds, of which medians are taken.
    #[arg(long, value_name = "N", default_value = "5")]
    rounds: NonZeroUsize,
    /// Instead of all this: times every kernel of one prompt's step and one token's step, and
    /// writes them to FILE for a trace viewer (chrome://tracing, ui.perfetto.dev).
    #[arg(long, value_name = "FILE")]
    profile: Option<PathBuf>,
    /// Where to write the result as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(clap::Args)]
pub(crate) struct RandomModelArguments {
    /// Its shape.
    #[arg(value_parser = shape)]
    shape: Shape,
    /// The GGUF file to write.
    file: PathBuf,
    /// How weights are stored.
    #[arg(long, value_name = "FORMAT", default_value = "bf16")]
    storage: Storage,
}

pub(crate) fn shape(name: &str) -> Result<Shape, String> {
    Shape::named(name).ok_or_else(|| format!("choose among {}", names()))
}

fn names() -> String {
    SHAPES.map(|shape| shape.name).join(", ")
}

pub(crate) fn write_random_model(arguments: &RandomModelArguments) -> Result<ExitCode> {
    let RandomModelArguments { shape, file, storage } = arguments;
    write(shape, *storage, file)?;
    Ok(ExitCode::SUCCESS)
}

fn write(shape: &Shape, storage: Storage, path: &Path) -> Result<()> {
    let mut shown = 0;
    shape
        .write(storage, path, |done, total| {
            if done - shown > total / 5 {
                shown = done;
                eprintln!("{}", dim(&format!("{} of {} MB", done >> 20, total >> 20)));
            }
        })
        .with_context(|| format!("can't write {}", path.display()))
}

/// The file of a model that is there, or of one that is written to a folder that goes with the
/// second value.
pub(crate) fn find_or_write(
    model: &str,
    storage: Storage,
) -> Result<(PathBuf, Option<tempfile::TempDir>)> {
    let path = PathBuf::from(model);
    if path.exists() {
        return Ok((path, None));
    }
    let Some(shape) = Shape::named(model) else {
        bail!("{model} is neither a file nor one of the shapes {}", names());
    };
    let scratch = tempfile::tempdir().context("no place for random weights")?;
    let file = scratch.path().join(format!("{}.gguf", shape.name));
    write(&shape, storage, &file)?;
    Ok((file, Some(scratch)))
}

pub(crate) fn time_model(arguments: &ModelArguments) -> Result<ExitCode> {
    let (path, _scratch) = find_or_write(&arguments.model, arguments.storage)?;
    let tests = arguments.tests();
    if let Some(n) = arguments.tokens.iter().find(|n| n.get() > OWN_TOKENS) {
        bail!("--tokens {n}: an answer has at most {OWN_TOKENS} here");
    }
    if let Some(n) = arguments.contexts.iter().find(|n| !n.is_multiple_of(BLOCK_TOKENS)) {
        bail!("--contexts {n}: must be a multiple of {BLOCK_TOKENS}, whole blocks of KV cache");
    }
    // A profile is of a prompt in one step, and of the token after it.
    let profiled = arguments.profile.as_ref().map(|_| arguments.prompt[0].get());
    let max_model_len = match profiled {
        Some(num_tokens) => num_tokens + 1,
        None => tests.iter().map(Test::max_len).max().unwrap_or(1),
    };
    let max_num_seqs = arguments.batches.iter().map(|batch| batch.get()).max().unwrap_or(1);
    let max_batched_tokens = arguments.max_batched_tokens.get().max(max_num_seqs);
    let options = EngineOptions {
        adapter: arguments.adapter.clone(),
        quantize: arguments.quantize,
        kv_cache_dtype: arguments.kv_cache_dtype,
        products: arguments.products,
        max_batched_tokens: max_batched_tokens.max(profiled.unwrap_or(0)),
        // And the contexts.
        max_num_seqs: max_num_seqs + arguments.contexts.len(),
        max_model_len,
        profile: arguments.profile.is_some(),
    };
    let longest = Checkpoint::open(&path)?.config().max_position_embeddings;
    if options.max_model_len > longest {
        bail!("{} tokens in one sequence: the model takes {longest}", options.max_model_len);
    }
    let began = Instant::now();
    let mut engine = Engine::load(&path, &options)?;
    let load_seconds = began.elapsed().as_secs_f64();
    let about = about(arguments, (options.max_batched_tokens, load_seconds), &engine)?;
    if let Some(file) = &arguments.profile {
        return profile(&mut engine, &about, arguments.prompt[0].get(), file);
    }
    let sizes = (arguments.rounds.get(), options.max_batched_tokens);
    let measured = measure(&mut engine, &tests, sizes, |now| eprintln!("{}", dim(now)))?;
    say(&table(&about, &measured));
    write_json(arguments.json.as_deref(), &report(&about, &measured))?;
    Ok(ExitCode::SUCCESS)
}

fn about(
    arguments: &ModelArguments,
    (max_batched_tokens, load_seconds): (usize, f64),
    engine: &Engine,
) -> Result<About> {
    let info = engine.gpu().info();
    let format = format!("{:?}", node::model::format(engine.files())?).to_lowercase();
    Ok(About {
        model: arguments.model.clone(),
        format: match arguments.products {
            Products::Plain => format,
            products => format!("{format}, {products}"),
        },
        memory_bytes: engine.memory_bytes(),
        weights_bytes: engine.weights_bytes(),
        matrices: engine.matrices()?,
        max_batched_tokens,
        load_seconds,
        adapter: format!("{}, {}, {}", info.name, info.driver, info.backend),
    })
}

impl ModelArguments {
    fn tests(&self) -> Vec<Test> {
        let prompts = self.prompt.iter().map(|n| Test::Prompt { num_tokens: n.get() });
        let decode = |batch, context, num_tokens| Test::Decode { batch, context, num_tokens };
        let answers = self.tokens.iter().map(|n| decode(1, 0, n.get()));
        let batches = self.contexts.iter().flat_map(|&context| {
            self.batches.iter().map(move |batch| decode(batch.get(), context, 32))
        });
        prompts.chain(answers).chain(batches).collect()
    }
}

fn profile(engine: &mut Engine, about: &About, num_tokens: usize, file: &Path) -> Result<ExitCode> {
    let mut sequence = [engine.begin(None)];
    let mut events = Vec::new();
    let mut begin = Duration::ZERO;
    // Once to compile, once to count.
    engine.step(&mut sequence, num_tokens)?;
    sequence.into_iter().for_each(|first| engine.end(first));
    let mut sequence = [engine.begin(None)];
    for (name, num_tokens) in [("prompt", num_tokens), ("token", 1)] {
        let before = engine.gpu().usage().encoding;
        engine.step(&mut sequence, num_tokens)?;
        let encoding = engine.gpu().usage().encoding.saturating_sub(before);
        let timed = engine.gpu().take_profile();
        say(&format!("{}, {}: {name}, {num_tokens} tokens\n", about.model, about.adapter));
        say(&profile_table(&timed, encoding));
        let end = timed.last().map_or(Duration::ZERO, |last| last.start + last.duration);
        events.extend(timed.iter().map(|one| {
            json!({
                "name": &*one.kernel, "cat": name, "ph": "X", "pid": 1, "tid": 1,
                "ts": (begin + one.start).as_secs_f64() * 1e6,
                "dur": one.duration.as_secs_f64() * 1e6,
            })
        }));
        begin += end + Duration::from_millis(1);
    }
    write_json(Some(file), &json!({ "traceEvents": events }))?;
    Ok(ExitCode::SUCCESS)
}

fn profile_table(timed: &[Timed], encoding: Duration) -> String {
    let mut kernels = BTreeMap::<&str, (usize, Duration)>::new();
    for one in timed {
        let (count, time) = kernels.entry(&one.kernel).or_default();
        *count += 1;
        *time += one.duration;
    }
    let all: Duration = timed.iter().map(|one| one.duration).sum();
    let mut kernels: Vec<_> = kernels.into_iter().collect();
    kernels.sort_by_key(|(_, (_, time))| std::cmp::Reverse(*time));
    let mut text = format!("{:>9} {:>6} {:>6} {:>9}  kernel\n", "ms", "%", "count", "µs each");
    for (kernel, (count, time)) in kernels {
        text += &format!(
            "{:>9.2} {:>6.1} {count:>6} {:>9.1}  {kernel}\n",
            time.as_secs_f64() * 1e3,
            100.0 * time.as_secs_f64() / all.as_secs_f64(),
            time.as_secs_f64() * 1e6 / count as f64,
        );
    }
    text + &format!(
        "{:>9.2}  in {} dispatches, encoded in {} µs of processor time\n\n",
        all.as_secs_f64() * 1e3,
        timed.len(),
        encoding.as_micros(),
    )
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::Value;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: ModelArguments,
    }

    #[test]
    fn a_profile_is_of_a_prompt_and_of_the_token_after_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("profile.json");
        let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/glm-edge/bf16");
        // More tokens than are taken in a step otherwise, and no test that is longer.
        let line =
            ["model", model, "--prompt", "48", "--tokens", "8", "--max-batched-tokens", "32"];
        let line = line.into_iter().chain(["--profile", file.to_str().unwrap()]);
        let Line { arguments } = Line::try_parse_from(line).unwrap();
        match time_model(&arguments) {
            Ok(_) => {}
            Err(cause) if cause.to_string().contains("no GPU adapter") => {
                return eprintln!("skipped: a profile ({cause:#})");
            }
            Err(cause) => panic!("{cause:#}"),
        }
        let written: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        let events = written["traceEvents"].as_array().unwrap();
        for of in ["prompt", "token"] {
            let events = events.iter().filter(|event| event["cat"] == of);
            let names: Vec<_> = events.filter_map(|event| event["name"].as_str()).collect();
            assert!(names.iter().any(|name| name.starts_with("attention")), "{of}: {names:?}");
        }
    }
}
