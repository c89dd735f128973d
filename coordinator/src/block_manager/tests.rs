use super::*;

/// Blocks of which two may be pinned, after two hits.
fn manager(num_blocks: usize) -> BlockManager {
    let max_pinned_share = 2.0 / num_blocks as f64;
    let config = config::Scheduler { pin_after_hits: 2, max_pinned_share, ..Default::default() };
    BlockManager::new(num_blocks, &config)
}

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
    let mut blocks = manager(4);
    let first = blocks.allocate(3, &[]).unwrap();
    assert_eq!(first, [BlockId(0), BlockId(1), BlockId(2)]);
    assert_eq!(blocks.allocate(2, &[]), None);
    assert_eq!(blocks.num_free(), 1);
    blocks.free(first.into_iter());
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
    let (mut blocks, hashes) = (manager(4), hashes(2));
    let first = blocks.allocate(3, &[]).unwrap();
    blocks.share(first[0], hashes[0]);
    blocks.share(first[1], hashes[1]);
    assert_eq!(blocks.num_cached(&hashes), 2);
    let second = blocks.allocate(3, &hashes).unwrap();
    assert_eq!(second[..2], first[..2]);
    assert_eq!(blocks.num_free(), 0);
    blocks.free(first.into_iter());
    assert_eq!(blocks.num_free(), 1, "two are held by the second");
    blocks.free(second.into_iter());
    assert_eq!(blocks.num_free(), 4);
    assert_eq!(blocks.num_cached(&hashes), 2);
}

#[test]
fn what_follows_a_prefix_is_handed_out_before_it() {
    let (mut blocks, hashes) = (manager(2), hashes(2));
    let held = blocks.allocate(2, &[]).unwrap();
    blocks.share(held[0], hashes[0]);
    blocks.share(held[1], hashes[1]);
    blocks.free(held.into_iter());
    blocks.allocate(1, &[]).unwrap();
    assert_eq!(blocks.num_cached(&hashes), 1);
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
    let (mut blocks, hashes) = (manager(3), hashes(2));
    let held = blocks.allocate(1, &[]).unwrap();
    let freed = blocks.allocate(1, &[]).unwrap();
    blocks.share(held[0], hashes[0]);
    blocks.share(freed[0], hashes[1]);
    blocks.free(freed.into_iter());
    blocks.forget();
    assert_eq!((blocks.num_cached(&hashes), blocks.num_free()), (0, 2));
    blocks.free(held.into_iter());
    assert_eq!(blocks.num_free(), 3);
}

/// Computes a prefix of so many blocks and gives it back.
fn compute(blocks: &mut BlockManager, hashes: &[BlockHash]) {
    let held = blocks.allocate(hashes.len(), &[]).unwrap();
    held.iter().zip(hashes).for_each(|(id, hash)| blocks.share(*id, *hash));
    blocks.free(held.into_iter());
}

fn find(blocks: &mut BlockManager, hashes: &[BlockHash]) {
    let held = blocks.allocate(hashes.len(), hashes).unwrap();
    blocks.hit(hashes.iter());
    blocks.free(held.into_iter());
}

#[test]
fn what_is_found_often_outlasts_what_was_used_since() {
    let mut blocks = manager(6);
    let all = hashes(6);
    let (hot, cold) = all.split_at(2);
    compute(&mut blocks, hot);
    find(&mut blocks, hot);
    assert_eq!(blocks.num_pinned(), 0, "once isn't often");
    find(&mut blocks, hot);
    assert_eq!(blocks.num_pinned(), 2);
    for round in 0..3 {
        compute(&mut blocks, &cold[round..round + 1]);
        let held = blocks.allocate(4, &[]).unwrap();
        blocks.free(held.into_iter());
        assert_eq!((blocks.num_cached(hot), blocks.num_cached(cold)), (2, 0), "round {round}");
    }
    // Where all are needed, all are had.
    blocks.allocate(6, &[]).unwrap();
    assert_eq!((blocks.num_cached(hot), blocks.num_pinned()), (0, 0));
}

#[test]
fn only_so_many_are_pinned_the_end_of_what_was_found_longest_ago_goes_first() {
    let mut blocks = manager(8);
    let all = hashes(5);
    compute(&mut blocks, &all[..3]);
    (0..2).for_each(|_| find(&mut blocks, &all[..3]));
    assert_eq!(blocks.num_pinned(), 2);
    let held = blocks.allocate(6, &[]).unwrap();
    assert_eq!(blocks.num_cached(&all[..3]), 2, "the third of them is not pinned");
    blocks.free(held.into_iter());
    // Another becomes hot: of the first prefix only its beginning stays.
    compute(&mut blocks, &all[3..4]);
    (0..2).for_each(|_| find(&mut blocks, &all[3..4]));
    let held = blocks.allocate(6, &[]).unwrap();
    assert_eq!((blocks.num_cached(&all[..2]), blocks.num_cached(&all[3..4])), (1, 1));
    blocks.free(held.into_iter());
}

#[test]
fn a_block_is_found_by_the_end_of_a_prompt_too_and_both_go_with_it() {
    let mut blocks = manager(2);
    let (tail, full) = (hashes(1)[0].then(&[TokenId(1)]), hashes(1)[0].then(&[TokenId(1); 16]));
    let held = blocks.allocate(1, &[]).unwrap();
    blocks.share(held[0], tail);
    blocks.share(held[0], full);
    assert_eq!((blocks.hold(&tail), blocks.hold(&full)), (Some(held[0]), Some(held[0])));
    (0..3).for_each(|_| blocks.free(held.iter().copied()));
    assert_eq!(blocks.num_free(), 2);
    blocks.allocate(2, &[]).unwrap();
    assert_eq!((blocks.hold(&tail), blocks.hold(&full)), (None, None));
}

#[test]
fn a_miss_has_a_reason() {
    let mut blocks = manager(3);
    let tokens = [TokenId(1); BLOCK_TOKENS];
    let (a, b) = (BlockHash::root("a").then(&tokens), BlockHash::root("b").then(&tokens));
    assert_eq!(blocks.why_missed(&a), Miss::Unknown);
    compute(&mut blocks, &[a]);
    assert_eq!(blocks.why_missed(&b), Miss::OtherTenant);
    blocks.allocate(3, &[]).unwrap();
    assert_eq!(blocks.why_missed(&a), Miss::Evicted);
    assert_eq!(blocks.why_missed(&b), Miss::Unknown, "the other tenant's is gone");
}

#[test]
fn what_is_remembered_of_the_evicted_takes_bounded_memory() {
    let mut blocks = manager(4);
    let all = hashes(1000);
    all.chunks(4).for_each(|some| compute(&mut blocks, some));
    let remembered = all.iter().filter(|hash| blocks.why_missed(hash) == Miss::Evicted).count();
    assert!((8..=36).contains(&remembered), "{remembered}");
    assert_eq!(blocks.why_missed(&all[995]), Miss::Evicted, "the last that was evicted");
}
