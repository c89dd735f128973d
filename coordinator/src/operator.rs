//! `autoglm status|nodes|pipelines|node`: what an operator sees of a running cluster, and says to
//! it.

use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use hyper::Method;
use serde_json::Value;

use crate::asking::{Server, block_on};
use crate::tokens::revoke::Revoke;

/// Between two looks at a node that is drained.
const LOOK_PAUSE: Duration = Duration::from_millis(300);

/// Shows a running cluster.
#[derive(Args)]
pub struct ShowArguments {
    #[command(flatten)]
    server: Server,
    /// As the server says it, in JSON.
    #[arg(long)]
    json: bool,
}

/// What is shown.
#[derive(Clone, Copy, Debug)]
pub enum Show {
    /// How it is with the cluster, in a few lines.
    Status,
    /// A line for each node.
    Nodes,
    /// A line for each stage of each pipeline.
    Pipelines,
}

impl ShowArguments {
    /// Asks and prints.
    ///
    /// # Errors
    /// When the server can't be asked.
    pub fn run(self, show: Show, out: &mut impl Write) -> Result<()> {
        let said = block_on(self.server.ask(Method::GET, "/v1/admin/status"))?;
        match (show, self.json) {
            (Show::Status, true) => writeln!(out, "{said}")?,
            (Show::Nodes, true) => writeln!(out, "{}", said["nodes"])?,
            (Show::Pipelines, true) => writeln!(out, "{}", said["pipelines"])?,
            (Show::Status, false) => write!(out, "{}", status(&said))?,
            (Show::Nodes, false) => write!(out, "{}", nodes(&said))?,
            (Show::Pipelines, false) => write!(out, "{}", pipelines(&said))?,
        }
        Ok(())
    }
}

/// Says what a node is there for.
#[derive(Args)]
pub struct NodeArguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Nothing new is placed on the node; what it has goes on.
    Cordon(OfNode),
    /// The node is used again.
    Uncordon(OfNode),
    /// Ends the node's session within a second, and lets it in no more, whatever it shows.
    Revoke(Revoke),
    /// What the node has goes elsewhere; waits until it holds nothing.
    Drain {
        #[command(flatten)]
        of: OfNode,
        /// Seconds to wait; 0: not at all.
        #[arg(long, value_name = "SECONDS", default_value = "300")]
        wait: u64,
    },
}

#[derive(Args)]
struct OfNode {
    /// Its id, the beginning of it, or its hostname.
    node: String,
    #[command(flatten)]
    server: Server,
}

impl NodeArguments {
    /// Says it, and waits where that is asked for.
    ///
    /// # Errors
    /// When the server can't be asked or knows no such node, or when the wait was too short.
    pub fn run(self, out: &mut impl Write) -> Result<()> {
        let (action, of, wait) = match self.what {
            What::Revoke(revoke) => return revoke.run(),
            What::Cordon(of) => ("cordon", of, 0),
            What::Uncordon(of) => ("uncordon", of, 0),
            What::Drain { of, wait } => ("drain", of, wait),
        };
        if !of.node.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte)) {
            bail!("{:?} is no node's name: give an id, or a hostname", of.node);
        }
        block_on(async {
            let path = format!("/v1/admin/{action}/{}", of.node);
            let said = of.server.ask(Method::POST, &path).await?;
            let (node, duty) = (text(&said["node"]), text(&said["duty"]));
            writeln!(out, "node {node} is {duty}")?;
            if wait > 0 { drained(&of.server, &node, wait, out).await } else { Ok(()) }
        })
    }
}

