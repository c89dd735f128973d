//! What must hold after every event.

use std::collections::BTreeMap;
use std::time::Instant;

use coordinator::block_manager::BlockManager;
use coordinator::cluster::Cluster;
use coordinator::lane::Lane;
use coordinator::queue::Waits;
use coordinator::sequence::Sequence;
use protocol::config::Scheduler;
use protocol::{BLOCK_TOKENS, BlockId};

/// Events between two audits of all books, which look at everything.
const AUDIT_EVERY: u64 = 32;

/// The invariants of a run.
#[derive(Debug, Default)]
pub struct Watch {
    num_looked: u64,
}

impl Watch {
    /// Looks at everything.
    ///
    /// # Errors
    /// What doesn't hold.
    pub fn look(
        &mut self,
        cluster: &Cluster,
        config: &Scheduler,
        now: Instant,
    ) -> Result<(), String> {
        self.num_looked += 1;
        if self.num_looked.is_multiple_of(AUDIT_EVERY) {
            audit(cluster)?;
        }
        nobody_is_late(cluster, now)?;
        for (of, lane) in cluster.lanes() {
            within_limits(lane, config)
                .and_then(|()| nothing_idles(cluster, lane, config))
                .and_then(|()| nobody_stands_before_the_more_urgent(cluster, lane, config))
                .map_err(|what| format!("pipeline of epoch {}: {what}", of.epoch))?;
        }
        Ok(())
    }

    /// Nothing is left once everybody has been answered.
    ///
    /// # Errors
    /// What is left.
    pub fn is_empty(cluster: &Cluster) -> Result<(), String> {
        audit(cluster)?;
        let (num_open, num_waiting) = (cluster.num_open(), cluster.queue().len());
        if num_open + num_waiting > 0 || cluster.queue().next_timer().is_some() {
            return Err(format!("{num_open} are open and {num_waiting} wait in the end"));
        }
        for (of, lane) in cluster.lanes() {
            let load = lane.load();
            if load.num_running + load.num_used_blocks > 0 || !lane.is_idle() {
                return Err(format!("the pipeline of epoch {} isn't idle: {load:?}", of.epoch));
            }
        }
        Ok(())
    }
}

/// All books tell the same; blocks are shared within a tenant only, by those with the same tokens.
fn audit(cluster: &Cluster) -> Result<(), String> {
    cluster.queue().check()?;
    for (_, lane) in cluster.lanes() {
        lane.check()?;
        let mut holders: BTreeMap<BlockId, (usize, &Sequence)> = BTreeMap::new();
        for sequence in lane.running() {
            for (place, block) in sequence.blocks.iter().enumerate() {
                let first = holders.entry(*block).or_insert((place, sequence));
                let same_tenant = first.1.request().tenant == sequence.request().tenant;
                let end = (place + 1) * BLOCK_TOKENS;
                let is_same = first.1.ticket == sequence.ticket
                    || (same_tenant && first.0 == place && common(first.1, sequence) >= end);
                if !is_same {
                    return Err(format!("block {block} is shared by different sequences"));
                }
            }
        }
    }
    Ok(())
}

/// Expired work holds no place and stands in no line.
fn nobody_is_late(cluster: &Cluster, now: Instant) -> Result<(), String> {
    let is_late = |it: &Sequence| it.request().deadline.is_some_and(|at| at <= now);
    let running = cluster.lanes().flat_map(|(_, lane)| lane.running());
    let waiting = cluster.queue().waiting().map(|it| it.sequence);
    match running.chain(waiting).find(|it| is_late(it)) {
        Some(late) => Err(format!("request {} has expired and is still there", late.request_id())),
        None => Ok(()),
    }
}

fn within_limits(lane: &Lane, config: &Scheduler) -> Result<(), String> {
    let (num_running, max) = (lane.running().len(), config.max_num_seqs as usize);
    if num_running > max {
        return Err(format!("{num_running} run, {max} may"));
    }
    Ok(())
}

