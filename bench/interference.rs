//! Whether work that can wait stays out of the way of work that can't: one user asks, thinks, and
//! asks again, while a crowd keeps the server busy with answers that nobody waits for.

use std::time::Duration;

use anyhow::Result;
use rand_distr::Distribution as _;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::users::{Arrivals, Crowd, Users, Wish};
use loadgen::distribution::{Purpose, random};
use loadgen::numbers::{decimal, time};

/// How long a server gets to notice who has gone away.
const REST: Duration = Duration::from_secs(1);

/// Who asks for what.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// What the one user asks for.
    pub interactive: Wish,
    /// How often, in a round.
    pub num_requests: usize,
    /// How long that user thinks, on the average, before each time.
    pub think: Duration,
    /// What the crowd asks for.
    pub offline: Wish,
    /// How many of the crowd's requests are computed at once.
    pub num_running: usize,
    /// How long the crowd is measured alone.
    pub alone: Duration,
}

/// What a round measured.
#[derive(Clone, Debug, Default)]
pub struct Round {
    /// The user's times to a first token, in milliseconds.
    pub first: Vec<f64>,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// Tokens of the user's prompts and answers.
    pub interactive: f64,
    /// The crowd's.
    pub offline: f64,
}

impl Scenario {
    /// The user alone.
    ///
    /// # Errors
    /// When a request fails.
    pub async fn undisturbed(&self, users: &Users, round: u64) -> Result<Round> {
        let arrivals = Arrivals::default();
        let begin = Instant::now();
        let first = self.ask(users, round, &arrivals).await?;
        Ok(self.round(first, begin, &arrivals, &Arrivals::default()))
    }

    /// The user beside a crowd of so many.
    ///
    /// # Errors
    /// When a request fails.
    pub async fn disturbed(&self, users: &Users, num: usize, round: u64) -> Result<Round> {
        let mut crowd = self.crowd(users, num, round).await?;
        let arrivals = Arrivals::default();
        let begin = Instant::now();
        let first = crowd.beside(self.ask(users, round, &arrivals)).await?;
        let measured = self.round(first, begin, &arrivals, crowd.arrivals());
        drop(crowd);
        tokio::time::sleep(REST).await;
        Ok(measured)
    }

    /// The crowd alone.
    ///
    /// # Errors
    /// When a request fails.
    pub async fn offline(&self, users: &Users, num: usize, round: u64) -> Result<Round> {
        let mut crowd = self.crowd(users, num, round).await?;
        let begin = Instant::now();
        let passes = async {
            tokio::time::sleep(self.alone).await;
            Ok(())
        };
        crowd.beside(passes).await?;
        let measured = self.round(Vec::new(), begin, &Arrivals::default(), crowd.arrivals());
        drop(crowd);
        tokio::time::sleep(REST).await;
        Ok(measured)
    }

    /// A crowd that is being answered.
    async fn crowd(&self, users: &Users, num: usize, round: u64) -> Result<Crowd> {
        let mut crowd = users.crowd(self.offline, num, 2 * round + 1);
        crowd.begun(num.min(self.num_running)).await?;
        Ok(crowd)
    }

    async fn ask(&self, users: &Users, round: u64, arrivals: &Arrivals) -> Result<Vec<f64>> {
        let mut times = Vec::new();
        let mut random = random(Purpose::Arrivals, round, 0);
        for request in 0..self.num_requests as u64 {
            let think: f64 = rand_distr::Exp1.sample(&mut random);
            tokio::time::sleep(self.think.mul_f64(think)).await;
            let number = ((2 * round) << 40) + request;
            let asked = users.ask(self.interactive, number, arrivals).await?;
            times.push(asked.first.as_secs_f64() * 1e3);
        }
        Ok(times)
    }

    fn round(
        &self,
        first: Vec<f64>,
        begin: Instant,
        interactive: &Arrivals,
        offline: &Arrivals,
    ) -> Round {
        let end = Instant::now();
        Round {
            first,
            seconds: (end - begin).as_secs_f64(),
            interactive: interactive.between(begin, end) as f64,
            offline: offline.between(begin, end) as f64,
        }
    }
}

/// The rounds of one way to serve.
#[derive(Clone, Debug, Default)]
pub struct Rounds {
    /// The way to serve, as the table names it.
    pub name: String,
    /// The user alone.
    pub undisturbed: Vec<Round>,
    /// The user beside the crowd.
    pub disturbed: Vec<Round>,
    /// The crowd alone, as large as it may be.
    pub offline: Vec<Round>,
}

/// What is made of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figures {
    /// Median and 95th percentile of the times to a first token, undisturbed, in milliseconds.
    pub undisturbed: [f64; 2],
    /// The same beside the crowd.
    pub disturbed: [f64; 2],
    /// Tokens a second of the crowd alone.
    pub alone: f64,
    /// Tokens a second of all together, over that.
    pub all: f64,
    /// Those of the crowd in it, over that.
    pub offline: f64,
}

