//! Who of the queue runs, and in which lane.

use std::time::{Duration, Instant};

use protocol::{BLOCK_TOKENS, SequenceId};

use super::{Capacity, Lane, Prefix, Told};
use crate::block_manager::{BlockHash, Miss};
use crate::history::Decision;
use crate::queue::{Fit, Queue};
use crate::request::{Event, Priority};
use crate::sequence::Sequence;

/// Lets in whatever of the queue fits into lanes that have room for a step: each sequence where the
/// least is to be computed before it and of it, so that it finds its prefix and the work is even.
/// At the end, whoever still waits and is more urgent than others who run takes the place of as few
/// as possible of them.
pub fn admit(queue: &mut Queue, lanes: &mut [&mut Lane], now: Instant, told: &mut Told) {
    if queue.is_empty() || !lanes.iter().any(|lane| lane.has_room()) {
        return;
    }
    let mut outstanding = vec![0; lanes.len()];
    if lanes.len() > 1 {
        outstanding = lanes.iter().map(|lane| lane.num_outstanding_tokens()).collect();
    }
    fill(queue, lanes, &mut outstanding, now, told);
    while let Some(waiting) = queue.most_urgent()
        && let Some((lane, victims)) = to_preempt(waiting, lanes)
    {
        let (ticket, by) = (waiting.ticket, waiting.priority());
        for victim in victims {
            lanes[lane].preempt(victim, by, told);
        }
        lanes[lane].return_preempted(queue, now);
        let Some((sequence, wait)) = queue.take(ticket, now) else { break };
        if let Some(sequence) = lanes[lane].start(sequence, wait, now, told) {
            queue.put(sequence, now);
            break;
        }
        // More may have become free than it needs.
        fill(queue, lanes, &mut outstanding, now, told);
    }
}

