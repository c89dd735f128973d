//! Pages about results: nothing hostile passes, and a browser draws what was measured.

use std::collections::BTreeMap;

use loadgen::report::compare::{Against, ResultFile};
use loadgen::report::html;
use loadgen::report::result::{
    ClientUse, FORMAT, FailureCount, FaultOutcome, Group, Provenance, RunResult, Second, Series,
    Verification,
};
use serde_json::json;

/// What must not come out as it went in.
const HOSTILE: &str = "\"'><script>document.title='hacked'</script><img src=x onerror=alert(1)>&";

/// A run in which every string is `text` and every part is there.
fn run(text: &str) -> RunResult {
    let text = || text.to_string();
    let statistics = BTreeMap::from([
        ("p50_ttft_ms".to_string(), json!(120.0)),
        ("p99_ttft_ms".to_string(), json!(180.0)),
        ("mean_e2el_ms".to_string(), json!(900.0)),
    ]);
    RunResult {
        format: FORMAT,
        date: text(),
        label: text(),
        provenance: Provenance {
            machine: text(),
            adapter: Some(text()),
            driver: Some(text()),
            commit: Some(text()),
            version: text(),
            server: Some(text()),
            flags: vec!["--model".into(), text()],
        },
        model_id: text(),
        endpoint: text(),
        request_rate: Some(4.0),
        arrivals: text(),
        interrupted: true,
        duration: 3.0,
        warmup: 1.0,
        completed: 10,
        failed: 2,
        failures: BTreeMap::from([(text(), FailureCount { count: 2, example: text() })]),
        request_throughput: 3.3,
        request_goodput: Some(3.0),
        output_throughput: 33.0,
        slo: BTreeMap::from([("ttft".to_string(), 200.0), (text(), 1.0)]),
        curves: BTreeMap::from([("ttft".to_string(), vec![(0.0, 90.0), (50.0, 120.0)])]),
        timeline: (0..4)
            .map(|second| Second { second, tokens: 30 + second, failed: 1, ..Second::default() })
            .collect(),
        groups: vec![Group { name: text(), statistics: statistics.clone(), ..Group::default() }],
        verification: Some(Verification {
            checked: 12,
            identical: 11,
            examples: vec![text()],
            ..Verification::default()
        }),
        faults: vec![
            FaultOutcome { fault: text(), at: Some(2.0), ..FaultOutcome::default() },
            FaultOutcome { fault: text(), error: Some(text()), ..FaultOutcome::default() },
        ],
        client: ClientUse { bottleneck: Some(text()), ..ClientUse::default() },
        statistics,
        ..RunResult::default()
    }
}

fn source(kind: &str, text: &str, second: &str) -> ResultFile {
    let (runs, varied) = (vec![run(text), run(second)], "rate".to_string());
    let series = Series { format: FORMAT, kind: kind.to_string(), varied, runs };
    ResultFile { name: text.to_string(), series }
}

#[test]
fn whatever_a_server_calls_itself_is_only_text() {
    for kind in ["run", "sweep", "experiment"] {
        let sources = [source(kind, HOSTILE, "<b>"), source(kind, "b", HOSTILE)];
        for sources in [&sources[..1], &sources[..]] {
            let page = html::page(sources, Against::First);
            assert!(page.contains("&lt;script&gt;document.title"), "{kind}");
            assert!(!page.contains("<script>document"), "{kind}");
            assert!(!page.contains("<img") && !page.contains("<b>"), "{kind}");
            assert_eq!(page.matches("<script").count(), 1, "{kind}");
        }
    }
}

#[test]
fn a_page_needs_nothing_else() {
    let page = html::page(&[source("sweep", "rate 1", "rate 2")], Against::First);
    for outside in ["http://", "https://", "src=", "@import", "url("] {
        assert!(!page.contains(outside), "{outside}");
    }
}

#[test]
fn what_is_worth_less_than_it_seems_is_said() {
    let page = html::page(&[source("run", "rate 1", "rate 2")], Against::First);
    for said in [
        "1 of 12 answers are not the reference&#39;s",
        "The client was the bottleneck",
        "Interrupted",
        "objective 200 ms",
    ] {
        assert!(page.contains(said), "{said}");
    }
    let mut unverified = source("run", "rate 1", "rate 2");
    unverified.series.runs.iter_mut().for_each(|run| run.verification = None);
    let page = html::page(&[unverified], Against::First);
    assert!(page.contains("Answers not verified"));
}
