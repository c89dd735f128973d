//! `autoglm-bench scaling`.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use bench::cluster::Setup;
use bench::engine::random_model::Storage;
use bench::scaling::{Comparison, Goal, Rate, Side, best, report, table};
use bench::users::{Users, Wish};
use loadgen::numbers::{decimal, parse_time};

use super::model::find_or_write;
use super::terminal::{dim, say, write_json};

/// Chunks of the lone prompt.
const CHUNKS: usize = 16;

#[derive(clap::Args)]
pub(crate) struct ScalingArguments {
    /// A model directory, a GGUF file, or a shape to be filled with random weights.
    #[arg(long, value_name = "PATH|SHAPE", default_value = "glm-0.3b")]
    model: String,
    /// How random weights are stored.
    #[arg(long, value_enum, default_value = "q4_0")]
    storage: Storage,
    /// Answers in the making, of which the best is found for each set-up.
    #[arg(long, value_name = "C", value_delimiter = ',', default_value = "8,16,32,64")]
    concurrency: Vec<NonZeroUsize>,
    /// Tokens of an answer; a prompt has 8.
    #[arg(long, value_name = "N", default_value = "64",
          value_parser = clap::value_parser!(u32).range(8..))]
    answer: u32,
    /// Tokens of a step at most, of which 16 make the lone prompt.
    #[arg(long, value_name = "N", default_value = "32")]
    chunk: NonZeroUsize,
    /// Rounds at the best concurrency, and of the lone prompt.
    #[arg(long, value_name = "N", default_value = "3")]
    rounds: NonZeroUsize,
    /// How long answers are counted in a round; a fourth of it while the best is looked for.
    #[arg(long, value_name = "TIME", value_parser = parse_time, default_value = "24s")]
    window: Duration,
    /// Threads of the software driver for each node (LP_NUM_THREADS).
    #[arg(long, value_name = "N", default_value = "1")]
    driver_threads: u32,
    /// What makes a pipeline of several stages faster, and should cost one stage nothing: lines of
    /// cluster.toml's scheduler, on for all but the plain node.
    #[arg(long, value_name = "KEY=VALUE")]
    pipelining: Vec<String>,
    /// The same for the plain node.
    #[arg(long, value_name = "KEY=VALUE")]
    plain: Vec<String>,
    /// Where to write the result as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub(crate) async fn scaling(arguments: ScalingArguments) -> Result<ExitCode> {
    let (model, _scratch) = find_or_write(&arguments.model, arguments.storage)?;
    let one = start(&arguments, &model, ("one stage", 1), &arguments.pipelining).await?;
    let two = start(&arguments, &model, ("two stages", 2), &arguments.pipelining).await?;
    // As fast as two stages could be at best here, where cores share what they share.
    let apart = start(&arguments, &model, ("another", 1), &arguments.pipelining).await?;
    apart.cluster.pin_nodes(1).await?;
    let is_compared = arguments.pipelining != arguments.plain;
    let plain = match is_compared {
        true => Some(start(&arguments, &model, ("plain", 1), &arguments.plain).await?),
        false => None,
    };
    let mut seed = 0;
    let mut next = || {
        seed += 1;
        seed
    };
    let wish = Wish { prompt: 8, answer: arguments.answer, tier: None };

    say("cores: each node has one; the coordinator and the client share them\n\n");
    let mut best_of = Vec::new();
    for (side, stages) in [(&one, 1), (&two, 2)] {
        let mut rates = Vec::new();
        for concurrency in arguments.concurrency.iter().map(|it| it.get()) {
            // What no step could hold only waits.
            if concurrency > stages * arguments.chunk.get() {
                continue;
            }
            let rate = side.rate(wish, concurrency, arguments.window / 4, next()).await?;
            say(&line(side, &rate));
            rates.push(rate);
        }
        best_of.push(best(&rates));
    }
    let (mut tokens, mut ahead, mut prompts) = (Vec::new(), Vec::new(), Vec::new());
    let mut ceilings = Vec::new();
    let num_tokens = CHUNKS * arguments.chunk.get();
    for _ in 0..arguments.rounds.get() {
        let mut measured = Vec::new();
        for (side, concurrency) in [(&one, best_of[0]), (&two, best_of[1])] {
            let rate = side.rate(wish, concurrency, arguments.window, next()).await?;
            say(&line(side, &rate));
            measured.push(rate.tokens);
        }
        if let Some(plain) = &plain {
            let rate = plain.rate(wish, best_of[0], arguments.window, next()).await?;
            say(&line(plain, &rate));
            ahead.push([rate.tokens, measured[0]]);
        }
        let (wish, at_once, window) = (wish, best_of[0], arguments.window);
        let (left, right) = tokio::try_join!(
            one.rate(wish, at_once, window, next()),
            apart.rate(wish, at_once, window, next())
        )?;
        [(&one, &left), (&apart, &right)].iter().for_each(|(side, rate)| say(&line(side, rate)));
        ceilings.push([measured[0], left.tokens + right.tokens]);
        tokens.push([measured[0], measured[1]]);
        prompts
            .push([one.prompt(num_tokens, next()).await?, two.prompt(num_tokens, next()).await?]);
    }
    let compared = |name: &str, [first, second]: [&str; 2], rounds, goal| Comparison {
        name: name.to_owned(),
        sides: [first.to_owned(), second.to_owned()],
        rounds,
        goal,
    };
    let of_ceiling = tokens.iter().zip(&ceilings).map(|(two, most)| [most[1], two[1]]).collect();
    let name = "tokens a second";
    let mut all = vec![
        compared(name, ["one stage", "two stages"], tokens, Some(Goal::AtLeast(1.8))),
        compared(name, ["one stage", "two of them"], ceilings, None),
        compared(name, ["two of them", "two stages"], of_ceiling, None),
    ];
    if plain.is_some() {
        all.push(compared(name, ["plain", "one stage"], ahead, Some(Goal::AtLeast(0.97))));
    }
    let name = format!("{num_tokens} tokens of prompt, s");
    all.push(compared(&name, ["one stage", "two stages"], prompts, Some(Goal::AtMost(0.62))));
    say(&format!("\n{}", table(&all)));
    for side in [Some(one), Some(two), Some(apart), plain].into_iter().flatten() {
        side.cluster.end().await;
    }
    write_json(arguments.json.as_deref(), &report(&all))?;
    Ok(ExitCode::SUCCESS)
}

