//! Things that are timed in rounds: each once a round, so that whatever disturbs the machine
//! disturbs all alike.

use std::time::{Duration, Instant};

use anyhow::Result;
use shaders::gpu::Gpu;
use shaders::kernel::Pass;

use crate::engine::processor_nanoseconds;
use loadgen::numbers::median;

/// How long one measurement lasts at least; short work is repeated.
const MEASUREMENT: Duration = Duration::from_millis(60);

/// Most repetitions of one measurement.
const MAX_REPETITIONS: usize = 200;

/// Does something so many times; how long that took.
type Run<'a> = Box<dyn FnMut(usize) -> Result<Duration> + 'a>;

/// One thing that is repeated and timed.
pub(crate) struct Task<'a> {
    run: Run<'a>,
    repetitions: usize,
    /// What one repetition took, round by round.
    pub times: Vec<Times>,
}

/// What one repetition took, in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Times {
    /// By the clock.
    pub wall: f64,
    /// Of all this process's threads; NaN where the system doesn't say.
    pub processor: f64,
}

impl<'a> Task<'a> {
    /// Runs it once, to compile and to learn how often it must be repeated.
    ///
    /// # Errors
    /// When `run` fails.
    pub(crate) fn new(run: impl FnMut(usize) -> Result<Duration> + 'a) -> Result<Self> {
        let mut task = Self { run: Box::new(run), repetitions: 1, times: Vec::new() };
        task.time()?;
        let once = task.time()?.wall;
        let repetitions = (MEASUREMENT.as_secs_f64() / once).ceil() as usize;
        task.repetitions = repetitions.clamp(1, MAX_REPETITIONS);
        Ok(task)
    }

    /// What `record` records, repeated in one pass.
    ///
    /// # Errors
    /// When the device fails.
    pub(crate) fn of_pass(gpu: &'a Gpu, record: impl Fn(&mut Pass) + 'a) -> Result<Self> {
        Self::new(move |repetitions| {
            let mut pass = Pass::new();
            (0..repetitions).for_each(|_| record(&mut pass));
            let began = Instant::now();
            gpu.run(&pass)?;
            Ok(began.elapsed())
        })
    }

    /// What one repetition takes now.
    ///
    /// # Errors
    /// When it fails.
    pub(crate) fn time(&mut self) -> Result<Times> {
        let before = processor_nanoseconds();
        let wall = (self.run)(self.repetitions)?.as_secs_f64() / self.repetitions as f64;
        let processor = before.zip(processor_nanoseconds()).map_or(f64::NAN, |(before, after)| {
            after.saturating_sub(before) as f64 / 1e9 / self.repetitions as f64
        });
        Ok(Times { wall, processor })
    }

    /// Seconds of one repetition by the clock, the median round's.
    pub(crate) fn median(&self) -> f64 {
        median(&self.seconds())
    }

    /// Seconds of one repetition by the clock, round by round.
    pub(crate) fn seconds(&self) -> Vec<f64> {
        self.times.iter().map(|times| times.wall).collect()
    }
}

/// Times every task once in every round. `progress` hears how many of how many rounds are done.
///
/// # Errors
/// When one fails.
pub(crate) fn interleave(
    tasks: &mut [Task<'_>],
    num_rounds: usize,
    mut progress: impl FnMut(usize, usize),
) -> Result<()> {
    for round in 0..num_rounds {
        progress(round, num_rounds);
        for task in &mut *tasks {
            let times = task.time()?;
            task.times.push(times);
        }
    }
    progress(num_rounds, num_rounds);
    Ok(())
}