async fn drained(server: &Server, node: &str, wait: u64, out: &mut impl Write) -> Result<()> {
    let (start, mut last) = (Instant::now(), String::new());
    loop {
        let said = server.ask(Method::GET, "/v1/admin/status").await?;
        let held: Vec<_> = list(&said["pipelines"])
            .filter(|it| list(&it["stages"]).any(|stage| text(&stage["node"]) == node))
            .map(|it| format!("{} ({})", it["pipeline"], state_of(it)))
            .collect();
        if held.is_empty() {
            writeln!(out, "it holds nothing any more: stop it, or take it back by uncordon")?;
            return Ok(());
        }
        let waits = format!("waiting for pipeline {}", held.join(", "));
        if waits != last {
            writeln!(out, "{waits}")?;
            last = waits;
        }
        if start.elapsed() >= Duration::from_secs(wait) {
            bail!("{last} took longer than {wait} s (--wait); the node is drained on");
        }
        tokio::time::sleep(LOOK_PAUSE).await;
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn bytes(value: &Value) -> String {
    crate::placement::Size(value.as_u64().unwrap_or(0)).to_string()
}

fn state_of(pipeline: &Value) -> &'static str {
    match (pipeline["draining"].as_bool(), pipeline["ready"].as_bool()) {
        (Some(true), _) => "draining",
        (_, Some(true)) => "serving",
        _ => "loading",
    }
}

/// What is wrong or waited for, and how full it is.
fn status(said: &Value) -> String {
    let serving = list(&said["pipelines"]).filter(|it| state_of(it) == "serving").count();
    let (num_nodes, num_pipelines) =
        (list(&said["nodes"]).count(), list(&said["pipelines"]).count());
    let mut lines = match text(&said["waiting_for"]).as_str() {
        "" => "ready\n".to_owned(),
        waiting_for => format!("not ready: {waiting_for}\n"),
    };
    lines += &format!("{num_nodes} nodes, {serving} of {num_pipelines} pipelines serve\n");
    let load = &said["load"];
    let waiting: Vec<_> = load["waiting"]
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(_, num)| num.as_u64() != Some(0))
        .map(|(priority, num)| format!("{num} {priority}"))
        .collect();
    let waiting = if waiting.is_empty() { "none".to_owned() } else { waiting.join(", ") };
    lines += &format!(
        "running {}, waiting {waiting}, KV blocks {} of {}\n",
        load["running"], load["used_blocks"], load["blocks"]
    );
    if let Some(scaling) = said["autoscaler"].as_object() {
        lines += &format!(
            "autoscaler: {} pipelines wanted ({} to {}), load {:.2}\n",
            scaling["pipelines_wanted"],
            scaling["min_pipelines"],
            scaling["max_pipelines"],
            scaling["load"].as_f64().unwrap_or(0.0)
        );
    }
    for (node, why) in left_out(said) {
        lines += &format!("node {node} is left out: {why}\n");
    }
    lines
}

/// Nodes on which nothing is placed, why, and what to do.
fn left_out(said: &Value) -> Vec<(String, String)> {
    let all = list(&said["nodes"])
        .map(|it| (it, ""))
        .chain(list(&said["absent"]).map(|it| (it, "; it isn't here")));
    let relieved = all.filter_map(|(it, absent)| {
        let (node, duty) = (text(&it["node"]), text(&it["duty"]));
        let why = format!("{duty}{absent}; autoglm node uncordon {node} takes it back");
        (duty != "active").then_some((node, why))
    });
    let quarantined = list(&said["quarantined"]).map(|it| {
        let why = format!("quarantined for {} s more: {}", it["left_s"], text(&it["cause"]));
        (text(&it["node"]), why)
    });
    let others = list(&said["nodes"])
        .filter_map(|it| Some((text(&it["node"]), it["left_out"].as_str()?.to_owned())));
    relieved.chain(quarantined).chain(others).collect()
}

