//! When each dispatch of a pass began and ended.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::GpuError;
use crate::gpu::Gpu;
use crate::kernel::{Dispatch, Pass};

/// One dispatch of a profiled pass.
#[derive(Debug, Clone, PartialEq)]
pub struct Timed {
    /// By the name of its source.
    pub kernel: Arc<str>,
    /// When it began, from the pass's beginning on.
    pub start: Duration,
    /// How long it ran.
    pub duration: Duration,
}

/// Queries of one set: what every driver allows.
const MAX_QUERIES: usize = 4096;

impl Gpu {
    /// Runs `pass`, every dispatch for itself, and says how long each took: by the device's
    /// clock, or, on a software device, by ours, the submission included.
    pub(crate) fn profile(&self, pass: &Pass) -> Result<Vec<Timed>, GpuError> {
        let has_clock = self.device.features().contains(wgpu::Features::TIMESTAMP_QUERY);
        // A software device's is ours, without what comes with a submission.
        if has_clock && !self.caps().is_cpu {
            self.by_the_device(pass.dispatches())
        } else {
            self.by_our_clock(pass.dispatches())
        }
    }

    fn by_the_device(&self, dispatches: &[Dispatch]) -> Result<Vec<Timed>, GpuError> {
        let mut timed: Vec<Timed> = Vec::new();
        for dispatches in dispatches.chunks(MAX_QUERIES / 2) {
            let before = timed.last().map_or(Duration::ZERO, |last| last.start + last.duration);
            timed.extend(self.by_a_query_set(dispatches, before)?);
        }
        Ok(timed)
    }

    fn by_our_clock(&self, dispatches: &[Dispatch]) -> Result<Vec<Timed>, GpuError> {
        let begin = Instant::now();
        let mut timed = Vec::with_capacity(dispatches.len());
        for dispatch in dispatches {
            let start = begin.elapsed();
            let mut encoder = self.device.create_command_encoder(&Default::default());
            dispatch
                .encode(&self.compiler, &mut encoder.begin_compute_pass(&Default::default()))?;
            self.finish(encoder)?;
            let duration = begin.elapsed() - start;
            timed.push(Timed { kernel: Arc::clone(dispatch.name()), start, duration });
        }
        Ok(timed)
    }

    fn by_a_query_set(
        &self,
        dispatches: &[Dispatch],
        before: Duration,
    ) -> Result<Vec<Timed>, GpuError> {
        let count = 2 * dispatches.len() as u32;
        let size = u64::from(count) * 8;
        let (queries, resolved, staging) = self.guarded(2 * size, || {
            let buffer = |usage| {
                self.device.create_buffer(&wgpu::BufferDescriptor {
                    label: None,
                    size,
                    usage,
                    mapped_at_creation: false,
                })
            };
            let queries = self.device.create_query_set(&wgpu::QuerySetDescriptor {
                label: None,
                ty: wgpu::QueryType::Timestamp,
                count,
            });
            let resolved = buffer(wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC);
            (queries, resolved, buffer(wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST))
        })?;
        let mut encoder = self.device.create_command_encoder(&Default::default());
        for (number, dispatch) in (0..).zip(dispatches) {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
                label: None,
                timestamp_writes: Some(wgpu::ComputePassTimestampWrites {
                    query_set: &queries,
                    beginning_of_pass_write_index: Some(2 * number),
                    end_of_pass_write_index: Some(2 * number + 1),
                }),
            });
            dispatch.encode(&self.compiler, &mut pass)?;
        }
        encoder.resolve_query_set(&queries, 0..count, &resolved, 0);
        encoder.copy_buffer_to_buffer(&resolved, 0, &staging, 0, size);
        let index = self.queue.submit([encoder.finish()]);
        // A buffer that is asked for can't be written any more: only after the submission.
        staging.map_async(wgpu::MapMode::Read, .., |_| ());
        self.wait_for(index)?;
        let view =
            staging.slice(..).get_mapped_range().map_err(|e| GpuError::Failed(e.to_string()))?;
        let ticks: Vec<u64> = bytemuck::pod_collect_to_vec(&view);
        let period = f64::from(self.queue.get_timestamp_period());
        let nanoseconds = |ticks: u64| Duration::from_nanos((ticks as f64 * period) as u64);
        let first = ticks.first().copied().unwrap_or_default();
        Ok(dispatches
            .iter()
            .zip(ticks.chunks_exact(2))
            .map(|(dispatch, ticks)| Timed {
                kernel: Arc::clone(dispatch.name()),
                start: before + nanoseconds(ticks[0].saturating_sub(first)),
                duration: nanoseconds(ticks[1].saturating_sub(ticks[0])),
            })
            .collect())
    }

    fn finish(&self, encoder: wgpu::CommandEncoder) -> Result<(), GpuError> {
        let index = self.queue.submit([encoder.finish()]);
        self.wait_for(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rms_norm::RmsNorm;
    use crate::testing;

    /// Only a GPU's times are taken so; a software device can tell them, too.
    #[test]
    fn a_device_times_every_dispatch() {
        let Some(gpu) = testing::gpu() else { return };
        if !gpu.device.features().contains(wgpu::Features::TIMESTAMP_QUERY) {
            return println!("skipped: the device has no timestamps");
        }
        let x = gpu.upload(&[1.0f32; 64]).unwrap();
        let weight = gpu.upload_vec4s(&[1.0; 64]).unwrap();
        let [residual, out] = [(); 2].map(|()| gpu.upload_vec4s(&[0.5; 64]).unwrap());
        let bound = RmsNorm::new(&gpu).unwrap();
        let bound = bound.bind(&gpu, 1e-5, &x, &weight, (&residual, &out)).unwrap();
        let mut pass = Pass::new();
        // More than one set of queries has room for.
        let count = MAX_QUERIES / 2 + 3;
        (0..count).for_each(|_| bound.record(&mut pass, 1));
        let timed = gpu.by_the_device(pass.dispatches()).unwrap();
        assert_eq!(timed.len(), count);
        assert!(timed.iter().all(|timed| timed.kernel.starts_with("rms")), "{:?}", timed[0]);
        assert!(timed.windows(2).all(|pair| pair[0].start <= pair[1].start));
        assert!(timed.iter().any(|timed| timed.duration > Duration::ZERO));
        assert_eq!(gpu.by_our_clock(&pass.dispatches()[..3]).unwrap().len(), 3);
    }
}
