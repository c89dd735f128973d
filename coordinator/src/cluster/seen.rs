//! What a monitor sees of the scheduler: how full each pipeline is, who waits, which requests are
//! open. Made when somebody looks, within the scheduler's turn: what it takes is bounded.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use protocol::RequestId;

use super::Cluster;
use crate::history::{Decision, Story};
use crate::queue::Waits;
use crate::request::{Priority, Tenant};
use crate::sequence::Sequence;
use crate::snapshot::{Fill, Group, OpenRequest, ShownPipeline, Snapshot, SnapshotQuery};

/// Groups of the queue that are told, those that wait for longest first.
const MAX_GROUPS: usize = 100;

/// Prompts of a body that are looked at.
const MAX_PROMPTS: usize = 64;

/// What runs of a request.
#[derive(Default)]
struct Running {
    pipelines: Vec<u32>,
    num_prompt: usize,
    num_generated: usize,
}

/// What waits of a tenant at one priority.
struct Waiting<'a> {
    num: usize,
    num_tokens: usize,
    num_lifted: usize,
    first: (Instant, &'a Sequence),
}

impl Cluster {
    /// The scheduler's part of a snapshot.
    pub fn seen(&self, wanted: &SnapshotQuery, now: Instant) -> Snapshot {
        let mut snapshot = Snapshot { num_requests: self.history.num_open(), ..Default::default() };
        let mut running: HashMap<RequestId, Running> = HashMap::new();
        for (stage, lane) in self.lanes() {
            let (id, load) = (stage.pipeline.0, lane.load());
            let load = Fill {
                running: load.num_running,
                waiting: 0,
                used_blocks: load.num_used_blocks,
                blocks: load.num_blocks,
            };
            snapshot.load.running += load.running;
            snapshot.load.used_blocks += load.used_blocks;
            snapshot.load.blocks += load.blocks;
            snapshot.pipelines.push(ShownPipeline {
                pipeline: id,
                load,
                ..ShownPipeline::default()
            });
            for sequence in lane.running() {
                let of = running.entry(sequence.request_id()).or_default();
                if of.pipelines.last() != Some(&id) {
                    of.pipelines.push(id);
                }
                of.num_prompt += sequence.num_tokens() - sequence.num_generated();
                of.num_generated += sequence.num_generated();
            }
        }
        snapshot.load.waiting = self.queue.len();
        self.groups(&mut snapshot, now);
        let request = |(id, story)| self.row(id, story, &running, now);
        snapshot.requests = if wanted.newest {
            self.history.open(None).take(wanted.num_requests).map(request).collect()
        } else {
            self.history.oldest_open().take(wanted.num_requests).map(request).collect()
        };
        snapshot
    }

    fn groups(&self, snapshot: &mut Snapshot, now: Instant) {
        let mut groups: BTreeMap<(Priority, &Tenant), Waiting<'_>> = BTreeMap::new();
        for Waits { sequence, since, level, .. } in self.queue.waiting() {
            let key = (sequence.priority(), &sequence.request().tenant);
            let first = (since, sequence);
            let none = Waiting { num: 0, num_tokens: 0, num_lifted: 0, first };
            let group = groups.entry(key).or_insert(none);
            group.num += 1;
            group.num_tokens += sequence.num_tokens();
            group.num_lifted += usize::from(level > sequence.priority());
            if since < group.first.0 {
                group.first = first;
            }
        }
        let mut groups: Vec<_> = groups.into_iter().collect();
        groups.sort_by_key(|(_, it)| it.first.0);
        snapshot.queue_more = groups.len().saturating_sub(MAX_GROUPS);
        groups.truncate(MAX_GROUPS);
        let told = groups.into_iter().map(|((priority, tenant), it)| Group {
            priority: priority.name().into(),
            tenant: tenant.to_string(),
            num: it.num,
            tokens: it.num_tokens,
            lifted: it.num_lifted,
            oldest_ms: now.saturating_duration_since(it.first.0).as_millis() as u64,
            why: self.why_waiting(it.first.1),
        });
        snapshot.queue = told.collect();
    }

    fn row(
        &self,
        id: RequestId,
        story: &Story,
        running: &HashMap<RequestId, Running>,
        now: Instant,
    ) -> OpenRequest {
        let age = now.saturating_duration_since(story.arrived);
        let last = story.entries.back();
        let is_setback = |it: &Decision| {
            matches!(
                it,
                Decision::Preempted { .. } | Decision::Moved { .. } | Decision::Retried { .. }
            )
        };
        let state = if self.runs(story) { "running" } else { "waiting" };
        // One body may be of very many prompts.
        let runs = story.requests.iter().take(MAX_PROMPTS).filter_map(|it| running.get(it));
        let mut all = Running::default();
        for of in runs {
            all.pipelines.extend(&of.pipelines);
            all.num_prompt += of.num_prompt;
            all.num_generated += of.num_generated;
        }
        all.pipelines.sort_unstable();
        all.pipelines.dedup();
        OpenRequest {
            id: format!("{:016x}", id.0),
            tenant: story.tenant.to_string(),
            priority: story.priority.name().into(),
            state: state.into(),
            age_ms: age.as_millis() as u64,
            pipelines: all.pipelines,
            prompt_tokens: all.num_prompt,
            generated_tokens: all.num_generated,
            last: last.map(|it| it.decision.name()).unwrap_or_default().into(),
            last_ms: last.map_or(0, |it| age.saturating_sub(it.at).as_millis() as u64),
            setbacks: story.entries.iter().filter(|it| is_setback(&it.decision)).count(),
        }
    }
}
