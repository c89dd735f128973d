//! Which block of the KV cache belongs to whom. One table serves every stage of a pipeline.

use protocol::{BLOCK_TOKENS, BlockId};

/// The free blocks of a pipeline.
#[derive(Debug, Default)]
pub struct BlockManager {
    // A stack: the block freed last is the one most likely still in a cache.
    free: Vec<BlockId>,
    num_blocks: usize,
}

impl BlockManager {
    /// All blocks free.
    pub fn new(num_blocks: usize) -> Self {
        let free = (0..num_blocks as u32).rev().map(BlockId).collect();
        Self { free, num_blocks }
    }

    /// Blocks that a sequence of this many tokens fills.
    pub fn blocks_for(num_tokens: usize) -> usize {
        num_tokens.div_ceil(BLOCK_TOKENS)
    }

    /// As many blocks, or none when fewer are free.
    pub fn allocate(&mut self, num_blocks: usize) -> Option<Vec<BlockId>> {
        let left = self.free.len().checked_sub(num_blocks)?;
        let mut blocks = self.free.split_off(left);
        blocks.reverse();
        Some(blocks)
    }

    /// Gives blocks back.
    pub fn free(&mut self, blocks: Vec<BlockId>) {
        self.free.extend(blocks.into_iter().rev());
        debug_assert!(self.free.len() <= self.num_blocks);
    }

    /// Blocks in all.
    pub fn num_blocks(&self) -> usize {
        self.num_blocks
    }

    /// Blocks that nobody holds.
    pub fn num_free(&self) -> usize {
        self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_handed_out_once_and_come_back() {
        let mut blocks = BlockManager::new(4);
        let first = blocks.allocate(3).unwrap();
        assert_eq!(first, [BlockId(0), BlockId(1), BlockId(2)]);
        assert_eq!(blocks.allocate(2), None);
        assert_eq!(blocks.num_free(), 1);
        blocks.free(first);
        assert_eq!(blocks.allocate(4).unwrap().len(), 4);
    }

    #[test]
    fn a_block_holds_sixteen_tokens() {
        assert_eq!(BlockManager::blocks_for(0), 0);
        assert_eq!(BlockManager::blocks_for(16), 1);
        assert_eq!(BlockManager::blocks_for(17), 2);
    }
}
