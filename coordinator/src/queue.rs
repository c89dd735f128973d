//! Who waits, over the whole cluster, and who is next.
//!
//! Pure. A higher priority goes first; within one, tenants take turns by what was computed for them
//! and their weights, and within a tenant bodies take turns. Waiting lifts a request to the next
//! priority, and so does a deadline that comes near. Each priority has a share of what is computed
//! that others can't take from it. Whoever is preempted comes back to the place that it had.

mod check;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::{RequestId, config};

pub use self::check::Waits;
use crate::request::{Priority, Request, Tenant};
use crate::sequence::Sequence;

/// Waiting sequences that are looked at to find one that fits.
const MAX_LOOKED_AT: usize = 16;

/// Of them, those of one tenant before the next tenant's turn.
const MAX_OF_A_TENANT: usize = 4;

/// Tokens over which shares are kept: what was computed before counts half as much.
const SHARE_TOKENS: u64 = 1 << 16;

/// A tenant's tokens are counted in so many parts, so that weights can divide them.
const PARTS: u64 = 1 << 10;

/// Whether a waiting sequence can run now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// It can.
    Now,
    /// There are too few blocks or places for it; smaller ones may pass it, a few times.
    NotYet,
    /// It waits for something else: others go on.
    Later,
}

/// Everything that waits.
#[derive(Debug)]
pub struct Queue {
    config: config::Scheduler,
    // Boxed, since a table is up to twice as large as what it holds.
    waiting: HashMap<u64, Box<Waiting>>,
    levels: [Level; Priority::ALL.len()],
    // By the priority that a request came with, whatever it was lifted to.
    priorities: [BTreeSet<Key>; Priority::ALL.len()],
    // The same, by since when they wait, and the tokens that are known of them.
    since: [BTreeSet<(Instant, u64)>; Priority::ALL.len()],
    num_tokens: [usize; Priority::ALL.len()],
    requests: BTreeSet<(RequestId, u64)>,
    num_requests: usize,
    // When to look at whom again: it is lifted, or it has expired.
    timers: BTreeSet<(Instant, u64)>,
    accounts: HashMap<Tenant, Account>,
    // Tokens computed for each priority.
    computed: [u64; Priority::ALL.len()],
    round: u64,
    next_ticket: u64,
}

/// Where somebody stands who waits.
#[derive(Debug)]
pub(crate) struct QueuePlace<'a> {
    pub sequence: &'a Sequence,
    pub since: Instant,
    /// The priority that it has by now.
    pub level: Priority,
    /// Those that would be taken before it if nobody came and all fitted: of higher priorities, of
    /// tenants whose turn is before its own, and of its own tenant.
    pub num_before: usize,
}

/// What time has done to those who wait.
#[derive(Debug, Default)]
pub(crate) struct Advanced {
    /// Their deadline has passed: they wait no longer.
    pub expired: Vec<Sequence>,
    /// They stand before others now.
    pub lifted: Vec<Lifted>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lifted {
    pub request: RequestId,
    pub choice: u32,
    /// The priority that it has from now on.
    pub level: Priority,
    /// Whether a deadline lifted it: its slack has run out. Otherwise it was its age.
    pub is_urgent: bool,
}

/// A sequence's place in its tenant's line: the round of its turn, then who came first. Whoever was
/// lifted stands before all who were not, or those who come one by one would pass the rest of a
/// larger body for ever.
type Key = (u64, u64);

/// The round of whoever was lifted.
const LIFTED: u64 = 0;

#[derive(Debug)]
struct Waiting {
    sequence: Sequence,
    since: Instant,
    level: Priority,
    key: Key,
    timer: Option<Instant>,
}

/// What waits at one priority, by tenant.
#[derive(Debug, Default)]
struct Level {
    tenants: HashMap<Tenant, BTreeSet<Key>>,
    // Whose turn it is: least computed first.
    order: BTreeSet<(u64, Tenant)>,
}

/// What was computed for a tenant, over its weight.
#[derive(Debug, Default)]
struct Account {
    used: u64,
    weight: u64,
    num_waiting: usize,
}

impl Queue {
    /// Nothing waits.
    pub fn new(config: config::Scheduler) -> Self {
        Self {
            config,
            waiting: HashMap::new(),
            levels: Default::default(),
            priorities: Default::default(),
            since: Default::default(),
            num_tokens: Default::default(),
            requests: BTreeSet::new(),
            num_requests: 0,
            timers: BTreeSet::new(),
            accounts: HashMap::new(),
            computed: Default::default(),
            round: 0,
            next_ticket: 0,
        }
    }

