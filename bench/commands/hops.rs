//! `autoglm-bench hops`.

use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use bench::cluster::Setup;
use bench::hops::{Sample, StepTimes, report, rows, table};
use loadgen::client::Server;
use loadgen::client::request::{Endpoint, Parameters, Prompt};

use super::terminal::{dim, say, write_json};

#[derive(clap::Args)]
pub(crate) struct HopsArguments {
    /// A model directory or a GGUF file; a small one, so that the hops are not lost in its noise.
    #[arg(value_name = "PATH")]
    model: PathBuf,
    /// Numbers of stages, each a cluster of as many processes; the model has as many layers.
    #[arg(long, value_name = "S", value_delimiter = ',', default_value = "1,2,4")]
    stages: Vec<NonZeroU32>,
    /// Tokens of an answer.
    #[arg(long, value_name = "N", default_value = "128",
          value_parser = clap::value_parser!(u32).range(8..))]
    tokens: u32,
    /// Rounds, each of which measures every number of stages.
    #[arg(long, value_name = "N", default_value = "7")]
    rounds: NonZeroUsize,
    /// Where to write the result as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub(crate) async fn time_hops(arguments: HopsArguments) -> Result<ExitCode> {
    let stages: Vec<u32> = arguments.stages.iter().map(|stages| stages.get()).collect();
    let mut clusters = Vec::new();
    for &num_stages in &stages {
        eprintln!("{}", dim(&format!("starting a cluster of {num_stages} stages")));
        let cluster = Setup::new(&arguments.model, num_stages).start().await?;
        let server = Server::new(cluster.url(), Duration::from_secs(600))?;
        clusters.push((num_stages, cluster, server));
    }
    let parameters = Parameters {
        model: match clusters.first() {
            Some((_, _, server)) => server.first_model().await?,
            None => return Ok(ExitCode::SUCCESS),
        },
        endpoint: Endpoint::Completions,
        max_tokens: arguments.tokens,
        temperature: Some(0.0),
        ignore_eos: true,
        ..Parameters::default()
    };
    let body = parameters.body(&Prompt::Text("a".to_owned()))?;
    let mut samples = Vec::new();
    // The first round fills caches and wakes what sleeps: it counts for nothing.
    for round in 0..=arguments.rounds.get() {
        for (num_stages, _, server) in &clusters {
            let before = server.text("/metrics").await?;
            let answer = server.ask(parameters.endpoint, &body, |_: &str| ()).await?;
            let token = answer
                .time_per_token()
                .context("the model answered too little to time a token")?
                .as_secs_f64()
                * 1e3;
            // What the last step took is told just after its token.
            tokio::time::sleep(Duration::from_millis(20)).await;
            let after = server.text("/metrics").await?;
            let times = StepTimes::read(&before).zip(StepTimes::read(&after));
            let sample = times
                .and_then(|(before, after)| Sample::new(*num_stages, token, &before, &after))
                .context("the server's /metrics don't tell where a step's time goes")?;
            if round > 0 {
                samples.push(sample);
            }
        }
        eprintln!("{}", dim(&format!("round {round} of {}", arguments.rounds)));
    }
    for (_, cluster, _) in clusters {
        cluster.end().await;
    }
    let rows = rows(&stages, &samples);
    say(&format!(
        "t(S) = t1 + h (S - 1): one user, {} tokens an answer, {} rounds, loopback\n\n{}",
        arguments.tokens,
        arguments.rounds,
        table(&stages, &rows)
    ));
    write_json(arguments.json.as_deref(), &report(&stages, &rows, &samples))?;
    Ok(ExitCode::SUCCESS)
}
