//! One thread per adapter: it owns the adapter, loads stages onto it and computes their steps.
//!
//! Nothing on the async runtime waits for a GPU: jobs come through a bounded channel, results go
//! back through one-shot channels.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use checkpoint::{Checkpoint, Quantize};
use protocol::message::Loading;
use protocol::{AdapterReport, HeldParts, Masks, Narrow, Speed, StageId, StagePlan, Step};
use shaders::gpu::Gpu;
use shaders::products::Wanted;
use shaders::speed;
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, error, warn};

use crate::error::StageError;
use crate::kept::KeptWeights;
use crate::memory::max_cache_bytes;
use crate::model::{Kernels, quantize};
use crate::proven::{Prove, Proven};
use crate::stage::{Held, Stage, StepOutput, StepTimes};

/// How long weights that no stage holds are kept.
const MAX_IDLE: Duration = Duration::from_secs(600);

/// What a computed step brought, and how long it took.
#[derive(Debug)]
pub(crate) struct Computed {
    /// What was computed, as it came.
    pub step: Step,
    pub output: StepOutput,
    /// Behind other jobs of the adapter.
    pub wait: Duration,
    /// From handing the step over, or the end of the job before it, until the thread took it.
    pub handoff: Duration,
    /// On the thread.
    pub times: StepTimes,
    /// When the thread was done.
    pub done: Instant,
}

/// A handle to an adapter's thread; clones share it. The thread ends with the last of them, or when
/// it is [stopped](Self::stop).
#[derive(Clone, Debug)]
pub(crate) struct DeviceThread {
    jobs: mpsc::Sender<Job>,
    thread: Arc<Mutex<Option<JoinHandle<()>>>>,
    // Why the thread has given the adapter up, once it has.
    fault: Arc<OnceLock<String>>,
    held: Arc<Mutex<Vec<HeldParts>>>,
    // Whether there is no coordinator that could say what is needed.
    is_alone: Arc<AtomicBool>,
    pub report: AdapterReport,
}

/// Hears how far loading has come.
pub(crate) type ReportProgress = Box<dyn FnMut(Loading) + Send>;

enum Job {
    Load {
        plan: Box<StagePlan>,
        progress: ReportProgress,
        reply: oneshot::Sender<Result<Held, StageError>>,
    },
    Step {
        id: StageId,
        step: Box<Step>,
        masks: Option<Receiver<Masks>>,
        since: Instant,
        reply: oneshot::Sender<Result<Computed, StageError>>,
    },
    Warm {
        plan: Box<StagePlan>,
        // None: all of them.
        part: Option<usize>,
        reply: oneshot::Sender<Result<(), StageError>>,
    },
    Unload(StageId),
    Tidy(Duration),
    Stop,
}

impl DeviceThread {
    /// Opens the adapter on a thread of its own and proves its kernels.
    ///
    /// # Errors
    /// When there is no such adapter, or its kernels don't compute what they should.
    pub(crate) fn start(
        adapter: Option<String>,
        products: Wanted,
        memory_bytes: impl FnOnce(&Gpu) -> anyhow::Result<u64> + Send + 'static,
    ) -> anyhow::Result<Self> {
        // As many jobs as a pipeline of some stages has steps under way; each stage keeps at most
        // one in here.
        let (jobs, queue) = mpsc::channel(16);
        let (opened, opening) = std::sync::mpsc::channel();
        let fault = Arc::new(OnceLock::new());
        let left = Arc::clone(&fault);
        let held = Arc::default();
        let shown = Arc::clone(&held);
        let thread = std::thread::Builder::new().name("device".into()).spawn(move || {
            let worker = Worker::open(adapter.as_deref(), products, memory_bytes);
            let (worker, answer) = match worker {
                Ok((worker, report)) => (Some(worker), Ok(report)),
                Err(cause) => (None, Err(cause)),
            };
            if opened.send(answer).is_ok()
                && let Some(worker) = worker
            {
                worker.run(queue, (&left, &shown));
            }
        })?;
        let report = opening.recv()??;
        let thread = Arc::new(Mutex::new(Some(thread)));
        Ok(Self { jobs, thread, fault, held, is_alone: Arc::default(), report })
    }