    /// A new request: all its choices wait.
    pub fn submit(&mut self, request: Request, now: Instant) {
        let request = Arc::new(request);
        for choice in 0..request.num_choices {
            let ticket = self.next_ticket;
            self.next_ticket += 1;
            let mut sequence = Sequence::new(ticket, &request, choice, now);
            sequence.round = self.round + u64::from(request.turn) + u64::from(choice);
            self.put(sequence, now);
        }
    }

    /// A sequence that ran waits again, where it waited before.
    pub(crate) fn put(&mut self, mut sequence: Sequence, now: Instant) {
        sequence.num_passed = 0;
        let (ticket, key) = (sequence.ticket, turn(&sequence));
        let priority = sequence.priority();
        self.num_requests += usize::from(!self.has(sequence.request_id()));
        self.requests.insert((sequence.request_id(), ticket));
        self.priorities[priority.index()].insert(key);
        self.since[priority.index()].insert((now, ticket));
        self.num_tokens[priority.index()] += sequence.num_tokens();
        let account = self.account(sequence.request());
        account.num_waiting += 1;
        let is_first = account.num_waiting == 1;
        if is_first {
            // Whoever comes anew doesn't get what it left unused before.
            let least = self.levels.iter().filter_map(|it| it.order.first()).map(|it| it.0).min();
            let account = self.account(sequence.request());
            account.used = account.used.max(least.unwrap_or(0));
        }
        let is_urgent = sequence.slack_ends(&self.config).is_some_and(|at| at <= now);
        let level = if is_urgent { Priority::Realtime } else { priority };
        let waiting = Waiting { sequence, since: now, level, key, timer: None };
        self.waiting.insert(ticket, Box::new(waiting));
        self.enter(ticket);
        self.set_timer(ticket, now);
    }

    /// The next that fits, and for how long it has waited.
    pub fn pop(
        &mut self,
        now: Instant,
        mut fits: impl FnMut(&mut Sequence) -> Fit,
    ) -> Option<(Sequence, Duration)> {
        let (mut chosen, mut passed) = (None, Vec::new());
        for ticket in self.candidates() {
            let waiting = self.waiting.get_mut(&ticket).expect("a candidate waits");
            match fits(&mut waiting.sequence) {
                Fit::Now => {
                    chosen = Some(ticket);
                    break;
                }
                Fit::Later => {}
                // What becomes free is kept for it.
                Fit::NotYet if waiting.sequence.num_passed >= self.config.max_passed => break,
                Fit::NotYet => passed.push(ticket),
            }
        }
        let ticket = chosen?;
        for ticket in passed {
            self.waiting.get_mut(&ticket).expect("it was looked at").sequence.num_passed += 1;
        }
        let Waiting { mut sequence, since, .. } = *self.remove(ticket)?;
        self.round = self.round.max(sequence.round);
        let num_tokens = sequence.charge_prompt();
        self.charge(sequence.request(), num_tokens);
        Some((sequence, now.saturating_duration_since(since)))
    }

    /// The most urgent that may take the place of another: the first of those that would be
    /// looked at with the highest priority of its own.
    pub(crate) fn most_urgent(&mut self) -> Option<&mut Sequence> {
        let candidates = self.candidates();
        let priority = |ticket: &u64| self.waiting[ticket].sequence.priority();
        let first = candidates
            .iter()
            .copied()
            .reduce(|best, other| if priority(&other) > priority(&best) { other } else { best })?;
        Some(&mut self.waiting.get_mut(&first)?.sequence)
    }

    /// This one, if it waits: whatever others think of it.
    pub fn take(&mut self, ticket: u64, now: Instant) -> Option<(Sequence, Duration)> {
        let Waiting { mut sequence, since, .. } = *self.remove(ticket)?;
        let num_tokens = sequence.charge_prompt();
        self.charge(sequence.request(), num_tokens);
        Some((sequence, now.saturating_duration_since(since)))
    }

    /// Tokens were computed for this request that never were before.
    pub(crate) fn charge(&mut self, request: &Request, num_tokens: usize) {
        if num_tokens == 0 {
            return;
        }
        let num_tokens = num_tokens as u64;
        self.computed[request.priority.index()] += num_tokens;
        if self.computed.iter().sum::<u64>() > SHARE_TOKENS {
            self.computed.iter_mut().for_each(|computed| *computed /= 2);
        }
        let tenant = &request.tenant;
        let account = self.account(request);
        let before = account.used;
        account.used += num_tokens * PARTS / account.weight;
        let after = account.used;
        for level in &mut self.levels {
            if level.order.remove(&(before, Arc::clone(tenant))) {
                level.order.insert((after, Arc::clone(tenant)));
            }
        }
    }

