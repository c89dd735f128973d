//! What is left of a server's goodput when far more is asked than it can do, and whether its
//! memory stays what it is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use rand::RngExt;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::processes;
use loadgen::client::Server;
use loadgen::client::request::{Endpoint, Parameters, Prompt};
use loadgen::distribution::{Purpose, random};
use loadgen::load::pace::{Arrivals, Gaps, Pace, Ramp};
use loadgen::load::slo::Slo;
use loadgen::load::workload::Workload;
use loadgen::load::{Extent, Load, Progress};
use loadgen::numbers::{decimal, percent, time};
use loadgen::report::compare::aligned;
use loadgen::report::result::Metric;
use loadgen::report::statistics::slope_interval;

/// Prompts that differ from each other.
const MAX_PROMPTS: usize = 8192;

/// Between two looks at a process's memory.
const SAMPLE: Duration = Duration::from_millis(200);

/// How sure a slope is.
const CONFIDENCE: f64 = 0.95;

/// What a full or late server answers; anything else is wrong.
const EXPECTED: [&str; 3] = ["status 429", "status 503", "status 504"];

/// What is asked, over and over.
#[derive(Clone, Debug)]
pub struct Demand {
    /// The model's name in the API.
    pub model: String,
    /// Random tokens of each prompt.
    pub prompt: usize,
    /// Tokens of each answer: the model's own end is ignored.
    pub answer: u32,
    /// What an answer should keep.
    pub slo: Slo,
    /// What the server is told of it, in milliseconds.
    pub max_time_ms: Option<u64>,
}

/// What came of a load.
#[derive(Clone, Debug, Serialize)]
pub struct LoadResult {
    /// What was asked for, in words.
    pub name: String,
    /// Requests a second that were sent.
    pub offered: f64,
    /// Answers a second that kept the objective.
    pub goodput: f64,
    /// All answers a second.
    pub answered: f64,
    /// Median and 95th percentile of the time to an answer's end.
    pub e2el_ms: [f64; 2],
    /// The other requests, by what they got instead.
    pub failures: BTreeMap<String, u64>,
}

/// A process's memory over some time.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// Seconds since the beginning, and MiB.
    pub samples: Vec<(f64, f64)>,
}

impl Demand {
    /// Asks at a pace for `duration`, after a warm-up of a quarter of it.
    ///
    /// # Errors
    /// When nothing can be asked.
    pub async fn load(
        &self,
        server: &Server,
        (name, pace): (String, Pace),
        duration: Duration,
        seed: u64,
    ) -> Result<LoadResult> {
        let parameters = Parameters {
            model: self.model.clone(),
            endpoint: Endpoint::Completions,
            max_tokens: self.answer,
            temperature: Some(0.0),
            ignore_eos: true,
            // A stream that has begun has its status.
            whole: true,
            extra: self
                .max_time_ms
                .map(|it| ("max_time_ms".to_owned(), it.into()))
                .into_iter()
                .collect(),
        };
        let prompts = (0..MAX_PROMPTS as u64).map(|number| {
            let mut random = random(Purpose::Conversation, seed, number);
            Prompt::Tokens((0..self.prompt).map(|_| random.random_range(32..256)).collect())
        });
        let load = Load {
            parameters,
            workload: Workload::of(prompts),
            pace,
            extent: Extent { requests: None, duration: Some(duration), warmup: duration / 4 },
            slo: self.slo.clone(),
            observer: None,
        };
        let never = std::future::pending();
        let measured = load.run(server, &Arc::<Progress>::default(), never).await?;
        let all = &measured.sums.all;
        let (_, window) = measured.sums.window(measured.elapsed);
        let rate = |num: u64| num as f64 / window.as_secs_f64();
        let times = all.times(Metric::E2el);
        let e2el_ms = [50.0, 95.0]
            .map(|percent| if times.is_empty() { f64::NAN } else { times.percentile_ms(percent) });
        Ok(LoadResult {
            name,
            offered: rate(all.num_completed + all.num_failed()),
            goodput: rate(measured.sums.arrived.good),
            answered: rate(measured.sums.arrived.answers),
            e2el_ms,
            failures: all.failures.iter().map(|(kind, it)| (kind.to_string(), it.count)).collect(),
        })
    }
}

/// So many requests in flight.
pub fn closed(concurrency: u64) -> (String, Pace) {
    let pace = Pace::Closed { concurrency: Ramp::constant(concurrency as f64) };
    (format!("{concurrency} in flight"), pace)
}

/// So many times the capacity, which is in requests a second.
pub fn open(times: f64, capacity: f64) -> (String, Pace) {
    let rate = Ramp::constant(times * capacity);
    let arrivals = Arrivals::Random { gaps: Gaps::Poisson, rate };
    (format!("{} x capacity", decimal(times)), Pace::Open { arrivals, max_concurrency: None })
}

impl LoadResult {
    /// What no server should answer, however much is asked.
    pub fn unexpected(&self) -> Vec<String> {
        let others = self.failures.iter().filter(|(kind, _)| !EXPECTED.contains(&kind.as_str()));
        others.map(|(kind, count)| format!("{count} x {kind}")).collect()
    }
}

