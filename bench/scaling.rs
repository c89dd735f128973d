//! What a second stage on a second core brings, and what a pipeline costs whoever has one stage.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::cluster::{Cluster, series};
use crate::processes;
use crate::users::{Arrivals, Users, Wish};
use loadgen::numbers::{decimal, median};
use loadgen::report::compare::aligned;

/// A cluster under measurement.
#[derive(Debug)]
pub struct Side {
    /// What it is called in tables.
    pub name: String,
    /// One pipeline, each of its nodes on a core of its own.
    pub cluster: Cluster,
    /// Who asks it.
    pub users: Users,
}

/// Tokens a second at a concurrency, in a round.
#[derive(Clone, Debug)]
pub struct Rate {
    /// Answers in the making.
    pub concurrency: usize,
    /// Tokens of answers a second.
    pub tokens: f64,
    /// Cores that the coordinator took.
    pub coordinator: f64,
    /// Cores that the users took.
    pub client: f64,
    /// Tokens of a step.
    pub batch: f64,
    /// The share of the time in which each stage was at a step.
    pub busy: Vec<f64>,
}

/// What a cluster has done so far, as its `/metrics` tell it.
#[derive(Debug, PartialEq)]
struct Done {
    steps: f64,
    tokens: f64,
    // Seconds, by stage.
    busy: Vec<f64>,
}

impl Done {
    fn read(text: &str) -> Option<Self> {
        let value = |name: &str| series(text, name);
        let busy = |stage| value(&format!("autoglm_stage_busy_seconds_total{{stage=\"{stage}\"}}"));
        Some(Self {
            steps: value("autoglm_step_seconds_count")?,
            tokens: value("autoglm_batch_tokens_sum")?,
            busy: (0..).map_while(busy).collect(),
        })
    }
}

impl Side {
    /// How fast answers come while `concurrency` of them are made at once.
    ///
    /// # Errors
    /// When a request fails.
    pub async fn rate(
        &self,
        wish: Wish,
        concurrency: usize,
        window: Duration,
        seed: u64,
    ) -> Result<Rate> {
        let mut crowd = self.users.crowd(wish, concurrency, seed);
        crowd.begun(concurrency).await?;
        let (coordinator, client) = (self.cluster.pid()?, std::process::id());
        let done_before = self.done().await?;
        let before = [coordinator, client].map(processes::seconds);
        let (tokens, seconds) = crowd.count_for(window).await?;
        let after = [coordinator, client].map(processes::seconds);
        let done = self.done().await?;
        let mut cores = [0.0; 2];
        for (cores, (before, after)) in cores.iter_mut().zip(before.into_iter().zip(after)) {
            *cores = (after? - before?) / seconds;
        }
        drop(crowd);
        self.rest().await?;
        let busy = done.busy.iter().zip(&done_before.busy);
        Ok(Rate {
            concurrency,
            tokens: tokens / seconds,
            coordinator: cores[0],
            client: cores[1],
            batch: (done.tokens - done_before.tokens) / (done.steps - done_before.steps),
            busy: busy.map(|(after, before)| (after - before) / seconds).collect(),
        })
    }

    async fn done(&self) -> Result<Done> {
        let text = self.users.server().text("/metrics").await?;
        Done::read(&text).context("the server's /metrics don't tell what stages have done")
    }

    /// How long a lone prompt takes to its first token, in seconds.
    ///
    /// # Errors
    /// When the request fails.
    pub async fn prompt(&self, num_tokens: usize, seed: u64) -> Result<f64> {
        let wish = Wish { prompt: num_tokens, answer: 1, tier: None };
        let asked = self.users.ask(wish, seed << 40, &Arrivals::default()).await?;
        Ok(asked.first.as_secs_f64())
    }

    /// Waits until nothing of what was given up is computed any more.
    async fn rest(&self) -> Result<()> {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let least = Wish { prompt: 1, answer: 1, tier: None };
        self.users.ask(least, 0, &Arrivals::default()).await?;
        Ok(())
    }
}

/// The concurrency at which answers come fastest.
pub fn best(rates: &[Rate]) -> usize {
    let fastest = rates.iter().max_by(|a, b| a.tokens.total_cmp(&b.tokens));
    fastest.map_or(1, |rate| rate.concurrency)
}

