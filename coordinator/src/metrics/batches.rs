//! Batch jobs: what is answered, what waits, and how much time is left.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use super::{KindLabels, Metrics, StateLabels};

/// How it is with all jobs that haven't ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct OpenJobs {
    pub num: usize,
    /// Their lines that aren't answered.
    pub num_waiting: i64,
    /// Seconds since the oldest was handed in.
    pub oldest_s: i64,
    /// Seconds until the first is late.
    pub slack_s: i64,
}

/// Gauges of jobs that are open, counters of lines that are durable.
#[derive(Debug, Default)]
pub(super) struct Batches {
    open: Gauge,
    waiting: Gauge,
    oldest: Gauge,
    slack: Gauge,
    lines: Family<StateLabels, Counter>,
    tokens: Family<KindLabels, Counter>,
}

impl Batches {
    pub(super) fn register(&self, ours: &mut Registry) {
        let help = "Batch jobs that haven't ended";
        ours.register("batch_jobs_open", help, self.open.clone());
        let help = "Lines of open batch jobs without an answer";
        ours.register("batch_job_lines_waiting", help, self.waiting.clone());
        let help = "Age of the oldest open batch job";
        ours.register_with_unit("batch_job_oldest_age", help, Unit::Seconds, self.oldest.clone());
        let help = "Until the first open batch job is late";
        ours.register_with_unit(
            "batch_job_deadline_slack",
            help,
            Unit::Seconds,
            self.slack.clone(),
        );
        for state in ["completed", "failed"] {
            drop(self.lines.get_or_create(&StateLabels { state }));
        }
        let help = "Lines of batch jobs that are answered, by how";
        ours.register("batch_job_lines", help, self.lines.clone());
        let help = "Tokens of lines that are answered: prompt, cached (of those), generated";
        ours.register("batch_job_tokens", help, self.tokens.clone());
    }

    fn open(&self, jobs: OpenJobs) {
        self.open.set(jobs.num as i64);
        self.waiting.set(jobs.num_waiting);
        self.oldest.set(jobs.oldest_s);
        self.slack.set(jobs.slack_s);
    }

    fn answered(&self, is_failed: bool, num_tokens: [i64; 3]) {
        let state = if is_failed { "failed" } else { "completed" };
        self.lines.get_or_create(&StateLabels { state }).inc();
        for (kind, num) in ["prompt", "cached", "generated"].into_iter().zip(num_tokens) {
            self.tokens.get_or_create(&KindLabels { kind }).inc_by(num.max(0).unsigned_abs());
        }
    }
}

impl Metrics {
    pub(crate) fn open_jobs(&self, jobs: OpenJobs) {
        if self.is_on {
            self.batches.open(jobs);
        }
    }

    /// A line of a batch job is durable: whether it failed, and tokens of its prompt, those of them
    /// that need not be computed, tokens of its answer.
    pub(crate) fn line_answered(&self, is_failed: bool, num_tokens: [i64; 3]) {
        if self.is_on {
            self.batches.answered(is_failed, num_tokens);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_are_told_by_what_waits_and_lines_by_what_became_of_them() {
        let metrics = Metrics::new("m", &protocol::config::Metrics::default());
        metrics.open_jobs(OpenJobs { num: 2, num_waiting: 7, oldest_s: 60, slack_s: 30 });
        metrics.line_answered(false, [10, 6, 3]);
        metrics.line_answered(true, [0; 3]);
        let text = metrics.text();
        for line in [
            "autoglm_batch_jobs_open 2",
            "autoglm_batch_job_lines_waiting 7",
            "autoglm_batch_job_oldest_age_seconds 60",
            "autoglm_batch_job_deadline_slack_seconds 30",
            "autoglm_batch_job_lines_total{state=\"completed\"} 1",
            "autoglm_batch_job_lines_total{state=\"failed\"} 1",
            "autoglm_batch_job_tokens_total{kind=\"prompt\"} 10",
            "autoglm_batch_job_tokens_total{kind=\"cached\"} 6",
        ] {
            assert!(text.lines().any(|it| it == line), "{line}\n{text}");
        }
        // Nobody else's series has one of these names.
        let names = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        let mut names: Vec<_> = names.map(|line| line.split(' ').next().unwrap()).collect();
        let num = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), num);
    }
}
