//! Which block of the KV cache belongs to whom, and which hold what somebody else may need. One
//! table serves every stage of a pipeline.

mod evicted;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use protocol::{BLOCK_TOKENS, BlockId, TokenId, config};

use self::evicted::Evicted;

/// Tells by what they hang on: the content, and the tenant.
type Hash = [u8; 16];

/// What a block holds from its start on: a hash of its tokens and of all before them, and of
/// whatever else its keys and values depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockHash {
    tenant: Hash,
    content: Hash,
}

impl BlockHash {
    /// Where the blocks of one tenant begin: tenants never share, so that none can tell by the
    /// time that it takes what another has asked.
    pub(crate) fn root(tenant: &str) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("autoglm prefix cache, tenant");
        Self { tenant: first_half(hasher.update(tenant.as_bytes())), content: Hash::default() }
    }

    /// The block of these tokens behind this one; as many as it has of them, if it isn't full.
    pub(crate) fn then(self, tokens: &[TokenId]) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.content);
        for token in tokens {
            hasher.update(&token.0.to_le_bytes());
        }
        Self { content: first_half(&hasher), ..self }
    }
}

fn first_half(hasher: &blake3::Hasher) -> Hash {
    let mut hash = Hash::default();
    hash.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    hash
}

/// The blocks of a pipeline.
///
/// A block that nobody holds is free; if its content is known it stays findable until it is handed
/// out again, the least recently used first. Those that were found often are pinned: they go after
/// all others. There are only so many of them: one more unpins that which was found longest ago.
#[derive(Debug, Default)]
pub struct BlockManager {
    blocks: Vec<Block>,
    free: BTreeSet<(Rank, BlockId)>,
    cached: HashMap<BlockHash, BlockId>,
    // Of how many tenants.
    contents: HashMap<Hash, u32>,
    evicted: Evicted,
    // By when they were last found.
    pinned: BTreeSet<(u64, BlockId)>,
    max_pinned: usize,
    pin_after_hits: u32,
    clock: u64,
}

/// Who is handed out first: whatever isn't pinned, those of unknown content before the others, then
/// by when they were last held.
type Rank = (bool, u64);

#[derive(Clone, Debug, Default)]
struct Block {
    num_holders: u32,
    // Under which it is found: full, and as the end of a prompt that doesn't fill it.
    hashes: [Option<BlockHash>; 2],
    num_hits: u32,
    // When it was last found, while it is pinned.
    pinned_at: Option<u64>,
    // When it was last held; 0 for unknown content.
    freed_at: u64,
}

impl Block {
    fn is_known(&self) -> bool {
        self.hashes != [None; 2]
    }

    fn rank(&self) -> Rank {
        (self.pinned_at.is_some(), self.freed_at)
    }
}

/// Why a block that a sequence needs is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Miss {
    /// Nobody computed it, as far as is remembered.
    Unknown,
    /// It was there, and was handed out for something else.
    Evicted,
    /// Another tenant's is there.
    OtherTenant,
    /// It wasn't looked for: logprobs of the prompt are wanted.
    PromptLogprobs,
}

impl Miss {
    pub(crate) const ALL: [Self; 4] =
        [Self::Unknown, Self::Evicted, Self::OtherTenant, Self::PromptLogprobs];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Evicted => "evicted",
            Self::OtherTenant => "other_tenant",
            Self::PromptLogprobs => "prompt_logprobs",
        }
    }
}

impl BlockManager {
    /// All blocks free.
    pub fn new(num_blocks: usize, config: &config::Scheduler) -> Self {
        Self {
            blocks: vec![Block::default(); num_blocks],
            free: (0..num_blocks as u32).map(|id| (Rank::default(), BlockId(id))).collect(),
            evicted: Evicted::new(num_blocks),
            max_pinned: (num_blocks as f64 * config.max_pinned_share) as usize,
            pin_after_hits: config.pin_after_hits,
            ..Self::default()
        }
    }

    /// Blocks that a sequence of this many tokens fills.
    pub fn blocks_for(num_tokens: usize) -> usize {
        num_tokens.div_ceil(BLOCK_TOKENS)
    }

    pub(crate) fn is_cached(&self, hash: &BlockHash) -> bool {
        self.cached.contains_key(hash)
    }

    /// How many of these blocks, from the first on, are there.
    pub(crate) fn num_cached(&self, hashes: &[BlockHash]) -> usize {
        hashes.iter().take_while(|hash| self.is_cached(hash)).count()
    }

    /// Why a block can't be used. One that is there is of no use when what stands before it isn't.
    pub(crate) fn why_missed(&self, hash: &BlockHash) -> Miss {
        if self.is_cached(hash) || self.evicted.contains(hash) {
            Miss::Evicted
        } else if self.contents.contains_key(&hash.content) {
            Miss::OtherTenant
        } else {
            Miss::Unknown
        }
    }

    /// Blocks that are free and not among those with these hashes.
    pub(crate) fn num_free_beside(&self, hashes: &[BlockHash]) -> usize {
        let ids = hashes.iter().filter_map(|hash| self.cached.get(hash));
        self.free.len() - ids.filter(|id| self.blocks[id.0 as usize].num_holders == 0).count()
    }

    /// How many of these blocks would be free if one holder gave them back.
    pub fn num_held_alone(&self, blocks: &[BlockId]) -> usize {
        blocks.iter().filter(|id| self.blocks[id.0 as usize].num_holders == 1).count()
    }

