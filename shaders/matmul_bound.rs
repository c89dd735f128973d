//! A product that is bound to its tensors, in each way that it may be computed.

use crate::inputs::StepShape;
use crate::kernel::{Bound, Pass};
use crate::matmul::Params;
use crate::matmul_aside::{BoundScales, BoundSums};
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
    /// By ascending number of rows.
    pub(crate) ways: Vec<Way>,
    pub(crate) max_rows: usize,
}

/// How one variant computes it.
pub(crate) struct Way {
    pub(crate) variant: Variant,
    /// Before it, where that is done aside.
    pub(crate) scales: Option<BoundScales>,
    /// Chunks of k that workgroups have side by side.
    pub(crate) num_chunks: u32,
    pub(crate) shards: Vec<BoundShard>,
}

/// A part of the columns.
pub(crate) struct BoundShard {
    pub(crate) bound: Bound,
    /// What adds the sums of chunks, where there are some.
    pub(crate) sums: Option<BoundSums>,
    pub(crate) params: Params,
}

impl BoundMatmul {
    /// Multiplies the first `num_rows` rows. Not for [`crate::matmul::Output::Qkv`].
    pub fn record(&self, pass: &mut Pass, num_rows: usize) {
        self.record_step(pass, StepShape { num_tokens: num_rows, ..StepShape::default() });
    }

    /// How the work for so many rows is laid out: rows and columns a lane, lanes side by side,
    /// groups of them.
    pub fn layout(&self, num_rows: usize) -> String {
        let way = self.parts.iter().find_map(|part| part.way(num_rows));
        way.map_or_else(String::new, |way| way.variant.name())
    }

    /// Multiplies the rows of the tokens of a step.
    pub fn record_step(&self, pass: &mut Pass, step: StepShape) {
        self.parts.iter().for_each(|part| part.record_step(pass, step));
    }
}

impl BoundPart {
    fn way(&self, num_rows: usize) -> Option<&Way> {
        self.ways.iter().find(|way| num_rows <= way.variant.max_rows).or(self.ways.last())
    }

    pub(crate) fn record_step(&self, pass: &mut Pass, step: StepShape) {
        let num_rows = step.num_tokens;
        assert!(num_rows <= self.max_rows, "a batch fits the tensors of its stage");
        let Some(Way { variant, scales, num_chunks, shards }) = self.way(num_rows) else { return };
        if let Some(before) = &self.before {
            before.record(pass, num_rows);
        }
        if let Some(scales) = scales {
            scales.record(pass, num_rows);
        }
        for BoundShard { bound, sums, params } in shards {
            let params = params.of_rows(num_rows).with_tables(step.tables_at());
            let strips = params.num_computed.div_ceil(TILE as u32) * variant.strips();
            let cuts = if sums.is_some() { num_chunks.div_ceil(variant.groups) } else { 1 };
            pass.dispatch(bound, &params, [strips, params.num_rows.div_ceil(variant.rows()), cuts]);
            if let Some(sums) = sums {
                sums.record(pass, params);
            }
        }
    }
}
