//! What is typed, one file a subcommand.

mod adapters;
mod ask;
mod checks;
mod experiment;
mod hops;
mod interference;
mod interrupt;
mod kernels;
mod load;
mod mock;
mod model;
mod overload;
mod placement;
mod quality;
mod report;
mod scaling;
mod server;
mod structured;
mod terminal;
mod workload;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Subcommand;
use interrupt::unless_interrupted;

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Sends many requests and measures how they are answered.
    Load(Box<load::LoadArguments>),
    /// Measures two configurations in turn, and says whether they differ.
    Experiment(experiment::ExperimentArguments),
    /// Compares results of load and experiment with each other.
    Report(report::ReportArguments),
    /// Asks one question and prints the answer as it arrives.
    Ask(ask::AskArguments),
    /// Is a server that answers in deterministic words, at times that follow a stated law.
    Mock(mock::MockArguments),
    /// Times what each further stage of a pipeline adds to a token, on this machine.
    Hops(hops::HopsArguments),
    /// Asks as one user beside a crowd that can wait: does the one have to wait, too?
    Interference(interference::InterferenceArguments),
    /// Says what the drivers of this machine tell of its adapters.
    Adapters(adapters::AdaptersArguments),
    /// Times the kernels on this machine's adapter, beside what the adapter could do.
    Kernels(kernels::KernelsArguments),
    /// Times a whole model on this machine's adapter: prompts, answers, batches.
    Model(model::ModelArguments),
    /// Compares what a model says in int8 and int4 with what it says in its own format.
    Quality(quality::QualityArguments),
    /// Asks a cluster of this machine for several times what it can do.
    Overload(overload::OverloadArguments),
    /// Plans and measures clusters of unequal nodes, on this machine.
    Placement(placement::PlacementArguments),
    /// Sets two stages on a core each beside one node on one core, on this machine.
    Scaling(scaling::ScalingArguments),
    /// Answers with and without a schema in turn, and times what a mask takes of whom.
    Structured(structured::StructuredArguments),
    /// Writes a GGUF file of a published shape with random weights.
    RandomModel(model::RandomModelArguments),
}

impl Command {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let runtime = || {
            tokio::runtime::Builder::new_multi_thread()
                .enable_all()
                .build()
                .context("no async runtime")
        };
        match self {
            Self::Load(arguments) => runtime()?.block_on(load::load(*arguments)),
            Self::Experiment(arguments) => {
                runtime()?.block_on(unless_interrupted(experiment::experiment(arguments)))
            }
            Self::Report(arguments) => report::report(&arguments),
            Self::Ask(arguments) => runtime()?.block_on(ask::ask(arguments)),
            Self::Mock(arguments) => runtime()?.block_on(mock::mock(arguments)),
            Self::Hops(arguments) => {
                runtime()?.block_on(unless_interrupted(hops::time_hops(arguments)))
            }
            Self::Interference(arguments) => {
                runtime()?.block_on(unless_interrupted(interference::interference(arguments)))
            }
            Self::Adapters(arguments) => adapters::list(&arguments),
            Self::Kernels(arguments) => kernels::time_kernels(&arguments),
            Self::Model(arguments) => model::time_model(&arguments),
            Self::Quality(arguments) => quality::compare_formats(&arguments),
            Self::Overload(arguments) => {
                runtime()?.block_on(unless_interrupted(overload::overload(arguments)))
            }
            Self::Placement(arguments) => {
                runtime()?.block_on(unless_interrupted(placement::placement(arguments)))
            }
            Self::Scaling(arguments) => {
                runtime()?.block_on(unless_interrupted(scaling::scaling(arguments)))
            }
            Self::Structured(arguments) => {
                runtime()?.block_on(unless_interrupted(structured::structured(arguments)))
            }
            Self::RandomModel(arguments) => model::write_random_model(&arguments),
        }
    }
}
