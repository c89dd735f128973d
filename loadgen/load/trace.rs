//! Trace files: when requests came to another server, and how long they were.

use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::pace::Arrivals;
use super::workload::PromptSource;
use crate::distribution::MAX_TOKENS;

/// Bytes of a trace file.
const MAX_BYTES: u64 = 1 << 30;

/// The unit of a trace's timestamps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Unit {
    /// Milliseconds, as in Mooncake's traces.
    Milliseconds,
    /// Seconds, as in BurstGPT's.
    Seconds,
}

/// What requests were when they came.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    /// Since the first.
    times: Vec<Duration>,
    /// Tokens of prompt and answer, as far as the trace tells.
    lengths: Vec<(Option<u32>, Option<u32>)>,
}

#[derive(Deserialize)]
struct Line {
    timestamp: f64,
    input_length: Option<u32>,
    output_length: Option<u32>,
}

impl Trace {
    /// Reads a file of lines `{"timestamp": 27, "input_length": 6758, "output_length": 500}`,
    /// the lengths optional, the timestamps ascending. Other fields are skipped. Time goes
    /// `speed` times as fast.
    ///
    /// # Errors
    /// When it can't be read, a line can't be understood, or there is none.
    pub fn read(path: &Path, unit: Unit, speed: f64) -> Result<Self> {
        let name = path.display();
        let num_bytes = std::fs::metadata(path).map(|file| file.len()).unwrap_or(0);
        if num_bytes > MAX_BYTES {
            bail!("{name} is longer than {MAX_BYTES} bytes");
        }
        let text = std::fs::read_to_string(path).with_context(|| format!("can't read {name}"))?;
        let mut trace = Self { times: Vec::new(), lengths: Vec::new() };
        let mut first = None;
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        for (index, line) in lines {
            trace
                .add(line, unit, speed, &mut first)
                .with_context(|| format!("{name}, line {}", index + 1))?;
        }
        if trace.times.is_empty() {
            bail!("{name} holds no request");
        }
        Ok(trace)
    }

    fn add(&mut self, line: &str, unit: Unit, speed: f64, first: &mut Option<f64>) -> Result<()> {
        let line: Line = serde_json::from_str(line)?;
        if line.input_length.max(line.output_length) > Some(MAX_TOKENS) {
            bail!("a length of more than {MAX_TOKENS} tokens");
        }
        let unit = match unit {
            Unit::Milliseconds => 1e-3,
            Unit::Seconds => 1.0,
        };
        let since = line.timestamp - *first.get_or_insert(line.timestamp);
        let Ok(time) = Duration::try_from_secs_f64(since * unit / speed) else {
            bail!("the timestamp {} is before the first", line.timestamp);
        };
        if self.times.last().is_some_and(|&last| time < last) {
            bail!("the timestamp {} is before the one above it: sort the file", line.timestamp);
        }
        self.times.push(time);
        self.lengths.push((line.input_length, line.output_length));
        Ok(())
    }

    /// When its requests came.
    pub fn arrivals(&self) -> Arrivals {
        Arrivals::Trace(Arc::from(self.times.as_slice()))
    }

    /// Its prompts, if it tells any length.
    pub fn source(&self) -> Option<PromptSource> {
        let tells = self.lengths.iter().any(|lengths| *lengths != (None, None));
        tells.then(|| PromptSource::Lengths(Arc::from(self.lengths.as_slice())))
    }
}

impl FromStr for Unit {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "ms" => Ok(Self::Milliseconds),
            "s" => Ok(Self::Seconds),
            _ => Err(format!("{name:?} is no unit of a trace: use ms or s")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, speed: f64) -> Result<Trace> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Trace::read(file.path(), Unit::Milliseconds, speed)
    }

    #[test]
    fn a_trace_tells_times_and_lengths() {
        let text = "{\"timestamp\": 1000, \"input_length\": 7, \"output_length\": 3}\n\n\
                    {\"timestamp\": 3500, \"hash_ids\": [1]}\n";
        let trace = read(text, 2.0).unwrap();
        assert_eq!(trace.times, [0, 1250].map(Duration::from_millis));
        assert_eq!(trace.lengths, [(Some(7), Some(3)), (None, None)]);
        assert!(trace.source().is_some());
        assert!(read("{\"timestamp\": 5}", 1.0).unwrap().source().is_none());
    }

    #[test]
    fn a_line_that_is_no_request_is_named() {
        for (bad, said) in [
            ("{\"time\": 3}", "missing field `timestamp`"),
            ("{\"timestamp\": 1e999}", "line 2"),
            ("{\"timestamp\": 4}", "before the first"),
            ("{\"timestamp\": 6, \"input_length\": 2000000}", "more than 1048576 tokens"),
            ("x", "line 2"),
        ] {
            let error =
                format!("{:#}", read(&format!("{{\"timestamp\": 5}}\n{bad}"), 1.0).unwrap_err());
            assert!(error.contains("line 2: ") && error.contains(said), "{error}");
        }
        assert!(read(" \n", 1.0).unwrap_err().to_string().contains("holds no request"));
    }
}
