//! A snapshot as lines: the same in a terminal that is watched and in one that is printed to.

use std::time::Duration;

use ratatui::style::{Color, Style, Stylize};
use ratatui::text::{Line, Span};

use crate::placement::Size;
use crate::snapshot::{EventKind, Level, Point, ShownPipeline, Snapshot};

/// What begins with a line of its name.
pub(super) const PARTS: [&str; 6] =
    ["Pipelines", "Nodes", "Waiting", "Requests", "Batch jobs", "Events"];

/// Requests that are told: those open for longest.
const MAX_REQUESTS: usize = 100;

const BAR: usize = 12;
const STEPS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

pub(super) fn head(it: &Snapshot) -> Line<'static> {
    let state = if it.ready { " serving ".green() } else { " not ready ".red() };
    let up = Duration::from_secs(it.up_s);
    Line::from(vec![
        "AutoGLM ".bold(),
        format!("{} {}", it.model, it.version).into(),
        state.bold(),
        format!("up {}", span(up)).dim(),
    ])
}

/// Why what is shown is old.
pub(super) fn trouble(silent_s: u64, cause: &str) -> Line<'static> {
    format!("no word for {silent_s} s, trying again: {cause}").red().bold().into()
}

pub(super) fn body(it: &Snapshot) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    for concern in &it.concerns {
        let (sign, colour) = match concern.level {
            Level::Bad => ("✕", Color::Red),
            Level::Warn => ("!", Color::Yellow),
            Level::Info => ("·", Color::Cyan),
        };
        let what = Span::styled(format!("{sign} {}", concern.what), Style::new().fg(colour).bold());
        let hint =
            if concern.hint.is_empty() { String::new() } else { format!("  {}", concern.hint) };
        lines.push(Line::from(vec![what, hint.dim()]));
    }
    lines.push(Line::default());
    lines.extend(curves(it));
    lines.push(part("Pipelines", pipelines_said(it)));
    it.pipelines.iter().for_each(|pipeline| lines.extend(of_pipeline(pipeline)));
    lines.extend(nodes(it));
    lines.extend(queue(it));
    lines.extend(requests(it));
    lines.extend(jobs(it));
    lines.extend(events(it));
    lines
}

fn part(name: &str, said: String) -> Line<'static> {
    Line::from(vec![name.to_owned().bold().underlined(), format!("  {said}").dim()])
}

fn titles(text: String) -> Line<'static> {
    text.dim().into()
}

fn curves(it: &Snapshot) -> Vec<Line<'static>> {
    let points = &it.points[it.points.len().saturating_sub(60)..];
    let line = |name: &str, value: String, more: String, of: &dyn Fn(&Point) -> Option<f64>| {
        let curve = spark(&points.iter().map(of).collect::<Vec<_>>());
        let told = format!("  {name:<15}{value:>9}  ");
        Line::from(vec![told.into(), format!("{more:<28}").dim(), curve.cyan()])
    };
    let band = |name: &str, of: fn(&Point) -> Option<[f64; 3]>| {
        let last = points.iter().rev().find_map(of);
        let value = last.map_or("-".to_owned(), |band| ms(band[0]));
        let more = last.map_or("no answer yet".to_owned(), |[_, nine, most]| {
            format!("p90 {}, p99 {}", ms(nine), ms(most))
        });
        line(name, value, more, &|point| of(point).map(|band| band[0]))
    };
    let rate = |tokens: u64, point: &Point| tokens as f64 * 1e3 / point.took_ms.max(1) as f64;
    let last = points.iter().rev().find(|point| point.took_ms > 1500);
    let generated = last.map_or(0.0, |point| rate(point.generated_tokens, point));
    let computed = last.map_or(0.0, |point| rate(point.computed_tokens, point));
    let load = it.load;
    let used = load.used_blocks as f64 / load.blocks.max(1) as f64;
    let sum = |of: fn(&Point) -> u64| points.iter().map(of).sum::<u64>();
    let (found, looked_for) = (sum(|it| it.prefix_hits), sum(|it| it.prefix_tokens));
    let hits = if looked_for == 0 { "-".to_owned() } else { percent(found, looked_for) };
    let wrong = sum(|it| it.failed + it.refused);
    let oldest = it.queue.iter().map(|group| group.oldest_ms).max();
    let first =
        oldest.map_or("nobody".to_owned(), |oldest| format!("the first for {}", age(oldest)));
    vec![
        band("first token", |it| it.first_token_ms),
        band("between tokens", |it| it.between_tokens_ms),
        line("tokens/s", digits(generated), format!("{} with prompts", digits(computed)), &|it| {
            Some(rate(it.generated_tokens, it))
        }),
        line(
            "running",
            load.running.to_string(),
            format!("{} requests open", it.num_requests),
            &|it| Some(it.running as f64),
        ),
        line("waiting", load.waiting.to_string(), first, &|it| Some(it.waiting as f64)),
        line(
            "KV cache",
            format!("{:.0} %", used * 100.0),
            format!("{} of {} blocks", load.used_blocks, load.blocks),
            &|it| Some(it.kv_used),
        ),
        line("prefix hits", hits, "of prompt tokens".into(), &|it| {
            (it.prefix_tokens > 0).then(|| it.prefix_hits as f64 / it.prefix_tokens as f64)
        }),
        line("failed", wrong.to_string(), "or refused".into(), &|it| {
            Some((it.failed + it.refused) as f64)
        }),
        Line::default(),
    ]
}

