//! What a watcher sees of the queue, and whether its books agree.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::{Queue, turn};
use crate::request::{Priority, Tenant};
use crate::sequence::Sequence;

/// A waiting sequence.
#[derive(Clone, Copy, Debug)]
pub struct Waits<'a> {
    /// Who.
    pub sequence: &'a Sequence,
    /// Since when.
    pub since: Instant,
    /// The priority that it was lifted to.
    pub level: Priority,
    /// Whether it was passed so often that blocks are kept for it.
    pub keeps_blocks: bool,
}

impl Queue {
    /// Everybody who waits, in no order.
    pub fn waiting(&self) -> impl Iterator<Item = Waits<'_>> {
        self.waiting.keys().map(|ticket| self.waits(*ticket))
    }

    /// Those who would be looked at next, in order.
    pub fn next(&self) -> impl Iterator<Item = Waits<'_>> {
        self.candidates().into_iter().map(|ticket| self.waits(ticket))
    }

    fn waits(&self, ticket: u64) -> Waits<'_> {
        let waiting = &self.waiting[&ticket];
        Waits {
            sequence: &waiting.sequence,
            since: waiting.since,
            level: waiting.level,
            keeps_blocks: waiting.sequence.num_passed >= self.config.max_passed,
        }
    }

    /// Whether all books tell the same.
    ///
    /// # Errors
    /// Which doesn't.
    pub fn check(&self) -> Result<(), String> {
        let mut by_tenant: BTreeMap<Tenant, usize> = BTreeMap::new();
        for (ticket, waiting) in &self.waiting {
            let (sequence, key) = (&waiting.sequence, &waiting.key);
            let tenant = &sequence.request().tenant;
            *by_tenant.entry(tenant.clone()).or_default() += 1;
            let lines = self.levels.iter().filter_map(|level| level.tenants.get(tenant));
            let stands_in = lines.filter(|line| line.contains(key)).count();
            let of_level = self.levels[waiting.level.index()].tenants.get(tenant);
            if stands_in != 1 || !of_level.is_some_and(|line| line.contains(key)) {
                return Err(format!("waiting {ticket} stands in {stands_in} lines"));
            }
            if !self.priorities[sequence.priority().index()].contains(&turn(sequence)) {
                return Err(format!("waiting {ticket} is not counted for its priority"));
            }
            if !self.requests.contains(&(sequence.request_id(), *ticket)) {
                return Err(format!("waiting {ticket} is not known for its request"));
            }
            if waiting.timer.is_some_and(|at| !self.timers.contains(&(at, *ticket))) {
                return Err(format!("the timer of waiting {ticket} is not set"));
            }
        }
        let requests: BTreeSet<_> = self.requests.iter().map(|(id, _)| *id).collect();
        if requests.len() != self.num_requests {
            return Err(format!("{} requests, {} counted", requests.len(), self.num_requests));
        }
        let num_timed = self.waiting.values().filter(|it| it.timer.is_some()).count();
        let lines = self.levels.iter().flat_map(|level| level.tenants.values());
        let counts = [
            ("stand in lines", lines.map(|line| line.len()).sum()),
            ("are counted for priorities", self.priorities.iter().map(|it| it.len()).sum()),
            ("are known for requests", self.requests.len()),
        ];
        for (what, num) in counts {
            if num != self.waiting.len() {
                return Err(format!("{num} {what} and {} wait", self.waiting.len()));
            }
        }
        if self.timers.len() != num_timed {
            return Err(format!("{} timers of {num_timed}", self.timers.len()));
        }
        for level in &self.levels {
            let named = level.order.iter().filter(|(used, tenant)| {
                level.tenants.contains_key(tenant) && self.accounts[tenant].used == *used
            });
            if named.count() != level.tenants.len() || level.order.len() != level.tenants.len() {
                return Err("a tenant's turn is not where its account says".into());
            }
        }
        for (tenant, account) in &self.accounts {
            let num_waiting = by_tenant.get(tenant).copied().unwrap_or(0);
            if account.num_waiting != num_waiting {
                let counted = account.num_waiting;
                return Err(format!("tenant {tenant:?}: {num_waiting} wait, {counted} counted"));
            }
        }
        Ok(())
    }
}
