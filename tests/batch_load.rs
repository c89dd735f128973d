//! Jobs of several tenants beside somebody who waits for answers.

use std::fmt;
use std::process::Command;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use serde_json::{Value, json};

use crate::batch_runs::{Batches, lines};
use crate::cluster::{Cluster, Options, binary};

/// How long offline work is measured alone.
const ALONE: Duration = Duration::from_secs(10);

/// What was measured.
#[derive(Debug)]
pub struct Interference {
    /// First tokens of somebody who waits, alone and beside the jobs: median and 95th percentile.
    pub alone: [Duration; 2],
    pub beside: [Duration; 2],
    /// Tokens a second of the jobs' answers, without anybody who waits and with.
    pub offline: [f64; 2],
    /// Tokens of each tenant's answers.
    pub of_tenants: [f64; 2],
}

impl Interference {
    /// How much longer a first token takes beside the jobs.
    pub fn ratios(&self) -> [f64; 2] {
        [0, 1].map(|at| self.beside[at].as_secs_f64() / self.alone[at].as_secs_f64())
    }
}

impl fmt::Display for Interference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ([p50, p95], [alone, beside]) = (self.ratios(), self.offline);
        let millis = |times: [Duration; 2]| times.map(|it| it.as_secs_f64() * 1e3);
        writeln!(f, "first token, p50 and p95, alone  {:.1?} ms", millis(self.alone))?;
        writeln!(f, "                   beside jobs   {:.1?} ms", millis(self.beside))?;
        writeln!(f, "                   times as long {p50:.2}, {p95:.2}")?;
        writeln!(f, "jobs' tokens a second, alone     {alone:.0}")?;
        writeln!(f, "                       beside    {beside:.0}, {:.2} of it", beside / alone)?;
        write!(f, "tokens of either tenant          {:.0?}", self.of_tenants)
    }
}

/// Asks so many times while nothing else runs, then beside so many jobs of two tenants.
pub async fn interference(options: Options, num_jobs: usize, num_requests: usize) -> Interference {
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys.toml");
    let key = |tenant: &str| {
        let mut create = Command::new(binary("autoglm"));
        create.args(["key", "create", "--name", tenant, "--tenant", tenant, "--api-keys"]);
        let said = create.arg(&keys).output().unwrap().stdout;
        String::from_utf8(said).unwrap().trim().to_owned()
    };
    let [waits, one, other] = ["waits", "one", "other"].map(key);
    // As many at once as the figures of single requests are measured with, for a model so small.
    let config = format!(
        "{}\n[scheduler]\nmax_num_seqs = 16\n[http]\napi_keys = {:?}\n",
        options.config,
        keys.to_str().unwrap()
    );
    let cluster = Cluster::start(options.config(&config)).await;
    let [waits, one, other] = [waits, one, other].map(|key| Batches::with_key(&cluster, &key));
    let model = waits.model().await;
    let ask = async |from: usize| {
        let mut times = Vec::new();
        for number in from..from + num_requests {
            tokio::time::sleep(Duration::from_millis(100 + number as u64 * 37 % 200)).await;
            // Never a prompt that begins like one before: nothing of it is in the cache.
            let first = [100 + number / 500, 100 + number % 500];
            let prompt: Vec<_> = first.into_iter().chain((0..98).map(|at| 100 + at * 7)).collect();
            let body = json!({
                "model": model, "prompt": prompt, "max_tokens": 1, "service_tier": "interactive",
            });
            times.push(waits.complete(&body).await.1);
        }
        times.sort();
        [0.5, 0.95].map(|share| times[(times.len() as f64 * share).ceil() as usize - 1])
    };
    ask(0).await;
    let alone = ask(1000).await;

    let input = lines(&model, 5000, 16..65);
    let mut jobs = Vec::new();
    for tenant in [&one, &other] {
        let file = tenant.upload(&input).await.unwrap();
        for _ in 0..num_jobs / 2 {
            jobs.push((tenant, tenant.create(&file, "24h").await.unwrap()));
        }
    }
    let tokens = async || {
        let mut of_tenants = [0.0; 2];
        for (at, (tenant, id)) in jobs.iter().enumerate() {
            let said = tenant.get(id).await.unwrap_or(Value::Null);
            of_tenants[at / (num_jobs / 2)] += said["usage"]["output_tokens"].as_f64().unwrap();
        }
        of_tenants
    };
    let begun = async {
        while tokens().await.contains(&0.0) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(120), begun).await.expect("both tenants' jobs run");
    let (start, before) = (Instant::now(), tokens().await);
    tokio::time::sleep(ALONE).await;
    let (middle, between) = (Instant::now(), tokens().await);
    let beside = ask(2000).await;
    let (end, after) = (Instant::now(), tokens().await);
    let rate = |from: [f64; 2], to: [f64; 2], took: Duration| {
        (to.iter().sum::<f64>() - from.iter().sum::<f64>()) / took.as_secs_f64()
    };
    let offline = [rate(before, between, middle - start), rate(between, after, end - middle)];
    for (tenant, id) in &jobs {
        tenant.cancel(id).await;
    }
    cluster.stop();
    Interference { alone, beside, offline, of_tenants: [0, 1].map(|at| after[at] - before[at]) }
}

