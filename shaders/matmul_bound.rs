//! A product that is bound to its tensors, and what is recorded of it.

use crate::inputs::StepShape;
use crate::kernel::{Bound, Pass};
use crate::matmul::Params;
use crate::matmul_variant::Variant;
use crate::quantize_rows::BoundQuantizeRows;
use crate::weights::TILE;

/// A product with one matrix of a layer.
pub struct BoundMatmul {
    /// Of each format that it has.
    pub(crate) parts: Vec<BoundPart>,
}

/// A product with the rows of a matrix that are of one format.
pub(crate) struct BoundPart {
    /// What quantises x.
    pub(crate) before: Option<BoundQuantizeRows>,
    /// For each variant, the kernel bound to each shard.
    pub(crate) variants: Vec<(Variant, Vec<(Bound, Params)>)>,
    pub(crate) max_rows: usize,
}

impl BoundMatmul {
    /// Multiplies the first `num_rows` rows. Not for [`Output::Qkv`].
    pub fn record(&self, pass: &mut Pass, num_rows: usize) {
        self.record_step(pass, StepShape { num_tokens: num_rows, ..StepShape::default() });
    }

    /// How the work for so many rows is laid out: rows and columns a lane, lanes side by side,
    /// groups of them.
    pub fn layout(&self, num_rows: usize) -> String {
        let variant = self.parts.iter().find_map(|part| part.variant(num_rows));
        variant.map_or_else(String::new, |(variant, _)| variant.name())
    }

    /// Multiplies the rows of the tokens of a step.
    pub fn record_step(&self, pass: &mut Pass, step: StepShape) {
        self.parts.iter().for_each(|part| part.record_step(pass, step));
    }
}

impl BoundPart {
    fn variant(&self, num_rows: usize) -> Option<&(Variant, Vec<(Bound, Params)>)> {
        self.variants
            .iter()
            .find(|(variant, _)| num_rows <= variant.max_rows)
            .or(self.variants.last())
    }

    pub(crate) fn record_step(&self, pass: &mut Pass, step: StepShape) {
        let num_rows = step.num_tokens;
        assert!(num_rows <= self.max_rows, "a batch fits the tensors of its stage");
        let Some((variant, shards)) = self.variant(num_rows) else { return };
        if let Some(before) = &self.before {
            before.record(pass, num_rows);
        }
        for (bound, params) in shards {
            let tables_at = step.tables_at();
            let params = params.of_rows(num_rows).with_tables(tables_at);
            let strips = params.num_computed.div_ceil(TILE as u32) * variant.strips();
            pass.dispatch(bound, &params, [strips, params.num_rows.div_ceil(variant.rows()), 1]);
        }
    }
}
