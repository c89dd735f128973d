//! The MLP of a layer, and a SiLU-gated one that all tokens have.

use checkpoint::{Matrix, Mlp, ScratchRow};
use shaders::inputs::StepShape;
use shaders::kernel::Pass;
use shaders::matmul::{BoundMatmul, Operand, Output};
use shaders::weights::WeightMatrix;

use super::Shared;
use super::moe::{BoundMoe, MoeWeights};
use super::weights::Loader;
use crate::error::StageError;

/// The weights of a layer's MLP.
#[expect(clippy::large_enum_variant, reason = "a stage has one for each layer")]
pub(super) enum MlpWeights {
    Dense(DenseWeights),
    Moe(MoeWeights),
}

impl MlpWeights {
    pub(super) fn load(loader: &mut Loader<'_>, spec: &Mlp) -> Result<Self, StageError> {
        Ok(match spec {
            Mlp::Dense(_) => {
                Self::Dense(DenseWeights::load(loader, (Matrix::GateUp, Matrix::Down))?)
            }
            Mlp::Moe(moe) => Self::Moe(MoeWeights::load(loader, moe)?),
        })
    }
}

/// The MLP of a layer, bound to its weights.
#[expect(clippy::large_enum_variant, reason = "a stage has one for each layer")]
pub(super) enum BoundMlp {
    Dense(BoundDense),
    Moe(BoundMoe),
}

impl BoundMlp {
    /// Of the rows of `x`, to `output`.
    pub(super) fn bind(
        shared: &Shared<'_>,
        weights: &MlpWeights,
        x: Operand<'_>,
        output: Output<'_>,
    ) -> Result<Self, StageError> {
        Ok(match weights {
            MlpWeights::Dense(weights) => {
                Self::Dense(BoundDense::bind(shared, weights, x, output)?)
            }
            MlpWeights::Moe(weights) => Self::Moe(BoundMoe::bind(shared, weights, x, output)?),
        })
    }

    pub(super) fn record(&self, pass: &mut Pass, step: StepShape) {
        match self {
            Self::Dense(mlp) => mlp.record(pass, step),
            Self::Moe(mlp) => mlp.record(pass, step),
        }
    }
}

/// A matrix of the layer of a number.
type InLayer = fn(usize) -> Matrix;

/// The weights of an MLP that all tokens have.
pub(super) struct DenseWeights {
    gate_up: WeightMatrix,
    down: WeightMatrix,
}

impl DenseWeights {
    pub(super) fn load(
        loader: &mut Loader<'_>,
        (gate_up, down): (InLayer, InLayer),
    ) -> Result<Self, StageError> {
        Ok(Self { gate_up: loader.matrix(gate_up)?, down: loader.matrix(down)? })
    }
}

pub(super) struct BoundDense {
    /// Gate and up, SwiGLU.
    gate_up: BoundMatmul,
    down: BoundMatmul,
}

impl BoundDense {
    /// Of the rows of `x`, to `output`.
    pub(super) fn bind(
        shared: &Shared<'_>,
        weights: &DenseWeights,
        x: Operand<'_>,
        output: Output<'_>,
    ) -> Result<Self, StageError> {
        let Shared { gpu, kernels, scratch, .. } = *shared;
        let gated = scratch.row(ScratchRow::Gated);
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
