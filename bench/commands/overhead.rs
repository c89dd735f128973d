//! `autoglm-bench overhead`.

use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use bench::cluster::Setup;
use bench::numbers::median;
use bench::overhead::{Collector, Cost, Counted, Counting, Work};
use bench::report::statistics::{Interval, mean_interval};

use super::terminal::say;

/// How sure the interval is.
const CONFIDENCE: f64 = 0.95;

#[derive(clap::Args)]
pub(crate) struct OverheadArguments {
    /// A Hugging Face directory or a GGUF file: the smaller, the more weighs what is measured.
    #[arg(long, value_name = "PATH")]
    model: PathBuf,
    /// Lines of cluster.toml of the first cluster [default: metrics and traces are off].
    #[arg(long, value_name = "FILE")]
    without: Option<PathBuf>,
    /// Of the second [default: metrics are on, and some requests are traced].
    #[arg(long, value_name = "FILE")]
    with: Option<PathBuf>,
    /// The coordinator's program, beside it that of its nodes [default: the one that lies beside
    /// this program].
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,
    /// Of the second, to compare two builds [default: the same]. Then both have the lines of the
    /// first, unless --with says otherwise.
    #[arg(long, value_name = "PATH")]
    with_program: Option<PathBuf>,
    /// Share of the requests that the second traces by default.
    #[arg(long, value_name = "SHARE", default_value = "0.01", conflicts_with = "with")]
    sample_ratio: f64,
    /// Rounds of each.
    #[arg(long, value_name = "N", default_value = "20")]
    pairs: NonZeroUsize,
    /// Requests of a round.
    #[arg(long, value_name = "N", default_value = "100")]
    requests: NonZeroUsize,
    /// Requests in flight.
    #[arg(long, value_name = "N", default_value = "8")]
    concurrency: NonZeroUsize,
    /// Tokens of an answer.
    #[arg(long, value_name = "N", default_value = "100")]
    tokens: NonZeroU32,
    /// Nodes of each cluster. With several, which requests share a step is chance that lasts, and
    /// weighs more than what is measured.
    #[arg(long, value_name = "N", default_value = "1")]
    nodes: NonZeroU32,
    /// Count the coordinator's instructions instead of the processor time of all: slow, but alike
    /// from pair to pair (needs valgrind).
    #[arg(long)]
    instructions: bool,
}

pub(crate) async fn overhead(arguments: OverheadArguments) -> Result<ExitCode> {
    let collector = Collector::start().await?;
    let lines = |given: &Option<PathBuf>, default: &str| match given {
        None => Ok(default.to_owned()),
        Some(path) => {
            std::fs::read_to_string(path).with_context(|| format!("can't read {}", path.display()))
        }
    };
    let mut without = Setup::new(arguments.model, arguments.nodes.get());
    without.coordinator = arguments.program.unwrap_or(without.coordinator);
    without.config = lines(&arguments.without, "[metrics]\nenabled = false\n")?;
    let mut with = without.clone();
    if arguments.with.is_some() || arguments.with_program.is_none() {
        let (endpoint, ratio) = (collector.endpoint(), arguments.sample_ratio);
        let default = format!("[traces]\nendpoint = \"{endpoint}\"\nsample_ratio = {ratio}\n");
        with.config = lines(&arguments.with, &default)?;
    }
    with.coordinator = arguments.with_program.unwrap_or(with.coordinator);
    let counted = if arguments.instructions { Counted::Instructions } else { Counted::Time };
    let work = Work {
        num_requests: arguments.requests.get(),
        concurrency: arguments.concurrency.get(),
        num_tokens: arguments.tokens.get(),
    };

    say(&format!(
        "  pair      without         with   difference   ({} for each token)\n",
        what(counted)
    ));
    let mut pairs = Vec::new();
    for pair in 0..arguments.pairs.get() {
        // Two processes differ by luck that lasts as long as they: each pair has new ones.
        let clusters =
            [Counting::start(&without, counted).await?, Counting::start(&with, counted).await?];
        for cluster in &clusters {
            cluster.round(work.tenth()).await?;
        }
        // Whoever goes first finds the machine as the other left it: they take turns.
        let mut costs = [None; 2];
        for index in if pair % 2 == 0 { [0, 1] } else { [1, 0] } {
            costs[index] = Some(clusters[index].round(work).await?);
        }
        for cluster in clusters {
            cluster.end().await;
        }
        let [Some(without), Some(with)] = costs else { continue };
        say(&format!(
            "  {:>4}  {:>11.1}  {:>11.1}  {:>+9.2} %\n",
            pair + 1,
            without.all,
            with.all,
            (with.all / without.all - 1.0) * 100.0,
        ));
        pairs.push((without, with));
    }
    say(&summary(counted, &pairs));
    say(&format!("  {} bytes of spans were sent\n", collector.num_bytes()));
    Ok(ExitCode::SUCCESS)
}

fn what(counted: Counted) -> &'static str {
    match counted {
        Counted::Time => "µs of processors",
        Counted::Instructions => "instructions of the coordinator",
    }
}

fn summary(counted: Counted, pairs: &[(Cost, Cost)]) -> String {
    let middle =
        |pick: fn(&(Cost, Cost)) -> f64| median(&pairs.iter().map(pick).collect::<Vec<_>>());
    let mut text = format!(
        "\n  median, all counted    {:.1} without, {:.1} with\n  \
         median, coordinator    {:.1} without, {:.1} with   ({})\n",
        middle(|pair| pair.0.all),
        middle(|pair| pair.1.all),
        middle(|pair| pair.0.coordinator),
        middle(|pair| pair.1.coordinator),
        what(counted),
    );
    let mut line = |what: &str, share: fn(&(Cost, Cost)) -> f64| {
        let shares: Vec<_> = pairs.iter().map(share).collect();
        if let Some(Interval { mean, low, high }) = mean_interval(&shares, CONFIDENCE) {
            let [mean, low, high] = [mean, low, high].map(|share| share * 100.0);
            let num = pairs.len();
            text += &format!(
                "  {what} {mean:+.2} % (95 %: {low:+.2} to {high:+.2} %) of {num} pairs\n"
            );
        }
    };
    line("overhead              ", |(a, b)| b.all / a.all - 1.0);
    // Nodes count nothing, and have spans of few steps: what they differ by is mostly luck.
    line("of the coordinator    ", |(a, b)| (b.coordinator - a.coordinator) / a.all);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_overhead_is_the_mean_of_the_pairs() {
        let cost = |all| Cost { all, coordinator: all / 2.0 };
        let pairs = [(cost(1.0), cost(1.01)), (cost(2.0), cost(2.02)), (cost(1.0), cost(1.01))];
        let text = summary(Counted::Time, &pairs);
        assert!(text.contains("overhead               +1.00 % (95 %: +1.00 to +1.00 %)"), "{text}");
        assert!(text.contains("coordinator     +0.50 % (95 %: +0.50 to +0.50 %)"), "{text}");
        assert!(text.contains("1.0 without, 1.0 with"), "{text}");
    }
}
