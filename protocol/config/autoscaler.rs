//! `[autoscaler]`

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Config, ConfigError};

/// How many pipelines there are, as load changes.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Autoscaler {
    /// Whether pipelines are added and drained as load changes; `--pipelines 1..4` says so, too.
    /// Each then has the fewest nodes that hold the model.
    pub enabled: bool,
    /// Pipelines at least. 0: the last is given up when nothing was asked for `idle_ms`, and the
    /// first request brings it back.
    pub min_pipelines: u32,
    /// Pipelines at most.
    pub max_pipelines: u32,
    /// Node processes to run as children for `max_pipelines`; for fewer, so many fewer, but no
    /// fewer than `coordinator.local_nodes`. 0: that number, whatever the load.
    pub max_local_nodes: u32,
    /// Tokens in flight that one pipeline is meant for: prompts, and answers so far, of what runs
    /// or waits. It is never meant for more sequences than `scheduler.max_num_seqs`.
    pub target_tokens: u32,
    /// Milliseconds that a request may wait for its turn before a pipeline is added.
    pub target_wait_ms: u64,
    /// Whether requests of priority `offline` count. Otherwise they use what is there.
    pub count_offline: bool,
    /// Share by which load may differ from what the pipelines are meant for, before their number
    /// changes: 0 to 0.5.
    pub tolerance: f64,
    /// Milliseconds over which load is averaged.
    pub smoothing_ms: u64,
    /// Milliseconds that load must ask for more pipelines before they are added.
    pub upscale_delay_ms: u64,
    /// Milliseconds that load must ask for fewer pipelines before the others are drained.
    pub downscale_delay_ms: u64,
    /// Milliseconds without a request before the last pipeline is given up, where
    /// `min_pipelines` is 0.
    pub idle_ms: u64,
    /// A program and its arguments that bring nodes or take them away, run when their number is to
    /// change; no shell reads it. Its environment says what: AUTOGLM_SCALE is ADD or REMOVE,
    /// AUTOGLM_NODES how many nodes there are to be, AUTOGLM_PIPELINES for how many pipelines,
    /// AUTOGLM_HOSTNAMES which machines' nodes are idle. Empty: none.
    pub command: Vec<String>,
    /// Milliseconds that it may take.
    pub command_timeout_ms: u64,
    /// Decisions that are kept to be shown; older ones are forgotten.
    pub max_decisions: usize,
}

impl Default for Autoscaler {
    fn default() -> Self {
        Self {
            enabled: false,
            min_pipelines: 1,
            max_pipelines: 4,
            max_local_nodes: 0,
            target_tokens: 8192,
            target_wait_ms: 1000,
            count_offline: false,
            tolerance: 0.1,
            smoothing_ms: 5000,
            upscale_delay_ms: 10_000,
            downscale_delay_ms: 300_000,
            idle_ms: 600_000,
            command: Vec::new(),
            command_timeout_ms: 60_000,
            max_decisions: 64,
        }
    }
}

impl Autoscaler {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if self.min_pipelines > self.max_pipelines {
            return Err(ConfigError::Value {
                key: "autoscaler.min_pipelines",
                value: self.min_pipelines.to_string(),
                expected: "must be at most autoscaler.max_pipelines",
            });
        }
        if !(0.0..=0.5).contains(&self.tolerance) {
            return Err(ConfigError::Value {
                key: "autoscaler.tolerance",
                value: self.tolerance.to_string(),
                expected: "must be from 0 to 0.5",
            });
        }
        Ok(())
    }
}

/// A number, or the least and the most that it may be: `2`, `1..4`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CountRange {
    /// The least.
    pub min: u32,
    /// The most, where they differ.
    pub max: Option<u32>,
}

impl FromStr for CountRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse::<u32>().ok();
        let extent = match text.split_once("..") {
            None => number(text).map(|min| Self { min, max: None }),
            Some((min, max)) => number(min)
                .zip(number(max))
                .filter(|(min, max)| min <= max)
                .map(|(min, max)| Self { min, max: Some(max) }),
        };
        extent.ok_or_else(|| "must be a number, or the least and the most as in 1..4".to_owned())
    }
}

impl Config {
    /// So many pipelines: a range is left to the autoscaler.
    pub fn set_pipelines(&mut self, pipelines: CountRange) {
        self.autoscaler.enabled = pipelines.max.is_some();
        match pipelines.max {
            None => self.coordinator.pipelines = pipelines.min,
            Some(max) => {
                (self.autoscaler.min_pipelines, self.autoscaler.max_pipelines) =
                    (pipelines.min, max);
            }
        }
    }

    /// So many child processes: of a range, as many as the autoscaler's pipelines need. Without
    /// another word there is a pipeline for each.
    pub fn set_local_nodes(&mut self, local_nodes: CountRange) {
        self.coordinator.local_nodes = local_nodes.min;
        if let Some(max) = local_nodes.max {
            self.autoscaler.max_local_nodes = max;
            self.set_pipelines(local_nodes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_of_pipelines_is_the_autoscalers() {
        let mut config = Config::default();
        config.set_pipelines("3".parse().unwrap());
        assert_eq!((config.coordinator.pipelines, config.autoscaler.enabled), (3, false));
        config.set_pipelines("0..5".parse().unwrap());
        let Autoscaler { enabled, min_pipelines, max_pipelines, .. } = config.autoscaler;
        assert_eq!((enabled, min_pipelines, max_pipelines), (true, 0, 5));
        config.set_local_nodes("1..4".parse().unwrap());
        assert_eq!((config.autoscaler.min_pipelines, config.autoscaler.max_pipelines), (1, 4));
        assert_eq!((config.coordinator.local_nodes, config.autoscaler.max_local_nodes), (1, 4));
        config.set_local_nodes("2".parse().unwrap());
        assert_eq!((config.coordinator.local_nodes, config.autoscaler.max_local_nodes), (2, 4));
        for text in ["", "..", "1..", "..4", "4..1", "-1", "1...4", "1..4..", "many"] {
            let said = text.parse::<CountRange>().unwrap_err();
            assert!(said.starts_with("must be a number"), "{text}: {said}");
        }
    }
}
