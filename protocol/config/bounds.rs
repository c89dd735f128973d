//! Which numbers each key may have: what is refused here would pass, and fail badly later.
//!
//! One table, so that no key is forgotten: tests walk all keys that there are.

use serde::Serialize;

use super::{Config, ConfigError, Model, Traces, Transport};

const MINUTE_MS: u64 = 60_000;
const HOUR_MS: u64 = 60 * MINUTE_MS;
const DAY_MS: u64 = 24 * HOUR_MS;

/// Each key that is a whole number, with the least and the most that work. Where 0 has a meaning of
/// its own, it is the least.
const BOUNDS: &[(&str, u64, u64)] = &[
    ("model.max_model_len", 0, 1 << 24),
    ("coordinator.local_nodes", 0, 1024),
    // Each stage has a step under way, and places for it in memory.
    ("coordinator.stages", 0, 1024),
    ("coordinator.pipelines", 0, 1024),
    ("coordinator.max_failed_proofs", 1, 1 << 20),
    ("coordinator.probe_bytes", 0, 1 << 30),
    ("coordinator.probe_timeout_ms", 1, HOUR_MS),
    ("coordinator.probe_interval_ms", 0, DAY_MS),
    ("coordinator.max_sources", 0, 1024),
    ("coordinator.settle_ms", 0, DAY_MS),
    ("coordinator.rejoin_ms", 0, HOUR_MS),
    ("coordinator.max_node_failures", 0, 1000),
    ("coordinator.node_failure_window_ms", 1, DAY_MS),
    ("coordinator.quarantine_ms", 1, DAY_MS),
    ("coordinator.max_quarantine_ms", 1, DAY_MS),
    ("coordinator.load_timeout_ms", 1000, DAY_MS),
    ("coordinator.step_timeout_ms", 1000, DAY_MS),
    ("coordinator.drain_timeout_ms", 0, DAY_MS),
    ("coordinator.pipeline_drain_timeout_ms", 0, DAY_MS),
    // They are held in memory.
    ("http.max_body_bytes", 1, 1 << 30),
    ("http.max_dropped_bytes", 0, 1 << 40),
    ("http.max_concurrent_requests", 1, 1 << 20),
    ("http.max_connections", 2, 1 << 20),
    ("http.reserved_connections", 1, 1 << 16),
    ("http.idle_timeout_ms", 1, DAY_MS),
    ("http.body_timeout_ms", 1, DAY_MS),
    ("http.send_timeout_ms", 1, DAY_MS),
    ("http.max_logprobs", 0, 1 << 20),
    ("http.max_choices", 1, 1024),
    ("http.max_request_sequences", 1, 1 << 20),
    ("http.max_stop_strings", 0, 1 << 16),
    ("http.max_stop_chars", 1, 1 << 20),
    ("http.max_logit_bias", 0, 1 << 20),
    ("http.default_max_tokens", 0, 1 << 24),
    ("http.max_template_fuel", 1, 1 << 40),
    // The runtime has so many threads for work that blocks.
    ("http.max_parsing_threads", 1, 256),
    ("http.max_parsing_bytes", 1024, 1 << 40),
    ("http.max_rendered_bytes", 1, 1 << 30),
    ("http.max_grammar_bytes", 1, 1 << 24),
    ("http.max_grammar_symbols", 1, 1 << 24),
    ("http.max_kept_grammars", 0, 1 << 16),
    ("scheduler.max_queued_requests", 1, 1 << 20),
    ("scheduler.max_num_seqs", 1, 1 << 16),
    // A grid of a GPU has so many rows, and a kernel of each token one.
    ("scheduler.max_batched_tokens", 1, 65_535),
    ("scheduler.max_blocks", 0, 1 << 24),
    ("scheduler.reserved_tokens", 0, 1 << 24),
    ("scheduler.target_step_ms", 0, HOUR_MS),
    ("scheduler.aging_ms", 0, 365 * DAY_MS),
    ("scheduler.offline_aging_ms", 0, 365 * DAY_MS),
    ("scheduler.max_passed", 0, 1 << 20),
    ("scheduler.pin_after_hits", 1, 1 << 20),
    ("scheduler.max_pipeline_wait_ms", 0, DAY_MS),
    ("scheduler.max_explained_requests", 0, 1 << 20),
    ("scheduler.max_explained_decisions", 1, 1 << 10),
    ("batch.max_file_bytes", 1, 1 << 40),
    ("batch.max_stored_bytes", 1, 1 << 50),
    // A bit and a hash of each are held in memory.
    ("batch.max_lines", 1, 1 << 24),
    ("batch.max_line_bytes", 1, 1 << 30),
    ("batch.max_open_jobs", 1, 1 << 20),
    ("batch.max_running_jobs", 1, 1024),
    ("batch.max_window_hours", 1, 365 * 24),
    ("batch.max_lines_in_flight", 1, 1 << 16),
    ("batch.window_lines", 1, 1 << 20),
    ("batch.window_bytes", 1, 1 << 30),
    ("batch.max_commit_rows", 1, 1 << 16),
    ("batch.commit_wait_ms", 0, 10_000),
    ("batch.max_line_retries", 0, 1000),
    ("batch.retry_ms", 1, HOUR_MS),
    ("batch.max_retry_ms", 1, DAY_MS),
    ("autoscaler.min_pipelines", 0, 1024),
    ("autoscaler.max_pipelines", 1, 1024),
    ("autoscaler.max_local_nodes", 0, 1024),
    ("autoscaler.target_tokens", 1, 1 << 30),
    ("autoscaler.target_wait_ms", 0, DAY_MS),
    ("autoscaler.smoothing_ms", 0, DAY_MS),
    ("autoscaler.upscale_delay_ms", 0, DAY_MS),
    ("autoscaler.downscale_delay_ms", 0, DAY_MS),
    ("autoscaler.idle_ms", 0, 365 * DAY_MS),
    ("autoscaler.command_timeout_ms", 1, HOUR_MS),
    ("autoscaler.max_decisions", 0, 1 << 10),
    // Each has an entry in memory.
    ("durable.max_requests", 0, 1 << 20),
    ("durable.keep_ms", 0, 365 * DAY_MS),
    ("durable.keep_read_ms", 0, 365 * DAY_MS),
    ("durable.max_resume_wait_ms", 0, DAY_MS),
    // Beyond an hour nobody waits for a death.
    ("transport.keep_alive_ms", 1, HOUR_MS),
    ("transport.idle_timeout_ms", 2, 2 * HOUR_MS),
    ("transport.connect_timeout_ms", 1, HOUR_MS),
    ("transport.max_frame_bytes", 1, 1 << 30),
    // One is on its way while another waits.
    ("transport.max_buffered_frames", 2, 1 << 16),
    // A window below a packet or two makes no progress.
    ("transport.control_window_bytes", 16 << 10, 1 << 30),
    ("transport.data_window_bytes", 16 << 10, 1 << 30),
    // A node takes two.
    ("transport.max_connections", 2, 1 << 16),
    ("transport.max_unvalidated_handshakes", 1, 1 << 16),
    // The authority's own certificate lasts ten years.
    ("transport.certificate_days", 1, 3650),
    ("transport.piece_bytes", 4 << 10, 64 << 20),
    ("transport.max_pieces", 1, 256),
    ("transport.piece_timeout_ms", 1, HOUR_MS),
    // A point is closed at a tick, of which there are two a second.
    ("metrics.history_interval_ms", 500, DAY_MS),
    ("metrics.history_points", 0, 1 << 16),
    ("metrics.max_events", 0, 1 << 16),
    ("traces.steps_every", 1, 1 << 30),
    ("traces.max_content_bytes", 0, 1 << 24),
    ("traces.max_queued_spans", 1, 1 << 20),
    ("traces.max_batch_spans", 1, 1 << 16),
    ("traces.export_interval_ms", 1, HOUR_MS),
    ("traces.export_timeout_ms", 1, HOUR_MS),
];

