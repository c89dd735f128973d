//! What an operator may have to do something about, read off a snapshot: what waits, why it is
//! slow, what broke.

use super::{Concern, EventKind, Group, Level, ShownNode, ShownPipeline, Snapshot};

/// Losses that are this old are history.
const NEWS_MS: u64 = 10 * 60 * 1000;

/// Whoever waits for longer waits noticeably.
const LONG_WAIT_MS: u64 = 5000;

/// The share of a step, or of all blocks, from which on it is worth a word.
const MUCH: f64 = 0.3;
const NEARLY_ALL: f64 = 0.95;

/// A stage that computes for so many times as long as the others holds them up; a token that takes
/// so many times as long as was predicted is slow.
const UNEVEN: f64 = 1.5;

impl Snapshot {
    /// Says what there is to say of all the rest of it, worst first.
    pub(crate) fn find_concerns(&mut self) {
        let mut found = Vec::new();
        let mut say = |level, what: String, hint: String| found.push(Concern { level, what, hint });
        if !self.ready {
            say(Level::Bad, "no pipeline serves".into(), self.waiting_for.clone());
        }
        let recent = self.points.iter().rev().take(2);
        let failed: u64 = recent.map(|point| point.failed).sum();
        if failed > 0 {
            let what = format!("{} failed just now", count(failed, "request"));
            say(Level::Bad, what, "the server's log says why".into());
        }
        let refused: u64 = self.points.iter().rev().take(2).map(|it| it.refused).sum();
        if refused > 0 {
            let what = format!("{} refused just now", count(refused, "request was"));
            let hint = "the queue is full, a key is over its limits, or nothing serves";
            say(Level::Warn, what, hint.into());
        }
        self.of_queue(&mut say);
        self.pipelines.iter().for_each(|pipeline| of_pipeline(pipeline, &mut say));
        self.nodes.iter().for_each(|node| of_node(node, &mut say));
        for job in self.jobs.iter().filter(|job| is_open(&job.state)) {
            if job.left_s < 0 {
                let hint = "what isn't answered by now ends as expired".into();
                say(Level::Warn, format!("batch job {} is late", job.id), hint);
            }
        }
        let losses = self.events.iter().filter(|it| {
            matches!(it.kind, EventKind::Lost | EventKind::Moved) && it.ago_ms < NEWS_MS
        });
        for lost in losses.rev().take(3) {
            let ago = lost.ago_ms / 1000;
            let ago = if ago < 60 { format!("{ago} s") } else { format!("{} min", ago / 60) };
            let who = match lost.pipeline {
                Some(pipeline) => format!("pipeline {pipeline}"),
                None => format!("node {}", lost.node),
            };
            say(Level::Info, format!("{who} was lost {ago} ago"), lost.text.clone());
        }
        found.sort_by_key(|concern| concern.level);
        self.concerns = found;
    }

    fn of_queue(&self, say: &mut impl FnMut(Level, String, String)) {
        let load = self.load;
        let full = load.used_blocks as f64 >= load.blocks as f64 * NEARLY_ALL;
        if full && load.blocks > 0 && load.waiting > 0 {
            let what = format!("{} of {} KV blocks are held", load.used_blocks, load.blocks);
            let hint = "more nodes or pipelines, shorter answers, or an f16 cache make room";
            say(Level::Warn, what, hint.into());
        }
        // Whoever is offline work may wait as long as its job does.
        let waits = |it: &&Group| it.priority != "offline" && it.oldest_ms > LONG_WAIT_MS;
        if let Some(first) = self.queue.iter().filter(waits).max_by_key(|it| it.oldest_ms) {
            let (num, seconds) = (first.num, first.oldest_ms / 1000);
            let what = format!(
                "{num} of {} wait at priority {}, the first for {seconds} s",
                first.tenant, first.priority
            );
            say(Level::Warn, what, first.why.clone());
        }
    }
}

fn count(num: u64, what: &str) -> String {
    match (num, what.split_once(' ')) {
        (1, _) => format!("1 {what}"),
        (_, None) => format!("{num} {what}s"),
        (_, Some((noun, _))) => format!("{num} {noun}s were"),
    }
}

/// Whether something is still to be done for a batch job.
pub(super) fn is_open(state: &str) -> bool {
    ["validating", "in_progress", "finalizing", "cancelling"].contains(&state)
}

fn of_pipeline(it: &ShownPipeline, say: &mut impl FnMut(Level, String, String)) {
    let number = it.pipeline;
    if matches!(&*it.state, "loading" | "linking") {
        let sum = |of: fn(&super::ShownStage) -> u64| it.stages.iter().map(of).sum::<u64>();
        let (loaded, all) = (sum(|stage| stage.memory_bytes), sum(|stage| stage.of_bytes));
        let what = match (loaded * 100).checked_div(all) {
            Some(percent) if it.state == "loading" => format!("is loading: {percent} %"),
            _ => format!("is {}", it.state),
        };
        say(Level::Info, format!("pipeline {number} {what}"), String::new());
    }
    let Some(time) = &it.time else { return };
    let slowest = time
        .stages
        .iter()
        .enumerate()
        .max_by(|(_, a), (_, b)| a.compute_ms.total_cmp(&b.compute_ms));
    if let Some((stage, slow)) = slowest.filter(|_| time.stages.len() > 1) {
        let all: f64 = time.stages.iter().map(|stage| stage.compute_ms).sum();
        let others = (all - slow.compute_ms) / (time.stages.len() - 1) as f64;
        if slow.compute_ms > others * UNEVEN && slow.compute_ms > time.step_ms * MUCH {
            let what = format!(
                "stage {stage} of pipeline {number} computes {:.1} ms of a step, the others {:.1}",
                slow.compute_ms, others
            );
            say(Level::Info, what, "they wait for it: a new placement may cut better".into());
        }
    }
    let network: f64 =
        time.stages.iter().chain([&time.coordinator]).map(|stage| stage.network_ms).sum();
    if network > time.step_ms * MUCH {
        let what = format!(
            "pipeline {number} spends {:.0} % of a step on the network",
            network / time.step_ms * 100.0
        );
        say(Level::Info, what, "fewer stages, or nodes that are nearer, would be faster".into());
    }
    if let Some(measured) = it.measured_token_ms
        && measured > it.predicted_token_ms * UNEVEN
        && it.predicted_token_ms > 0.0
    {
        let times = measured / it.predicted_token_ms;
        let what = format!("pipeline {number} takes {times:.1} times as long as was predicted");
        let hint = format!(
            "{measured:.1} ms a token, {:.1} predicted: something else uses its machines",
            it.predicted_token_ms
        );
        say(Level::Info, what, hint);
    }
}

fn of_node(it: &ShownNode, say: &mut impl FnMut(Level, String, String)) {
    let ShownNode { node, hostname, state, cause, duty, .. } = it;
    let name = if hostname.is_empty() { node.clone() } else { format!("{node} ({hostname})") };
    let back = format!("autoglm node uncordon {node} takes it back");
    match &**state {
        // The time line tells of the others, while that is news.
        "lost" if duty == "active" => {}
        "lost" => say(Level::Info, format!("node {name} is {duty}, and was lost {cause}"), back),
        _ if !cause.is_empty() => {
            say(Level::Warn, format!("node {name} is left out"), cause.clone());
        }
        _ if duty != "active" => {
            let away = if state == "absent" { " and isn't here" } else { "" };
            say(Level::Info, format!("node {name} is {duty}{away}"), back);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests;
