//! Where the time of a step goes, stage by stage.
//!
//! A step's time is divided without rest among the stages and the coordinator, whose own share has
//! the label `stage="coordinator"`. No two machines' clocks are compared:
//!
//! - What happens within a process is measured there ([`StageTiming`]).
//! - `transfer`, the network's share, is what is left of the time that the step was away from the
//!   coordinator ([`Trip::away`]) once the parts of all stages are taken off. That sum is measured;
//!   its division among the ways is an estimate, in proportion to the round trips of their
//!   connections. A way within a process has none.
//! - `encode` and `send` of a stage are those of the frame that it sent before, so the division is
//!   right for sums and means over steps, not for each single one.

use std::fmt::{self, Write};
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use protocol::{PipelineId, StageTiming};

use super::Float;
use crate::trips::Trip;

/// From a hand-off between two threads to a prefill on a slow device.
const SECONDS: [f64; 16] = [
    25e-6, 50e-6, 100e-6, 200e-6, 300e-6, 500e-6, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1,
    0.3, 1.0, 10.0,
];

/// How much of the past the gauge of idleness speaks of, in seconds of a pipeline at work.
const BUBBLE_SECONDS: f64 = 10.0;

/// One pass of one batch through the pipeline.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StepReport<'a> {
    pub pipeline: PipelineId,
    /// When what came of it was recorded.
    pub ended: Instant,
    /// Since it was scheduled.
    pub duration: Duration,
    pub num_tokens: usize,
    /// What its stages say, in their order.
    pub timings: &'a [StageTiming],
    /// Its way, if all of it was seen.
    pub trip: Option<Trip>,
}

/// What the stages of a step don't know of: the network, and the coordinator's own part. Seconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct StepWays {
    /// Round trips of the ways to each stage in order, and back to the coordinator.
    pub rtts: Vec<f64>,
    /// What the network took on each of them.
    pub transfers: Vec<f64>,
    /// Between the coordinator's tasks.
    pub handoff: f64,
    /// Between its frames and bytes.
    pub serialise: f64,
    /// Until QUIC took its bytes.
    pub send: f64,
    /// Bytes of what came back.
    pub num_bytes: u64,
}

impl StepWays {
    /// Of a step, if all of its way was seen.
    pub(crate) fn of(step: &StepReport<'_>) -> Option<Self> {
        let Trip { away, sent, decode, num_bytes } = step.trip?;
        let known = away + sent.encode + sent.write + decode;
        let within = step.timings.iter().map(StageTiming::total_us).sum();
        let transfer = away.saturating_sub(Duration::from_micros(within)).as_secs_f64();
        // The round trip of the way to each stage is known where the way begins.
        let begins = step.timings.iter().map(|timing| f64::from(timing.rtt_us) / 1e6);
        let rtts: Vec<_> = std::iter::once(sent.rtt.as_secs_f64()).chain(begins).collect();
        let all = rtts.iter().sum::<f64>().max(1e-9);
        Some(Self {
            transfers: rtts.iter().map(|rtt| transfer * rtt / all).collect(),
            rtts,
            handoff: step.duration.saturating_sub(known).as_secs_f64(),
            serialise: (sent.encode + decode).as_secs_f64(),
            send: sent.write.as_secs_f64(),
            num_bytes: num_bytes as u64,
        })
    }
}

/// Whose part it is: as many values as the pipeline has stages, and one.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
enum Place {
    Stage(u32),
    Coordinator,
}

impl EncodeLabelValue for Place {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        match self {
            Self::Stage(stage) => write!(encoder, "{stage}"),
            Self::Coordinator => encoder.write_str("coordinator"),
        }
    }
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Labels {
    stage: Place,
}

type Seconds = Counter<f64, AtomicU64>;

/// Every series that is told by stage.
#[derive(Debug)]
pub(super) struct StageMetrics {
    wait: Family<Labels, Histogram, fn() -> Histogram>,
    handoff: Family<Labels, Histogram, fn() -> Histogram>,
    upload: Family<Labels, Histogram, fn() -> Histogram>,
    compute: Family<Labels, Histogram, fn() -> Histogram>,
    readback: Family<Labels, Histogram, fn() -> Histogram>,
    serialise: Family<Labels, Histogram, fn() -> Histogram>,
    send: Family<Labels, Histogram, fn() -> Histogram>,
    transfer: Family<Labels, Histogram, fn() -> Histogram>,
    bytes: Family<Labels, Counter>,
    rtt: Family<Labels, Float>,
    busy: Family<Labels, Seconds>,
    active: Seconds,
    bubble: Family<Labels, Float>,
    recent: Mutex<Recent>,
}

/// The last [`BUBBLE_SECONDS`] or so of the pipeline.
#[derive(Debug, Default)]
struct Recent {
    ended: Option<Instant>,
    active: f64,
    busy: Vec<f64>,
}

fn seconds() -> Histogram {
    Histogram::new(SECONDS)
}