    /// `num_blocks` blocks, of which the first are those with these hashes, all of which are
    /// there; nothing when too few others are free.
    pub(crate) fn allocate(
        &mut self,
        num_blocks: usize,
        hashes: &[BlockHash],
    ) -> Option<Vec<BlockId>> {
        let num_new = num_blocks.saturating_sub(hashes.len());
        if self.num_free_beside(hashes) < num_new {
            return None;
        }
        let mut allocated: Vec<_> = hashes.iter().filter_map(|hash| self.hold(hash)).collect();
        debug_assert_eq!(allocated.len(), hashes.len());
        for _ in 0..num_new {
            let (_, id) = self.free.pop_first().expect("as many were counted");
            self.forget_content(id);
            self.blocks[id.0 as usize].num_holders = 1;
            allocated.push(id);
        }
        Some(allocated)
    }

    /// The block with this hash, held once more, if it is there.
    pub(crate) fn hold(&mut self, hash: &BlockHash) -> Option<BlockId> {
        let id = *self.cached.get(hash)?;
        let block = &mut self.blocks[id.0 as usize];
        if block.num_holders == 0 {
            self.free.remove(&(block.rank(), id));
        }
        block.num_holders += 1;
        Some(id)
    }

    /// A request found these, which are held: one after the other, from the first on.
    pub(crate) fn hit<'a>(&mut self, hashes: impl DoubleEndedIterator<Item = &'a BlockHash>) {
        // The last of them is the first to be unpinned: a prefix outlives what followed it.
        for hash in hashes.rev() {
            let id = self.cached[hash];
            let block = &mut self.blocks[id.0 as usize];
            block.num_hits += 1;
            if block.num_hits < self.pin_after_hits || self.max_pinned == 0 {
                continue;
            }
            self.clock += 1;
            if let Some(before) = block.pinned_at.replace(self.clock) {
                self.pinned.remove(&(before, id));
            }
            self.pinned.insert((self.clock, id));
            if self.pinned.len() > self.max_pinned {
                self.unpin_oldest();
            }
        }
    }

    fn unpin_oldest(&mut self) {
        let Some((_, id)) = self.pinned.pop_first() else { return };
        let block = &mut self.blocks[id.0 as usize];
        let is_free = block.num_holders == 0 && self.free.remove(&(block.rank(), id));
        (block.pinned_at, block.num_hits) = (None, 0);
        if is_free {
            self.free.insert((block.rank(), id));
        }
    }

    /// A held block has this content: whoever needs the same may share it, or copy it, from the
    /// next step on.
    pub fn share(&mut self, id: BlockId, hash: BlockHash) {
        let block = &mut self.blocks[id.0 as usize];
        debug_assert!(block.num_holders > 0);
        // Two that computed the same at once keep their own; one of them is found.
        if !self.cached.contains_key(&hash)
            && let Some(unused) = block.hashes.iter_mut().find(|it| it.is_none())
        {
            *unused = Some(hash);
            self.cached.insert(hash, id);
            *self.contents.entry(hash.content).or_default() += 1;
        }
    }

    /// Gives blocks back. The last of them are handed out again first: a prefix outlives what
    /// followed it.
    pub fn free(&mut self, blocks: impl DoubleEndedIterator<Item = BlockId>) {
        for id in blocks.rev() {
            let block = &mut self.blocks[id.0 as usize];
            debug_assert!(block.num_holders > 0);
            block.num_holders -= 1;
            if block.num_holders == 0 {
                self.clock += u64::from(block.is_known());
                block.freed_at = if block.is_known() { self.clock } else { 0 };
                self.free.insert((block.rank(), id));
            }
        }
    }

    /// A block that is in no list is about to hold something else.
    fn forget_content(&mut self, id: BlockId) {
        let block = &mut self.blocks[id.0 as usize];
        for hash in std::mem::take(&mut block.hashes).into_iter().flatten() {
            self.cached.remove(&hash);
            self.evicted.insert(&hash);
            let num_tenants = self.contents.get_mut(&hash.content).expect("it was shared");
            *num_tenants -= 1;
            if *num_tenants == 0 {
                self.contents.remove(&hash.content);
            }
        }
        block.num_hits = 0;
        if let Some(at) = block.pinned_at.take() {
            self.pinned.remove(&(at, id));
        }
    }

    /// Nothing that was computed can be relied on any more.
    pub fn forget(&mut self) {
        self.cached.clear();
        self.contents.clear();
        self.pinned.clear();
        self.free.clear();
        for (id, block) in self.blocks.iter_mut().enumerate() {
            *block = Block { num_holders: block.num_holders, ..Block::default() };
            if block.num_holders == 0 {
                self.free.insert((block.rank(), BlockId(id as u32)));
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
            if self.free.contains(&(block.rank(), id)) != (num_holders == 0) {
                return Err(format!("block {id}: {num_holders} hold it, and is it free?"));
            }
            if block.hashes.iter().flatten().any(|hash| self.cached.get(hash) != Some(&id)) {
                return Err(format!("block {id} can't be found by what it holds"));
            }
            if block.pinned_at.is_some_and(|at| !self.pinned.contains(&(at, id))) {
                return Err(format!("block {id} is pinned in no list"));
            }
        }
        let num_known = self.blocks.iter().flat_map(|block| block.hashes.iter().flatten()).count();
        let (num_found, num_held) = (self.cached.len(), holders.len());
        if num_known != num_found || self.free.len() + num_held != self.blocks.len() {
            return Err(format!("{num_known} known, {num_found} found, {num_held} held"));
        }
        let num_pinned = self.blocks.iter().filter(|block| block.pinned_at.is_some()).count();
        if num_pinned != self.pinned.len() || num_pinned > self.max_pinned {
            let (listed, max) = (self.pinned.len(), self.max_pinned);
            return Err(format!("{num_pinned} pinned, {listed} listed, {max} may be"));
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

    /// Blocks that are handed out after all others.
    #[cfg(test)]
    fn num_pinned(&self) -> usize {
        self.pinned.len()
    }
}
