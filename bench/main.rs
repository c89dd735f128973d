//! `autoglm-bench`: asks OpenAI-compatible servers and measures how they answer; times models and
//! kernels on this machine's adapter.

mod commands;

use std::process::ExitCode;

use clap::Parser;

/// Measures OpenAI-compatible servers, models and kernels.
#[derive(Parser)]
#[command(name = "autoglm-bench", version)]
struct Arguments {
    #[command(subcommand)]
    command: commands::Command,
}

fn main() -> ExitCode {
    match Arguments::parse().command.run() {
        Ok(code) => code,
        Err(cause) => {
            eprintln!("autoglm-bench: {cause:#}");
            ExitCode::FAILURE
        }
    }
}