fn nodes(said: &Value) -> String {
    let mut lines = row(&["node", "state", "host", "address", "pool", "memory", "adapters"]);
    for node in list(&said["nodes"]) {
        let id = text(&node["node"]);
        let stages = list(&said["pipelines"]).flat_map(|it| list(&it["stages"]));
        let mut on_it = stages.filter(|stage| text(&stage["node"]) == id).peekable();
        let quarantined = list(&said["quarantined"]).any(|it| text(&it["node"]) == id);
        let state = match text(&node["duty"]).as_str() {
            "active" if quarantined => "quarantined".to_owned(),
            "active" if on_it.peek().is_none() => "idle".to_owned(),
            "active" if on_it.all(|stage| text(&stage["state"]) == "serving") => {
                "serving".to_owned()
            }
            "active" => "loading".to_owned(),
            duty => duty.to_owned(),
        };
        let memory: u64 = list(&node["memory_bytes"]).filter_map(Value::as_u64).sum();
        let adapters: Vec<_> = list(&node["adapters"]).map(text).collect();
        lines += &row(&[
            &id,
            &state,
            &text(&node["hostname"]),
            &text(&node["data_addr"]),
            &text(&node["pool"]),
            &bytes(&memory.into()),
            &adapters.join(", "),
        ]);
        let labels = node["labels"].as_object().into_iter().flatten();
        let labels: Vec<_> = labels.map(|(key, value)| format!("{key}={}", text(value))).collect();
        if !labels.is_empty() {
            lines += &format!("  {}\n", labels.join(" "));
        }
    }
    for node in list(&said["absent"]) {
        lines += &row(&[&text(&node["node"]), &text(&node["duty"]), "", "not here", "", "", ""]);
    }
    for node in list(&said["nodes"]).filter(|node| node["fetching"].is_object()) {
        let it = &node["fetching"];
        let what = if it["warming"] == true { "warming" } else { "fetching" };
        let mb = |name: &str| it[name].as_u64().unwrap_or(0).div_ceil(1_000_000);
        lines += &format!(
            "{}: {what} {} of {} MB from {} sources\n",
            text(&node["node"]),
            mb("bytes"),
            mb("of_bytes"),
            it["sources"]
        );
    }
    for (node, why) in left_out(said) {
        lines += &format!("{node}: {why}\n");
    }
    lines
}

fn row(cells: &[&str; 7]) -> String {
    let [node, state, host, address, pool, memory, adapters] = cells;
    let line = format!(
        "{node:<16}  {state:<11}  {host:<12}  {address:<21}  {pool:<8}  {memory:>8}  {adapters}"
    );
    format!("{}\n", line.trim_end())
}

fn pipelines(said: &Value) -> String {
    let mut lines = String::new();
    for pipeline in list(&said["pipelines"]) {
        let token = times(pipeline, "token_ms").replacen("  ", ", a token: ", 1);
        lines += &format!("pipeline {}: {}{token}\n", pipeline["pipeline"], state_of(pipeline));
        if let Some(cache) = pipeline["cache"].as_str() {
            lines += &format!("  {cache}\n");
        }
        for stage in list(&pipeline["stages"]) {
            let (first, end) = (&stage["layers"][0], &stage["layers"][1]);
            let loading = text(&stage["loading"]);
            let state = if loading.is_empty() { text(&stage["state"]) } else { loading };
            let times = times(stage, "ms");
            lines += &format!(
                "  stage {:<3} layers {:<9} {:<16} {:<14} {:>8}  {state}{times}\n",
                stage["stage"].to_string(),
                format!("{first}..{end}"),
                text(&stage["node"]),
                text(&stage["hostname"]),
                bytes(&stage["memory_bytes"]),
            );
        }
    }
    if lines.is_empty() {
        lines = format!("no pipeline: {}\n", text(&said["waiting_for"]));
    }
    lines
}