/// Tokens a second of a job, and of the same requests at /v1/completions, in each round.
#[derive(Debug)]
pub struct Throughput {
    pub job: Vec<f64>,
    /// By how many were asked for at once.
    pub completions: Vec<(usize, Vec<f64>)>,
}

impl Throughput {
    /// The job's share of the best of the others; medians of all rounds.
    pub fn share(&self) -> f64 {
        let best = self.completions.iter().map(|(_, rates)| median(rates));
        median(&self.job) / best.fold(f64::MIN, f64::max)
    }
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

impl fmt::Display for Throughput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (middle, share) = (median(&self.job), self.share());
        writeln!(f, "a job                     {middle:.0} tokens a second {:.0?}", self.job)?;
        for (num, rates) in &self.completions {
            let middle = median(rates);
            writeln!(f, "/v1/completions, {num:>3} at once {middle:.0} {rates:.0?}")?;
        }
        write!(f, "the job's share of the best {share:.3}")
    }
}

/// Measures a job of so many lines and the same requests at /v1/completions, in turn.
pub async fn throughput(
    options: Options,
    num_lines: usize,
    concurrency: &[usize],
    rounds: usize,
) -> Throughput {
    let cluster = Cluster::start(options).await;
    let batches = Batches::of(&cluster);
    let model = batches.model().await;
    let mut measured = Throughput {
        job: Vec::new(),
        completions: concurrency.iter().map(|num| (*num, Vec::new())).collect(),
    };
    // The first of them fills caches and wakes what sleeps.
    for round in 0..=rounds {
        let input = lines(&model, num_lines, 16..65);
        let bodies: Vec<Value> = input
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap()["body"].clone())
            .collect();
        let num_tokens = |answer: &Value| answer["usage"]["completion_tokens"].as_f64().unwrap();
        let file = batches.upload(&input).await.unwrap();
        let start = Instant::now();
        let id = batches.create(&file, "24h").await.unwrap();
        let job = batches.ended(&id, Duration::from_secs(600)).await;
        let took = start.elapsed().as_secs_f64();
        assert_eq!(job["request_counts"]["completed"], num_lines);
        let rate = job["usage"]["output_tokens"].as_f64().unwrap() / took;
        eprintln!("round {round}: a job {rate:.0} tokens a second");
        measured.job.extend((round > 0).then_some(rate));
        for (num, rates) in &mut measured.completions {
            let start = Instant::now();
            let answers = futures::stream::iter(&bodies).map(|body| batches.complete(body));
            let tokens = answers.buffer_unordered(*num).map(|(answer, _)| num_tokens(&answer));
            let tokens: f64 = tokens.fold(0.0, async |sum, num| sum + num).await;
            let rate = tokens / start.elapsed().as_secs_f64();
            eprintln!("round {round}: /v1/completions, {num} at once {rate:.0}");
            rates.extend((round > 0).then_some(rate));
        }
    }
    cluster.stop();
    measured
}