impl StageMetrics {
    pub(super) fn new() -> Self {
        let parts = || Family::new_with_constructor(seconds as fn() -> Histogram);
        Self {
            wait: parts(),
            handoff: parts(),
            upload: parts(),
            compute: parts(),
            readback: parts(),
            serialise: parts(),
            send: parts(),
            transfer: parts(),
            bytes: Family::default(),
            rtt: Family::default(),
            busy: Family::default(),
            active: Seconds::default(),
            bubble: Family::default(),
            recent: Mutex::default(),
        }
    }

    pub(super) fn register(&self, ours: &mut Registry) {
        let parts = [
            ("wait", "Of a step's time: behind other steps", &self.wait),
            ("handoff", "Of a step's time: between tasks and threads", &self.handoff),
            ("upload", "Of a step's time: writing the batch to the device", &self.upload),
            ("compute", "Of a step's time: on the device", &self.compute),
            ("readback", "Of a step's time: reading the device's results", &self.readback),
            ("serialise", "Of a step's time: between frames and bytes", &self.serialise),
            ("send", "Of a step's time: until QUIC took the bytes", &self.send),
            (
                "transfer",
                "Of a step's time: the network's on the way to the stage, by round trips",
                &self.transfer,
            ),
        ];
        for (part, help, family) in parts {
            let name = format!("stage_{part}");
            ours.register_with_unit(name, help, Unit::Seconds, family.clone());
        }
        let help = "Round trip of the connection by which frames come, as QUIC smooths it";
        ours.register_with_unit("stage_rtt", help, Unit::Seconds, self.rtt.clone());
        let help = "Bytes of frames that came over the network";
        ours.register("activation_bytes", help, self.bytes.clone());
        let help = "Upload, compute and readback of all steps";
        ours.register_with_unit("stage_busy", help, Unit::Seconds, self.busy.clone());
        let help = "Time in which a step was under way";
        ours.register_with_unit("pipeline_active", help, Unit::Seconds, self.active.clone());
        let help = "Share of the pipeline's last active seconds in which the stage was not busy";
        ours.register("stage_bubble_ratio", help, self.bubble.clone());
    }

    /// The pipeline is lost: nothing is known of the present of its stages.
    pub(super) fn forget(&self) {
        self.rtt.clear();
        self.bubble.clear();
        *self.recent.lock().unwrap_or_else(PoisonError::into_inner) = Recent::default();
    }

    pub(super) fn step(&self, step: &StepReport<'_>, ways: Option<&StepWays>) {
        let micros = |micros: u32| f64::from(micros) / 1e6;
        for timing in step.timings {
            let at = Labels { stage: Place::Stage(timing.stage.0) };
            let busy = [timing.upload_us, timing.compute_us, timing.readback_us].map(micros);
            self.wait.get_or_create(&at).observe(micros(timing.wait_us));
            self.handoff.get_or_create(&at).observe(micros(timing.handoff_us));
            self.upload.get_or_create(&at).observe(busy[0]);
            self.compute.get_or_create(&at).observe(busy[1]);
            self.readback.get_or_create(&at).observe(busy[2]);
            let serialise = micros(timing.decode_us) + micros(timing.encode_us);
            self.serialise.get_or_create(&at).observe(serialise);
            self.send.get_or_create(&at).observe(micros(timing.send_us));
            self.bytes.get_or_create(&at).inc_by(timing.received_bytes.into());
            self.busy.get_or_create(&at).inc_by(busy.iter().sum::<f64>());
        }
        if let Some(ways) = ways {
            self.ways(step, ways);
        }
        self.idle(step);
    }

    /// What the stages don't know of: the network, and the coordinator's own part.
    fn ways(&self, step: &StepReport<'_>, ways: &StepWays) {
        let at = Labels { stage: Place::Coordinator };
        self.serialise.get_or_create(&at).observe(ways.serialise);
        self.send.get_or_create(&at).observe(ways.send);
        self.handoff.get_or_create(&at).observe(ways.handoff);
        self.bytes.get_or_create(&at).inc_by(ways.num_bytes);
        let ends = step.timings.iter().map(|timing| Place::Stage(timing.stage.0));
        let ends = ends.chain(std::iter::once(Place::Coordinator));
        for ((rtt, transfer), stage) in ways.rtts.iter().zip(&ways.transfers).zip(ends) {
            let at = Labels { stage };
            self.rtt.get_or_create(&at).set(*rtt);
            self.transfer.get_or_create(&at).observe(*transfer);
        }
    }

