//! What a pipeline pays for being cut: the time per token over some numbers of stages on one
//! machine, and where it goes.
//!
//! One formula: `t(S) = t1 + h (S - 1)`, fitted by least squares over all rounds. `t` is the time
//! per token of one user's answer, as the client sees it; the layers are the same however they are
//! cut, so `h` is what a hop adds. The same fit of each part of a step says what it is made of.

use serde_json::{Value, json};

use crate::cluster::series;
use loadgen::numbers::median;
use loadgen::report::compare::aligned;
use loadgen::report::statistics::{Slope, slope_interval};

/// How sure an interval is.
const CONFIDENCE: f64 = 0.95;

/// Parts of a step, as the server tells them in the names of its series, under the names by which
/// they are shown.
const PARTS: [(&str, &[&str]); 5] = [
    ("compute", &["compute"]),
    ("upload", &["upload"]),
    ("readback", &["readback"]),
    ("QUIC", &["serialise", "send", "transfer"]),
    ("hand-off", &["handoff", "wait"]),
];

/// Where the time of all steps so far went, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepTimes {
    num_steps: f64,
    parts: [f64; PARTS.len()],
}

/// Milliseconds a token, of one answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// So many stages, each on a node process of its own.
    pub num_stages: u32,
    /// As the client saw it.
    pub token: f64,
    parts: [f64; PARTS.len()],
}

impl StepTimes {
    /// Reads them from a server's `/metrics`. None when it doesn't tell them.
    pub fn read(text: &str) -> Option<Self> {
        let mut times =
            Self { num_steps: series(text, "autoglm_step_seconds_count")?, ..Self::default() };
        for ((_, names), time) in PARTS.iter().zip(&mut times.parts) {
            for name in *names {
                // A part that no stage has had yet has no series.
                *time += series(text, &format!("autoglm_stage_{name}_seconds_sum")).unwrap_or(0.0);
            }
        }
        Some(times)
    }
}

impl Sample {
    /// An answer whose tokens took `token` milliseconds each for its client, between two looks at
    /// the server's sums. None when the server computed nothing in between.
    pub fn new(num_stages: u32, token: f64, before: &StepTimes, after: &StepTimes) -> Option<Self> {
        let num_steps = after.num_steps - before.num_steps;
        let mut parts = [0.0; PARTS.len()];
        for (part, (after, before)) in parts.iter_mut().zip(after.parts.iter().zip(before.parts)) {
            *part = (after - before) / num_steps * 1e3;
        }
        (num_steps > 0.0).then_some(Self { num_stages, token, parts })
    }

    /// What is no part of a step: HTTP, the client.
    fn rest(&self) -> f64 {
        self.token - self.parts.iter().sum::<f64>()
    }
}

/// A row of the table: a part of the time per token.
#[derive(Clone, Debug)]
pub struct HopPart {
    /// What time is spent on, as the table names it.
    pub name: &'static str,
    /// Its median in milliseconds for each number of stages.
    pub medians: Vec<f64>,
    /// What a hop adds to it, in milliseconds; none where there is nothing to fit.
    pub hop: Option<Slope>,
}

/// What a hop adds, in rows: the parts of a step, what is left to HTTP and the client, the whole.
pub fn rows(stages: &[u32], samples: &[Sample]) -> Vec<HopPart> {
    let row = |name, of: &dyn Fn(&Sample) -> f64| {
        let with = |num_stages| samples.iter().filter(move |one| one.num_stages == num_stages);
        let medians = stages.iter().map(|&num| median(&with(num).map(of).collect::<Vec<_>>()));
        let points = samples.iter().map(|one| (f64::from(one.num_stages) - 1.0, of(one)));
        let hop = slope_interval(&points.collect::<Vec<_>>(), CONFIDENCE);
        HopPart { name, medians: medians.collect(), hop }
    };
    let mut rows: Vec<_> =
        PARTS.iter().enumerate().map(|(at, (name, _))| row(name, &|one| one.parts[at])).collect();
    rows.push(row("HTTP, client", &Sample::rest));
    rows.push(row("a token", &|one| one.token));
    rows
}

