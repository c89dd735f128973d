//! A SiLU-gated MLP.

use checkpoint::{Matrix, Mlp, Row};
use shaders::inputs::StepShape;
use shaders::kernel::Pass;
use shaders::matmul::{BoundMatmul, Operand, Output};
use shaders::weights::WeightMatrix;

use super::Shared;
use super::weights::Loader;
use crate::error::StageError;

/// The weights of a layer's MLP.
pub(super) struct MlpWeights {
    gate_up: WeightMatrix,
    down: WeightMatrix,
}

impl MlpWeights {
    pub(super) fn load(loader: &mut Loader<'_>, spec: &Mlp) -> Result<Self, StageError> {
        let Mlp::Dense(_) = spec;
        Ok(Self { gate_up: loader.matrix(Matrix::GateUp)?, down: loader.matrix(Matrix::Down)? })
    }
}

/// The MLP of a layer, bound to its weights.
pub(super) struct BoundMlp {
    /// Gate and up, SwiGLU.
    gate_up: BoundMatmul,
    down: BoundMatmul,
}

impl BoundMlp {
    /// Of the rows of `x`, to `output`.
    pub(super) fn bind(
        shared: &Shared<'_>,
        weights: &MlpWeights,
        x: Operand<'_>,
        output: Output<'_>,
    ) -> Result<Self, StageError> {
        let Shared { gpu, kernels, scratch, .. } = *shared;
        let gated = scratch.row(Row::Gated);
        let matmul = &kernels.matmul;
        Ok(Self {
            gate_up: matmul.bind(gpu, x, &weights.gate_up, Output::Swiglu(gated))?,
            down: matmul.bind(gpu, scratch.plain(gated), &weights.down, output)?,
        })
    }

    pub(super) fn record(&self, pass: &mut Pass, step: StepShape) {
        self.gate_up.record(pass, step.num_tokens);
        self.down.record(pass, step.num_tokens);
    }
}
