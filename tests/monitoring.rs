//! `deploy/`: what Prometheus and Grafana make of `/metrics`, checked with promtool.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tests::cluster::{Cluster, Options};
use tests::golden;

fn deploy(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("deploy").join(file)
}

/// Runs promtool on `input`; what it said, if it found fault or anything to say at all.
fn promtool(arguments: &[&str], input: &str) -> Result<String, String> {
    let child = Command::new("promtool")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = child.map_err(|cause| format!("promtool can't be run: {cause}"))?;
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8(said).unwrap();
    if output.status.success() { Ok(said) } else { Err(said) }
}

fn has_promtool() -> bool {
    let has = Command::new("promtool").arg("--version").output().is_ok();
    if !has {
        eprintln!("skipped: what promtool checks (it comes with Debian's prometheus)");
    }
    has
}

#[test]
fn alerts_fire_when_they_should_and_only_then() {
    if !has_promtool() {
        return;
    }
    let path = |file| deploy(file).to_str().unwrap().to_owned();
    promtool(&["check", "config", &path("prometheus/prometheus.yml")], "").unwrap();
    promtool(&["check", "rules", "--lint-fatal", &path("prometheus/alerts.yml")], "").unwrap();
    promtool(&["test", "rules", &path("prometheus/alerts_test.yml")], "").unwrap();
    let text = std::fs::read_to_string(deploy("prometheus/alerts.yml")).unwrap();
    let tested = std::fs::read_to_string(deploy("prometheus/alerts_test.yml")).unwrap();
    for alert in text.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        let fires = format!("        alertname: {alert}\n        exp_alerts:\n");
        assert!(tested.contains(&fires), "no test in which {alert} fires");
    }
}

/// Names of the samples in a text.
fn names(metrics: &str) -> BTreeSet<&str> {
    let samples = metrics.lines().filter(|line| !line.starts_with('#'));
    samples.map(|line| line.split(['{', ' ']).next().unwrap()).collect()
}

/// The metrics that an expression reads: its words that are neither functions nor operators, what
/// stands in quotes, braces, brackets and lists of labels apart.
fn names_in(expression: &str) -> BTreeSet<String> {
    const LISTS: [&str; 5] = ["by", "on", "ignoring", "without", "group_left"];
    const OPERATORS: [&str; 8] = ["and", "or", "unless", "bool", "sum", "avg", "min", "max"];
    let mut names = BTreeSet::new();
    let mut rest = expression;
    while let Some(at) = rest.find(|c: char| c.is_alphanumeric() || "_:\"{[".contains(c)) {
        rest = &rest[at..];
        let closing = match rest.as_bytes()[0] {
            b'{' => Some('}'),
            b'[' => Some(']'),
            b'"' => Some('"'),
            _ => None,
        };
        if let Some(closing) = closing {
            rest = &rest[rest[1..].find(closing).unwrap() + 2..];
            continue;
        }
        let end = rest.find(|c: char| !(c.is_alphanumeric() || "_:.".contains(c)));
        let (word, after) = rest.split_at(end.unwrap_or(rest.len()));
        rest = after.trim_start();
        if LISTS.contains(&word) {
            if rest.starts_with('(') {
                rest = &rest[rest.find(')').unwrap()..];
            }
        } else if !rest.starts_with('(')
            && !OPERATORS.contains(&word)
            && word.parse::<f64>().is_err()
        {
            names.insert(word.to_owned());
        }
    }
    names
}

/// The expressions of a file of rules: on the line of their key, or indented below it.
fn expressions(rules: &str) -> Vec<String> {
    let mut lines = rules.lines().peekable();
    let mut found = Vec::new();
    while let Some(line) = lines.next() {
        match line.trim().strip_prefix("expr: ") {
            Some("|") => {
                let mut text = String::new();
                while let Some(more) = lines.next_if(|line| line.starts_with("          ")) {
                    text.push_str(more);
                }
                found.push(text);
            }
            Some(expression) => found.push(expression.to_owned()),
            None => {}
        }
    }
    found
}

/// The expressions of a dashboard, all of which go to the data source that its user chooses.
fn queries(dashboard: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let mut ids = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{} has another's id", panel["title"]);
        for target in panel["targets"].as_array().into_iter().flatten() {
            assert_eq!(target["datasource"]["uid"], "${datasource}");
            found.push(target["expr"].as_str().unwrap().to_owned());
        }
    }
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        if let Some(query) = variable["definition"].as_str() {
            let inside = query.strip_prefix("label_values(").unwrap();
            found.push(inside.split(',').next().unwrap().to_owned());
        }
    }
    found
}

