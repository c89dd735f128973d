//! Who of the queue runs, and in which lane.

use std::time::{Duration, Instant};

use protocol::{BLOCK_TOKENS, SequenceId};

use super::{Capacity, Lane, Told};
use crate::queue::{Fit, Queue};
use crate::request::Event;
use crate::sequence::Sequence;

/// Lets in whatever of the queue fits into lanes that have room for a step: each sequence where the
/// least is to be computed before it and of it, so that it finds its prefix and the work is even. At the end, whoever still waits and
/// is more urgent than others who run takes the place of as few as possible of them.
pub fn admit(queue: &mut Queue, lanes: &mut [&mut Lane], now: Instant, told: &mut Told) {
    if queue.is_empty() || !lanes.iter().any(|lane| lane.has_room()) {
        return;
    }
    let mut outstanding = vec![0; lanes.len()];
    if lanes.len() > 1 {
        outstanding = lanes.iter().map(|lane| lane.num_outstanding_tokens()).collect();
    }
    while lanes.iter().any(|lane| lane.has_room() && lane.has_place()) {
        let mut chosen = 0;
        let fits = |waiting: &mut Sequence| {
            let (fit, lane) = choose(waiting, lanes, &outstanding);
            chosen = lane;
            fit
        };
        let Some((sequence, wait)) = queue.pop(now, fits) else { break };
        outstanding[chosen] += sequence.num_outstanding();
        if let Some(sequence) = lanes[chosen].start(sequence, wait, now, told) {
            queue.put(sequence, now);
            break;
        }
    }
    while let Some(waiting) = queue.most_urgent()
        && let Some((lane, victims)) = to_preempt(waiting, lanes)
    {
        let ticket = waiting.ticket;
        for victim in victims {
            lanes[lane].preempt(victim, told);
        }
        lanes[lane].return_preempted(queue, now);
        let Some((sequence, wait)) = queue.take(ticket, now) else { break };
        if let Some(sequence) = lanes[lane].start(sequence, wait, now, told) {
            queue.put(sequence, now);
            break;
        }
    }
}

/// Whether a sequence can run now, and in which of the lanes.
fn choose(waiting: &mut Sequence, lanes: &[&mut Lane], outstanding: &[usize]) -> (Fit, usize) {
    let allowed = allowed(waiting, lanes);
    let (mut best, mut otherwise) = (None, Fit::Later);
    for (i, lane) in lanes.iter().enumerate() {
        if !allowed(i) || !lane.has_room() {
            continue;
        }
        match lane.fit(waiting) {
            (Fit::Now, num_cached) => {
                let cost = outstanding[i] + waiting.num_tokens() - num_cached * BLOCK_TOKENS;
                if best.is_none_or(|(least, _)| cost < least) {
                    best = Some((cost, i));
                }
            }
            (Fit::NotYet, _) => otherwise = Fit::NotYet,
            (Fit::Later, _) => {}
        }
    }
    best.map_or((otherwise, 0), |(_, i)| (Fit::Now, i))
}

/// The lane in which the fewest would have to give way to a sequence, and those; none if nobody
/// may.
fn to_preempt(waiting: &mut Sequence, lanes: &[&mut Lane]) -> Option<(usize, Vec<SequenceId>)> {
    let allowed = allowed(waiting, lanes);
    let candidates = lanes.iter().enumerate().filter(|(i, lane)| allowed(*i) && lane.has_room());
    let victims = candidates.filter_map(|(i, lane)| Some((i, lane.victims(waiting)?)));
    victims.min_by_key(|(_, victims)| victims.len())
}

/// Where a sequence may go on: in lanes of the class that its answer comes from while there are
/// any, be they busy, or else anywhere, unless it insists.
fn allowed(waiting: &Sequence, lanes: &[&mut Lane]) -> impl Fn(usize) -> bool + use<> {
    let begun = waiting.class.filter(|_| waiting.num_generated() > 0);
    let is_same =
        |of: Capacity| begun.is_none_or(|class| of.class == class) && of.can_take(waiting);
    let same: Vec<_> = lanes.iter().map(|lane| is_same(lane.capacity())).collect();
    let only_same = waiting.request().require_exact || same.contains(&true);
    move |i| same[i] || !only_same
}