impl Config {
    /// # Errors
    /// When a value can't work, alone or beside another; the error says what would.
    pub fn check(&self) -> Result<(), ConfigError> {
        let file = table(self)?;
        for (section, keys) in file.iter().filter_map(|(name, it)| Some((name, it.as_table()?))) {
            within_bounds(section, keys)?;
        }
        let refuse = |key, value: u32, expected| {
            Err(ConfigError::Value { key, value: value.to_string(), expected })
        };
        let (coordinator, transport) = (&self.coordinator, &self.transport);
        self.model.check()?;
        let num_stages = coordinator.num_stages();
        if coordinator.stages != 0 && coordinator.stages as usize != num_stages {
            let expected = "must be 0, or as many as coordinator.layers has numbers";
            return refuse("coordinator.stages", coordinator.stages, expected);
        }
        let layers = &coordinator.layers;
        if layers.contains(&0) || layers.len() >= transport.max_buffered_frames as usize {
            let (key, value) = ("coordinator.layers", format!("{layers:?}"));
            let expected = "must be numbers above 0, fewer than transport.max_buffered_frames";
            return Err(ConfigError::Value { key, value, expected });
        }
        // Every step under way may wait at one place: one for each stage, and one ahead.
        if coordinator.stages >= transport.max_buffered_frames {
            let expected = "must be below transport.max_buffered_frames";
            return refuse("coordinator.stages", coordinator.stages, expected);
        }
        let local_nodes = coordinator.local_nodes.max(self.autoscaler.max_local_nodes);
        if transport.max_connections < 2 * local_nodes.max(coordinator.stages) {
            let expected = "must be at least twice coordinator.local_nodes (or \
                            autoscaler.max_local_nodes), and coordinator.stages";
            return refuse("transport.max_connections", transport.max_connections, expected);
        }
        let gain = coordinator.recut_gain;
        if !(0.0..=10.0).contains(&gain) {
            let (key, expected) = ("coordinator.recut_gain", "must be from 0 to 10");
            return Err(ConfigError::Value { key, value: gain.to_string(), expected });
        }
        let min_share = self.scheduler.min_share;
        if !(0.0..=0.25).contains(&min_share) {
            let (key, expected) = ("scheduler.min_share", "must be from 0 to 0.25");
            return Err(ConfigError::Value { key, value: min_share.to_string(), expected });
        }
        let pinned = self.scheduler.max_pinned_share;
        if !(0.0..=1.0).contains(&pinned) {
            let (key, expected) = ("scheduler.max_pinned_share", "must be from 0 to 1");
            return Err(ConfigError::Value { key, value: pinned.to_string(), expected });
        }
        self.http.check()?;
        self.autoscaler.check()?;
        if !is_filter(&self.log.level) {
            let expected = "must be error, warn, info, debug, trace, off, or a filter such as \
                            info,transport=debug";
            return Err(ConfigError::Value {
                key: "log.level",
                value: self.log.level.clone(),
                expected,
            });
        }
        self.transport.check()?;
        self.traces.check()
    }
}

