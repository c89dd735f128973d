//! A mixture of experts: each token's are chosen, multiplied with, and added up; another MLP, which
//! all tokens have, may follow.

use checkpoint::{Matrix, Mlp, ModelConfig, Moe, ScratchRow, Vector};
use shaders::experts::{BoundExperts, ExpertShape, ExpertTensors};
use shaders::inputs::StepShape;
use shaders::kernel::Pass;
use shaders::matmul::{BoundMatmul, Operand, Output};
use shaders::matmul_stacked::{BoundStacked, Rows};
use shaders::tensor::Tensor;
use shaders::weights::WeightMatrix;

use super::Shared;
use super::mlp::{BoundDense, DenseWeights};
use super::weights::Loader;
use crate::error::StageError;

/// How experts are chosen in the layers of a model that have some: all of them have as many.
pub(super) fn shape(model: &ModelConfig) -> Option<ExpertShape> {
    model.layers.iter().find_map(|layer| match layer.mlp {
        Mlp::Dense(_) => None,
        Mlp::Moe(moe) => Some(ExpertShape {
            num_experts: moe.num_experts,
            top_k: moe.top_k,
            num_groups: moe.num_groups,
            top_groups: moe.top_groups,
            normalized: moe.normalized,
            scale: moe.scale,
        }),
    })
}

/// The weights of a layer's experts.
pub(super) struct MoeWeights {
    router: WeightMatrix,
    bias: Tensor,
    gate_up: WeightMatrix,
    down: WeightMatrix,
    shared: Option<DenseWeights>,
}

impl MoeWeights {
    pub(super) fn load(loader: &mut Loader<'_>, spec: &Moe) -> Result<Self, StageError> {
        let shared = (Matrix::SharedGateUp as fn(usize) -> Matrix, Matrix::SharedDown as _);
        Ok(Self {
            router: loader.matrix(Matrix::Router)?,
            bias: loader.values(&[Vector::RouterBias])?,
            gate_up: loader.matrix(Matrix::ExpertsGateUp)?,
            down: loader.matrix(Matrix::ExpertsDown)?,
            shared: match spec.shared_width {
                0 => None,
                _ => Some(DenseWeights::load(loader, shared)?),
            },
        })
    }
}

/// The experts of a layer, bound to their weights.
pub(super) struct BoundMoe {
    router: BoundMatmul,
    /// The choice before the products, and the sum after them.
    experts: BoundExperts,
    gate_up: BoundStacked,
    down: BoundStacked,
    shared: Option<BoundDense>,
}

impl BoundMoe {
    /// Of the rows of `x`, to `output`.
    pub(super) fn bind(
        shared: &Shared<'_>,
        weights: &MoeWeights,
        x: Operand<'_>,
        output: Output<'_>,
    ) -> Result<Self, StageError> {
        let Shared { gpu, kernels, model, scratch, .. } = *shared;
        let shape = shape(model).expect("a layer with experts is one of the model's");
        let routes = scratch.routes.as_ref().expect("a model with experts has routes");
        let Output::Residual { residual, out } = output else {
            panic!("no model normalises what experts give");
        };
        let logits = scratch.row(ScratchRow::Router);
        let (gated, given) =
            (scratch.row(ScratchRow::ExpertsGated), scratch.row(ScratchRow::Experts));
        let mixed = weights.shared.as_ref().map(|_| scratch.row(ScratchRow::Mixed));
        let tensors = ExpertTensors {
            logits,
            bias: &weights.bias,
            routes,
            given,
            residual,
            out: mixed.unwrap_or(out),
        };
        let rows = |pairs_per_row| Rows::Routed { routes, pairs_per_row };
        let gate_up = (&weights.gate_up, rows(shape.top_k), Output::Swiglu(gated));
        let down = (&weights.down, rows(1), Output::Store(given));
        let plain = Operand { quantized: None, ..x };
        let dense = weights.shared.as_ref().zip(mixed).map(|(weights, mixed)| {
            let output = Output::Residual { residual: mixed, out };
            BoundDense::bind(shared, weights, x, output)
        });
        Ok(Self {
            router: kernels.router.bind(gpu, plain, &weights.router, Output::Store(logits))?,
            experts: BoundExperts::new(gpu, shape, model.hidden_size, tensors)?,
            gate_up: BoundStacked::new(gpu, x, gate_up.0, gate_up.1, gate_up.2)?,
            down: BoundStacked::new(gpu, scratch.plain(gated), down.0, down.1, down.2)?,
            shared: dense.transpose()?,
        })
    }

    pub(super) fn record(&self, pass: &mut Pass, step: StepShape) {
        self.router.record(pass, step.num_tokens);
        let routes = self.experts.record_choice(pass, step.num_tokens);
        self.gate_up.record_routed(pass, &routes);
        self.down.record_routed(pass, &routes);
        self.experts.record_sum(pass, &routes);
        if let Some(shared) = &self.shared {
            shared.record(pass, step);
        }
    }
}
