//! `autoglm-batch`: what `autoglm batch run` runs. A program of its own, so that `autoglm` has none
//! of the libraries that read other people's files and databases.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Result, anyhow};
use batch::arguments::{Arguments, Prepared};
use batch::progress::Progress;
use batch::run;
use clap::Parser as _;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let ended = runtime.map_err(Into::into).and_then(|runtime| {
        let ended = runtime.block_on(execute(arguments));
        // A thread may wait for a terminal or a network that says nothing.
        runtime.shutdown_background();
        ended
    });
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(cause) => {
            eprintln!("autoglm batch run: {}", said(&cause));
            ExitCode::FAILURE
        }
    }
}

/// An error and its causes, but for those that the one before says already.
fn said(error: &anyhow::Error) -> String {
    let mut said: Vec<String> = Vec::new();
    for cause in error.chain().map(ToString::to_string) {
        if said.last().is_none_or(|last| !last.ends_with(&cause)) {
            said.push(cause);
        }
    }
    said.join(": ")
}

async fn execute(arguments: Arguments) -> Result<()> {
    let (job, answerer) = match arguments.prepare().await? {
        Prepared::Job(job, answerer) => (job, answerer),
        Prepared::Nothing(why) => {
            eprintln!("{why}");
            return Ok(());
        }
    };
    let (output, rejects) = (job.output.to_string(), job.rejects.clone());
    let progress = Arc::new(Progress::default());
    let showing = tokio::spawn({
        let progress = Arc::clone(&progress);
        async move { progress.show().await }
    });
    let interrupted = async {
        match tokio::signal::ctrl_c().await {
            Ok(()) => {
                // Who says it again waits for nothing: what is done is in the journal.
                tokio::spawn(async {
                    if tokio::signal::ctrl_c().await.is_ok() {
                        std::process::exit(130);
                    }
                });
                anyhow!("interrupted; --resume goes on")
            }
            Err(cause) => anyhow!("no signal can be waited for: {cause}"),
        }
    };
    let ended = run::run(*job, answerer, Arc::clone(&progress), interrupted).await;
    showing.abort();
    let _ = showing.await;
    eprintln!("{}", progress.line());
    let counts = ended?;
    if progress.num_cut() > 0 {
        eprintln!("{} answers ended at max_tokens", progress.num_cut());
    }
    eprintln!("{} rows are in {output}", counts.answered);
    if counts.total() > counts.answered {
        eprintln!(
            "{} failed, {} dropped, {} unreadable: {} says which and why",
            counts.failed,
            counts.dropped,
            counts.unreadable,
            rejects.display()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn an_error_says_each_cause_once() {
        let cause = sqlx::Error::Io(std::io::Error::other("refused"));
        let error = Err::<(), _>(cause).context("the query failed").unwrap_err();
        let expected = "the query failed: error communicating with database: refused";
        assert_eq!(said(&error), expected);
    }
}