/// Lets in whatever fits.
fn fill(
    queue: &mut Queue,
    lanes: &mut [&mut Lane],
    outstanding: &mut [usize],
    now: Instant,
    told: &mut Told,
) {
    while lanes.iter().any(|lane| lane.has_room() && lane.has_place()) {
        let mut chosen = 0;
        let fits = |waiting: &mut Sequence| {
            let (fit, lane) = choose(waiting, lanes, outstanding);
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
    pub(crate) fn can_take(&self, waiting: &Sequence) -> bool {
        let begun = waiting.class.filter(|_| waiting.num_generated() > 0);
        let may_go_on = begun.is_none_or(|class| class == self.class);
        self.has_what_it_needs(waiting) && (may_go_on || !waiting.request().require_exact)
    }

    fn has_what_it_needs(&self, waiting: &Sequence) -> bool {
        waiting.num_blocks_needed() <= self.num_blocks
            && (self.takes_masks || !waiting.request().needs_newest())
    }
}

impl Lane {
    fn has_place(&self) -> bool {
        self.running.len() < self.config.max_num_seqs as usize
    }

    /// Whether a sequence can run here now, and how many of its blocks are there already.
    fn fit(&self, waiting: &mut Sequence) -> (Fit, usize) {
        if !self.capacity.has_what_it_needs(waiting) {
            return (Fit::Later, 0);
        }
        let num_needed = waiting.num_blocks_to_begin(self.config.reserved_tokens as usize);
        let (priority, choice, may_share) =
            (waiting.priority(), waiting.choice, self.may_share(waiting));
        let (hashes, tail) = waiting.sharable();
        let num_cached = if may_share { self.blocks.num_cached(hashes) } else { 0 };
        // Somebody no less urgent is about to compute what comes next of it. A part of a block is
        // worth a step's wait to further choices only.
        let next = hashes.get(num_cached).or(tail.as_ref().filter(|_| choice > 0));
        if may_share && next.is_some_and(|next| self.comes_from(next) >= Some(priority)) {
            return (Fit::Later, num_cached);
        }
        // Whoever runs may soon need another block.
        let kept = self.running.len().min(self.blocks.num_blocks() / 32);
        let num_free = self.blocks.num_free_beside(&hashes[..num_cached]);
        let fits = self.has_place() && num_free >= num_needed - num_cached + kept;
        (if fits { Fit::Now } else { Fit::NotYet }, num_cached)
    }

    fn may_share(&self, waiting: &Sequence) -> bool {
        self.config.prefix_cache && waiting.may_share()
    }

    /// The priority of whoever is about to compute this.
    fn comes_from(&self, hash: &BlockHash) -> Option<Priority> {
        let by = self.coming.get(hash)?;
        let at = self.running.binary_search_by_key(by, |it| it.id).ok()?;
        Some(self.running[at].priority())
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
        let may_share = self.may_share(&sequence);
        let (hashes, tail) = sequence.sharable();
        let hashes = hashes.to_vec();
        let num_cached = if may_share { self.blocks.num_cached(&hashes) } else { 0 };
        // Held while blocks are found, so that it isn't one of them: unless that takes the last.
        let is_tail_next = may_share && num_cached == hashes.len();
        let mut copy_from = tail.filter(|_| is_tail_next).and_then(|it| self.blocks.hold(&it));
        let mut blocks = self.blocks.allocate(num_needed, &hashes[..num_cached]);
        if blocks.is_none() && copy_from.is_some() {
            self.blocks.free(copy_from.take().into_iter());
            blocks = self.blocks.allocate(num_needed, &hashes[..num_cached]);
        }
        let Some(blocks) = blocks else {
            return Some(sequence);
        };
        let id = SequenceId(self.next_sequence);
        self.next_sequence += 1;
        let mut parts: Vec<_> = hashes.into_iter().map(|hash| (hash, BLOCK_TOKENS)).collect();
        parts.extend(tail.map(|hash| (hash, sequence.num_tail_tokens())));
        let (found, missed) = parts.split_at(num_cached + usize::from(copy_from.is_some()));
        self.announce(missed, id, sequence.priority());
        let (request, choice) = (sequence.request_id(), sequence.choice);
        let num_cached_tokens = found.iter().map(|(_, num_tokens)| num_tokens).sum();
        let (pipeline, num_passed) = (self.pipeline, sequence.num_passed);
        let admitted = Decision::Admitted { pipeline, num_cached_tokens, num_passed };
        told.decide(&sequence, admitted);
        if sequence.was_admitted() {
            if sequence.num_generated() > 0 && sequence.class != Some(self.capacity.class) {
                told.events.push((request, Event::Inexact));
            }
        } else {
            told.waits.push(wait);
            let num_cached_tokens = self.count(&sequence, found, missed, &mut told.prefix) as u32;
            let class = self.capacity.class;
            told.events.push((request, Event::Admitted { choice, num_cached_tokens, class }));
            told.traced.extend(sequence.trace.as_mut().map(|trace| trace.admitted(now)));
        }
        sequence.class = Some(self.capacity.class);
        sequence.last_step = self.next_step;
        sequence.admit(id, blocks, num_cached, copy_from);
        self.running.push(sequence);
        None
    }

    /// Whoever needs what a sequence is about to compute may wait for it.
    fn announce(&mut self, parts: &[(BlockHash, usize)], id: SequenceId, priority: Priority) {
        if !self.config.prefix_cache {
            return;
        }
        for (hash, _) in parts.iter().filter(|(hash, _)| !self.blocks.is_cached(hash)) {
            if self.comes_from(hash) < Some(priority) {
                self.coming.insert(*hash, id);
            }
        }
    }

    /// Counts what a sequence that runs for the first time found, and why not the rest; returns the
    /// tokens that it found.
    fn count(
        &mut self,
        sequence: &Sequence,
        found: &[(BlockHash, usize)],
        missed: &[(BlockHash, usize)],
        prefix: &mut Prefix,
    ) -> usize {
        if !self.config.prefix_cache {
            return 0;
        }
        // Choices of one request are no sign that others will ask for the same.
        if sequence.choice == 0 {
            self.blocks.hit(found.iter().map(|(hash, _)| hash));
        }
        for (hash, num_tokens) in missed {
            let why = match sequence.may_share() {
                true => self.blocks.why_missed(hash),
                false => Miss::PromptLogprobs,
            };
            prefix.num_missed[why as usize] += num_tokens;
            prefix.num_looked_for += num_tokens;
        }
        let num_found = found.iter().map(|(_, num_tokens)| num_tokens).sum();
        prefix.num_looked_for += num_found;
        prefix.num_found += num_found;
        num_found
    }

    /// Those whose place or blocks `waiting` needs: of lower priorities only, the lowest and
    /// youngest first; none of them where what is kept for growth is enough. `None` if all of
    /// them were not enough.
    fn victims(&self, waiting: &mut Sequence) -> Option<Vec<SequenceId>> {
        let (Fit::NotYet, num_cached) = self.fit(waiting) else { return None };
        let num_needed = waiting.num_blocks_to_begin(self.config.reserved_tokens as usize);
        let num_free = self.blocks.num_free_beside(&waiting.sharable().0[..num_cached]);
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
