//! `autoglm-bench overhead`.

use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use bench::numbers::median;
use bench::overhead::{Collector, Cost, Launch, Work, round};
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
    /// Of the second [default: metrics are on, and 1 % of the requests are traced].
    #[arg(long, value_name = "FILE")]
    with: Option<PathBuf>,
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
}

pub(crate) async fn overhead(arguments: OverheadArguments) -> Result<ExitCode> {
    let collector = Collector::start().await?;
    let folder = tempfile::tempdir()?;
    let file = |given: Option<PathBuf>, name: &str, lines: String| -> Result<PathBuf> {
        if let Some(path) = given {
            return Ok(path);
        }
        let path = folder.path().join(name);
        std::fs::write(&path, lines)?;
        Ok(path)
    };
    let without = "[metrics]\nenabled = false\n".to_owned();
    let with = format!("[traces]\nendpoint = \"{}\"\nsample_ratio = 0.01\n", collector.endpoint());
    let without = file(arguments.without, "without.toml", without)?;
    let with = file(arguments.with, "with.toml", with)?;
    let launch = Launch { model: arguments.model, num_nodes: arguments.nodes.get() };
    let work = Work {
        num_requests: arguments.requests.get(),
        concurrency: arguments.concurrency.get(),
        num_tokens: arguments.tokens.get(),
    };

    say("  pair   without      with   difference   (processor time for each token)\n");
    let mut pairs = Vec::new();
    for pair in 0..arguments.pairs.get() {
        // Two processes differ by luck that lasts as long as they: each pair has new ones.
        let clusters = [launch.start(&without).await?, launch.start(&with).await?];
        for cluster in &clusters {
            round(cluster, work.tenth()).await?;
        }
        // Whoever goes first finds the machine as the other left it: they take turns.
        let mut costs = [None; 2];
        for index in if pair % 2 == 0 { [0, 1] } else { [1, 0] } {
            costs[index] = Some(round(&clusters[index], work).await?);
        }
        for cluster in clusters {
            cluster.end().await;
        }
        let [Some(without), Some(with)] = costs else { continue };
        say(&format!(
            "  {:>4}  {:>5.1} µs  {:>5.1} µs  {:>+9.2} %\n",
            pair + 1,
            without.per_token_us(),
            with.per_token_us(),
            (with.per_token_us() / without.per_token_us() - 1.0) * 100.0,
        ));
        pairs.push((without, with));
    }
    say(&summary(&pairs));
    say(&format!("  {} bytes of spans were sent\n", collector.num_bytes()));
    Ok(ExitCode::SUCCESS)
}

fn summary(pairs: &[(Cost, Cost)]) -> String {
    let of = |pick: fn(&Cost) -> f64| {
        let middle = |side: fn(&(Cost, Cost)) -> &Cost| {
            median(&pairs.iter().map(|pair| pick(side(pair))).collect::<Vec<_>>())
        };
        (middle(|pair| &pair.0), middle(|pair| &pair.1))
    };
    let (all, coordinator) = (of(Cost::per_token_us), of(Cost::coordinator_us));
    let mut text = format!(
        "\n  median, all processes  {:.1} µs without, {:.1} µs with\n  \
         median, coordinator    {:.1} µs without, {:.1} µs with\n",
        all.0, all.1, coordinator.0, coordinator.1
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
    line("overhead              ", |(a, b)| b.per_token_us() / a.per_token_us() - 1.0);
    // Nodes count nothing, and have spans of few steps: what they differ by is mostly luck.
    line("of the coordinator    ", |(a, b)| {
        (b.coordinator_us() - a.coordinator_us()) / a.per_token_us()
    });
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_overhead_is_the_mean_of_the_pairs() {
        let cost = |seconds| Cost { seconds, coordinator: seconds / 2.0, num_tokens: 1000 };
        let pairs = [(cost(1.0), cost(1.01)), (cost(2.0), cost(2.02)), (cost(1.0), cost(1.01))];
        let text = summary(&pairs);
        assert!(text.contains("overhead               +1.00 % (95 %: +1.00 to +1.00 %)"), "{text}");
        assert!(text.contains("coordinator     +0.50 % (95 %: +0.50 to +0.50 %)"), "{text}");
        assert!(text.contains("1000.0 µs without, 1010.0 µs with"), "{text}");
    }
}