/// A lane that could send a step has nothing to compute, and whoever would fit runs.
fn nothing_idles(cluster: &Cluster, lane: &Lane, config: &Scheduler) -> Result<(), String> {
    if !lane.has_room() {
        return Ok(());
    }
    let num_free = lane.blocks().num_free();
    // Whoever a step failed with is computed with nothing else under way.
    let has_suspect = lane.running().iter().any(|it| it.num_failures > 0 && it.num_pending() > 0);
    let is_cleared = has_suspect && lane.oldest_step().is_some();
    for it in lane.running() {
        let num_new = BlockManager::blocks_for(it.num_after(1)).saturating_sub(it.blocks.len());
        if it.num_pending() > 0 && num_new <= num_free && !is_cleared {
            return Err(format!("it idles, and sequence {} could be computed", it.id));
        }
    }
    if lane.is_idle() && num_free < lane.blocks().num_blocks() {
        return Err("nothing runs, and blocks are held".into());
    }
    // Those before it that don't fit, and for one of whom blocks may be kept.
    let num_kept = lane.running().len().min(lane.blocks().num_blocks() / 32);
    for it in cluster.queue().next() {
        let fits = fits(&it, cluster, lane, config, (0, num_free.saturating_sub(num_kept)));
        if fits {
            let id = it.sequence.request_id();
            return Err(format!("it has room, and request {id} waits although it fits"));
        }
        if it.keeps_blocks && lane.running().len() < config.max_num_seqs as usize {
            break;
        }
    }
    Ok(())
}

/// Of those who are next, the most urgent by the priority that they came with finds nobody less
/// urgent in the place or the blocks that it needs: unless that one has yet to compute the tokens
/// that whoever gave way before is promised.
fn nobody_stands_before_the_more_urgent(
    cluster: &Cluster,
    lane: &Lane,
    config: &Scheduler,
) -> Result<(), String> {
    if !lane.has_room() {
        return Ok(());
    }
    let most_urgent = cluster.queue().next().reduce(|best, other| {
        let is_higher = other.sequence.priority() > best.sequence.priority();
        if is_higher { other } else { best }
    });
    let Some(waits) = most_urgent else { return Ok(()) };
    // Blocks are kept for somebody before it.
    let ticket = waits.sequence.ticket;
    let before = cluster.queue().next().take_while(|it| it.sequence.ticket != ticket);
    if before.into_iter().any(|it| it.keeps_blocks) {
        return Ok(());
    }
    let is_weaker = |it: &&Sequence| it.priority() < waits.sequence.priority() && it.may_give_way();
    let weaker = lane.running().iter().filter(is_weaker);
    let num_weaker = weaker.clone().count();
    let num_blocks: usize = weaker.map(|it| lane.blocks().num_held_alone(&it.blocks)).sum();
    let beside = (num_weaker, lane.blocks().num_free() + num_blocks);
    if num_weaker > 0 && fits(&waits, cluster, lane, config, beside) {
        let (id, priority) = (waits.sequence.request_id(), waits.sequence.priority());
        return Err(format!(
            "request {id} waits as {} while {num_weaker} less urgent ones run",
            priority.name()
        ));
    }
    Ok(())
}

/// Whether a waiting sequence surely fits into a lane from which `num_leaving` go, with so many
/// free blocks: found without what the lane thinks of it.
fn fits(
    waits: &Waits<'_>,
    cluster: &Cluster,
    lane: &Lane,
    config: &Scheduler,
    (num_leaving, num_free): (usize, usize),
) -> bool {
    let (sequence, capacity) = (waits.sequence, lane.capacity());
    let begun = sequence.class.filter(|_| sequence.num_generated() > 0);
    let is_class = begun.is_none_or(|class| class == capacity.class);
    let has_class = cluster.lanes().any(|(_, it)| Some(it.capacity().class) == begun);
    let may = is_class || !(sequence.request().require_exact || has_class);
    let num_needed = sequence.num_blocks_to_begin(config.reserved_tokens as usize);
    let has_place = lane.running().len() - num_leaving < config.max_num_seqs as usize;
    let fits = sequence.num_blocks_needed() <= capacity.num_blocks && num_needed <= num_free;
    // Somebody may be computing what it could share: a block or, for further choices, a part.
    let least = if sequence.choice > 0 { 1 } else { BLOCK_TOKENS };
    let may_join = |it: &Sequence| {
        it.request().tenant == sequence.request().tenant && common(it, sequence) >= least
    };
    may && has_place && fits && !lane.running().iter().any(may_join)
}

/// Tokens with which both begin.
fn common(a: &Sequence, b: &Sequence) -> usize {
    a.known().zip(b.known()).take_while(|(a, b)| a == b).count()
}
