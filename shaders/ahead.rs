//! The commands of a step, encoded while the step before it runs.
//!
//! What a step is told (tokens, positions, block tables, how rows are sampled) is in tensors; its
//! commands hang on numbers of rows only. One decoding step is mostly like the next, so the
//! commands of the last one are encoded again while it runs. If the next step turns out to be
//! another, its commands are encoded when it comes.

use std::ops::Range;

use crate::error::GpuError;
use crate::gpu::{Encoded, Gpu, Readback, Submission};
use crate::kernel::Pass;
use crate::tensor::Tensor;

/// Commands that wait for their step.
#[derive(Debug, Default)]
pub struct Ahead {
    waiting: Option<Waiting>,
    // Kept, so that a copy allocates nothing.
    pass: Pass,
}

#[derive(Debug)]
struct Waiting {
    readback: (Tensor, Range<usize>),
    encoded: Encoded,
}

impl Ahead {
    /// Nothing encoded yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// As [`Gpu::submit`], with the commands that were encoded ahead if they are those of `pass`.
    pub fn submit(
        &mut self,
        gpu: &Gpu,
        pass: &Pass,
        readback: Readback<'_>,
    ) -> Result<Submission, GpuError> {
        let Some(Waiting { readback: (tensor, range), encoded }) = self.waiting.take() else {
            return gpu.submit(pass, Some(readback));
        };
        if self.pass == *pass && tensor.is(readback.0) && range == readback.1 {
            return gpu.submit_encoded(encoded);
        }
        if let Some((buffer, _)) = encoded.staging {
            gpu.keep_readback_buffer(buffer);
        }
        gpu.submit(pass, Some(readback))
    }

    /// Encodes `pass` for a step that may come, while the adapter is at work.
    pub fn encode(
        &mut self,
        gpu: &Gpu,
        pass: &Pass,
        readback: Readback<'_>,
    ) -> Result<(), GpuError> {
        // Timing runs what it encodes.
        if gpu.is_profiled() {
            return Ok(());
        }
        let (tensor, range) = readback;
        let encoded = gpu.encode(pass, Some((tensor, range.clone())))?;
        self.pass.copy_from(pass);
        self.waiting = Some(Waiting { readback: (tensor.clone(), range), encoded });
        Ok(())
    }
}