/// What was predicted of a pipeline or a stage, and what was measured.
fn times(said: &Value, unit: &str) -> String {
    let millis = |what: &str| said[format!("{what}_{unit}")].as_f64();
    let Some(predicted) = millis("predicted") else { return String::new() };
    match millis("measured") {
        None => format!("  {predicted:.2} ms predicted"),
        Some(measured) => format!(
            "  {predicted:.2} ms predicted, {measured:.2} ms measured ({:+.0} %)",
            (predicted / measured - 1.0) * 100.0
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn said() -> Value {
        json!({
            "waiting_for": "loading: stage 0: 3 of 9 MB loaded",
            "load": {"running": 2, "waiting": {"offline": 7, "standard": 0},
                "used_blocks": 5, "blocks": 64},
            "nodes": [
                {"node": "00000000000000a1", "hostname": "left", "data_addr": "10.0.0.1:7001",
                    "duty": "active", "memory_bytes": [1 << 30], "adapters": ["Card"],
                    "pool": "gpu-a", "labels": {"rack": "7", "zone": "b"}},
                {"node": "00000000000000a2", "hostname": "right", "data_addr": "10.0.0.2:7001",
                    "duty": "draining", "memory_bytes": [1 << 30, 1 << 30], "labels": {},
                    "left_out": "it is of pool \"b\"",
                    "fetching":
                        {"bytes": 1_500_000, "of_bytes": 7_000_000, "sources": 3, "warming": true},
                    "adapters": ["Card", "Card"]},
            ],
            "absent": [{"node": "00000000000000a3", "duty": "cordoned"}],
            "quarantined":
                [{"node": "00000000000000a1", "left_s": 9, "cause": "it failed 6 times"}],
            "pipelines": [{"pipeline": 0, "ready": false, "draining": false,
                "predicted_token_ms": 3.126, "measured_token_ms": null,
                "cache": "KV cache: 64 tokens, all that are wanted", "stages": [
                {"stage": 0, "node": "00000000000000a2", "hostname": "right", "layers": [0, 4],
                    "predicted_ms": 3.0, "measured_ms": 2.0,
                    "state": "loading", "memory_bytes": 3 << 20},
            ]}],
        })
    }

    #[test]
    fn every_exclusion_has_its_reason_and_the_next_step() {
        assert_eq!(
            status(&said()),
            "not ready: loading: stage 0: 3 of 9 MB loaded\n\
             2 nodes, 0 of 1 pipelines serve\n\
             running 2, waiting 7 offline, KV blocks 5 of 64\n\
             node 00000000000000a2 is left out: draining; autoglm node uncordon 00000000000000a2 \
             takes it back\n\
             node 00000000000000a3 is left out: cordoned; it isn't here; autoglm node uncordon \
             00000000000000a3 takes it back\n\
             node 00000000000000a1 is left out: quarantined for 9 s more: it failed 6 times\n\
             node 00000000000000a2 is left out: it is of pool \"b\"\n"
        );
    }

    #[test]
    fn nodes_and_stages_have_a_line_each() {
        let nodes = nodes(&said());
        let lines: Vec<_> = nodes.lines().collect();
        assert_eq!(
            lines[1],
            "00000000000000a1  quarantined  left          10.0.0.1:7001          gpu-a     \
             \x201.0 GiB  Card"
        );
        assert_eq!(lines[2], "  rack=7 zone=b");
        assert!(lines[3].contains("draining") && lines[3].ends_with("2.0 GiB  Card, Card"));
        assert!(lines[4].contains("not here"));
        assert_eq!(lines[5], "00000000000000a2: warming 2 of 7 MB from 3 sources");
        assert!(nodes.lines().last().unwrap().ends_with("a2: it is of pool \"b\""));
        assert!(nodes.lines().take(5).all(|line| line.len() <= 100), "{nodes}");
        assert_eq!(
            pipelines(&said()),
            "pipeline 0: loading, a token: 3.13 ms predicted\n\
             \x20 KV cache: 64 tokens, all that are wanted\n\
             \x20 stage 0   layers 0..4      00000000000000a2 right             3 MiB  loading  \
             3.00 ms predicted, 2.00 ms measured (+50 %)\n"
        );
        assert_eq!(pipelines(&json!({"waiting_for": "nodes"})), "no pipeline: nodes\n");
    }
}
