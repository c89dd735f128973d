//! Which block of the KV cache belongs to whom, and which hold what somebody else may need. One
//! table serves every stage of a pipeline.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use protocol::{BLOCK_TOKENS, BlockId, TokenId};

/// What a full block holds: a hash of its tokens and of all before them, begun with whatever else
/// its keys and values depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockHash([u8; 16]);

impl BlockHash {
    /// Where the blocks of one tenant begin: tenants never share, so that none can tell by the
    /// time that it takes what another has asked.
    pub fn root(tenant: &str) -> Self {
        Self::of(
            blake3::Hasher::new_derive_key("autoglm prefix cache, tenant")
                .update(tenant.as_bytes()),
        )
    }

    /// The block of these tokens behind this one.
    pub fn then(self, tokens: &[TokenId]) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.0);
        for token in tokens {
            hasher.update(&token.0.to_le_bytes());
        }
        Self::of(&hasher)
    }

    fn of(hasher: &blake3::Hasher) -> Self {
        let mut hash = [0; 16];
        hash.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        Self(hash)
    }
}

/// The blocks of a pipeline.
///
/// A block that nobody holds is free; if its content is known it stays findable until it is handed
/// out again, the least recently used first.
#[derive(Debug, Default)]
pub struct BlockManager {
    blocks: Vec<Block>,
    // Those of unknown content first, then by when they were last held.
    free: BTreeSet<(u64, BlockId)>,
    cached: HashMap<BlockHash, BlockId>,
    clock: u64,
    num_evicted: u64,
}

#[derive(Clone, Debug, Default)]
struct Block {
    num_holders: u32,
    hash: Option<BlockHash>,
    // Its place in `free`; 0 for unknown content.
    freed_at: u64,
}

impl BlockManager {
    /// All blocks free.
    pub fn new(num_blocks: usize) -> Self {
        Self {
            blocks: vec![Block::default(); num_blocks],
            free: (0..num_blocks as u32).map(|id| (0, BlockId(id))).collect(),
            ..Self::default()
        }
    }

    /// Blocks that a sequence of this many tokens fills.
    pub fn blocks_for(num_tokens: usize) -> usize {
        num_tokens.div_ceil(BLOCK_TOKENS)
    }

    /// How many of these blocks, from the first on, are there.
    pub fn num_cached(&self, hashes: &[BlockHash]) -> usize {
        hashes.iter().take_while(|hash| self.cached.contains_key(hash)).count()
    }

    /// Blocks that are free and not among those with these hashes.
    pub fn num_free_beside(&self, hashes: &[BlockHash]) -> usize {
        let ids = hashes.iter().filter_map(|hash| self.cached.get(hash));
        self.free.len() - ids.filter(|id| self.blocks[id.0 as usize].num_holders == 0).count()
    }

    /// How many of these blocks would be free if one holder gave them back.
    pub fn num_held_alone(&self, blocks: &[BlockId]) -> usize {
        blocks.iter().filter(|id| self.blocks[id.0 as usize].num_holders == 1).count()
    }

    /// `num_blocks` blocks, of which the first are those with these hashes, all of which are
    /// there; nothing when too few others are free.
    pub fn allocate(&mut self, num_blocks: usize, hashes: &[BlockHash]) -> Option<Vec<BlockId>> {
        let shared: Vec<_> =
            hashes.iter().filter_map(|hash| self.cached.get(hash)).copied().collect();
        debug_assert_eq!(shared.len(), hashes.len());
        let num_new = num_blocks.saturating_sub(shared.len());
        if self.num_free_beside(hashes) < num_new {
            return None;
        }
        for id in &shared {
            let block = &mut self.blocks[id.0 as usize];
            if block.num_holders == 0 {
                self.free.remove(&(block.freed_at, *id));
            }
            block.num_holders += 1;
        }
        let mut allocated = shared;
        for _ in 0..num_new {
            let (_, id) = self.free.pop_first().expect("as many were counted");
            let block = &mut self.blocks[id.0 as usize];
            block.num_holders = 1;
            if let Some(hash) = block.hash.take() {
                self.cached.remove(&hash);
                self.num_evicted += 1;
            }
            allocated.push(id);
        }
        Some(allocated)
    }

    /// A held block is full: whoever needs the same may share it from the next step on.
    pub fn share(&mut self, id: BlockId, hash: BlockHash) {
        let block = &mut self.blocks[id.0 as usize];
        debug_assert!(block.num_holders > 0);
        // Two that computed the same at once keep their own; one of them is found.
        if block.hash.is_none() && !self.cached.contains_key(&hash) {
            block.hash = Some(hash);
            self.cached.insert(hash, id);
        }
    }

    /// Gives blocks back. The last of them are handed out again first: a prefix outlives what
    /// followed it.
    pub fn free(&mut self, blocks: Vec<BlockId>) {
        for id in blocks.into_iter().rev() {
            let block = &mut self.blocks[id.0 as usize];
            debug_assert!(block.num_holders > 0);
            block.num_holders -= 1;
            if block.num_holders == 0 {
                self.clock += u64::from(block.hash.is_some());
                block.freed_at = if block.hash.is_some() { self.clock } else { 0 };
                self.free.insert((block.freed_at, id));
            }
        }
    }