/// Goal: Prometheus understands every query of the dashboard. Method: as rules, with Grafana's
/// variables filled in.
#[test]
fn the_dashboards_queries_parse() {
    if !has_promtool() {
        return;
    }
    let dashboard = std::fs::read(deploy("grafana/autoglm.json")).unwrap();
    let mut rules = "groups:\n- name: dashboard\n  rules:\n".to_owned();
    for (number, query) in queries(&serde_json::from_slice(&dashboard).unwrap()).iter().enumerate()
    {
        let query = query.replace("$__rate_interval", "1m").replace("$instance", ".*");
        assert!(!query.contains('$'), "{query}");
        rules += &format!("  - record: query_{number}\n    expr: {}\n", json!(query));
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("dashboard.yml");
    std::fs::write(&file, rules).unwrap();
    promtool(&["check", "rules", file.to_str().unwrap()], "").unwrap();
}

#[test]
fn the_metrics_of_an_expression_are_found() {
    let expression = r#"1 - sum by (le, a_b) (rate(x_bucket{y="z{",w=~"u.."}[5m])) / ignoring (c)
        group_left sum(v:w{d="e"}) > 0.5 or vector(0) and on (f) g"#;
    let expected = ["g", "v:w", "x_bucket"].map(str::to_owned);
    assert_eq!(names_in(expression), BTreeSet::from(expected));
}

/// Goal: what a real server tells after real traffic is what Prometheus, the alerts and the
/// dashboard expect. Method: every kind of thing happens once, refusals and errors too.
#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_what_alerts_and_dashboard_ask_for() {
    let options = Options::new(golden::model("glass-en"));
    let options = options.nodes(2, 2).config("[metrics]\ncompat = \"vllm\"\n");
    let cluster = Cluster::launch(&options);
    let model = cluster.model().await;
    let request = json!({"model": model, "prompt": "Alice was", "max_tokens": 8});
    let (status, refused) = cluster.post("/v1/completions", &request).await;
    assert_eq!(status, 503, "{refused}");
    cluster.ready(std::time::Duration::from_secs(120)).await;
    let (status, refused) = cluster.post("/v1/completions", &json!({"model": "other"})).await;
    assert_eq!(status, 404, "{refused}");
    cluster.complete(&request).await;
    let (status, stages) = cluster.get("/health/stages").await;
    assert_eq!(status, 200, "{stages}");
    for stage in stages["pipelines"][0]["stages"].as_array().unwrap() {
        assert!(stage["adapter"].as_str().is_some_and(|name| !name.is_empty()), "{stage}");
        assert!(stage["driver"].as_str().is_some_and(|name| !name.is_empty()), "{stage}");
        assert!(cluster.node_pids().contains(&(stage["pid"].as_u64().unwrap() as u32)), "{stage}");
    }

    let client = reqwest::Client::new();
    let scrape = client.get(format!("{}/metrics", cluster.http)).header("accept", "text/plain");
    let text = scrape.send().await.unwrap().text().await.unwrap();
    let is_vllms = |line: &&str| line.contains("vllm:");
    let vllms: Vec<_> = text.lines().filter(is_vllms).collect();
    let ours: String =
        text.lines().filter(|line| !is_vllms(line)).flat_map(|line| [line, "\n"]).collect();
    if has_promtool() {
        assert_eq!(promtool(&["check", "metrics"], &ours), Ok(String::new()), "{ours}");
        // The colon is vLLM's, and the one thing that a linter may say of its names.
        let said = promtool(&["check", "metrics"], &(vllms.join("\n") + "\n")).unwrap_err();
        let only_colons = said.lines().all(|line| line.ends_with("not contain ':'"));
        assert!(only_colons, "{said}");
    }

    let names = names(&ours);
    let dashboard = std::fs::read(deploy("grafana/autoglm.json")).unwrap();
    let dashboard = serde_json::from_slice(&dashboard).unwrap();
    let alerts = std::fs::read_to_string(deploy("prometheus/alerts.yml")).unwrap();
    let (queries, alerts) = (queries(&dashboard), expressions(&alerts));
    assert!(queries.len() > 30 && alerts.len() > 10, "{queries:?} {alerts:?}");
    for expression in queries.iter().chain(&alerts) {
        let asked = names_in(expression);
        assert!(!asked.is_empty(), "{expression} asks for nothing");
        for name in asked {
            // Prometheus' own: whether it could read the page.
            assert!(name == "up" || names.contains(&*name), "no {name} ({expression}) in\n{ours}");
        }
    }

    // What scales by our metrics names them as they are.
    let mut num_named = 0;
    for (path, text) in crate::deploy::files(&deploy("kubernetes")) {
        let words = text.split(|c: char| !(c.is_alphanumeric() || c == '_'));
        for name in words.filter(|word| word.starts_with("autoglm_")) {
            assert!(names.contains(name), "no {name} ({}) in\n{ours}", path.display());
            num_named += 1;
        }
    }
    assert!(num_named > 1);

    // Everything of a step is told of, and its parts make the whole.
    let sum = |prefix: &str, suffix: &str| -> f64 {
        let of = |line: &&str| {
            let name = line.split(['{', ' ']).next().unwrap();
            name.starts_with(prefix) && name.ends_with(suffix)
        };
        let values = ours.lines().filter(of).map(|line| line.rsplit_once(' ').unwrap().1);
        values.map(|value| value.parse::<f64>().unwrap()).sum()
    };
    let (whole, parts) =
        (sum("autoglm_step_seconds", "_sum"), sum("autoglm_stage_", "_seconds_sum"));
    // A frame tells how long the one before it took to send: one step's sending is left out.
    assert!((parts / whole - 1.0).abs() < 0.05, "parts {parts} s, steps {whole} s in\n{ours}");
    cluster.stop();
}