impl Model {
    /// # Errors
    /// When no node can be as is asked for.
    fn check(&self) -> Result<(), ConfigError> {
        let refuse = |key, value: &str, expected| {
            Err(ConfigError::Value { key, value: value.to_owned(), expected })
        };
        if let Some(pool) = self.pools.iter().find(|pool| pool.is_empty()) {
            return refuse("model.pools", pool, "must be names of pools, as tokens are for");
        }
        let is_label =
            |label: &&String| label.split_once('=').is_some_and(|(key, _)| !key.is_empty());
        match self.labels.iter().find(|label| !is_label(label)) {
            Some(label) => refuse("model.labels", label, "must be KEY=VALUE, as in rack=7"),
            None => Ok(()),
        }
    }
}

/// Whether it says what is logged: a word that is no level would be taken for a part of the
/// program, and all the others would be silent.
fn is_filter(level: &str) -> bool {
    let is_level = |word: &str| {
        ["off", "error", "warn", "info", "debug", "trace"].contains(&word.to_lowercase().as_str())
    };
    level.split(',').map(str::trim).all(|directive| match directive.rsplit_once('=') {
        Some((part, level)) => !part.is_empty() && is_level(level),
        None => is_level(directive),
    })
}

impl Transport {
    /// What a node is told by its coordinator is checked too.
    ///
    /// # Errors
    /// When a value can't work.
    pub fn check(&self) -> Result<(), ConfigError> {
        within_bounds("transport", &table(self)?)?;
        if self.idle_timeout_ms / 2 < self.keep_alive_ms {
            return Err(ConfigError::Value {
                key: "transport.idle_timeout_ms",
                value: self.idle_timeout_ms.to_string(),
                expected: "must be at least twice transport.keep_alive_ms",
            });
        }
        Ok(())
    }
}

