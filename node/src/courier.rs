//! Moves a stage's frames: from the link that brings them through its device, and on to the next
//! stage. The last stage tells the coordinator what was sampled, and the first stage at the same
//! time, where steps may wait for it already. Which tokens it may sample it hears from the
//! coordinator, beside its steps. A step that fails goes the same way, so that results
//! come back in the order of their steps.

use std::collections::BTreeMap;
use std::future::pending;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use futures::FutureExt;
use protocol::{
    Batch, Blame, Body, Carried, Failed, Frame, Masks, Sampled, StagePlan, StageTiming, Step,
    StepId,
};
use tokio::sync::mpsc;
use tracing::warn;
use transport::Sent;

use crate::actor::Node;
use crate::device_thread::Computed;
use crate::error::StageError;
use crate::links::{Arrived, Inlet, Outlet};
use crate::samples::{Samples, tokens_of};
use crate::stage::StepOutput;
use crate::trace::TracedStep;

/// How long a courier tries to say why it ends.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(1);

/// Moves a stage's frames as soon as a link to it is open. Ends with the reason why no more can be
/// taken.
pub(crate) async fn carry(
    node: Arc<Node>,
    plan: Arc<StagePlan>,
    (inlet, told): (Inlet, Option<mpsc::Receiver<Arrived>>),
) -> Over {
    let Inlet { linked, frames } = inlet;
    if linked.await.is_err() {
        return ("no link to it was opened".into(), Blame::Before);
    }
    let stage = plan.id;
    // Each stage opens its link to the next when the one to it is open, the last one before it
    // says so: then links are open all around.
    let mut next = None;
    if plan.samples() {
        next = match link_next(&node, &plan).await {
            Ok(next) => next,
            Err(cause) => return (cause, Blame::Next),
        };
    }
    let mut coordinator = match node.links.to_coordinator(stage).await {
        Ok(outlet) => outlet,
        Err(cause) => return (format!("the coordinator is gone: {cause}"), Blame::Own),
    };
    let linked = if plan.samples() { Ok(next) } else { link_next(&node, &plan).await };
    let (cause, blame) = match linked {
        Ok(next) => {
            let mut courier = Courier {
                ended: ended(&plan, &coordinator, next.as_ref()),
                coordinator: &mut coordinator,
                next,
                samples: Samples::new(plan.num_stages),
                told,
                masks: BTreeMap::new(),
                node,
                plan: Arc::clone(&plan),
                sent: Sent::default(),
                free: Instant::now(),
            };
            courier.run(frames).await
        }
        Err(cause) => (cause, Blame::Next),
    };
    // Over the link, so that the reason is there before the link's end.
    let failed = Failed { cause: cause.clone(), fatal: true, blame };
    let (model, step, body) = (plan.model, StepId::default(), Body::Failed(failed));
    let told = coordinator.send(Frame { model, stage, step, body });
    // Fails when that link is what has ended.
    let _ = tokio::time::timeout(LAST_WORDS_TIMEOUT, told).await;
    (cause, blame)
}

/// Opens the link over which the stage's frames go on, if there are several stages.
async fn link_next(node: &Node, plan: &StagePlan) -> Result<Option<Outlet>, String> {
    let Some(peer) = plan.next else { return Ok(None) };
    let outlet = node.links.to_stage(peer, plan.id.next()).await;
    outlet
        .map(Some)
        .map_err(|cause| format!("the next stage on node {} can't be reached: {cause}", peer.node))
}

/// Why one of the two takes no more, once that is so.
fn ended(plan: &StagePlan, coordinator: &Outlet, next: Option<&Outlet>) -> Ended {
    let (coordinator, node) = (coordinator.ended(), plan.next.map(|peer| peer.node));
    let (Some(next), Some(node)) = (next.map(Outlet::ended), node) else {
        return Box::pin(coordinator.map(|cause| (cause, Blame::Own)));
    };
    Box::pin(async move {
        tokio::select! {
            cause = next => {
                (format!("the link to the next stage on node {node} ended: {cause}"), Blame::Next)
            }
            cause = coordinator => (cause, Blame::Own),
        }
    })
}

type Ended = Pin<Box<dyn Future<Output = Over> + Send>>;

/// A way by which a step's masks come.
type Awaited = (SyncSender<Masks>, Receiver<Masks>);