/// A line for each part, with a column for each number of stages.
pub fn table(stages: &[u32], rows: &[HopPart]) -> String {
    let name = |&num: &u32| match num {
        1 => "1 stage".to_owned(),
        _ => format!("{num} stages"),
    };
    let mut head = vec!["ms".to_owned()];
    head.extend(stages.iter().map(name));
    head.extend(["a hop adds", "95 % interval"].map(str::to_owned));
    let mut lines = vec![head];
    for HopPart { name, medians, hop } in rows {
        let mut line = vec![(*name).to_owned()];
        line.extend(medians.iter().map(|ms| format!("{ms:.3}")));
        match hop {
            Some(Slope { slope, low, high }) => {
                line.extend([format!("{slope:.3}"), format!("{low:.3} … {high:.3}")]);
            }
            None => line.push("-".to_owned()),
        }
        lines.push(line);
    }
    aligned(&lines, 1)
}

/// The same as JSON.
pub fn report(stages: &[u32], rows: &[HopPart], samples: &[Sample]) -> Value {
    let rows = rows.iter().map(|HopPart { name, medians, hop }| {
        let hop = hop.map(|hop| json!({"ms": hop.slope, "low": hop.low, "high": hop.high}));
        json!({"part": name, "median_ms": medians, "hop": hop})
    });
    json!({
        "stages": stages,
        "parts": rows.collect::<Vec<_>>(),
        "confidence": CONFIDENCE,
        "samples": samples.iter().map(|one| json!([one.num_stages, one.token])).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str = "\
# TYPE autoglm_step_seconds histogram
autoglm_step_seconds_sum 9.0
autoglm_step_seconds_count 10
autoglm_stage_compute_seconds_sum{stage=\"0\"} 1.0
autoglm_stage_compute_seconds_count{stage=\"0\"} 10
autoglm_stage_handoff_seconds_sum{stage=\"coordinator\"} 0.5
";

    #[test]
    fn sums_of_all_stages_become_milliseconds_a_step() {
        let after = "\
autoglm_step_seconds_count 20
autoglm_stage_compute_seconds_sum{stage=\"0\"} 1.2 # {trace_id=\"a\"} 0.1
autoglm_stage_compute_seconds_sum{stage=\"1\"} 0.1
autoglm_stage_handoff_seconds_sum{stage=\"coordinator\"} 0.51
autoglm_stage_transfer_seconds_sum{stage=\"1\"} 0.02
autoglm_stage_send_seconds_sum{stage=\"1\"} 0.01
";
        let (before, after) = (StepTimes::read(BEFORE).unwrap(), StepTimes::read(after).unwrap());
        let sample = Sample::new(2, 40.0, &before, &after).unwrap();
        for (part, expected) in sample.parts.iter().zip([30.0, 0.0, 0.0, 3.0, 1.0]) {
            assert!((part - expected).abs() < 1e-9, "{sample:?}");
        }
        assert!((sample.rest() - 6.0).abs() < 1e-9);
        assert_eq!(Sample::new(2, 40.0, &before, &before), None);
        assert_eq!(StepTimes::read("<html>"), None);
    }

    #[test]
    fn a_hop_is_what_each_further_stage_adds() {
        let sample = |num_stages: u32, noise: f64| {
            let token = 5.0 + 0.25 * f64::from(num_stages - 1) + noise;
            Sample { num_stages, token, parts: [token, 0.0, 0.0, 0.0, 0.0] }
        };
        let stages = [1, 2, 4];
        let samples: Vec<_> = stages
            .iter()
            .flat_map(|&num| [-0.01, 0.0, 0.01].map(|noise| sample(num, noise)))
            .collect();
        let rows = rows(&stages, &samples);
        let whole = rows.last().unwrap();
        let hop = whole.hop.unwrap();
        assert!((hop.slope - 0.25).abs() < 1e-9 && hop.low < 0.25 && hop.high > 0.25, "{hop:?}");
        assert!(hop.high - hop.low < 0.03, "{hop:?}");
        assert_eq!(whole.medians, [5.0, 5.25, 5.75]);
        assert!(table(&stages, &rows).contains("a hop adds"));
    }
}
