//! What is checked and what is broken while a load runs: `--verify` and `--fault`.

use std::num::NonZeroU64;
use std::sync::Arc;

use anyhow::{Result, bail};
use loadgen::client::Server;
use loadgen::load::fault::{self, Fault};
use loadgen::load::inject::Injection;
use loadgen::load::observe::{All, Observe};
use loadgen::load::verify::{self, Verifier};
use loadgen::load::{Extent, Load, Progress};
use loadgen::report::answers;
use loadgen::report::result::RunResult;

use super::terminal::show;

#[derive(clap::Args)]
pub(crate) struct CheckArguments {
    /// Compares every answer with one that was taken before the run, alone: token by token. The
    /// temperature is 0 unless it is given with a --seed.
    #[arg(long)]
    verify: bool,
    /// How many different requests there are, at most, and so answers that are taken before.
    #[arg(long, value_name = "N", default_value = "64", requires = "verify")]
    references: NonZeroU64,
    /// What is done to the server: kill:pid=71@10s, stop:pid=71@10s, cont:pid=71@12s or
    /// command:'…'@5s, after so much time. May be given more than once.
    #[arg(long, value_name = "FAULT")]
    fault: Vec<Fault>,
}

/// What checks the runs of one command.
pub(crate) struct Checks<'a> {
    verifier: Option<Arc<Verifier>>,
    faults: &'a [Fault],
}

impl CheckArguments {
    /// Makes `load` one whose answers can be checked, and takes the references. None when `stop`
    /// resolved before that was done.
    pub(crate) async fn begin(
        &self,
        server: &Server,
        load: &mut Load,
        is_sweep: bool,
        stop: impl Future<Output = ()>,
    ) -> Result<Option<Checks<'_>>> {
        if is_sweep && !self.fault.is_empty() {
            bail!("a --fault comes once, so it can't be in every run of a sweep: give one rate");
        }
        let faults = &self.fault;
        if !self.verify {
            return Ok(Some(Checks { verifier: None, faults }));
        }
        if load.parameters.temperature.is_none() && load.workload.seed.is_none() {
            load.parameters.temperature = Some(0.0);
        }
        let most = [load.workload.period(), load.extent.requests].into_iter().flatten().min();
        let most = most.unwrap_or(u64::MAX);
        load.workload.distinct = Some(self.references.get().min(most));
        let num = load.workload.distinct.unwrap_or(0);
        eprintln!("autoglm-bench: takes {num} references first, one request after the other");
        let progress = Arc::new(Progress::default());
        let verifier = tokio::select! {
            verifier = Verifier::take_references(server, load, &progress, stop) => verifier?,
            never = show(progress.clone(), Extent::default()) => match never {},
        };
        let verifier = verifier.map(Arc::new);
        Ok(verifier.map(|verifier| Checks { verifier: Some(verifier), faults }))
    }
}

impl Checks<'_> {
    /// Begins a run: its observers, and the faults that have begun to wait for their time.
    pub(crate) fn start(&self, load: &mut Load) -> Option<Injection> {
        let mut all: Vec<Arc<dyn Observe>> = Vec::new();
        if let Some(verifier) = &self.verifier {
            all.push(verifier.clone());
        }
        let injection = (!self.faults.is_empty())
            .then(|| Injection::start(self.faults, |said| eprintln!("autoglm-bench: {said}")));
        if let Some(injection) = &injection {
            all.push(Arc::new(injection.watcher().clone()));
        }
        load.observer = (!all.is_empty()).then(|| Arc::new(All(all)) as Arc<dyn Observe>);
        injection
    }

    /// Ends it: fills in what was found and what broke.
    pub(crate) async fn end(&self, injection: Option<Injection>, result: &mut RunResult) {
        if let Some(injection) = injection {
            result.faults = injection.end().await;
        }
        result.verification = self.verifier.as_ref().map(|verifier| verifier.take());
    }
}

/// Whether nothing was found, and every fault happened.
pub(crate) fn is_clean(result: &RunResult) -> bool {
    result.verification.as_ref().is_none_or(|found| found.is_clean() && found.checked > 0)
        && result.faults.iter().all(|fault| fault.at.is_some() && fault.error.is_none())
}

/// The lines about it, below a run's table.
pub(crate) fn table(result: &RunResult) -> String {
    let answers = match &result.verification {
        Some(verification) => verify::sentence(verification),
        None => answers::short(result),
    };
    let mut text = format!("\n  {:<18}{answers}\n", "answers");
    for example in result.verification.iter().flat_map(|found| &found.examples) {
        text += &format!("  {:<18}{example}\n", "");
    }
    for outcome in &result.faults {
        text += &format!("\n  {:<18}{}\n", "fault", outcome.fault);
        text += &format!("  {:<18}{}\n", "", fault::sentence(outcome));
    }
    text
}