/// Why no more frames can be taken, and whose fault it is.
pub(crate) type Over = (String, Blame);

/// Takes a stage's frames through its device, one after another, and sends what comes of them on.
struct Courier<'a> {
    node: Arc<Node>,
    plan: Arc<StagePlan>,
    // None where there is only one stage.
    next: Option<Outlet>,
    coordinator: &'a mut Outlet,
    ended: Ended,
    // What else it hears.
    told: Option<mpsc::Receiver<Arrived>>,
    // On the first stage: what is known of steps under way.
    samples: Samples,
    // On the last: masks that came before their steps.
    masks: BTreeMap<StepId, Masks>,
    // Of the last frame: what the next one tells.
    sent: Sent,
    // Since when it waits for a frame.
    free: Instant,
}

impl Courier<'_> {
    /// Ends with the reason why no more frames can be taken.
    async fn run(&mut self, mut frames: mpsc::Receiver<Arrived>) -> Over {
        loop {
            let arrived = tokio::select! {
                arrived = frames.recv() => arrived,
                told = hear(&mut self.told) => {
                    match self.take_in(told) {
                        Ok(_) => continue,
                        Err(cause) => return cause,
                    }
                }
                cause = &mut self.ended => return cause,
            };
            let Some(arrived) = arrived else {
                return ("the link to it has ended".into(), Blame::Before);
            };
            // The link said which stage and epoch it is for; a frame that says otherwise is stale.
            if arrived.frame.stage != self.plan.id {
                continue;
            }
            if let Err(cause) = self.forward(arrived).await {
                return cause;
            }
            self.free = Instant::now();
        }
    }

    async fn forward(&mut self, arrived: Arrived) -> Result<(), Over> {
        let Arrived { frame, num_bytes, decode, at } = arrived;
        let Frame { stage, step: number, body, .. } = frame;
        let mut step = match body {
            Body::Step(step) => step,
            Body::Failed(_) => return self.send_on(number, body).await,
            Body::Sampled(_) | Body::Masks(_) => return Ok(()),
        };
        let mut known = Ok(());
        if self.plan.embeds() {
            known = self.resolve(number, &mut step.batch).await?;
        }
        let mut awaited = None;
        if self.plan.samples() && step.awaits_masks {
            awaited = self.masks_there(number, &mut step);
        }
        let free = self.free.max(at);
        let (queued, woken) = (free - at, free.elapsed());
        let traced = TracedStep::of(number, &step, at);
        let node = Arc::clone(&self.node);
        let device = &node.devices[self.plan.adapter as usize];
        let computed = match (known, awaited) {
            (Ok(()), None) => device.step(stage, step, None).await,
            // They are needed when all else is computed.
            (Ok(()), Some((give, masks))) => {
                let computing = device.step(stage, step, Some(masks));
                let mut computing = std::pin::pin!(computing);
                tokio::select! {
                    masks = self.masks_of(number) => {
                        // Fails when the step has failed already.
                        let _ = give.send(masks?);
                        computing.await
                    }
                    computed = &mut computing => computed,
                }
            }
            (Err(cause), _) => Err(cause),
        };
        let end = Instant::now();
        let body = match computed {
            Ok(Computed { mut step, output, wait, handoff, times, done }) => {
                let timing = StageTiming {
                    stage: stage.stage,
                    decode_us: micros(decode),
                    wait_us: micros(queued + wait),
                    handoff_us: micros(woken + handoff + done.elapsed()),
                    upload_us: micros(times.upload),
                    compute_us: micros(times.compute),
                    readback_us: micros(times.readback),
                    encode_us: micros(self.sent.encode),
                    send_us: micros(self.sent.write),
                    rtt_us: micros(self.sent.rtt),
                    received_bytes: num_bytes as u32,
                };
                step.timings.push(timing);
                if let Some(traced) = traced {
                    traced.record(&self.node, &self.plan, end, Ok(&timing));
                }
                match output {
                    StepOutput::Hidden(hidden, side) => Body::Step(Step { hidden, side, ..step }),
                    StepOutput::Sampled(outputs, hidden) => {
                        Body::Sampled(Sampled { outputs, hidden, timings: step.timings })
                    }
                }
            }
            Err(cause) => {
                let trace_id = traced.as_ref().and_then(TracedStep::first);
                warn!(stage = %stage.stage, step = %number, trace_id, %cause, "step failed");
                if let Some(traced) = traced {
                    traced.record(&self.node, &self.plan, end, Err(&cause));
                }
                Body::Failed(Failed {
                    cause: cause.to_string(),
                    fatal: cause.is_fatal(),
                    blame: Blame::Own,
                })
            }
        };
        self.send_on(number, body).await
    }

    /// Puts what was sampled in the place of what was promised, once it is known; whether it ever
    /// will be.
    async fn resolve(
        &mut self,
        step: StepId,
        batch: &mut Carried<Batch>,
    ) -> Result<Result<(), StageError>, Over> {
        loop {
            if let Some(known) = self.samples.take(step, batch) {
                return Ok(known);
            }
            let told = tokio::select! {
                told = hear(&mut self.told) => told,
                cause = &mut self.ended => return Err(cause),
            };
            // Until then it was behind another step.
            self.free = self.take_in(told)?;
        }
    }

    /// Gives a step its masks, or else the way by which they come.
    fn masks_there(&mut self, number: StepId, step: &mut Step) -> Option<Awaited> {
        step.awaits_masks = false;
        // What failed on its way here needs none any more.
        self.masks.retain(|of, _| *of >= number);
        match self.masks.remove(&number) {
            Some(masks) => {
                step.masks = masks;
                None
            }
            None => Some(sync_channel(1)),
        }
    }

    /// Which tokens may be sampled in a step, once that is known.
    async fn masks_of(&mut self, step: StepId) -> Result<Masks, Over> {
        loop {
            if let Some(masks) = self.masks.remove(&step) {
                return Ok(masks);
            }
            let told = tokio::select! {
                told = hear(&mut self.told) => told,
                cause = &mut self.ended => return Err(cause),
            };
            self.free = self.take_in(told)?;
        }
    }

    /// What is heard of a step beside the steps themselves, and when it came.
    fn take_in(&mut self, told: Option<Arrived>) -> Result<Instant, Over> {
        let Some(Arrived { frame, at, .. }) = told else {
            return Err(if self.plan.samples() {
                ("the link that brings masks has ended".to_owned(), Blame::Own)
            } else {
                ("the link from the last stage has ended".to_owned(), Blame::Before)
            });
        };
        if Some(frame.stage) == self.plan.also_hears() {
            match frame.body {
                Body::Masks(masks) => {
                    self.masks.insert(frame.step, masks);
                    // No more steps are under way.
                    if self.masks.len() > self.plan.num_stages as usize + 2 {
                        self.masks.pop_first();
                    }
                }
                body => self.samples.hear(frame.step, &body),
            }
        }
        Ok(at)
    }

    /// To the next stage, or, from the last, to the first and to the coordinator. A stage that is
    /// of no more use says so at once.
    async fn send_on(&mut self, step: StepId, body: Body) -> Result<(), Over> {
        let (model, stage) = (self.plan.model, self.plan.id);
        let is_fatal = matches!(&body, Body::Failed(failed) if failed.fatal);
        if !is_fatal && !self.plan.samples() {
            let none = || ("the plan names no next stage".to_owned(), Blame::Own);
            let next = self.next.as_mut().ok_or_else(none)?;
            let sent = next.send(Frame { model, stage: stage.next(), step, body }).await;
            self.sent = sent.map_err(|cause| (cause, Blame::Next))?;
            return Ok(());
        }
        match &mut self.next {
            _ if is_fatal => {}
            None => self.samples.hear(step, &body),
            Some(first) => {
                let body = tokens_of(&body);
                let sent = first.send(Frame { model, stage: stage.next(), step, body }).await;
                sent.map_err(|cause| (cause, Blame::Next))?;
            }
        }
        let sent = self.coordinator.send(Frame { model, stage, step, body }).await;
        self.sent = sent.map_err(|cause| (cause, Blame::Own))?;
        Ok(())
    }
}

/// What the last stage says next; never, where nobody does.
async fn hear(told: &mut Option<mpsc::Receiver<Arrived>>) -> Option<Arrived> {
    match told {
        Some(told) => told.recv().await,
        None => pending().await,
    }
}

/// To the nearest, so that sums of many are right.
fn micros(duration: Duration) -> u32 {
    u32::try_from((duration.as_nanos() + 500) / 1000).unwrap_or(u32::MAX)
}
