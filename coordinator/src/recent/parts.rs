//! How the steps of one pipeline spend their time now: means over its last seconds at work.

use std::time::Instant;

use protocol::StageTiming;

use crate::metrics::{StepReport, StepWays};
use crate::snapshot::{StageTime, StepTime};

/// How much of the past the means speak of, in seconds of the pipeline at work.
const SECONDS: f64 = 10.0;

/// Sums over steps, of which older ones count less.
#[derive(Debug, Default)]
pub(super) struct Parts {
    ended: Option<Instant>,
    num_steps: f64,
    num_tokens: f64,
    active: f64,
    total: f64,
    stages: Vec<Stage>,
    coordinator: Stage,
}

#[derive(Clone, Copy, Debug, Default)]
struct Stage {
    compute: f64,
    wait: f64,
    network: f64,
}

impl Parts {
    pub(super) fn step(&mut self, step: &StepReport<'_>, ways: Option<&StepWays>) {
        // Steps return in the order in which they began: each adds what is new of its time.
        let active = self
            .ended
            .map_or(step.duration, |last| step.ended.saturating_duration_since(last))
            .min(step.duration)
            .as_secs_f64();
        self.ended = Some(step.ended);
        let kept = (-active / SECONDS).exp();
        let add = |sum: &mut f64, seconds: f64| *sum = *sum * kept + seconds;
        add(&mut self.num_steps, 1.0);
        add(&mut self.num_tokens, step.num_tokens as f64);
        add(&mut self.active, active);
        add(&mut self.total, step.duration.as_secs_f64());
        self.stages.resize(step.timings.len(), Stage::default());
        let micros = |micros: u32| f64::from(micros) / 1e6;
        let transfers = ways.map_or(&[][..], |ways| &ways.transfers);
        for (number, (stage, it)) in self.stages.iter_mut().zip(step.timings).enumerate() {
            let StageTiming { upload_us, compute_us, readback_us, .. } = *it;
            let StageTiming { decode_us, encode_us, send_us, .. } = *it;
            let compute = micros(upload_us) + micros(compute_us) + micros(readback_us);
            let moved = micros(decode_us) + micros(encode_us) + micros(send_us);
            let transfer = transfers.get(number).copied().unwrap_or_default();
            add(&mut stage.compute, compute);
            add(&mut stage.wait, micros(it.wait_us) + micros(it.handoff_us));
            add(&mut stage.network, moved + transfer);
        }
        let transfer = transfers.get(step.timings.len()).copied().unwrap_or_default();
        add(&mut self.coordinator.wait, ways.map_or(0.0, |ways| ways.handoff));
        add(
            &mut self.coordinator.network,
            ways.map_or(0.0, |ways| ways.serialise + ways.send) + transfer,
        );
    }

    pub(super) fn mean(&self) -> StepTime {
        let mean_ms = |seconds: f64| seconds * 1e3 / self.num_steps.max(1e-9);
        let of = |stage: &Stage| StageTime {
            compute_ms: mean_ms(stage.compute),
            wait_ms: mean_ms(stage.wait),
            network_ms: mean_ms(stage.network),
            busy: (stage.compute / self.active.max(1e-9)).min(1.0),
        };
        StepTime {
            step_ms: mean_ms(self.total),
            tokens: self.num_tokens / self.num_steps.max(1e-9),
            stages: self.stages.iter().map(of).collect(),
            coordinator: of(&self.coordinator),
        }
    }
}