async fn start(
    arguments: &ScalingArguments,
    model: &Path,
    (name, stages): (&str, u32),
    lines: &[String],
) -> Result<Side> {
    eprintln!("{}", dim(&format!("starting a cluster: {name}")));
    let mut setup = Setup::new(model, stages);
    setup.runner = vec!["env".into(), format!("LP_NUM_THREADS={}", arguments.driver_threads)];
    let most = arguments.concurrency.iter().map(|it| it.get()).max().unwrap_or(1);
    setup.config = format!(
        "[scheduler]\nmax_num_seqs = {most}\nmax_batched_tokens = {}\n{}\n",
        arguments.chunk,
        lines.join("\n")
    );
    let cluster = setup.start().await?;
    cluster.pin_nodes(0).await?;
    let users = Users::of(cluster.url()).await?;
    Ok(Side { name: name.to_owned(), cluster, users })
}

fn line(side: &Side, rate: &Rate) -> String {
    let busy: Vec<_> = rate.busy.iter().map(|share| format!("{:.0} %", share * 100.0)).collect();
    format!(
        "  {:<12}{:>4} at once{:>9} tokens/s   {:>4} a step, busy {}   coordinator {:.2} cores, \
         client {:.2}\n",
        side.name,
        rate.concurrency,
        decimal(rate.tokens),
        decimal(rate.batch),
        busy.join(" "),
        rate.coordinator,
        rate.client,
    )
}