    /// Loads a stage.
    ///
    /// # Errors
    /// When the model's files or the adapter don't allow it.
    pub(crate) async fn load(
        &self,
        plan: StagePlan,
        progress: ReportProgress,
    ) -> Result<Held, StageError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Job::Load { plan: Box::new(plan), progress, reply }, answer).await
    }

    /// Computes a step of a loaded stage. Where its masks are yet to come, all else is computed
    /// meanwhile.
    ///
    /// # Errors
    /// When the batch is wrong, the adapter fails, or nobody is left to bring the masks.
    pub(crate) async fn step(
        &self,
        id: StageId,
        step: Step,
        masks: Option<Receiver<Masks>>,
    ) -> Result<Computed, StageError> {
        let (reply, answer) = oneshot::channel();
        let step = Box::new(step);
        self.ask(Job::Step { id, step, masks, since: Instant::now(), reply }, answer).await
    }

    /// Loads weights that are kept for a stage to come, and proves its kernels.
    ///
    /// # Errors
    /// As [`load`](Self::load), and while another stage is here.
    pub(crate) async fn warm(&self, plan: StagePlan) -> Result<(), StageError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Job::Warm { plan: Box::new(plan), part: None, reply }, answer).await
    }

    /// Loads a part of a stage to come, the rest of which isn't there yet. Where it fails, loading
    /// the stage says so.
    pub(crate) async fn bring(&self, plan: StagePlan, part: usize) {
        let (reply, answer) = oneshot::channel();
        let job = Job::Warm { plan: Box::new(plan), part: Some(part), reply };
        let _ = self.ask(job, answer).await;
    }

    /// Drops a stage, once the steps before it are computed. Its weights stay for another one,
    /// until they were of no use for ten minutes or their room is needed.
    pub(crate) async fn unload(&self, id: StageId) {
        // Fails only when the thread is gone, and its stages with it.
        let _ = self.jobs.send(Job::Unload(id)).await;
        self.tidy_later();
    }

    fn tidy_later(&self) {
        // It doesn't keep a thread that nobody else needs.
        let (jobs, is_alone) = (self.jobs.downgrade(), Arc::clone(&self.is_alone));
        tokio::spawn(async move {
            tokio::time::sleep(MAX_IDLE).await;
            if let Some(jobs) = jobs.upgrade()
                && !is_alone.load(Ordering::Relaxed)
            {
                let _ = jobs.send(Job::Tidy(MAX_IDLE)).await;
            }
        });
    }

    /// There is a coordinator, or none: as long as there is none, all that is here stays, since it
    /// may be wanted when one comes back. What it doesn't ask for goes later.
    pub(crate) fn coordinated(&self, is_coordinated: bool) {
        let was_alone = self.is_alone.swap(!is_coordinated, Ordering::Relaxed);
        if is_coordinated && was_alone {
            self.tidy_later();
        }
    }

    pub(crate) fn held(&self) -> Vec<HeldParts> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Why the adapter can't be used any more, once it can't: its thread has ended, and with it
    /// every stage there.
    pub(crate) async fn lost(&self) -> String {
        self.jobs.closed().await;
        self.fault.get().cloned().unwrap_or_else(|| "its thread has ended".into())
    }

    /// Ends the thread once what was asked of it before is done. A process must not exit before:
    /// a driver that is still at work crashes while the process takes it apart.
    pub(crate) async fn stop(&self) {
        let _ = self.jobs.send(Job::Stop).await;
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
    }

    async fn ask<T>(
        &self,
        job: Job,
        answer: oneshot::Receiver<Result<T, StageError>>,
    ) -> Result<T, StageError> {
        let gone = || StageError::DeviceGone;
        self.jobs.send(job).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

struct Worker {
    gpu: Gpu,
    kernels: Kernels,
    // Those whose parts come one by one, until all of them are loaded.
    files: Option<((PathBuf, Quantize), Checkpoint)>,
    stages: HashMap<StageId, Stage>,
    kept: KeptWeights,
    // What stages and kept weights may take together.
    memory_bytes: u64,
}

impl Worker {
    fn open(
        adapter: Option<&str>,
        products: Wanted,
        memory_bytes: impl FnOnce(&Gpu) -> anyhow::Result<u64>,
    ) -> anyhow::Result<(Self, AdapterReport)> {
        let proven = Proven::open(adapter, products, Prove::Hardware)?;
        let Proven { gpu, kernels, class: fingerprint } = proven;
        let memory_bytes = memory_bytes(&gpu)?;
        let speed = speed::measure(&gpu, &kernels.matmul, memory_bytes)?;
        // Whoever is killed before a stage is loaded needn't probe again.
        gpu.save_kernels();
        let report = AdapterReport {
            name: gpu.info().name.clone(),
            driver: gpu.info().driver.clone(),
            memory_bytes,
            max_cache_bytes: max_cache_bytes(&gpu),
            fingerprint,
            speed: Speed {
                weight_bytes_per_s: speed.weight_bytes_per_s,
                narrow: Narrow { int8_ps: speed.int8_ps, int4_ps: speed.int4_ps },
                multiply_adds_per_s: speed.multiply_adds_per_s,
                kernel_us: speed.kernel_us,
                step_us: speed.step_us,
            },
        };
        Ok((Self::new(gpu, kernels, memory_bytes), report))
    }

    fn new(gpu: Gpu, kernels: Kernels, memory_bytes: u64) -> Self {
        let (files, stages, kept) = (None, HashMap::new(), KeptWeights::new());
        Self { gpu, kernels, files, stages, kept, memory_bytes }
    }

    /// Does what is asked until nobody is left to ask, or the adapter is lost: then `fault` says
    /// why, and whoever waits for an answer hears that there is none.
    fn run(
        mut self,
        mut queue: mpsc::Receiver<Job>,
        (fault, held): (&OnceLock<String>, &Mutex<Vec<HeldParts>>),
    ) {
        let mut idle_since = Instant::now();
        while let Some(job) = queue.blocking_recv() {
            let mut lost = None;
            let may_change = !matches!(job, Job::Step { .. } | Job::Unload(_));
            match job {
                Job::Load { plan, mut progress, reply } => {
                    // One that was given up must not keep the next one waiting, or the process.
                    let mut is_awaited = |loading| {
                        progress(loading);
                        !reply.is_closed()
                    };
                    let loaded = self.load(&plan, &mut is_awaited);
                    if let Err(cause) = &loaded {
                        warn!(stage = %plan.id.stage, %cause, "stage not loaded");
                        lost = cause.loses_adapter().then(|| cause.to_string());
                    }
                    if reply.send(loaded).is_err() {
                        self.stages.remove(&plan.id);
                    }
                }
                Job::Step { id, step, masks, since, reply } => {
                    let free = idle_since.max(since);
                    let (wait, handoff) = (free - since, free.elapsed());
                    let output = match self.stages.get_mut(&id) {
                        Some(stage) => {
                            let output = stage.masked_step(&self.gpu, &step, masks);
                            output.map(|output| (output, stage.times()))
                        }
                        None => Err(StageError::BadPlan("the stage isn't loaded".into())),
                    };
                    let done = Instant::now();
                    let failed = output.as_ref().err();
                    lost = failed.filter(|cause| cause.loses_adapter()).map(ToString::to_string);
                    debug!(stage = %id.stage, took_us = (done - free).as_micros(), "step");
                    let computed = output.map(|(output, times)| Computed {
                        step: *step,
                        output,
                        wait,
                        handoff,
                        times,
                        done,
                    });
                    // Nobody listens when the stage was dropped meanwhile.
                    let _ = reply.send(computed);
                }
                Job::Warm { plan, part, reply } => {
                    let warmed = match part {
                        Some(part) => self.bring(&plan, part),
                        None => self.warm(&plan, &mut |_| !reply.is_closed()),
                    };
                    let failed = warmed.as_ref().err();
                    lost = failed.filter(|it| it.loses_adapter()).map(ToString::to_string);
                    let _ = reply.send(warmed);
                }
                Job::Unload(id) => drop(self.stages.remove(&id)),
                Job::Tidy(max_idle) => {
                    self.kept.tidy(Instant::now(), max_idle);
                    self.files = None;
                }
                Job::Stop => return,
            }
            if may_change {
                *held.lock().unwrap_or_else(PoisonError::into_inner) = self.kept.held();
            }
            // Whatever the driver reports makes all that follows worthless.
            let reported = self.gpu.check().err().map(|cause| cause.to_string());
            if let Some(cause) = reported.or(lost) {
                error!(adapter = self.gpu.info().name, cause, "the adapter is given up");
                let _ = fault.set(cause);
                return;
            }
            idle_since = Instant::now();
        }
    }

    fn load(
        &mut self,
        plan: &StagePlan,
        progress: &mut dyn FnMut(Loading) -> bool,
    ) -> Result<Held, StageError> {
        self.drop_older(plan);
        let stage = self.load_stage(plan, progress)?;
        let held = stage.held().clone();
        self.stages.insert(plan.id, stage);
        Ok(held)
    }

    /// Whatever is there of an older epoch gives its place to the new one.
    fn drop_older(&mut self, plan: &StagePlan) {
        self.stages.retain(|id, _| id.pipeline != plan.id.pipeline || id.epoch >= plan.id.epoch);
    }

    fn warm(
        &mut self,
        plan: &StagePlan,
        progress: &mut dyn FnMut(Loading) -> bool,
    ) -> Result<(), StageError> {
        // Whoever serves meanwhile has other things to do.
        if !self.stages.is_empty() {
            return Err(StageError::Busy);
        }
        let warmed = self.load_stage(plan, progress).map(drop);
        self.kept.want(plan);
        warmed
    }

    fn bring(&mut self, plan: &StagePlan, part: usize) -> Result<(), StageError> {
        self.drop_older(plan);
        let (model, free) = (model_of(plan), self.free());
        let files = match self.files.take() {
            Some((known, files)) if known == model => files,
            _ => open(&model)?,
        };
        let brought = Stage::bring(&self.gpu, &files, plan, part, (&mut self.kept, free));
        self.files = Some((model, files));
        brought
    }

    /// Bytes beside the stages that are here.
    fn free(&self) -> u64 {
        let taken: u64 = self.stages.values().map(|stage| stage.held().memory_bytes).sum();
        self.memory_bytes.saturating_sub(taken)
    }

    fn load_stage(
        &mut self,
        plan: &StagePlan,
        progress: &mut dyn FnMut(Loading) -> bool,
    ) -> Result<Stage, StageError> {
        // Anew: others may have taken their place since.
        self.files = None;
        let (files, free) = (open(&model_of(plan))?, self.free());
        let kept = (&mut self.kept, free);
        let stage = Stage::load_missing(&self.gpu, &self.kernels, &files, plan, kept, progress)?;
        // Loading compiled them all.
        self.gpu.save_kernels();
        Ok(stage)
    }
}

/// Where a plan's model is, and what is made of it.
fn model_of(plan: &StagePlan) -> (PathBuf, Quantize) {
    (PathBuf::from(&plan.model_path), quantize(plan.quantize))
}

fn open((path, quantize): &(PathBuf, Quantize)) -> Result<Checkpoint, StageError> {
    Ok(Checkpoint::open(path)?.quantized(*quantize))
}

/// The other end of a handle without an adapter: when it is dropped, the adapter is lost.
#[cfg(test)]
pub(crate) struct FakeThread {
    queue: mpsc::Receiver<Job>,
}

#[cfg(test)]
impl DeviceThread {
    pub(crate) fn fake() -> (Self, FakeThread) {
        let (jobs, queue) = mpsc::channel(16);
        let report = AdapterReport {
            name: "card".into(),
            driver: "driver".into(),
            memory_bytes: 1,
            max_cache_bytes: None,
            fingerprint: protocol::Digest::default(),
            speed: Default::default(),
        };
        let fault = Arc::new(OnceLock::from("unplugged".to_owned()));
        let (thread, held, is_alone) = Default::default();
        let device = Self { jobs, thread, fault, held, is_alone, report };
        (device, FakeThread { queue })
    }
}

#[cfg(test)]
impl FakeThread {
    /// What is asked for next is to be kept ready: this comes of it.
    pub(crate) async fn warms(&mut self, outcome: Result<(), StageError>) {
        let Some(Job::Warm { reply, .. }) = self.queue.recv().await else {
            panic!("something else is asked for");
        };
        let _ = reply.send(outcome);
    }
}

#[cfg(test)]
#[path = "device_thread_tests.rs"]
mod tests;