impl Memory {
    /// Looks at a process's memory for as long as this is polled.
    pub async fn watch(&mut self, pid: u32) {
        let begin = Instant::now();
        loop {
            if let Ok(bytes) = processes::resident_bytes(pid) {
                let mib = bytes as f64 / f64::from(1 << 20);
                self.samples.push((begin.elapsed().as_secs_f64(), mib));
            }
            tokio::time::sleep(SAMPLE).await;
        }
    }

    /// By how much it grows in a minute, as a line through the later half says, with its 95 %
    /// interval; and of the whole time the least and the most.
    pub fn summary(&self) -> String {
        let later = &self.samples[self.samples.len() / 2..];
        let all = self.samples.iter().map(|(_, mib)| *mib);
        let (least, most) =
            (all.clone().fold(f64::INFINITY, f64::min), all.fold(f64::NEG_INFINITY, f64::max));
        match slope_interval(later, CONFIDENCE) {
            Some(line) => {
                let [slope, low, high] = [line.slope, line.low, line.high].map(|it| it * 60.0);
                format!(
                    "{least:.1} to {most:.1} MiB, in the later half {slope:+.2} MiB a minute \
                     ({low:+.2} to {high:+.2})"
                )
            }
            None => "too short a time to tell".to_owned(),
        }
    }
}

/// A line for each load: what was offered, what was good, what was refused.
pub fn table(outcomes: &[LoadResult]) -> String {
    let head = ["requests a second", "offered", "answered", "good", "end p50 / p95", "refused"];
    let mut lines = vec![head.map(str::to_owned).to_vec()];
    for it in outcomes {
        let refused: Vec<_> =
            it.failures.iter().map(|(kind, count)| format!("{count} x {kind}")).collect();
        let [p50, p95] = it.e2el_ms.map(time);
        let [offered, answered, good] = [it.offered, it.answered, it.goodput].map(decimal);
        let end = format!("{p50} / {p95}");
        lines.push(vec![it.name.clone(), offered, answered, good, end, refused.join(", ")]);
    }
    aligned(&lines, 1)
}

/// What the loads beyond capacity say of the objective: `within` are those up to it.
pub fn summary(within: &[LoadResult], beyond: &[LoadResult]) -> String {
    let peak = within.iter().map(|it| it.goodput).fold(0.0, f64::max);
    let mut text = format!("  goodput's peak: {} a second\n", decimal(peak));
    for it in beyond {
        let share = it.goodput / peak;
        let kept = if share >= 0.9 { "kept" } else { "missed" };
        let unexpected = it.unexpected();
        text += &format!(
            "  {}: goodput {} of its peak (at least 90 %: {kept}); {}\n",
            it.name,
            percent(share),
            if unexpected.is_empty() {
                "no status but 200, 429, 503, 504".to_owned()
            } else {
                format!("unexpected: {}", unexpected.join(", "))
            },
        );
    }
    text
}

/// The same as JSON.
pub fn report(within: &[LoadResult], beyond: &[LoadResult], memory: &[Memory]) -> Value {
    json!({
        "within": within, "beyond": beyond,
        "memory_mib": memory.iter().map(|it| &it.samples).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(name: &str, goodput: f64, failures: &[(&str, u64)]) -> LoadResult {
        let failures = failures.iter().map(|(kind, count)| ((*kind).to_owned(), *count)).collect();
        let (offered, answered, e2el_ms) = (goodput * 4.0, goodput, [1.0, 2.0]);
        LoadResult { name: name.to_owned(), offered, goodput, answered, e2el_ms, failures }
    }

    #[test]
    fn goodput_is_compared_with_its_peak_and_wrong_answers_are_named() {
        let within = [outcome("a", 8.0, &[]), outcome("b", 10.0, &[])];
        let refused = [("status 503", 70), ("status 504", 2)];
        let good = summary(&within, &[outcome("c", 9.5, &refused)]);
        assert!(good.contains("95.0 % of its peak (at least 90 %: kept); no status"), "{good}");
        let broken = [("status 500", 1), ("truncated", 2)];
        let bad = summary(&within, &[outcome("c", 5.0, &broken)]);
        assert!(bad.contains("missed); unexpected: 1 x status 500, 2 x truncated"), "{bad}");
        assert!(table(&within).contains("1.00 ms / 2.00 ms"));
    }

    #[test]
    fn memory_that_grows_is_seen_to_grow() {
        let samples = |slope: f64| {
            let at = |i: u32| (f64::from(i), 50.0 + slope * f64::from(i) + f64::from(i % 2) * 0.1);
            Memory { samples: (0..60).map(at).collect() }
        };
        assert!(samples(0.5).summary().contains("+30.0"), "{}", samples(0.5).summary());
        assert!(samples(0.0).summary().contains("50.0 to 50.1 MiB"), "{}", samples(0.0).summary());
        assert!(Memory::default().summary().contains("too short"));
    }
}