    /// Nothing that was computed can be relied on any more.
    pub fn forget(&mut self) {
        self.cached.clear();
        self.free.clear();
        for (id, block) in self.blocks.iter_mut().enumerate() {
            (block.hash, block.freed_at) = (None, 0);
            if block.num_holders == 0 {
                self.free.insert((0, BlockId(id as u32)));
            }
        }
    }

    /// Whether blocks are held by as many as are said to hold them, and the others are free.
    ///
    /// # Errors
    /// Which are not.
    pub fn check(&self, holders: &BTreeMap<BlockId, u32>) -> Result<(), String> {
        for (id, block) in (0..).map(BlockId).zip(&self.blocks) {
            let num_holders = holders.get(&id).copied().unwrap_or(0);
            if block.num_holders != num_holders {
                let counted = block.num_holders;
                return Err(format!("block {id}: {num_holders} hold it, {counted} counted"));
            }
            if self.free.contains(&(block.freed_at, id)) != (num_holders == 0) {
                return Err(format!("block {id}: {num_holders} hold it, and is it free?"));
            }
            if block.hash.is_some_and(|hash| self.cached.get(&hash) != Some(&id)) {
                return Err(format!("block {id} can't be found by what it holds"));
            }
        }
        let num_known = self.blocks.iter().filter(|block| block.hash.is_some()).count();
        let (num_found, num_held) = (self.cached.len(), holders.len());
        if num_known != num_found || self.free.len() + num_held != self.blocks.len() {
            return Err(format!("{num_known} known, {num_found} found, {num_held} held"));
        }
        Ok(())
    }

    /// Blocks in all.
    pub fn num_blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks that nobody holds.
    pub fn num_free(&self) -> usize {
        self.free.len()
    }

    /// Blocks of known content that were handed out for something else.
    pub fn num_evicted(&self) -> u64 {
        self.num_evicted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hashes(num_blocks: usize) -> Vec<BlockHash> {
        let mut hash = BlockHash::root("");
        let mut next = |i: usize| {
            hash = hash.then(&[TokenId(i as u32); BLOCK_TOKENS]);
            hash
        };
        (0..num_blocks).map(&mut next).collect()
    }

    #[test]
    fn blocks_are_handed_out_once_and_come_back() {
        let mut blocks = BlockManager::new(4);
        let first = blocks.allocate(3, &[]).unwrap();
        assert_eq!(first, [BlockId(0), BlockId(1), BlockId(2)]);
        assert_eq!(blocks.allocate(2, &[]), None);
        assert_eq!(blocks.num_free(), 1);
        blocks.free(first);
        assert_eq!(blocks.allocate(4, &[]).unwrap().len(), 4);
    }

    #[test]
    fn a_block_holds_sixteen_tokens() {
        assert_eq!(BlockManager::blocks_for(0), 0);
        assert_eq!(BlockManager::blocks_for(16), 1);
        assert_eq!(BlockManager::blocks_for(17), 2);
    }

    #[test]
    fn a_shared_block_is_free_when_its_last_holder_has_gone_and_is_still_found() {
        let (mut blocks, hashes) = (BlockManager::new(4), hashes(2));
        let first = blocks.allocate(3, &[]).unwrap();
        blocks.share(first[0], hashes[0]);
        blocks.share(first[1], hashes[1]);
        assert_eq!(blocks.num_cached(&hashes), 2);
        let second = blocks.allocate(3, &hashes).unwrap();
        assert_eq!(second[..2], first[..2]);
        assert_eq!(blocks.num_free(), 0);
        blocks.free(first);
        assert_eq!(blocks.num_free(), 1, "two are held by the second");
        blocks.free(second);
        assert_eq!(blocks.num_free(), 4);
        assert_eq!(blocks.num_cached(&hashes), 2);
    }

    #[test]
    fn what_follows_a_prefix_is_handed_out_before_it() {
        let (mut blocks, hashes) = (BlockManager::new(2), hashes(2));
        let held = blocks.allocate(2, &[]).unwrap();
        blocks.share(held[0], hashes[0]);
        blocks.share(held[1], hashes[1]);
        blocks.free(held);
        blocks.allocate(1, &[]).unwrap();
        assert_eq!(blocks.num_cached(&hashes), 1);
        assert_eq!(blocks.num_evicted(), 1);
    }

    #[test]
    fn tenants_and_what_stands_before_tell_blocks_apart() {
        let tokens = [TokenId(1); BLOCK_TOKENS];
        let a = BlockHash::root("a").then(&tokens);
        assert_ne!(a, BlockHash::root("b").then(&tokens));
        assert_ne!(a.then(&tokens), a);
    }

    #[test]
    fn what_is_forgotten_is_not_found_and_nothing_is_lost() {
        let (mut blocks, hashes) = (BlockManager::new(3), hashes(2));
        let held = blocks.allocate(1, &[]).unwrap();
        let freed = blocks.allocate(1, &[]).unwrap();
        blocks.share(held[0], hashes[0]);
        blocks.share(freed[0], hashes[1]);
        blocks.free(freed);
        blocks.forget();
        assert_eq!((blocks.num_cached(&hashes), blocks.num_free()), (0, 2));
        blocks.free(held);
        assert_eq!(blocks.num_free(), 3);
    }
}
