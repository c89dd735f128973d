//! `autoglm-bench mock`.

use std::process::ExitCode;

use anyhow::{Context, Result};
use loadgen::distribution::{Delays, Lengths};
use loadgen::mock::{Mock, Stall, serve};

use super::interrupt::interrupted;
use super::terminal::say;

#[derive(clap::Args)]
pub(crate) struct MockArguments {
    /// The address to listen on.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    host: String,
    /// The port; 0 takes a free one and prints it.
    #[arg(long, default_value = "8000")]
    port: u16,
    /// Time to the first token: 200ms, uniform:LOW:HIGH, normal:MEAN:DEVIATION,
    /// lognormal:MEDIAN:SIGMA, exponential:MEAN, gamma:MEAN:SHAPE, each after BASE+ if need be.
    #[arg(long, value_name = "LAW", default_value = "50ms+lognormal:100ms:0.5")]
    ttft: Delays,
    /// Time from one token to the next.
    #[arg(long, value_name = "LAW", default_value = "20ms")]
    itl: Delays,
    /// Tokens of an answer, where the request's max_tokens isn't less.
    #[arg(long, value_name = "LAW", default_value = "64")]
    tokens: Lengths,
    /// Requests that are answered at once; others wait [default: all].
    #[arg(long, value_name = "N")]
    slots: Option<std::num::NonZeroUsize>,
    /// Sends nothing for a while, as in 1s@10s: for one second, ten seconds after the start.
    #[arg(long, value_name = "LENGTH@START")]
    stall: Vec<Stall>,
    /// Decides every time that is drawn.
    #[arg(long, value_name = "S", default_value = "0")]
    seed: u64,
    /// The model's name.
    #[arg(long, value_name = "NAME", default_value = "mock")]
    model: String,
}

pub(crate) async fn mock(arguments: MockArguments) -> Result<ExitCode> {
    let address = (arguments.host.as_str(), arguments.port);
    let listener = tokio::net::TcpListener::bind(address)
        .await
        .with_context(|| format!("can't listen on {}:{}", address.0, address.1))?;
    say(&format!("http://{}\n", listener.local_addr()?));
    let mock = Mock {
        ttft: arguments.ttft,
        itl: arguments.itl,
        tokens: arguments.tokens,
        seed: arguments.seed,
        slots: arguments.slots.map(Into::into),
        stalls: arguments.stall,
        model: arguments.model,
    };
    tokio::select! {
        ended = serve(listener, mock) => ended?,
        () = interrupted() => {}
    }
    Ok(ExitCode::SUCCESS)
}
