//! What a run tells: how long things took, for whom, and how busy the stages were.

use std::collections::BTreeMap;
use std::time::Duration;

use coordinator::request::{Priority, Tenant};

/// Figures of one run, or of several.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub priorities: [PriorityTally; Priority::ALL.len()],
    /// Tokens of prompts that were begun and of answers, by tenant.
    pub computed: BTreeMap<Tenant, u64>,
    pub num_preempted: u64,
    pub num_moved: u64,
    pub num_steps: u64,
    pub num_events: u64,
    /// Of a pipeline's stages, while something ran in it: what they could have computed for, and
    /// what they did.
    pub offered: Duration,
    pub busy: Duration,
    /// Virtual time.
    pub duration: Duration,
    pub longest_wait: Duration,
}

#[derive(Clone, Debug, Default)]
pub struct PriorityTally {
    pub first_token: Vec<Duration>,
    pub next_token: Vec<Duration>,
    pub num_tokens: u64,
    pub num_answered: u64,
    pub num_refused: u64,
    pub num_left: u64,
    pub failed: BTreeMap<&'static str, u64>,
}

impl Tally {
    fn of(&mut self, priority: Priority) -> &mut PriorityTally {
        &mut self.priorities[priority.index()]
    }

    pub fn admitted(&mut self, _priority: Priority, wait: Duration) {
        self.longest_wait = self.longest_wait.max(wait);
    }

    pub fn first_token(&mut self, priority: Priority, after: Duration) {
        self.of(priority).first_token.push(after);
        self.of(priority).num_tokens += 1;
    }

    pub fn next_token(&mut self, priority: Priority, after: Duration) {
        self.of(priority).next_token.push(after);
        self.of(priority).num_tokens += 1;
    }

    pub fn computed(&mut self, tenant: &Tenant, num: u64) {
        match self.computed.get_mut(tenant) {
            Some(tokens) => *tokens += num,
            None => drop(self.computed.insert(tenant.clone(), num)),
        }
    }

    pub fn answered(&mut self, priority: Priority) {
        self.of(priority).num_answered += 1;
    }

    pub fn left(&mut self, priority: Priority) {
        self.of(priority).num_left += 1;
    }

    pub fn refused(&mut self, priority: Priority) {
        self.of(priority).num_refused += 1;
    }

    pub fn failed(&mut self, priority: Priority, kind: &'static str) {
        *self.of(priority).failed.entry(kind).or_default() += 1;
    }

    /// The share of the stages' time in which they waited although something ran.
    pub fn bubble(&self) -> f64 {
        1.0 - self.busy.as_secs_f64() / self.offered.as_secs_f64().max(1e-9)
    }

    /// Both together.
    pub fn add(&mut self, other: &Self) {
        for (sum, new) in self.priorities.iter_mut().zip(&other.priorities) {
            sum.first_token.extend(&new.first_token);
            sum.next_token.extend(&new.next_token);
            sum.num_tokens += new.num_tokens;
            sum.num_answered += new.num_answered;
            sum.num_refused += new.num_refused;
            sum.num_left += new.num_left;
            for (kind, num) in &new.failed {
                *sum.failed.entry(kind).or_default() += num;
            }
        }
        for (tenant, num) in &other.computed {
            self.computed(tenant, *num);
        }
        self.num_preempted += other.num_preempted;
        self.num_moved += other.num_moved;
        self.num_steps += other.num_steps;
        self.num_events += other.num_events;
        self.offered += other.offered;
        self.busy += other.busy;
        self.duration += other.duration;
        self.longest_wait = self.longest_wait.max(other.longest_wait);
    }

    /// A table for people.
    pub fn table(&self) -> String {
        let mut lines = vec![format!(
            "{:<12} {:>8} {:>7} {:>26} {:>26} {:>8}",
            "priority",
            "answered",
            "others",
            "first token p50/95/99 ms",
            "next token p50/95/99 ms",
            "token/s"
        )];
        for priority in Priority::ALL.into_iter().rev() {
            let of = &self.priorities[priority.index()];
            let num_failed = of.failed.values().sum::<u64>() + of.num_refused + of.num_left;
            if of.num_answered + num_failed == 0 {
                continue;
            }
            lines.push(format!(
                "{:<12} {:>8} {:>7} {:>26} {:>26} {:>8.1}",
                priority.name(),
                of.num_answered,
                num_failed,
                percentiles(&of.first_token),
                percentiles(&of.next_token),
                of.num_tokens as f64 / self.duration.as_secs_f64().max(1e-9),
            ));
        }
        let mut others: BTreeMap<&str, u64> = BTreeMap::new();
        for of in &self.priorities {
            *others.entry("refused").or_default() += of.num_refused;
            *others.entry("left").or_default() += of.num_left;
            for (kind, num) in &of.failed {
                *others.entry(kind).or_default() += num;
            }
        }
        lines.push(format!("others: {others:?}"));
        let all: u64 = self.priorities.iter().map(|of| of.num_tokens).sum();
        lines.push(format!(
            "{all} tokens in {:.1} s of {} steps, bubbles {:.1} %, {} preempted, {} moved, longest \
             wait {:.1} s",
            self.duration.as_secs_f64(),
            self.num_steps,
            100.0 * self.bubble(),
            self.num_preempted,
            self.num_moved,
            self.longest_wait.as_secs_f64(),
        ));
        lines.join("\n")
    }
}

/// The value below which this share of them lies.
pub fn percentile(values: &[Duration], share: f64) -> Duration {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    let at = (sorted.len() as f64 * share) as usize;
    sorted.get(at.min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
}

fn percentiles(values: &[Duration]) -> String {
    let millis = |share| percentile(values, share).as_secs_f64() * 1e3;
    format!("{:.1} / {:.1} / {:.1}", millis(0.5), millis(0.95), millis(0.99))
}
