//! How many pipelines there should be, by what is asked of them.
//!
//! Pure. Load is counted in pipelines: tokens in flight over what one is meant for, or sequences
//! over what one can run, averaged. More are wanted when load has asked for more all through the
//! upscale delay, and then the fewest that it asked for meanwhile; fewer when it has asked for
//! fewer all through the downscale delay, and then the most. So no direction is reversed before
//! the delay of the other has passed. Whoever waits too long asks for one more than there are.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use protocol::config::{self, Config};

/// What the cluster looks like at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Observation {
    /// Pipelines that serve.
    pub num_serving: usize,
    /// Tokens in flight: prompts, and answers so far, of what runs or waits.
    pub num_tokens: usize,
    /// Sequences that run or wait.
    pub num_sequences: usize,
    /// How long whoever waits longest has waited for its turn.
    pub longest_wait: Duration,
    /// Requests that have not ended, those included that don't count as load.
    pub num_open: usize,
}

/// A change of the number of pipelines that are wanted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rescale {
    /// When.
    pub at: Instant,
    /// Pipelines wanted before.
    pub from: usize,
    /// Pipelines wanted from now on.
    pub to: usize,
    /// Why.
    pub cause: Cause,
    /// Load in pipelines, averaged.
    pub load: f64,
    /// What was seen last.
    pub seen: Observation,
}

/// Why another number of pipelines is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Load asks for more.
    Load,
    /// Somebody waits for too long.
    Wait,
    /// Load asks for fewer.
    Quiet,
    /// Nothing was asked for long enough.
    Idle,
    /// The first request after that.
    Woken,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Load => "load is above what they are meant for",
            Self::Wait => "requests wait for longer than autoscaler.target_wait_ms",
            Self::Quiet => "fewer can carry the load",
            Self::Idle => "nothing was asked for autoscaler.idle_ms",
            Self::Woken => "there is a request again",
        })
    }
}

/// Decides how many pipelines are wanted.
#[derive(Debug)]
pub(crate) struct Autoscaler {
    config: config::Autoscaler,
    max_num_seqs: usize,
    wanted: usize,
    // Averaged, and when it was.
    load: Option<(f64, Instant)>,
    above: Option<Asked>,
    below: Option<Asked>,
    idle_since: Option<Instant>,
    decisions: VecDeque<Rescale>,
}

/// Another number was asked for ever since.
#[derive(Clone, Copy, Debug)]
struct Asked {
    since: Instant,
    // Of what was asked for meanwhile, that which is nearest to the number there is.
    num: usize,
    cause: Cause,
}

impl Autoscaler {
    /// Begins with the fewest, but with one, so that a model that can't be loaded is noticed.
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            max_num_seqs: config.scheduler.max_num_seqs as usize,
            wanted: config.autoscaler.min_pipelines.max(1) as usize,
            config: config.autoscaler.clone(),
            load: None,
            above: None,
            below: None,
            idle_since: None,
            decisions: VecDeque::new(),
        }
    }

    pub(crate) fn wanted(&self) -> usize {
        self.wanted
    }

    /// Load in pipelines, averaged.
    pub(crate) fn load(&self) -> f64 {
        self.load.map_or(0.0, |(load, _)| load)
    }

    /// The last decisions, oldest first.
    pub(crate) fn decisions(&self) -> impl Iterator<Item = &Rescale> {
        self.decisions.iter()
    }

    /// Takes in what is seen, and says so if another number of pipelines is wanted from now on.
    pub(crate) fn decide(&mut self, seen: Observation, now: Instant) -> Option<Rescale> {
        let load = self.average(&seen, now);
        self.idle_since = (seen.num_open == 0).then(|| self.idle_since.unwrap_or(now));
        let (to, cause) = self.another(load, &seen, now)?;
        let decision = Rescale { at: now, from: self.wanted, to, cause, load, seen };
        self.wanted = to;
        (self.above, self.below) = (None, None);
        self.decisions.push_back(decision);
        while self.decisions.len() > self.config.max_decisions {
            self.decisions.pop_front();
        }
        Some(decision)
    }

    fn average(&mut self, seen: &Observation, now: Instant) -> f64 {
        let tokens = seen.num_tokens as f64 / f64::from(self.config.target_tokens);
        let sequences = seen.num_sequences as f64 / self.max_num_seqs as f64;
        let current = tokens.max(sequences);
        let load = match self.load {
            Some((load, at)) if self.config.smoothing_ms > 0 => {
                let passed = now.saturating_duration_since(at).as_secs_f64() * 1000.0;
                let kept = (-passed / self.config.smoothing_ms as f64).exp();
                load * kept + current * (1.0 - kept)
            }
            _ => current,
        };
        self.load = Some((load, now));
        load
    }

    fn another(&mut self, load: f64, seen: &Observation, now: Instant) -> Option<(usize, Cause)> {
        if self.wanted == 0 {
            return (seen.num_open > 0).then_some((1, Cause::Woken));
        }
        let has_passed = |since: Instant, milliseconds| {
            now.saturating_duration_since(since) >= Duration::from_millis(milliseconds)
        };
        if self.config.min_pipelines == 0
            && self.idle_since.is_some_and(|since| has_passed(since, self.config.idle_ms))
        {
            return Some((0, Cause::Idle));
        }
        let (min, max) =
            (self.config.min_pipelines.max(1) as usize, self.config.max_pipelines as usize);
        let carrying = |share: f64| ((load / share).ceil() as usize).clamp(min, max);
        let (mut least, mut most) =
            (carrying(1.0 + self.config.tolerance), carrying(1.0 - self.config.tolerance));
        let mut cause = Cause::Load;
        if seen.longest_wait > Duration::from_millis(self.config.target_wait_ms) {
            most = most.max(self.wanted);
            // What was added before is given time to serve.
            if least <= self.wanted && seen.num_serving >= self.wanted {
                (least, cause) = ((self.wanted + 1).min(max), Cause::Wait);
            }
        }
        self.above = (least > self.wanted).then(|| match self.above {
            Some(asked) => Asked { num: asked.num.min(least), cause, ..asked },
            None => Asked { since: now, num: least, cause },
        });
        self.below = (most < self.wanted).then(|| match self.below {
            Some(asked) => Asked { num: asked.num.max(most), ..asked },
            None => Asked { since: now, num: most, cause: Cause::Quiet },
        });
        let above = self.above.filter(|it| has_passed(it.since, self.config.upscale_delay_ms));
        let below = self.below.filter(|it| has_passed(it.since, self.config.downscale_delay_ms));
        above.or(below).map(|asked| (asked.num, asked.cause))
    }
}
