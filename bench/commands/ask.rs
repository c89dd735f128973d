//! `autoglm-bench ask`.

use std::num::NonZeroU32;
use std::process::ExitCode;

use anyhow::Result;
use loadgen::client::request::{Endpoint, Prompt};
use loadgen::numbers;

use super::server::ServerArguments;
use super::terminal::{dim, say};

#[derive(clap::Args)]
pub(crate) struct AskArguments {
    #[command(flatten)]
    server: ServerArguments,
    /// Tokens of the answer, at most.
    #[arg(long, value_name = "N", default_value = "256")]
    max_tokens: NonZeroU32,
    /// What to ask; with `--endpoint completions`, the text to go on from.
    question: String,
}

pub(crate) async fn ask(arguments: AskArguments) -> Result<ExitCode> {
    let (server, parameters) = arguments.server.resolve(arguments.max_tokens).await?;
    let body = parameters.body(&Prompt::Text(arguments.question.clone()))?;
    if parameters.endpoint == Endpoint::Completions {
        say(&dim(&arguments.question));
    }
    let answered = server.ask(parameters.endpoint, &body, say).await;
    say("\n");
    let answer = answered?;
    let mut facts = vec![match answer.num_completion_tokens {
        Some(num_tokens) => format!("{num_tokens} tokens"),
        None => format!("{} pieces of text, tokens unknown", answer.pieces.len()),
    }];
    if let Some(first) = answer.first_token() {
        facts.push(format!("first token after {}", numbers::time(first.as_secs_f64() * 1e3)));
    }
    if let Some(time) = answer.time_per_token().filter(|time| !time.is_zero()) {
        facts.push(format!("then {:.1} tokens/s", 1.0 / time.as_secs_f64()));
    }
    say(&format!("{}\n", dim(&facts.join(" · "))));
    Ok(ExitCode::SUCCESS)
}