impl Traces {
    /// # Errors
    /// When spans can't be sent so.
    pub fn check(&self) -> Result<(), ConfigError> {
        within_bounds("traces", &table(self)?)?;
        let refuse =
            |key, value: String, expected| Err(ConfigError::Value { key, value, expected });
        if !self.endpoint.is_empty() && !self.endpoint.starts_with("http://") {
            let expected = "must be http://HOST:PORT of a collector (for one that speaks TLS, run \
                            another beside this process that passes on)";
            return refuse("traces.endpoint", self.endpoint.clone(), expected);
        }
        if !(0.0..=1.0).contains(&self.sample_ratio) {
            let expected = "must be from 0 to 1";
            return refuse("traces.sample_ratio", self.sample_ratio.to_string(), expected);
        }
        if self.max_batch_spans > self.max_queued_spans {
            let expected = "must be from 1 to traces.max_queued_spans";
            return refuse("traces.max_batch_spans", self.max_batch_spans.to_string(), expected);
        }
        Ok(())
    }
}

/// Keys and values of a section, or of all of them.
fn table(section: &impl Serialize) -> Result<toml::Table, ConfigError> {
    // A file's numbers end at 2^63; what came over a network may not.
    toml::Table::try_from(section).map_err(|cause| ConfigError::Parse(cause.to_string()))
}