impl Capacity {
    /// Whether a lane of this capacity could ever take a sequence: it is large enough, and goes on
    /// exactly where that is insisted on.
    pub fn can_take(&self, waiting: &Sequence) -> bool {
        let begun = waiting.class.filter(|_| waiting.num_generated() > 0);
        let may_go_on = begun.is_none_or(|class| class == self.class);
        waiting.num_blocks_needed() <= self.num_blocks
            && (may_go_on || !waiting.request().require_exact)
    }
}

impl Lane {
    fn has_place(&self) -> bool {
        self.running.len() < self.config.max_num_seqs as usize
    }

    /// Whether a sequence can run here now, and how many of its blocks are there already.
    fn fit(&self, waiting: &mut Sequence) -> (Fit, usize) {
        if waiting.num_blocks_needed() > self.capacity.num_blocks {
            return (Fit::Later, 0);
        }
        let num_needed = waiting.num_blocks_to_begin(self.config.reserved_tokens as usize);
        let hashes = waiting.sharable();
        let num_cached = self.blocks.num_cached(hashes);
        // Somebody is about to compute what comes next of it.
        if hashes.get(num_cached).is_some_and(|next| self.coming.contains_key(next)) {
            return (Fit::Later, num_cached);
        }
        // Whoever runs may soon need another block.
        let kept = self.running.len().min(self.blocks.num_blocks() / 32);
        let num_free = self.blocks.num_free_beside(&hashes[..num_cached]);
        let fits = self.has_place() && num_free >= num_needed - num_cached + kept;
        (if fits { Fit::Now } else { Fit::NotYet }, num_cached)
    }

    /// It runs from now on; it comes back if there are no blocks for it.
    fn start(
        &mut self,
        mut sequence: Sequence,
        wait: Duration,
        now: Instant,
        told: &mut Told,
    ) -> Option<Sequence> {
        let num_needed = sequence.num_blocks_to_begin(self.config.reserved_tokens as usize);
        let hashes = sequence.sharable().to_vec();
        let num_cached = self.blocks.num_cached(&hashes);
        let Some(blocks) = self.blocks.allocate(num_needed, &hashes[..num_cached]) else {
            return Some(sequence);
        };
        let id = SequenceId(self.next_sequence);
        self.next_sequence += 1;
        told.prefix.num_looked_for += hashes.len();
        told.prefix.num_found += num_cached;
        for hash in &hashes[num_cached..] {
            self.coming.entry(*hash).or_insert(id);
        }
        let (request, choice) = (sequence.request_id(), sequence.choice);
        if sequence.was_admitted() {
            if sequence.num_generated() > 0 && sequence.class != Some(self.capacity.class) {
                told.events.push((request, Event::Inexact));
            }
        } else {
            told.waits.push(wait);
            let num_cached_tokens = (num_cached * BLOCK_TOKENS) as u32;
            told.events.push((request, Event::Admitted { choice, num_cached_tokens }));
            told.traced.extend(sequence.trace.as_mut().map(|trace| trace.admitted(now)));
        }
        sequence.class = Some(self.capacity.class);
        sequence.last_step = self.next_step;
        sequence.admit(id, blocks, num_cached);
        self.running.push(sequence);
        None
    }

    /// Those whose place or blocks `waiting` needs: of lower priorities only, the lowest and
    /// youngest first; none of them where what is kept for growth is enough. `None` if all of
    /// them were not enough.
    fn victims(&self, waiting: &mut Sequence) -> Option<Vec<SequenceId>> {
        let (Fit::NotYet, num_cached) = self.fit(waiting) else { return None };
        let num_needed = waiting.num_blocks_to_begin(self.config.reserved_tokens as usize);
        let num_free = self.blocks.num_free_beside(&waiting.sharable()[..num_cached]);
        let mut num_missing = (num_needed - num_cached).saturating_sub(num_free);
        let mut needs_place = !self.has_place();
        let is_weaker = |it: &&Sequence| it.priority() < waiting.priority() && it.may_give_way();
        let mut weaker: Vec<_> = self.running.iter().filter(is_weaker).collect();
        weaker.sort_by_key(|it| (it.priority(), std::cmp::Reverse(it.id)));
        let is_stronger = !weaker.is_empty();
        let mut victims = Vec::new();
        for it in weaker {
            if num_missing == 0 && !needs_place {
                break;
            }
            num_missing = num_missing.saturating_sub(self.blocks.num_held_alone(&it.blocks));
            needs_place = false;
            victims.push(it.id);
        }
        (is_stronger && num_missing == 0 && !needs_place).then_some(victims)
    }
}
