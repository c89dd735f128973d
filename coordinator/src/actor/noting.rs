//! What is counted, logged and kept on the time line of what the cluster does.

use std::sync::Arc;
use std::time::Instant;

use protocol::message::StageFailed;
use protocol::{NodeId, NodeReport, PipelineId};
use tracing::{debug, info, warn};

use super::State;
use crate::autoscaler::{Observation, Rescale};
use crate::cluster::Action;
use crate::duty::Duty;
use crate::metrics::StepReport;
use crate::snapshot::{EventKind, Happened};

impl State {
    /// A stage says that it ends. Where its pipeline is gone already, on purpose or by what was
    /// told before, that is how it goes.
    pub(super) fn note_failed(&self, failed: &StageFailed) {
        let StageFailed { node, id, cause, .. } = failed;
        let (pipeline, stage) = (id.pipeline, id.stage);
        if self.arguments.cluster.stands(*id) {
            warn!(%node, %pipeline, %stage, cause, "a stage failed");
        } else {
            debug!(%node, %pipeline, %stage, cause, "a stage of a pipeline that is gone has ended");
        }
    }

    pub(super) fn note(&self, action: &Action) {
        let metrics = &self.arguments.metrics;
        match action {
            Action::Measured { pipeline, epoch, step, duration, num_tokens, timings } => {
                let trip = self.arguments.stages.trips().take(*epoch, *step);
                metrics.step(&StepReport {
                    pipeline: *pipeline,
                    ended: Instant::now(),
                    duration: *duration,
                    num_tokens: *num_tokens,
                    timings,
                    trip,
                });
            }
            Action::Admitted(wait) => metrics.admitted(*wait),
            Action::Preempted(priority) => metrics.preempted(*priority),
            Action::Found(prefix) => metrics.prefix(*prefix),
            Action::Observed(seen) => metrics.observed(seen.num_tokens, seen.num_serving),
            Action::Moved { pipeline, cause, num_sequences } => {
                warn!(%pipeline, cause, num_sequences, "a pipeline is lost");
                metrics.pipeline_lost();
                metrics.moved(*num_sequences);
                let text = format!("{num_sequences} sequences move: {cause}");
                self.of_pipeline(EventKind::Moved, *pipeline, text);
                metrics.recent().forget(*pipeline);
            }
            Action::Drained { pipeline, cause, num_sequences } => {
                info!(%pipeline, cause, num_sequences, "a pipeline is drained");
                metrics.drained(*num_sequences);
                let text = match num_sequences {
                    0 => cause.clone(),
                    _ => format!("{cause}; {num_sequences} sequences move"),
                };
                self.of_pipeline(EventKind::Drained, *pipeline, text);
                metrics.recent().forget(*pipeline);
            }
            Action::Quarantined { node, pause, cause } => {
                let pause_s = pause.as_secs();
                warn!(%node, pause_s, cause, "a node keeps failing: it is left out");
                self.of_node(EventKind::Quarantined, *node, format!("for {pause_s} s: {cause}"));
            }
            Action::LetIn(node) => {
                info!(%node, "a node that failed may serve again");
                self.of_node(EventKind::Duty, *node, "it may serve again".to_owned());
            }
            Action::Gone { node, cause, on_purpose } => {
                let kind = if *on_purpose { EventKind::Left } else { EventKind::Lost };
                self.of_node(kind, *node, cause.clone());
            }
            Action::Relieved(node, duty) => {
                let text = match duty {
                    Duty::Active => "an operator takes it back",
                    Duty::Cordoned => "an operator cordons it",
                    Duty::Draining => "an operator drains it",
                };
                self.of_node(EventKind::Duty, *node, text.to_owned());
            }
            Action::Scaled(decision) => self.scaled(decision),
            _ => {}
        }
    }

    pub(super) fn noted_join(&self, report: &NodeReport) {
        let adapters: Vec<_> = report.adapters.iter().map(|it| it.name.as_str()).collect();
        let text = format!("{} with {}", report.hostname, adapters.join(", "));
        self.of_node(EventKind::Joined, report.node, text);
    }

    fn of_node(&self, kind: EventKind, node: NodeId, text: String) {
        let happened = Happened { node: node.to_string(), text, ..Happened::default() };
        self.arguments.metrics.recent().happened(Instant::now(), kind, happened);
    }

    fn of_pipeline(&self, kind: EventKind, pipeline: PipelineId, text: String) {
        let happened = Happened { pipeline: Some(pipeline.0), text, ..Happened::default() };
        self.arguments.metrics.recent().happened(Instant::now(), kind, happened);
    }

    fn scaled(&self, decision: &Rescale) {
        let &Rescale { from, to, cause, load, seen, .. } = decision;
        let Observation { num_serving, num_tokens, num_sequences, longest_wait, .. } = seen;
        let (load, longest_wait_ms) = (format!("{load:.2}"), longest_wait.as_millis() as u64);
        info!(
            from,
            to,
            %cause,
            load,
            num_tokens,
            num_sequences,
            longest_wait_ms,
            num_serving,
            "another number of pipelines is wanted"
        );
        self.arguments.metrics.scaled(from, to);
        let text = format!("{to} pipelines are wanted, {from} were: {cause}");
        let happened = Happened { text, ..Happened::default() };
        self.arguments.metrics.recent().happened(Instant::now(), EventKind::Scaled, happened);
    }

    pub(super) fn publish(&mut self) {
        let status = self.arguments.cluster.status();
        let before = self.arguments.status.borrow().clone();
        let served = |id| before.pipelines.iter().any(|it| it.pipeline == id && it.is_ready());
        for pipeline in &status.pipelines {
            if !pipeline.is_ready() || served(pipeline.pipeline) {
                continue;
            }
            let (id, stages) = (pipeline.pipeline, pipeline.stages.len());
            info!(pipeline = %id, stages, "the pipeline serves");
            let word = if stages == 1 { "stage" } else { "stages" };
            self.of_pipeline(EventKind::Serves, id, format!("with {stages} {word}"));
            if let Some(classes) = pipeline.mixed_classes() {
                warn!(
                    classes,
                    "stages of several device classes serve, their answers are not bit-equal to \
                     those of a pipeline of one class"
                );
            }
        }
        let joined = status.nodes.iter().map(|node| node.node);
        self.arguments.metrics.nodes(joined, status.is_ready());
        self.arguments.status.send_replace(Arc::new(status));
    }
}
