//! Which blocks were evicted, as far as is remembered.

use super::BlockHash;

/// Places for each block of the cache.
const PLACES: usize = 8;

/// A table of hashes in places that they choose themselves: a new one may take the place of an
/// older one. It never grows, and forgets by and by.
#[derive(Debug, Default)]
pub(super) struct Evicted {
    // 0 for an empty one.
    places: Vec<u64>,
}

impl Evicted {
    pub(super) fn new(num_blocks: usize) -> Self {
        Self { places: vec![0; (num_blocks * PLACES).max(1)] }
    }

    pub(super) fn insert(&mut self, hash: &BlockHash) {
        let (at, tag) = self.place(hash);
        self.places[at] = tag;
    }

    pub(super) fn contains(&self, hash: &BlockHash) -> bool {
        let (at, tag) = self.place(hash);
        self.places[at] == tag
    }

    fn place(&self, hash: &BlockHash) -> (usize, u64) {
        // Tenants have places of their own.
        let half = |at: usize| {
            let half = |hash: &[u8]| u64::from_le_bytes(hash[at..at + 8].try_into().expect("8"));
            half(&hash.content) ^ half(&hash.tenant)
        };
        ((half(0) % self.places.len() as u64) as usize, half(8) | 1)
    }
}