fn pipelines_said(it: &Snapshot) -> String {
    let serving = it.pipelines.iter().filter(|it| it.state == "serving").count();
    match it.pipelines.len() {
        0 => it.waiting_for.clone(),
        num => format!("{serving} of {num} serve"),
    }
}

fn of_pipeline(it: &ShownPipeline) -> Vec<Line<'static>> {
    let load = it.load;
    let used = load.used_blocks as f64 / load.blocks.max(1) as f64;
    let time = it.time.as_ref().map_or("no step yet".to_owned(), |time| {
        format!("step {}, {} tokens", ms(time.step_ms), digits(time.tokens))
    });
    let token = match it.measured_token_ms {
        Some(measured) => {
            format!("token {}, {} predicted", ms(measured), ms(it.predicted_token_ms))
        }
        None => format!("token {} predicted", ms(it.predicted_token_ms)),
    };
    let said = format!(
        "  {} running, KV {} {:.0} %, {time}, {token}",
        load.running,
        bar(used),
        used * 100.0
    );
    let mut lines = vec![Line::from(vec![
        format!("  pipeline {} ", it.pipeline).bold(),
        coloured(&it.state),
        said.into(),
    ])];
    lines.push(titles(format!(
        "    {:<8}{:<11}{:<18}{:<14}{:<22}{:>21}{:>10}{:>10}{:>10}{:>7}",
        "stage",
        "layers",
        "node",
        "host",
        "adapter",
        "memory",
        "compute",
        "wait",
        "network",
        "busy"
    )));
    for (number, stage) in it.stages.iter().enumerate() {
        let whole = if stage.state == "loading" { stage.of_bytes } else { stage.adapter_bytes };
        let memory = format!("{} of {}", Size(stage.memory_bytes), Size(whole));
        let time = it.time.as_ref().and_then(|time| time.stages.get(number));
        let times = time.map_or(format!("  {}", stage.state), |time| {
            format!(
                "{:>10}{:>10}{:>10}{:>6.0}%",
                ms(time.compute_ms),
                ms(time.wait_ms),
                ms(time.network_ms),
                time.busy * 100.0
            )
        });
        lines.push(Line::from(format!(
            "    {number:<8}{:<11}{:<18}{:<14}{:<22}{memory:>21}{times}",
            format!("{}..{}", stage.layers[0], stage.layers[1]),
            stage.node,
            cut(&stage.hostname, 13),
            cut(&stage.adapter, 21),
        )));
    }
    lines.push(Line::default());
    lines
}

fn nodes(it: &Snapshot) -> Vec<Line<'static>> {
    let mut lines = vec![part("Nodes", format!("{}", it.nodes.len()))];
    lines.push(titles(format!(
        "  {:<16}{:<18}{:<14}{:<10}{:<14}{:<20}{:>10}  {}",
        "state", "node", "host", "pool", "memory", "", "rtt", "adapters"
    )));
    for node in &it.nodes {
        let (done, all) = match node.loading {
            Some([done, all]) => (done, all),
            None => (node.used_bytes, node.memory_bytes),
        };
        let what = if node.loading.is_some() { " loaded" } else { "" };
        let memory = match all {
            0 => "-".to_owned(),
            _ => format!("{} of {}{what}", Size(done), Size(all)),
        };
        let rest =
            if node.cause.is_empty() { node.adapters.join(", ") } else { node.cause.clone() };
        let rtt = node.rtt_us.map_or("-".to_owned(), |rtt| ms(rtt / 1e3));
        // Of one that is gone, too, an operator has said what it is there for.
        let is_said = node.duty == "active" || node.duty == node.state;
        let state =
            if is_said { node.state.clone() } else { format!("{}, {}", node.state, node.duty) };
        lines.push(Line::from(vec![
            "  ".into(),
            coloured(&format!("{state:<16}")),
            format!(
                "{:<18}{:<14}{:<10}{:<14}{memory:<20}{rtt:>10}  {rest}",
                node.node,
                cut(&node.hostname, 13),
                cut(&node.pool, 9),
                bar(done as f64 / all.max(1) as f64),
            )
            .into(),
        ]));
    }
    lines.push(Line::default());
    lines
}

fn queue(it: &Snapshot) -> Vec<Line<'static>> {
    let mut lines = vec![part("Waiting", format!("{} sequences", it.load.waiting))];
    if !it.queue.is_empty() {
        lines.push(titles(format!(
            "  {:<13}{:<18}{:>8}{:>8}{:>10}{:>13}  {}",
            "priority", "tenant", "waiting", "lifted", "tokens", "oldest", "waits for"
        )));
    }
    lines.extend(it.queue.iter().map(|group| {
        Line::from(format!(
            "  {:<13}{:<18}{:>8}{:>8}{:>10}{:>13}  {}",
            group.priority,
            cut(&group.tenant, 17),
            group.num,
            group.lifted,
            group.tokens,
            age(group.oldest_ms),
            group.why
        ))
    }));
    lines.push(Line::default());
    lines
}