    /// Steps return in the order in which they began, so each adds what is new of its time.
    fn idle(&self, step: &StepReport<'_>) {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let active = recent
            .ended
            .map_or(step.duration, |last| step.ended.saturating_duration_since(last))
            .min(step.duration)
            .as_secs_f64();
        recent.ended = Some(step.ended);
        self.active.inc_by(active);
        let kept = (-active / BUBBLE_SECONDS).exp();
        recent.active = recent.active * kept + active;
        recent.busy.resize(step.timings.len(), 0.0);
        for (number, timing) in step.timings.iter().enumerate() {
            let busy = [timing.upload_us, timing.compute_us, timing.readback_us];
            let busy = busy.into_iter().map(f64::from).sum::<f64>() / 1e6;
            recent.busy[number] = recent.busy[number] * kept + busy;
            let idle = 1.0 - recent.busy[number] / recent.active.max(1e-9);
            let at = Labels { stage: Place::Stage(timing.stage.0) };
            self.bubble.get_or_create(&at).set(idle.max(0.0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::StageIndex;
    use transport::Sent;

    fn timing(stage: u32, rtt_us: u32) -> StageTiming {
        StageTiming {
            stage: StageIndex(stage),
            decode_us: 10,
            wait_us: 20,
            handoff_us: 30,
            upload_us: 40,
            compute_us: 1000,
            readback_us: 50,
            encode_us: 60,
            send_us: 70,
            rtt_us,
            received_bytes: 100,
        }
    }

    /// The one series of this name and stage; all stages together without one.
    fn value(text: &str, name: &str, stage: Option<&str>) -> f64 {
        let series = match stage {
            Some(stage) => format!("autoglm_stage_{name}{{stage=\"{stage}\"}} "),
            None => format!("autoglm_stage_{name}{{"),
        };
        let lines = text.lines().filter(|line| line.starts_with(&series));
        lines.map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).sum()
    }

    fn counted(steps: &[StepReport<'_>]) -> String {
        let (stages, mut registry) = (StageMetrics::new(), Registry::with_prefix("autoglm"));
        stages.register(&mut registry);
        steps.iter().for_each(|step| stages.step(step, StepWays::of(step).as_ref()));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text
    }

    /// Goal: no part of a step's time is lost or told twice. Method: stages of 1280 us each, with
    /// the ways between them 1, 2 and 1 parts of the network's 440 us.
    #[test]
    fn a_steps_time_is_divided_without_rest() {
        let micros = Duration::from_micros;
        let sent = Sent { encode: micros(5), write: micros(6), rtt: micros(300) };
        let trip = Trip { away: micros(3000), sent, decode: micros(7), num_bytes: 80 };
        let timings = [timing(0, 600), timing(1, 300)];
        let text = counted(&[StepReport {
            pipeline: PipelineId(0),
            ended: Instant::now(),
            duration: micros(3100),
            num_tokens: 1,
            timings: &timings,
            trip: Some(trip),
        }]);
        let parts =
            ["wait", "handoff", "upload", "compute", "readback", "serialise", "send", "transfer"];
        let sum = |part| value(&text, &format!("{part}_seconds_sum"), None);
        let total: f64 = parts.into_iter().map(sum).sum();
        assert!((total - 0.0031).abs() < 1e-9, "{total}\n{text}");
        for (stage, transfer, rtt, handoff) in
            [("0", 110e-6, 0.0003, 30e-6), ("1", 220e-6, 0.0006, 30e-6)].into_iter().chain([(
                "coordinator",
                110e-6,
                0.0003,
                82e-6,
            )])
        {
            let near = |name: &str, expected: f64| {
                let found = value(&text, name, Some(stage));
                assert!((found - expected).abs() < 1e-9, "{name} of {stage}: {found}");
            };
            near("transfer_seconds_sum", transfer);
            near("rtt_seconds", rtt);
            near("handoff_seconds_sum", handoff);
        }
    }

    /// Goal: with steps under way side by side, time counts once. Method: two stages that work
    /// 1 ms each on every step, in turn, with a step back every 1 ms: nobody idles.
    #[test]
    fn a_stage_that_is_always_busy_has_no_bubble() {
        let start = Instant::now();
        let quick = |stage| StageTiming {
            stage: StageIndex(stage),
            compute_us: 1000,
            ..StageTiming::default()
        };
        let timings = [quick(0), quick(1)];
        let steps: Vec<_> = (0..30_000)
            .map(|number| StepReport {
                pipeline: PipelineId(0),
                ended: start + Duration::from_millis(2 + number),
                duration: Duration::from_millis(2),
                num_tokens: 1,
                timings: &timings,
                trip: None,
            })
            .collect();
        let text = counted(&steps);
        let active = "autoglm_pipeline_active_seconds_total 30.00";
        assert!(text.contains(active), "{text}");
        assert!((value(&text, "busy_seconds_total", Some("1")) - 30.0).abs() < 1e-6);
        assert!(value(&text, "bubble_ratio", Some("1")) < 0.01, "{text}");
        // A pipeline that stood still meanwhile was not at work.
        let pause = StepReport { ended: start + Duration::from_secs(3600), ..steps[0] };
        let text = counted(&[&steps[..], &[pause]].concat());
        assert!(text.contains(active), "{text}");
    }
}
