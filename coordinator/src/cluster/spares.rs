//! What idle nodes keep ready, so that whoever takes a lost stage has nothing to load: the whole
//! model where it fits, else a stage each.

use protocol::{LayerRange, NodeReport, StageId, StageIndex, StagePlan};

use super::{Action, Cluster};
use crate::pipeline::Pipeline;

impl Cluster {
    /// Asks idle nodes to keep what they weren't asked for yet, once everything that is wanted
    /// serves. They try until they can.
    pub(super) fn warm_spares(&mut self) {
        if self.is_stopping || !self.pipelines.values().all(Pipeline::is_ready) {
            return;
        }
        let mut turn = 0;
        let mut wanted = Vec::new();
        for report in self.free() {
            for adapter in 0..report.adapters.len() as u32 {
                wanted.extend(self.kept_ready((report, adapter), turn).map(|it| (report.node, it)));
                turn += 1;
            }
        }
        let num_layers = self.model.cost.layers.len();
        for (node, plan) in wanted {
            // Also one that holds it already: what it isn't asked to keep it drops after a while.
            if self.known.ask(node, &plan) {
                self.known.hold(node, &plan, num_layers);
                self.actions.push(Action::Warm(node, Box::new(plan)));
            }
        }
    }

    /// What an idle adapter should keep: stages are divided among those that can't hold them all.
    fn kept_ready(&self, at: (&NodeReport, u32), turn: usize) -> Option<StagePlan> {
        let (report, adapter) = at;
        let memory_bytes = report.adapters.get(adapter as usize)?.memory_bytes;
        let stages = self.pipelines.values().flat_map(|it| &it.stages);
        // What it has no room for it can't keep.
        let fits = |plan: &&StagePlan| {
            let layers = plan.layers.first as usize..plan.layers.end as usize;
            self.model.cost.memory(layers) <= memory_bytes
        };
        let plans: Vec<_> = stages.map(|stage| &stage.plan).filter(fits).collect();
        let mut plan = (*plans.get(turn % plans.len().max(1))?).clone();
        if self.model.cost.total() <= memory_bytes {
            plan.id = StageId { stage: StageIndex(0), ..plan.id };
            plan.num_stages = 1;
            plan.layers = LayerRange { first: 0, end: self.model.cost.layers.len() as u32 };
            plan.digests.clone_from(&self.model.digests);
        }
        (plan.adapter, plan.memory_bytes, plan.next) = (adapter, memory_bytes, None);
        // Its cache is only there for as long as its kernels are proven.
        plan.limits.max_blocks = plan.limits.max_model_len.div_ceil(protocol::BLOCK_TOKENS as u32);
        Some(plan)
    }
}
