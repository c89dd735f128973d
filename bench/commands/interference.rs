//! `autoglm-bench interference`.

use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use bench::cluster::{Cluster, Setup, check_programs};
use bench::engine::random_model::Storage;
use bench::interference::{Rounds, Scenario, report, table};
use bench::users::{Users, Wish};
use loadgen::numbers::parse_time;

use super::model::find_or_write;
use super::terminal::{dim, say, write_json};

#[derive(clap::Args)]
pub(crate) struct InterferenceArguments {
    /// A model directory, a GGUF file, or a shape to be filled with random weights.
    #[arg(long, value_name = "PATH|SHAPE", default_value = "smollm2-135m")]
    model: String,
    /// Stages of the pipeline, a node process for each.
    #[arg(long, value_name = "S", default_value = "2")]
    stages: NonZeroU32,
    /// Rounds, each of which measures every way to serve: undisturbed, disturbed, offline alone.
    #[arg(long, value_name = "N", default_value = "3")]
    rounds: NonZeroUsize,
    /// Interactive requests of a round, each of 128 tokens and answered by 16. Whoever has an hour
    /// takes 100.
    #[arg(long, value_name = "N", default_value = "20")]
    requests: NonZeroUsize,
    /// Time that passes before an interactive request, on the average.
    #[arg(long, value_name = "TIME", value_parser = parse_time, default_value = "1s")]
    think: Duration,
    /// Offline requests that are computed at once, each of 32 tokens and answered by 96.
    #[arg(long, value_name = "N", default_value = "32")]
    running: NonZeroUsize,
    /// Offline requests that wait beside them.
    #[arg(long, value_name = "N", default_value = "8")]
    waiting: usize,
    /// How long offline work alone is measured in a round.
    #[arg(long, value_name = "TIME", value_parser = parse_time, default_value = "30s")]
    alone: Duration,
    /// Lines of cluster.toml for our cluster's scheduler, as in target_step_ms=50.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// A folder with the programs of another build, to be measured in the same rounds. Its
    /// requests name no tier.
    #[arg(long, value_name = "DIR")]
    rival_bin: Option<PathBuf>,
    /// Offline requests that the other build is asked for at once, instead of all: measured, too.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "16,8")]
    rival_caps: Vec<NonZeroUsize>,
    /// Interactive requests of a round of the other build.
    #[arg(long, value_name = "N", default_value = "8")]
    rival_requests: NonZeroUsize,
    /// Where to write the result as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// A cluster, and the ways in which it is measured.
struct Side {
    cluster: Cluster,
    users: Users,
    work: Scenario,
    // The crowd of each way, the first the largest.
    crowds: Vec<usize>,
    measured: Vec<Rounds>,
}

pub(crate) async fn interference(arguments: InterferenceArguments) -> Result<ExitCode> {
    let (model, _scratch) = find_or_write(&arguments.model, Storage::Q4_1)?;
    let mut sides = vec![ours(&arguments, &model).await?];
    if let Some(programs) = &arguments.rival_bin {
        sides.push(rival(&arguments, &model, programs).await?);
    }
    for side in &sides {
        // Caches fill, and what sleeps wakes: it counts for nothing.
        let few = Scenario { num_requests: 2, alone: Duration::from_secs(2), ..side.work };
        few.undisturbed(&side.users, 0).await?;
        few.offline(&side.users, side.crowds[0], 0).await?;
    }
    for round in 1..=arguments.rounds.get() as u64 {
        for side in &mut sides {
            side.measure(round).await?;
        }
        let all: Vec<_> = sides.iter().flat_map(|side| side.measured.iter().cloned()).collect();
        say(&format!("\nround {round} of {}, all so far\n{}", arguments.rounds, table(&all)));
    }
    let all: Vec<_> = sides.iter().flat_map(|side| side.measured.iter().cloned()).collect();
    say(&summary(&all[0], &arguments));
    for side in sides {
        side.cluster.end().await;
    }
    write_json(arguments.json.as_deref(), &report(&all))?;
    Ok(ExitCode::SUCCESS)
}

fn summary(ours: &Rounds, arguments: &InterferenceArguments) -> String {
    let figures = ours.figures();
    let kept = |is_kept| if is_kept { "kept" } else { "missed" };
    let [_, ratio] = figures.ratios();
    format!(
        "\n{} rounds of {} interactive requests over {} stages, {} offline requests running\n  \
         p95 of the time to a first token: {ratio:.2}x the undisturbed (at most 2: {})\n  \
         tokens of all: {:.1} % of offline work alone (at least 95: {})\n  \
         tokens of offline work: {:.1} % of alone (at least 75: {})\n",
        arguments.rounds,
        arguments.requests,
        arguments.stages,
        arguments.running,
        kept(ratio <= 2.0),
        figures.all * 100.0,
        kept(figures.all >= 0.95),
        figures.offline * 100.0,
        kept(figures.offline >= 0.75),
    )
}

fn work(arguments: &InterferenceArguments, tiers: [Option<&'static str>; 2]) -> Scenario {
    Scenario {
        interactive: Wish { prompt: 128, answer: 16, tier: tiers[0] },
        num_requests: arguments.requests.get(),
        think: arguments.think,
        offline: Wish { prompt: 32, answer: 96, tier: tiers[1] },
        num_running: arguments.running.get(),
        alone: arguments.alone,
    }
}

fn setup(arguments: &InterferenceArguments, model: &std::path::Path) -> Setup {
    let mut setup = Setup::new(model, arguments.stages.get());
    setup.config = format!("[scheduler]\nmax_num_seqs = {}\n", arguments.running);
    setup
}

async fn ours(arguments: &InterferenceArguments, model: &std::path::Path) -> Result<Side> {
    let mut setup = setup(arguments, model);
    for line in &arguments.set {
        setup.config += &format!("{line}\n");
    }
    let crowd = arguments.running.get() + arguments.waiting;
    let work = work(arguments, [Some("interactive"), Some("batch")]);
    Side::start(&setup, work, &[(crowd, "this build".to_owned())]).await
}

/// First come, first served, and with a cap on offline work outside of it.
async fn rival(
    arguments: &InterferenceArguments,
    model: &std::path::Path,
    programs: &std::path::Path,
) -> Result<Side> {
    check_programs(programs)?;
    let coordinator = programs.join("autoglm");
    let setup = Setup { coordinator, ..setup(arguments, model) };
    let mut work = work(arguments, [None, None]);
    work.num_requests = arguments.rival_requests.get();
    let mut ways = vec![(arguments.running.get() + arguments.waiting, "other build".to_owned())];
    for cap in &arguments.rival_caps {
        ways.push((cap.get(), format!("other build, offline <= {cap}")));
    }
    Side::start(&setup, work, &ways).await
}

impl Side {
    async fn start(setup: &Setup, work: Scenario, ways: &[(usize, String)]) -> Result<Self> {
        eprintln!("{}", dim(&format!("starting a cluster: {}", ways[0].1)));
        let cluster = setup.start().await?;
        let users = Users::of(cluster.url()).await?;
        let named =
            |(_, name): &(usize, String)| Rounds { name: name.clone(), ..Rounds::default() };
        Ok(Self {
            cluster,
            users,
            work,
            crowds: ways.iter().map(|(crowd, _)| *crowd).collect(),
            measured: ways.iter().map(named).collect(),
        })
    }

    /// A round of each way. What has no crowd, or all of it, is the same for all.
    async fn measure(&mut self, round: u64) -> Result<()> {
        let undisturbed = self.work.undisturbed(&self.users, round).await?;
        let offline = self.work.offline(&self.users, self.crowds[0], round).await?;
        for (crowd, measured) in self.crowds.iter().zip(&mut self.measured) {
            measured.undisturbed.push(undisturbed.clone());
            measured.offline.push(offline.clone());
            // Never a prompt that was asked before.
            let number = round + (*crowd as u64) * 1000;
            measured.disturbed.push(self.work.disturbed(&self.users, *crowd, number).await?);
        }
        Ok(())
    }
}
