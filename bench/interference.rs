//! Whether work that can wait stays out of the way of work that can't: one user asks, thinks, and
//! asks again, while a crowd keeps the server busy with answers that nobody waits for.

use std::time::Duration;

use anyhow::Result;
use rand_distr::Distribution as _;
use serde::Serialize;
use tokio::time::Instant;

use crate::users::{Arrivals, Crowd, Users, Wish};
use loadgen::distribution::{Purpose, random};
use loadgen::numbers::{decimal, percentile, time};
use loadgen::report::compare::aligned;

/// How long a server gets to notice who has gone away.
const REST: Duration = Duration::from_secs(1);

/// One user who waits for each answer, and a crowd of batch requests.
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
#[derive(Clone, Debug, Default, Serialize)]
pub struct Round {
    /// The user's times to a first token, in milliseconds.
    pub first_token_ms: Vec<f64>,
    /// How long it took.
    pub seconds: f64,
    /// Tokens of the user's prompts and answers.
    pub interactive_tokens: f64,
    /// Tokens of the crowd's prompts and answers.
    pub offline_tokens: f64,
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
        let (offline_tokens, seconds) = crowd.count_for(self.alone).await?;
        let measured = Round { seconds, offline_tokens, ..Round::default() };
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
        first_token_ms: Vec<f64>,
        begin: Instant,
        interactive: &Arrivals,
        offline: &Arrivals,
    ) -> Round {
        let end = Instant::now();
        Round {
            first_token_ms,
            seconds: (end - begin).as_secs_f64(),
            interactive_tokens: interactive.between(begin, end) as f64,
            offline_tokens: offline.between(begin, end) as f64,
        }
    }
}

/// As many of each kind, taken in turn.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Rounds {
    /// The user alone.
    pub undisturbed: Vec<Round>,
    /// The user beside the crowd.
    pub disturbed: Vec<Round>,
    /// The crowd alone.
    pub offline: Vec<Round>,
}

/// The figures that a scheduler is held to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Figures {
    /// Median and 95th percentile of the times to a first token, undisturbed.
    pub undisturbed_ttft_ms: [f64; 2],
    /// The same beside the crowd.
    pub disturbed_ttft_ms: [f64; 2],
    /// How much longer a first token takes beside the crowd, at both.
    pub ttft_ratio: [f64; 2],
    /// Tokens a second of the crowd alone, prompts and answers.
    pub offline_alone_tokens_per_second: f64,
    /// Tokens a second of all together, over that.
    pub all_share: f64,
    /// Those of the crowd in it, over that.
    pub offline_share: f64,
}

impl Rounds {
    /// Pooled over all rounds.
    pub fn figures(&self) -> Figures {
        let seconds = |rounds: &[Round]| rounds.iter().map(|round| round.seconds).sum::<f64>();
        let rate = |rounds: &[Round], of: fn(&Round) -> f64| {
            rounds.iter().map(of).sum::<f64>() / seconds(rounds)
        };
        let times = |rounds: &[Round]| {
            let all: Vec<_> = rounds.iter().flat_map(|it| it.first_token_ms.clone()).collect();
            [0.5, 0.95].map(|share| percentile(&all, share))
        };
        let (undisturbed, disturbed) = (times(&self.undisturbed), times(&self.disturbed));
        let alone = rate(&self.offline, |round| round.offline_tokens);
        let all = |round: &Round| round.interactive_tokens + round.offline_tokens;
        Figures {
            undisturbed_ttft_ms: undisturbed,
            disturbed_ttft_ms: disturbed,
            ttft_ratio: [0, 1].map(|at| disturbed[at] / undisturbed[at]),
            offline_alone_tokens_per_second: alone,
            all_share: rate(&self.disturbed, all) / alone,
            offline_share: rate(&self.disturbed, |round| round.offline_tokens) / alone,
        }
    }
}

impl Figures {
    /// How long the user waits, and how much the crowd gets.
    pub fn table(&self) -> String {
        let two = |[p50, p95]: [String; 2]| format!("{p50} / {p95}");
        let percent = |share: f64| format!("{:.0} %", share * 100.0);
        aligned(
            &[
                ["TTFT p50 / p95", "disturbed", "ratio", "offline alone t/s", "all", "offline"]
                    .map(str::to_owned)
                    .to_vec(),
                vec![
                    two(self.undisturbed_ttft_ms.map(time)),
                    two(self.disturbed_ttft_ms.map(time)),
                    two(self.ttft_ratio.map(decimal)),
                    decimal(self.offline_alone_tokens_per_second),
                    percent(self.all_share),
                    percent(self.offline_share),
                ],
            ],
            0,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_pooled() {
        let round = |first: &[f64], seconds, interactive_tokens, offline_tokens| Round {
            first_token_ms: first.to_vec(),
            seconds,
            interactive_tokens,
            offline_tokens,
        };
        let measured = Rounds {
            undisturbed: vec![round(&[10.0, 30.0], 1.0, 50.0, 0.0), round(&[20.0], 1.0, 50.0, 0.0)],
            disturbed: vec![
                round(&[20.0, 45.0], 3.0, 60.0, 240.0),
                round(&[40.0], 1.0, 20.0, 80.0),
            ],
            offline: vec![round(&[], 1.0, 0.0, 90.0), round(&[], 1.0, 0.0, 110.0)],
        };
        let figures = measured.figures();
        assert_eq!(figures.undisturbed_ttft_ms, [20.0, 30.0]);
        assert_eq!(figures.disturbed_ttft_ms, [40.0, 45.0]);
        assert_eq!(figures.ttft_ratio, [2.0, 1.5]);
        assert_eq!(figures.offline_alone_tokens_per_second, 100.0);
        assert_eq!((figures.all_share, figures.offline_share), (1.0, 0.8));
        let text = figures.table();
        assert!(text.contains("2.00 / 1.50") && text.contains("80 %"), "{text}");
    }
}
