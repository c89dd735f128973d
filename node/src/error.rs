//! Why a stage can't do what it was asked.

/// Why a stage can't be loaded, or can't compute a step.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// The model's files.
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::CheckpointError),
    /// Nobody gives what isn't here, or there is no room for it.
    #[error("the model's weights can't be fetched: {0}")]
    Weights(String),
    /// The adapter.
    #[error(transparent)]
    Gpu(#[from] shaders::error::GpuError),
    /// The files here aren't those that the coordinator opened.
    #[error(
        "{path} on this node holds another model than on the coordinator ({part} differs): give \
         both the same files"
    )]
    OtherModel {
        /// Where the files are.
        path: String,
        /// The first part that differs.
        part: String,
    },
    /// The plan contradicts itself or the model.
    #[error("the plan is wrong: {0}")]
    BadPlan(String),
    /// The stage takes more memory than it may.
    #[error(
        "the stage needs {needed} bytes with a KV cache for one sequence and may take {allowed}; \
         {missing} bytes are missing: raise --max-memory or add nodes"
    )]
    TooLarge {
        /// Weights, scratch and the shortest KV cache.
        needed: u64,
        /// The plan's limit.
        allowed: u64,
        /// The difference, with room for one sequence.
        missing: u64,
    },
    /// What is kept ready for later has to wait.
    #[error("a stage is on the adapter")]
    Busy,
    /// Whoever asked for the stage is gone, or wants another by now.
    #[error("nobody waits for the stage any more")]
    Unwanted,
    /// A batch that the kernels can't take.
    #[error(transparent)]
    Inputs(#[from] shaders::inputs::BadInputs),
    /// Rows that can't be sampled.
    #[error(transparent)]
    Sampler(#[from] shaders::sampler::SamplerError),
    /// A batch that no scheduler of ours makes.
    #[error("the batch is wrong: {0}")]
    BadBatch(String),
    /// A step was to compute what another samples, which failed.
    #[error("step {0} failed, whose sample this one was to compute")]
    PromiseBroken(protocol::StepId),
    /// Which tokens may be sampled is never said.
    #[error("nobody is left to say which tokens may be sampled")]
    NoMasks,
    /// The adapter's thread has ended.
    #[error("the adapter's thread has ended")]
    DeviceGone,
    /// The result can't be sampled from.
    #[error("layer output is not a number: the weights or the device are broken")]
    NotFinite,
}

impl StageError {
    /// Whether what ended so leaves the adapter of no more use.
    pub(crate) fn loses_adapter(&self) -> bool {
        use shaders::error::GpuError::{Lost, TimedOut};
        let (Self::Gpu(cause) | Self::Sampler(shaders::sampler::SamplerError::Gpu(cause))) = self
        else {
            return false;
        };
        matches!(cause, Lost(_) | TimedOut { .. })
    }

    /// Whether the stage is of no more use.
    pub(crate) fn is_fatal(&self) -> bool {
        matches!(
            self,
            Self::Gpu(_) | Self::DeviceGone | Self::Sampler(shaders::sampler::SamplerError::Gpu(_))
        )
    }
}
