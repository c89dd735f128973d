//! `autoglm-bench structured`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use bench::cluster::Setup;
use bench::engine::random_model::Storage;
use bench::structured::{numbers, rate, schema, time_masks, words};
use bench::users::{Users, Wish};
use loadgen::numbers::{median, percentile};
use serde_json::json;

use super::model::find_or_write;
use super::terminal::{say, write_json};

/// What a vocabulary is made of.
const TEXT: &str = include_str!("../texts/alice.txt");

#[derive(clap::Args)]
pub(crate) struct StructuredArguments {
    /// A model directory, a GGUF file, or a shape to be filled with random weights; none: only
    /// masks are timed.
    #[arg(long, value_name = "PATH|SHAPE")]
    model: Option<String>,
    /// How random weights are stored.
    #[arg(long, value_enum, default_value = "q4_0")]
    storage: Storage,
    /// Tokens of the vocabulary for which masks are timed; 0: none are.
    #[arg(long, value_name = "N", default_value = "151552")]
    vocabulary: usize,
    /// Stages of the pipeline, a node each.
    #[arg(long, value_name = "N", default_value = "1")]
    stages: u32,
    /// Answer with lists of numbers: for models that know no quotes.
    #[arg(long)]
    numbers: bool,
    /// Streams at once.
    #[arg(long, value_name = "N", default_value = "16",
          value_parser = clap::value_parser!(u64).range(1..=256))]
    streams: u64,
    /// Tokens of an answer.
    #[arg(long, value_name = "N", default_value = "96",
          value_parser = clap::value_parser!(u32).range(8..))]
    answer: u32,
    /// Rounds, each of both kinds.
    #[arg(long, value_name = "N", default_value = "9")]
    rounds: u64,
    /// Lines of cluster.toml.
    #[arg(long, value_name = "LINE")]
    config: Vec<String>,
    /// Where to write the result as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub(crate) async fn structured(arguments: StructuredArguments) -> Result<ExitCode> {
    let mut result = json!({});
    if arguments.vocabulary > 512 {
        let words = words(TEXT, arguments.vocabulary);
        let times = tokio::task::spawn_blocking(move || time_masks(&words, 20, 100)).await??;
        say(&format!(
            "masks of {} tokens, of which {:.0} are allowed; microseconds, p50 and p99\n",
            arguments.vocabulary, times.allowed
        ));
        for (name, whose, values) in [
            ("token", "the actor's, for each", &times.push),
            ("copy", "the actor's, once an answer", &times.copy),
            ("mask", "other threads', for each", &times.mask),
        ] {
            let [middle, tail] = [0.5, 0.99].map(|part| percentile(values, part));
            say(&format!("  {name:<6}{middle:>10.1}{tail:>10.1}  {whose}\n"));
            result[name] = json!({"p50_us": middle, "p99_us": tail});
        }
    }
    if let Some(model) = &arguments.model {
        let (model, _scratch) = find_or_write(model, arguments.storage)?;
        let setup =
            Setup { config: arguments.config.join("\n"), ..Setup::new(model, arguments.stages) };
        let cluster = setup.start().await?;
        let users = Users::of(cluster.url()).await?;
        let wish = Wish { prompt: 8, answer: arguments.answer, tier: None };
        let schema = if arguments.numbers { numbers() } else { schema() };
        let mut ratios = Vec::new();
        // The first round compiles and warms.
        for round in 0..=arguments.rounds {
            let mut rates = [0.0; 2];
            let first = round % 2 == 0;
            for keeps in [first, !first] {
                let schema = keeps.then_some(&schema);
                rates[usize::from(keeps)] =
                    rate(&users, (wish, arguments.streams), round, schema).await?;
            }
            let [free, kept] = rates;
            if round > 0 {
                say(&format!("{free:>8.1} tok/s free{kept:>8.1} with a schema\n"));
                ratios.push(kept / free);
            }
        }
        let ratio = median(&ratios);
        say(&format!("with a schema {:.1} % of without (median)\n", ratio * 100.0));
        result["ratio"] = ratio.into();
        cluster.end().await;
    }
    write_json(arguments.json.as_deref(), &result)?;
    Ok(ExitCode::SUCCESS)
}