    /// Lifts whom it is time to lift; those whose deadline has passed wait no longer.
    pub(crate) fn advance(&mut self, now: Instant) -> Advanced {
        let mut advanced = Advanced::default();
        while let Some(&(at, ticket)) = self.timers.first()
            && at <= now
        {
            let waiting = &self.waiting[&ticket];
            if waiting.sequence.request().deadline.is_some_and(|deadline| deadline <= now) {
                advanced.expired.extend(self.remove(ticket).map(|waiting| waiting.sequence));
            } else {
                advanced.lifted.push(self.lift(ticket, now));
            }
        }
        advanced
    }

    fn lift(&mut self, ticket: u64, now: Instant) -> Lifted {
        self.leave(ticket);
        let waiting = self.waiting.get_mut(&ticket).expect("whoever has a timer waits");
        let is_urgent = waiting.sequence.slack_ends(&self.config).is_some_and(|at| at <= now);
        let level = if is_urgent {
            Priority::Realtime
        } else {
            Priority::ALL[(waiting.level.index() + 1).min(Priority::Realtime.index())]
        };
        (waiting.level, waiting.key) = (level, (LIFTED, ticket));
        let (request, choice) = (waiting.sequence.request_id(), waiting.sequence.choice);
        self.enter(ticket);
        self.set_timer(ticket, now);
        Lifted { request, choice, level, is_urgent }
    }

    /// When `advance` has something to do next.
    pub fn next_timer(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Takes out what waits of a request.
    pub fn cancel(&mut self, request: RequestId) -> Vec<Sequence> {
        let tickets: Vec<_> = self.of(request).collect();
        let removed = tickets.into_iter().filter_map(|ticket| self.remove(ticket));
        removed.map(|waiting| waiting.sequence).collect()
    }

    /// Since when each waits, and of which request it is, in the order of requests.
    pub(crate) fn waiting_since(&self) -> impl Iterator<Item = (RequestId, Instant)> + '_ {
        self.requests.iter().map(|(id, ticket)| (*id, self.waiting[ticket].since))
    }

    /// Since when whoever came with this priority waits that waits longest.
    pub(crate) fn oldest(&self, priority: Priority) -> Option<Instant> {
        self.since[priority.index()].first().map(|(since, _)| *since)
    }

    /// Tokens that are known of those who wait, by the priority that they came with.
    pub fn num_tokens(&self, priority: Priority) -> usize {
        self.num_tokens[priority.index()]
    }

    /// Where what waits of a request stands, and how long it has.
    pub(crate) fn places(&self, request: RequestId) -> impl Iterator<Item = QueuePlace<'_>> {
        self.of(request).map(|ticket| self.place(&self.waiting[&ticket]))
    }

    /// Sequences of a request that wait.
    pub(crate) fn num_waiting_of(&self, request: RequestId) -> usize {
        self.of(request).count()
    }

    fn place<'a>(&'a self, waiting: &'a Waiting) -> QueuePlace<'a> {
        let Waiting { sequence, since, level, key, .. } = waiting;
        let num_at = |level: &Level| level.tenants.values().map(BTreeSet::len).sum::<usize>();
        let higher = self.levels[level.index() + 1..].iter().map(num_at).sum::<usize>();
        let own = &self.levels[level.index()];
        let tenant = &sequence.request().tenant;
        let before = own.order.iter().map(|(_, it)| it).take_while(|it| *it != tenant);
        let others = before.map(|it| own.tenants[it].len()).sum::<usize>();
        let num_before = higher + others + own.tenants[tenant].range(..key).count();
        QueuePlace { sequence, since: *since, level: *level, num_before }
    }

    /// Requests of which something waits.
    pub fn num_requests(&self) -> usize {
        self.num_requests
    }

    /// Sequences that wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Sequences that wait, by the priority that they came with.
    pub fn num_waiting(&self, priority: Priority) -> usize {
        self.priorities[priority.index()].len()
    }