impl Rounds {
    /// Pooled over all rounds.
    pub fn figures(&self) -> Figures {
        let seconds = |rounds: &[Round]| rounds.iter().map(|round| round.seconds).sum::<f64>();
        let rate = |rounds: &[Round], of: fn(&Round) -> f64| {
            rounds.iter().map(of).sum::<f64>() / seconds(rounds)
        };
        let alone = rate(&self.offline, |round| round.offline);
        let times = |rounds: &[Round]| {
            let all: Vec<_> = rounds.iter().flat_map(|round| round.first.iter().copied()).collect();
            [0.5, 0.95].map(|share| percentile(&all, share))
        };
        Figures {
            undisturbed: times(&self.undisturbed),
            disturbed: times(&self.disturbed),
            alone,
            all: rate(&self.disturbed, |round| round.interactive + round.offline) / alone,
            offline: rate(&self.disturbed, |round| round.offline) / alone,
        }
    }
}

impl Figures {
    /// How much longer a first token takes beside the crowd, at the median and at the 95th
    /// percentile.
    pub fn ratios(&self) -> [f64; 2] {
        [0, 1].map(|at| self.disturbed[at] / self.undisturbed[at])
    }
}

/// The least value that such a share of all don't pass, NaN where there is none.
fn percentile(values: &[f64], share: f64) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let at = ((values.len() as f64 * share).ceil() as usize).saturating_sub(1);
    values.get(at).copied().unwrap_or(f64::NAN)
}

/// A line for each way to serve: how long the user waits, how much the crowd gets.
pub fn table(all: &[Rounds]) -> String {
    let line = |cells: [&str; 7]| {
        let [name, undisturbed, disturbed, ratio, alone, all, offline] = cells;
        let times = format!("{undisturbed:>21}{disturbed:>21}{ratio:>15}");
        format!("  {name:<26}{times}{alone:>11}{all:>9}{offline:>10}\n")
    };
    let head = ["", "TTFT undisturbed", "TTFT disturbed", "ratio", "offline", "all /", "offline /"];
    let times = "p50 / p95";
    let mut text = line(head) + &line(["", times, times, times, "alone t/s", "alone", "alone"]);
    for measured in all {
        let figures = measured.figures();
        let two = |[one, other]: [f64; 2]| format!("{} / {}", time(one), time(other));
        let [p50, p95] = figures.ratios().map(decimal);
        let percent = |share: f64| format!("{:.0} %", share * 100.0);
        text += &line([
            &measured.name,
            &two(figures.undisturbed),
            &two(figures.disturbed),
            &format!("{p50} / {p95}"),
            &decimal(figures.alone),
            &percent(figures.all),
            &percent(figures.offline),
        ]);
    }
    text
}

/// The same as JSON, with what each round measured.
pub fn report(all: &[Rounds]) -> Value {
    let of_rounds = |rounds: &[Round]| -> Value {
        let of = |round: &Round| {
            json!({
                "first_token_ms": round.first, "seconds": round.seconds,
                "interactive_tokens": round.interactive, "offline_tokens": round.offline,
            })
        };
        rounds.iter().map(of).collect()
    };
    let of = |measured: &Rounds| {
        let figures = measured.figures();
        json!({
            "name": measured.name,
            "undisturbed_ttft_ms": figures.undisturbed, "disturbed_ttft_ms": figures.disturbed,
            "ttft_ratio": figures.ratios(), "offline_alone_tokens_per_second": figures.alone,
            "all_share": figures.all, "offline_share": figures.offline,
            "rounds": {
                "undisturbed": of_rounds(&measured.undisturbed),
                "disturbed": of_rounds(&measured.disturbed),
                "offline": of_rounds(&measured.offline),
            },
        })
    };
    json!({ "percentiles": [50, 95], "setups": all.iter().map(of).collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_pooled() {
        let round = |first: &[f64], seconds, interactive, offline| Round {
            first: first.to_vec(),
            seconds,
            interactive,
            offline,
        };
        let measured = Rounds {
            name: "ours".to_owned(),
            undisturbed: vec![round(&[10.0, 30.0], 1.0, 50.0, 0.0), round(&[20.0], 1.0, 50.0, 0.0)],
            disturbed: vec![
                round(&[20.0, 45.0], 3.0, 60.0, 240.0),
                round(&[40.0], 1.0, 20.0, 80.0),
            ],
            offline: vec![round(&[], 1.0, 0.0, 90.0), round(&[], 1.0, 0.0, 110.0)],
        };
        let figures = measured.figures();
        assert_eq!((figures.undisturbed, figures.disturbed), ([20.0, 30.0], [40.0, 45.0]));
        assert_eq!((figures.alone, figures.all, figures.offline), (100.0, 1.0, 0.8));
        assert_eq!(figures.ratios(), [2.0, 1.5]);
        let text = table(&[measured]);
        assert!(text.contains("2.00 / 1.50") && text.contains("80 %"), "{text}");
    }

    #[test]
    fn a_percentile_is_a_value_that_was_measured() {
        let values: Vec<_> = (1..=100).rev().map(f64::from).collect();
        assert_eq!([0.5, 0.95].map(|share| percentile(&values, share)), [50.0, 95.0]);
        assert_eq!(percentile(&[7.0], 0.95), 7.0);
        assert!(percentile(&[], 0.5).is_nan());
    }
}
