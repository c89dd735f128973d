//! What a watcher sees of a lane, and whether its books agree.

use std::collections::BTreeMap;

use protocol::{BlockId, SequenceId, StepId};

use super::Lane;
use crate::block_manager::BlockManager;
use crate::sequence::Sequence;

impl Lane {
    /// What runs, in the order of admission.
    pub fn running(&self) -> &[Sequence] {
        &self.running
    }

    /// Its blocks.
    pub fn blocks(&self) -> &BlockManager {
        &self.blocks
    }

    /// Whether what this step samples is still waited for.
    pub fn is_under_way(&self, step: StepId) -> bool {
        self.steps.iter().any(|it| it.step == step && it.is_waited_for())
    }

    /// Whether all books tell the same.
    ///
    /// # Errors
    /// Which doesn't.
    pub fn check(&self) -> Result<(), String> {
        let mut holders: BTreeMap<BlockId, u32> = BTreeMap::new();
        let mut steps: BTreeMap<SequenceId, usize> = BTreeMap::new();
        for block in self.running.iter().flat_map(Sequence::held) {
            *holders.entry(block).or_default() += 1;
        }
        self.blocks.check(&holders)?;
        for sequence in self.steps.iter().flat_map(|step| &step.sequences) {
            *steps.entry(*sequence).or_default() += 1;
        }
        for sequence in &self.running {
            let num_steps = steps.get(&sequence.id).copied().unwrap_or(0);
            if sequence.num_in_flight != num_steps {
                let counted = sequence.num_in_flight;
                return Err(format!(
                    "sequence {}: {num_steps} steps under way, {counted} counted",
                    sequence.id
                ));
            }
        }
        let is_gone = |id: &SequenceId| self.running.iter().all(|it| it.id != *id);
        if let Some(id) = self.coming.values().find(|id| is_gone(id)) {
            return Err(format!("blocks are to come of sequence {id}, which doesn't run"));
        }
        Ok(())
    }

    /// What costs little to look at, after every change where that is checked.
    pub(super) fn check_invariants(&self) {
        // One runs ahead, or did when it was sent.
        debug_assert!(self.steps.len() <= self.capacity.num_stages + 1);
        debug_assert!(self.running.len() <= self.config.max_num_seqs as usize);
        debug_assert!(self.running.is_sorted_by_key(|it| it.id));
        debug_assert!(self.running.iter().all(|it| !it.blocks.is_empty()));
        debug_assert!(
            !self.running.is_empty() || self.blocks.num_free() == self.blocks.num_blocks(),
            "nobody holds what nobody runs"
        );
    }
}