fn requests(it: &Snapshot) -> Vec<Line<'static>> {
    let shown = it.requests.len().min(MAX_REQUESTS);
    let said = format!("{} open, {shown} shown; autoglm explain ID says more", it.num_requests);
    let mut lines = vec![part("Requests", said)];
    if shown > 0 {
        lines.push(titles(format!(
            "  {:<9}{:<18}{:<18}{:<13}{:>13}{:>8}{:>8}  {}",
            "state", "id", "tenant", "priority", "age", "prompt", "answer", "last decision"
        )));
    }
    lines.extend(it.requests.iter().take(MAX_REQUESTS).map(|request| {
        Line::from(vec![
            "  ".into(),
            coloured(&format!("{:<9}", request.state)),
            format!(
                "{:<18}{:<18}{:<13}{:>13}{:>8}{:>8}  {} {} ago",
                request.id,
                cut(&request.tenant, 17),
                request.priority,
                age(request.age_ms),
                request.prompt_tokens,
                request.generated_tokens,
                request.last,
                age(request.last_ms)
            )
            .into(),
        ])
    }));
    lines.push(Line::default());
    lines
}

fn jobs(it: &Snapshot) -> Vec<Line<'static>> {
    let mut lines = vec![part("Batch jobs", format!("{}", it.jobs.len()))];
    lines.extend(it.jobs.iter().map(|job| {
        let done = (job.completed + job.failed) as f64 / job.lines.max(1) as f64;
        Line::from(vec![
            "  ".into(),
            coloured(&format!("{:<12}", job.state)),
            format!(
                "{:<40}{:<14}{} {} of {}, {} failed  {}",
                cut(&job.id, 39),
                cut(&job.tenant, 13),
                bar(done),
                job.completed + job.failed,
                job.lines,
                job.failed,
                job.error
            )
            .into(),
        ])
    }));
    lines.push(Line::default());
    lines
}

fn events(it: &Snapshot) -> Vec<Line<'static>> {
    let mut lines = vec![part("Events", "newest first".to_owned())];
    lines.extend(it.events.iter().rev().take(50).map(|event| {
        let colour = match event.kind {
            EventKind::Lost | EventKind::Moved | EventKind::Quarantined => Color::Red,
            EventKind::Joined | EventKind::Serves => Color::Green,
            _ => Color::Yellow,
        };
        let whose = match event.pipeline {
            Some(pipeline) => format!("pipeline {pipeline}"),
            None => event.node.clone(),
        };
        let kind = format!("{:?}", event.kind).to_lowercase();
        Line::from(vec![
            format!("  {:>13} ago  ", age(event.ago_ms)).dim(),
            Span::styled(format!("{kind:<12}"), Style::new().fg(colour)),
            format!("{whose:<18}{}", event.text).into(),
        ])
    }));
    lines
}

fn coloured(state: &str) -> Span<'static> {
    let colour = match state.split(',').next().unwrap_or_default().trim_end() {
        "serving" | "running" | "completed" => Color::Green,
        "loading" | "linking" | "in_progress" | "validating" | "finalizing" => Color::Cyan,
        "lost" | "quarantined" | "failed" | "expired" => Color::Red,
        "idle" => Color::Reset,
        _ => Color::Yellow,
    };
    Span::styled(state.to_owned(), Style::new().fg(colour))
}

fn bar(share: f64) -> String {
    let full = (share.clamp(0.0, 1.0) * BAR as f64).round() as usize;
    "█".repeat(full) + &"░".repeat(BAR - full)
}

fn spark(values: &[Option<f64>]) -> String {
    let most = values.iter().flatten().copied().fold(f64::MIN_POSITIVE, f64::max);
    let step = |value: f64| STEPS[((value / most * 7.0).round() as usize).min(7)];
    values.iter().map(|value| value.map_or(' ', step)).collect()
}

/// Three digits that count.
fn digits(value: f64) -> String {
    match value {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn ms(value: f64) -> String {
    if value >= 1e3 {
        format!("{} s", digits(value / 1e3))
    } else {
        format!("{} ms", digits(value))
    }
}

fn percent(part: u64, all: u64) -> String {
    format!("{:.0} %", part as f64 / all as f64 * 100.0)
}

fn age(ms: u64) -> String {
    span(Duration::from_millis(ms))
}

/// As its two largest units.
fn span(time: Duration) -> String {
    match time.as_secs() {
        seconds @ ..60 => format!("{seconds} s"),
        seconds @ ..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        seconds @ ..86_400 => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
        seconds => format!("{} d {} h", seconds / 86_400, seconds / 3600 % 24),
    }
}

fn cut(text: &str, max: usize) -> String {
    if text.chars().count() <= max {
        return text.to_owned();
    }
    text.chars().take(max - 1).chain(['…']).collect()
}