    /// Whom to look at, in order.
    fn candidates(&self) -> Vec<u64> {
        let mut found = Vec::with_capacity(MAX_LOOKED_AT.min(self.waiting.len()));
        let mut add = |ticket: u64| {
            if found.len() < MAX_LOOKED_AT && !found.contains(&ticket) {
                found.push(ticket);
            }
            found.len() < MAX_LOOKED_AT
        };
        let all: u64 = self.computed.iter().sum();
        let share = (all as f64 * self.config.min_share) as u64;
        for priority in Priority::ALL {
            if self.computed[priority.index()] < share
                && let Some((_, ticket)) = self.priorities[priority.index()].first()
            {
                add(*ticket);
            }
        }
        'levels: for level in self.levels.iter().rev() {
            // Some of each tenant in turn, then some more of each.
            for round in 0..MAX_LOOKED_AT / MAX_OF_A_TENANT {
                let mut has_more = false;
                for (_, tenant) in &level.order {
                    let line = level.tenants[tenant].iter().skip(round * MAX_OF_A_TENANT);
                    for (place, (_, ticket)) in line.take(MAX_OF_A_TENANT).enumerate() {
                        has_more |= place + 1 == MAX_OF_A_TENANT;
                        if !add(*ticket) {
                            break 'levels;
                        }
                    }
                }
                if !has_more {
                    break;
                }
            }
        }
        found
    }

    fn of(&self, request: RequestId) -> impl Iterator<Item = u64> + '_ {
        self.requests.range((request, 0)..=(request, u64::MAX)).map(|(_, ticket)| *ticket)
    }

    /// Whether something of it waits.
    pub fn has(&self, request: RequestId) -> bool {
        self.of(request).next().is_some()
    }

    fn account(&mut self, request: &Request) -> &mut Account {
        let account = self.accounts.entry(Arc::clone(&request.tenant)).or_default();
        account.weight = u64::from(request.weight.max(1));
        account
    }

    /// It stands in the line of its level.
    fn enter(&mut self, ticket: u64) {
        let waiting = &self.waiting[&ticket];
        let tenant = &waiting.sequence.request().tenant;
        let level = &mut self.levels[waiting.level.index()];
        level.tenants.entry(Arc::clone(tenant)).or_default().insert(waiting.key);
        level.order.insert((self.accounts[tenant].used, Arc::clone(tenant)));
    }

    /// It stands in no line.
    fn leave(&mut self, ticket: u64) {
        let waiting = &self.waiting[&ticket];
        let tenant = &waiting.sequence.request().tenant;
        let level = &mut self.levels[waiting.level.index()];
        let line = level.tenants.get_mut(tenant).expect("it entered");
        line.remove(&waiting.key);
        if line.is_empty() {
            level.tenants.remove(tenant);
            level.order.remove(&(self.accounts[tenant].used, Arc::clone(tenant)));
        }
        if let Some(at) = waiting.timer {
            self.timers.remove(&(at, ticket));
        }
    }

    fn remove(&mut self, ticket: u64) -> Option<Box<Waiting>> {
        self.waiting.contains_key(&ticket).then(|| self.leave(ticket));
        let waiting = self.waiting.remove(&ticket)?;
        let sequence = &waiting.sequence;
        let priority = sequence.priority().index();
        self.priorities[priority].remove(&turn(sequence));
        self.since[priority].remove(&(waiting.since, ticket));
        self.num_tokens[priority] -= sequence.num_tokens();
        self.account(sequence.request()).num_waiting -= 1;
        let request = sequence.request_id();
        self.requests.remove(&(request, ticket));
        self.num_requests -= usize::from(!self.has(request));
        Some(waiting)
    }

    fn set_timer(&mut self, ticket: u64, now: Instant) {
        let waiting = self.waiting.get_mut(&ticket).expect("it waits");
        let aging = match waiting.level {
            Priority::Offline => self.config.offline_aging_ms,
            _ => self.config.aging_ms,
        };
        let can_rise = waiting.level < Priority::Realtime;
        let is_passed = waiting.key.0 != LIFTED;
        let lift =
            ((can_rise || is_passed) && aging > 0).then(|| now + Duration::from_millis(aging));
        let urgent = waiting.sequence.slack_ends(&self.config).filter(|at| can_rise && *at > now);
        let deadline = waiting.sequence.request().deadline;
        waiting.timer = [lift, urgent, deadline].into_iter().flatten().min();
        if let Some(at) = waiting.timer {
            self.timers.insert((at, ticket));
        }
    }
}

/// Where a sequence stands as long as it isn't lifted.
fn turn(sequence: &Sequence) -> Key {
    (sequence.round, sequence.ticket)
}