fn within_bounds(section: &str, keys: &toml::Table) -> Result<(), ConfigError> {
    for (key, value) in keys {
        let Some(number) = value.as_integer() else { continue };
        let name = format!("{section}.{key}");
        // A test walks all keys, so none is without.
        let Some(&(key, least, most)) = BOUNDS.iter().find(|(key, ..)| *key == name) else {
            continue;
        };
        if !u64::try_from(number).is_ok_and(|number| (least..=most).contains(&number)) {
            return Err(ConfigError::Bounds { key, value: number, least, most });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every key of every section that is a whole number, with its default.
    fn numbers() -> Vec<(String, String, i64)> {
        let file = table(&Config::default()).unwrap();
        let sections = file.iter().map(|(section, keys)| (section, keys.as_table().unwrap()));
        sections
            .flat_map(|(section, keys)| {
                let numbers = keys.iter().filter_map(|(key, it)| Some((key, it.as_integer()?)));
                numbers.map(|(key, number)| (section.clone(), key.clone(), number))
            })
            .collect()
    }

    fn with(section: &str, key: &str, value: i64) -> Result<Config, ConfigError> {
        Config::parse(&format!("[{section}]\n{key} = {value}\n"))
    }

    #[test]
    fn every_number_has_its_bounds_and_nothing_else_has() {
        let mut keys: Vec<_> =
            numbers().iter().map(|(section, key, _)| format!("{section}.{key}")).collect();
        let mut bounds: Vec<_> = BOUNDS.iter().map(|(key, ..)| (*key).to_owned()).collect();
        keys.sort();
        bounds.sort();
        assert_eq!(keys, bounds);
    }

    /// Goal: whatever a number is, it works or is refused by a sentence that says what would.
    /// Method: every key at 0, 1, its bounds, beyond them, and at the most that types and files
    /// hold.
    #[test]
    fn every_number_works_or_is_refused_with_what_would_be_accepted() {
        for (section, key, default) in numbers() {
            let name = format!("{section}.{key}");
            let &(_, least, most) = BOUNDS.iter().find(|(key, ..)| *key == name).unwrap();
            let (least, most) = (least as i64, most as i64);
            assert!((least..=most).contains(&default), "{name} is {default} by default");
            let edges = [0, 1, least - 1, least, most, most + 1, u32::MAX.into(), i64::MAX, -1];
            for value in edges {
                match with(&section, &key, value) {
                    Ok(_) => assert!((least..=most).contains(&value), "{name} = {value}"),
                    // A type may be narrower than the bounds.
                    Err(ConfigError::Parse(said)) => {
                        assert!(!(0..=u32::MAX.into()).contains(&value), "{name}: {said}");
                        assert!(said.contains(&key), "{said}");
                    }
                    Err(said @ ConfigError::Bounds { .. }) => {
                        assert!(!(least..=most).contains(&value), "{name} = {value}: {said}");
                        let expected = format!("{name} = {value}: must be from {least} to {most}");
                        assert_eq!(said.to_string(), expected);
                    }
                    // It doesn't go with the defaults of others, which it names.
                    Err(said @ ConfigError::Value { .. }) => {
                        let said = said.to_string();
                        assert!((least..=most).contains(&value), "{name} = {value}: {said}");
                        assert!(said.contains(&name) && said.contains("must be"), "{said}");
                    }
                }
            }
        }
    }

    #[test]
    fn values_that_do_not_go_together_are_refused() {
        for (file, expected) in [
            ("[coordinator]\nstages = 17", "coordinator.stages = 17: must be below transport.ma"),
            ("[coordinator]\nstages = 2\nlayers = [3]", "coordinator.stages = 2: must be 0, or as"),
            ("[coordinator]\nlayers = [3, 0]", "coordinator.layers = [3, 0]: must be numbers abov"),
            ("[model]\nlabels = [\"rack\"]", "model.labels = rack: must be KEY=VALUE"),
            ("[model]\npools = [\"\"]", "model.pools = : must be names of pools"),
            ("[coordinator]\nlocal_nodes = 129", "transport.max_connections = 256: must be at lea"),
            ("[transport]\nkeep_alive_ms = 900", "transport.idle_timeout_ms = 1400: must be at le"),
            (
                "[autoscaler]\nmin_pipelines = 5",
                "autoscaler.min_pipelines = 5: must be at most autoscaler.max_pipelines",
            ),
            (
                "[autoscaler]\nmax_local_nodes = 129",
                "transport.max_connections = 256: must be at least twice coordinator.local_nodes (",
            ),
            ("[autoscaler]\ntolerance = nan", "autoscaler.tolerance = NaN: must be from 0 to 0.5"),
            (
                "[scheduler]\nmax_batched_tokens = 65536",
                "scheduler.max_batched_tokens = 65536: must be from 1 to 65535",
            ),
            ("[scheduler]\nmin_share = 0.3", "scheduler.min_share = 0.3: must be from 0 to 0.25"),
            (
                "[scheduler]\nmax_pinned_share = 1.5",
                "scheduler.max_pinned_share = 1.5: must be from 0 to 1",
            ),
            (
                "[log]\nlevel = \"inof\"",
                "log.level = inof: must be error, warn, info, debug, trace",
            ),
            ("[log]\nlevel = \"info,transport\"", "log.level = info,transport: must be error"),
            ("[scheduler]\nmin_share = nan", "scheduler.min_share = NaN: must be from 0 to 0.25"),
        ] {
            let said = Config::parse(file).unwrap_err().to_string();
            assert!(said.starts_with(expected), "{said}");
        }
        Config::parse("[log]\nlevel = \"WARN, transport=debug,wire::x[s{f=1}]=off\"").unwrap();
        let file = "[coordinator]\nstages = 17\n[transport]\nmax_buffered_frames = 18";
        Config::parse(file).unwrap();
    }

    #[test]
    fn numbers_from_a_network_are_checked_too() {
        Transport::default().check().unwrap();
        for (name, transport) in [
            ("keep_alive_ms", Transport { keep_alive_ms: 0, ..Transport::default() }),
            ("max_connections", Transport { max_connections: 1, ..Transport::default() }),
            ("idle_timeout_ms", Transport { idle_timeout_ms: 499, ..Transport::default() }),
            ("u64", Transport { connect_timeout_ms: u64::MAX, ..Transport::default() }),
        ] {
            let said = transport.check().unwrap_err().to_string();
            assert!(said.contains(name), "{said}");
        }
    }
}