/// What is compared: rounds of two sides, and the ratio that is wanted.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// What is measured, with its unit.
    pub name: String,
    /// Names of the sides, the baseline first.
    pub sides: [String; 2],
    /// Of each round, what the sides measured.
    pub rounds: Vec<[f64; 2]>,
    /// What the second over the first should be, where anything is wanted of it.
    pub goal: Option<Goal>,
}

/// A bound of a ratio.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// It or more.
    AtLeast(f64),
    /// It or less.
    AtMost(f64),
}

impl Comparison {
    /// The median over rounds of the second over the first.
    pub fn ratio(&self) -> f64 {
        median(&self.rounds.iter().map(|[first, second]| second / first).collect::<Vec<_>>())
    }

    /// The goal, and whether the ratio keeps it.
    fn verdict(&self) -> String {
        let verdict = |is_kept| if is_kept { "kept" } else { "missed" };
        match self.goal {
            None => "-".to_owned(),
            Some(Goal::AtLeast(bound)) => format!(">= {bound}: {}", verdict(self.ratio() >= bound)),
            Some(Goal::AtMost(bound)) => format!("<= {bound}: {}", verdict(self.ratio() <= bound)),
        }
    }

    fn json(&self) -> Value {
        json!({
            "name": self.name, "sides": self.sides, "rounds": self.rounds, "ratio": self.ratio(),
        })
    }
}

/// A line for each comparison, with the goal that it is held to.
pub fn table(comparisons: &[Comparison]) -> String {
    let head = ["medians over rounds", "first", "second", "ratio", "goal"];
    let mut lines = vec![head.map(str::to_owned).to_vec()];
    for it in comparisons {
        let side = |at: usize| {
            let values: Vec<_> = it.rounds.iter().map(|round| round[at]).collect();
            format!("{}: {}", it.sides[at], decimal(median(&values)))
        };
        let ratio = format!("{:.3}", it.ratio());
        lines.push(vec![it.name.clone(), side(0), side(1), ratio, it.verdict()]);
    }
    aligned(&lines, 1)
}

/// The same as JSON.
pub fn report(comparisons: &[Comparison]) -> Value {
    comparisons.iter().map(Comparison::json).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_the_median_over_rounds_and_is_held_to_its_goal() {
        let comparison = |goal| Comparison {
            name: "tokens/s".to_owned(),
            sides: ["one".to_owned(), "two".to_owned()],
            rounds: vec![[10.0, 18.0], [10.0, 19.0], [20.0, 10.0]],
            goal,
        };
        let good = comparison(Some(Goal::AtLeast(1.8)));
        assert!((good.ratio() - 1.8).abs() < 1e-9);
        assert_eq!(good.verdict(), ">= 1.8: kept");
        assert_eq!(comparison(Some(Goal::AtMost(0.62))).verdict(), "<= 0.62: missed");
        let text = table(&[good, comparison(None)]);
        assert!(text.contains("one: 10.0") && text.contains("1.800  >= 1.8: kept"), "{text}");
        assert!(text.contains("1.800  -\n"), "{text}");
    }

    #[test]
    fn what_stages_have_done_is_read_from_metrics() {
        let text = "\
autoglm_step_seconds_sum 9.0
autoglm_step_seconds_count 20 # {trace_id=\"a\"} 0.1
autoglm_batch_tokens_sum 320.0
autoglm_stage_busy_seconds_total{stage=\"0\"} 1.5
autoglm_stage_busy_seconds_total{stage=\"1\"} 2.5
";
        let done = Done { steps: 20.0, tokens: 320.0, busy: vec![1.5, 2.5] };
        assert_eq!(Done::read(text), Some(done));
        assert_eq!(Done::read("autoglm_step_seconds_count 20\n"), None);
    }

    #[test]
    fn the_best_concurrency_is_that_of_the_most_tokens() {
        let rate = |concurrency, tokens| Rate {
            concurrency,
            tokens,
            coordinator: 0.0,
            client: 0.0,
            batch: 0.0,
            busy: Vec::new(),
        };
        assert_eq!(best(&[rate(8, 10.0), rate(16, 14.0), rate(32, 13.0)]), 16);
    }
}
