//! `autoglm plan`: what a placement would be and bring, said before anything is loaded.
//!
//! It is not computed twice: the cluster's own core is told of the nodes, and what it places is
//! shown.

mod model;
mod nodes;
mod report;

use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use checkpoint::DType;
use clap::Args;
use hyper::Method;
use protocol::config::{Config, KvCacheDtype, Quantize};
use protocol::{LinkSpeed, NodeId};

use self::model::Planned;
pub(crate) use self::nodes::NodeSpec;
pub(crate) use self::report::{PlanReport, plan_table};
use crate::asking::{Server, block_on};
use crate::cluster::{Cluster, Input, unsuited};
use crate::data_dir;
use crate::model::Model;

/// Shows which node would get which layers of a model, and how fast that would be.
#[derive(Args)]
pub struct Arguments {
    /// A Hugging Face directory, a GGUF file, or a configuration alone (config.json, without
    /// weights beside it).
    #[arg(long, value_name = "PATH")]
    model: Option<PathBuf>,
    /// As what the weights of a configuration are stored: BF16, fp8, Q8_0, Q4_0, Q4_K ...
    /// [default: what it says].
    #[arg(long, value_name = "TYPE")]
    stored: Option<DType>,
    /// Tokens of a sequence [default: what the model was made for, or as many as fit].
    #[arg(long, value_name = "N")]
    max_model_len: Option<u32>,
    /// Round weights while they are loaded [default: none].
    #[arg(long, value_name = "none|int8|int4")]
    quantize: Option<Quantize>,
    /// Store keys and values in this type [default: auto, which is f32].
    #[arg(long, value_name = "auto|f32|f16")]
    kv_cache_dtype: Option<KvCacheDtype>,
    /// Stages of a pipeline [default: 0, one on each adapter].
    #[arg(long, value_name = "N")]
    stages: Option<u32>,
    /// Pipelines of the model; 0: placement decides [default: 1].
    #[arg(long, value_name = "N")]
    pipelines: Option<u32>,
    /// Nodes that need not be there: how many of which memory, as in 4x24GB or 2x24GiB,1x80GiB,
    /// or a TOML file with a [[node]] for each kind (name, count, memory, pool, labels,
    /// weight_bytes_per_s, int8_ps, int4_ps, multiply_adds_per_s, kernel_us, step_us, host_us,
    /// rtt_us, bytes_per_s)
    /// [default: those that have joined the server].
    #[arg(long, value_name = "NODES|FILE")]
    nodes: Option<String>,
    /// The server whose nodes are meant, where no file says them.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8000")]
    url: String,
    /// A file of the form of cluster.toml; flags win over it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

impl Arguments {
    /// Plans and prints.
    ///
    /// # Errors
    /// When model or nodes can't be read, or the model fits on these nodes in no way.
    pub fn run(self, out: &mut impl Write) -> Result<()> {
        let mut config = data_dir::config(self.config.as_deref())?;
        if let Some(path) = &self.model {
            config.model.path.clone_from(path);
        }
        config.model.quantize = self.quantize.unwrap_or(config.model.quantize);
        config.model.kv_cache_dtype = self.kv_cache_dtype.unwrap_or(config.model.kv_cache_dtype);
        config.model.max_model_len = self.max_model_len.unwrap_or(config.model.max_model_len);
        config.coordinator.stages = self.stages.unwrap_or(config.coordinator.stages);
        config.coordinator.pipelines = self.pipelines.unwrap_or(config.coordinator.pipelines);
        config.check()?;
        ensure!(!config.model.path.as_os_str().is_empty(), "no model: give --model PATH");
        let path = std::path::absolute(&config.model.path)?;
        let planned = Planned::open(&path, self.stored, config.model.quantize)?;
        let (nodes, are_assumed) = match &self.nodes {
            Some(said) => nodes::said(said)?,
            None => {
                let server = Server::at(&self.url);
                let said = block_on(server.ask(Method::GET, "/health/stages"))
                    .context("no node is known: give --nodes FILE, or the --url of a server")?;
                let of_server = nodes::of_server(&said.to_string());
                (of_server.with_context(|| format!("{} says", self.url))?, false)
            }
        };
        ensure!(!nodes.is_empty(), "there are no nodes to plan for");
        let mut report = longest(&planned, &config, &nodes)?;
        report.assumptions.extend(planned.assumption(&config));
        report.assumptions.extend(are_assumed.then(nodes::assumption));
        match self.json {
            true => writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?,
            false => write!(out, "{}", plan_table(&report))?,
        }
        Ok(())
    }
}

/// What the cluster would make of these nodes, with sequences as long as the model was made for
/// or, where nobody has said how long and these don't fit, as long as do.
///
/// # Errors
/// Why it would make nothing of them.
fn longest(planned: &Planned, config: &Config, nodes: &[NodeSpec]) -> Result<PlanReport> {
    let of = |max_model_len: u32| {
        let mut config = config.clone();
        config.model.max_model_len = max_model_len;
        let mut report = plan(planned.name(), &planned.model(&config)?, &config, nodes)?;
        report.made_for_tokens = planned.made_for();
        report.kv_cache_dtype = model::cache(&config);
        anyhow::Ok(report)
    };
    let whole = of(config.model.max_model_len);
    if whole.is_ok() || config.model.max_model_len != 0 {
        return whole;
    }
    // So many times this length fit, and so many don't.
    let (mut fits, mut too_many) = (0, planned.made_for().div_ceil(CONTEXT_STEP));
    let mut found = whole;
    while too_many - fits > 1 {
        let tried = fits + (too_many - fits) / 2;
        match of(tried * CONTEXT_STEP) {
            Ok(report) => (fits, found) = (tried, Ok(report)),
            Err(_) => too_many = tried,
        }
    }
    found
}

/// Lengths of sequences that are tried are multiples of it.
const CONTEXT_STEP: u32 = 1024;

/// What the cluster would make of these nodes.
///
/// # Errors
/// Why it would make nothing of them.
pub fn plan(name: &str, model: &Model, config: &Config, nodes: &[NodeSpec]) -> Result<PlanReport> {
    let mut now = Instant::now();
    let mut config = config.clone();
    // All that are named are waited for, but for those that aren't as the model asks, and nobody
    // else.
    let reports: Vec<_> = nodes.iter().enumerate().map(|(it, spec)| spec.report(it)).collect();
    let suited = reports.iter().filter(|it| unsuited(&config.model, it).is_none());
    let num_suited = suited.count();
    config.coordinator.local_nodes = num_suited as u32;
    let mut cluster = Cluster::new(config, model.clone(), 1, now).expecting(num_suited);
    for (one, other, speed) in ways(nodes) {
        cluster.handle(Input::Measured { ends: (Some(one), Some(other)), speed }, now);
    }
    for (spec, report) in nodes.iter().zip(reports) {
        let (node, session) = (report.node, report.session);
        cluster
            .handle(Input::Connected { node, session, wire_version: protocol::WIRE_VERSION }, now);
        if let Some(speed) = spec.link() {
            cluster.handle(Input::Measured { ends: (None, Some(node)), speed }, now);
        }
        if let Some(micros) = spec.host_us {
            cluster.handle(Input::Host(node, micros / 1e6), now);
        }
        if let Some(share) = spec.row_share {
            cluster.handle(Input::RowShare(node, 0, share), now);
        }
        cluster.handle(Input::Joined(report), now);
    }
    for _ in 0..=nodes.len() {
        now += Duration::from_secs(1);
        cluster.handle(Input::Tick, now);
    }
    let status = cluster.status();
    if status.pipelines.is_empty() {
        bail!("{}", status.waiting_for);
    }
    Ok(PlanReport::new(name, model, &status))
}

/// The ways between these nodes that a server has measured.
fn ways(nodes: &[NodeSpec]) -> Vec<(NodeId, NodeId, LinkSpeed)> {
    let name = |number: usize| NodeId(number as u64 + 1);
    let mut ways = Vec::new();
    for (one, spec) in nodes.iter().enumerate() {
        for (to, speed) in &spec.links {
            let others = nodes.iter().enumerate().filter(|(_, other)| other.id == *to);
            ways.extend(others.map(|(other, _)| (name(one), name(other), *speed)));
        }
    }
    ways
}

#[cfg(test)]
mod tests {
    use checkpoint::Checkpoint;

    use super::*;

    fn model() -> Model {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/models/glass-en");
        let files = Checkpoint::open(std::path::Path::new(path)).unwrap();
        crate::model::describe(&files, std::path::Path::new(path), &Config::default()).unwrap()
    }

    fn specs(text: &str) -> Vec<NodeSpec> {
        nodes::parse(text).unwrap()
    }

    const THREE: &str = "
        [[node]]
        name = 'big'
        memory = '8GiB'
        weight_bytes_per_s = 4e9
        multiply_adds_per_s = 1e12
        [[node]]
        name = 'small'
        count = 2
        memory = '8GiB'
        weight_bytes_per_s = 1e9
        multiply_adds_per_s = 1e12
        rtt_us = 1000
        bytes_per_s = 1e8
    ";

    /// Goal: what is planned is what the cluster does. Method: the fast node of three has most.
    #[test]
    fn unequal_nodes_of_a_file_get_unequal_layers() {
        let model = model();
        let report = plan("glass-en", &model, &Config::default(), &specs(THREE)).unwrap();
        let stages = &report.pipelines[0].stages;
        assert_eq!(stages.len(), 3.min(model.cost.layers.len()));
        let of = |name: &str| {
            let its = stages.iter().filter(|stage| stage.node.starts_with(name));
            its.map(|stage| stage.layers[1] - stage.layers[0]).max().unwrap_or(0)
        };
        assert!(of("big") > of("small"), "{stages:?}");
        assert_eq!(
            stages.iter().map(|it| it.layers[1] - it.layers[0]).sum::<u32>() as usize,
            model.cost.layers.len()
        );
        let table = plan_table(&report);
        for said in ["big", "small-2", "tokens/s", "ms a token", "of 8.0 GiB"] {
            assert!(table.contains(said), "{said} is missing:\n{table}");
        }
    }

    /// Goal: what a server has measured between its nodes counts. Method: a way that is long for
    /// two nodes that are both near the server.
    #[test]
    fn ways_that_a_server_has_measured_between_nodes_count() {
        let mut nodes = specs(THREE);
        nodes.truncate(2);
        for (id, node) in ["a", "b"].into_iter().zip(&mut nodes) {
            node.id = id.to_owned();
        }
        let token_ms = |nodes: &[NodeSpec]| {
            let report = plan("glass-en", &model(), &Config::default(), nodes).unwrap();
            report.pipelines[0].token_ms
        };
        let near = token_ms(&nodes);
        nodes[0].links = vec![("b".to_owned(), LinkSpeed { rtt_us: 80_000.0, bytes_per_s: 1e9 })];
        assert!(token_ms(&nodes) > near + 35.0, "{near} {}", token_ms(&nodes));
    }

    #[test]
    fn where_placement_decides_the_rest_makes_further_pipelines() {
        let mut config = Config::default();
        config.coordinator.pipelines = 0;
        let report = plan("glass-en", &model(), &config, &specs(THREE)).unwrap();
        let lengths: Vec<_> = report.pipelines.iter().map(|it| it.stages.len()).collect();
        assert_eq!(lengths, [1, 1, 1]);
        assert_eq!(report.pipelines[0].stages[0].node, "big", "the fastest comes first");
    }

    fn configuration(name: &str) -> PathBuf {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/configurations");
        std::path::Path::new(folder).join(format!("{name}.json"))
    }

    /// What `autoglm plan` prints.
    fn printed(arguments: &[&str]) -> Result<String> {
        #[derive(clap::Parser)]
        struct Command {
            #[command(flatten)]
            arguments: Arguments,
        }
        let command = <Command as clap::Parser>::parse_from([&["plan"], arguments].concat());
        let mut out = Vec::new();
        command.arguments.run(&mut out)?;
        Ok(String::from_utf8(out).unwrap())
    }

    /// Goal: published models are planned before anybody fetches them, and what is not known is
    /// named. Method: the table of README.
    #[test]
    fn a_configuration_alone_is_planned() {
        let plan = |name: &str, more: &[&str]| {
            let path = configuration(name);
            printed(&[&["--model", path.to_str().unwrap()], more].concat())
        };
        let text = plan("GLM-4.5-Air", &["--nodes", "8x48GB", "--stored", "fp8"]).unwrap();
        for said in [
            "GLM-4.5-Air: 46 layers",
            "0..",
            "..46",
            "of 44.7 GiB",
            "context 131072",
            "assumed: its weights, which aren't there, are stored as F8_E4M3",
            "assumed: each node reads 500 GB/s",
        ] {
            assert!(text.contains(said), "{said} is missing:\n{text}");
        }
        // Whole, the cache doesn't fit beside the weights.
        let less = plan("GLM-4.5-Air", &["--nodes", "4x24GB", "--quantize", "int4"]).unwrap();
        assert!(less.contains(" of 131072, the longest that fits"), "{less}");
        assert!(less.contains("rounded to int4 while they are loaded"), "{less}");
        let error = plan("GLM-4.6", &["--nodes", "4x24GB", "--quantize", "int4"]).unwrap_err();
        assert!(error.to_string().contains("doesn't fit"), "{error}");
        let wanted = ["--max-model-len", "131072", "--nodes", "4x24GB", "--quantize", "int4"];
        assert!(plan("GLM-4.5-Air", &wanted).unwrap_err().to_string().contains("doesn't fit"));
    }

    /// Goal: who isn't as the model asks is left out, and it is said why. Method: one of another
    /// pool, one without a label, one too small, and one more than there are stages.
    #[test]
    fn nodes_that_are_left_out_are_named_with_the_reason() {
        let nodes = specs(
            "[[node]]\nname = 'other'\nmemory = '8GiB'\npool = 'b'\nlabels = { rack = '7' }\n\
             [[node]]\nname = 'bare'\nmemory = '8GiB'\npool = 'a'\n\
             [[node]]\nname = 'tiny'\nmemory = 7\npool = 'a'\nlabels = { rack = '7' }\n\
             [[node]]\nname = 'good'\ncount = 3\nmemory = '8GiB'\npool = 'a'\n\
             labels = { rack = '7' }",
        );
        let file = "[model]\npools = ['a']\nlabels = ['rack=7']\n[coordinator]\nstages = 2";
        let report = plan("glass-en", &model(), &Config::parse(file).unwrap(), &nodes).unwrap();
        let placed: Vec<_> = report.pipelines[0].stages.iter().map(|it| &*it.node).collect();
        assert_eq!(placed, ["good-1", "good-2"]);
        let table = plan_table(&report);
        for said in [
            "other: it is of pool \"b\", and model.pools asks for a",
            "bare: it lacks the label rack=7, which model.labels asks for",
            "tiny: it offers 0 KiB, and a stage of one layer with its KV cache takes",
            "good-3: a spare",
        ] {
            assert!(table.contains(said), "{said} is missing:\n{table}");
        }
        // Without a number of stages, the one that is too small is left out all the same.
        let file = "[model]\npools = ['a']\nlabels = ['rack=7']";
        let report = plan("glass-en", &model(), &Config::parse(file).unwrap(), &nodes).unwrap();
        assert_eq!(report.pipelines[0].stages.len(), 3);
        // Where nobody is left, all are named.
        let file = "[model]\npools = ['c']";
        let error = plan("glass-en", &model(), &Config::parse(file).unwrap(), &nodes);
        let said = error.unwrap_err().to_string();
        assert!(said.contains("may serve") && said.matches("asks for c").count() == 6, "{said}");
    }

    /// Goal: the cache of all that may run at once counts. Method: memory for the weights and half
    /// of it on one node, and a second one on which a cut makes room.
    #[test]
    fn a_cache_that_does_not_fit_whole_is_told_in_sequences() {
        let model = model();
        let (least, whole) = (model.cost.least_cache_tokens, model.cost.cache_tokens);
        let mut larger = model.cost.clone();
        larger.least_cache_tokens = whole / 2;
        let node = |memory: u64| specs(&format!("[[node]]\nname = 'a'\nmemory = {memory}"));
        let config = Config::default();
        let half = node(larger.total());
        let report = plan("glass-en", &model, &config, &half).unwrap();
        let pipeline = &report.pipelines[0];
        assert_eq!((pipeline.cache_tokens, pipeline.of_cache_tokens), (whole / 2, whole));
        let said = plan_table(&report);
        let sequences = whole / least;
        let expected = format!("{:.1} of {sequences}.0 sequences", sequences as f64 / 2.0);
        assert!(said.contains(&expected) && said.contains("max_num_seqs"), "{said}");
        let each = whole / 2 / pipeline.concurrency as u64;
        assert!(
            each < least && said.contains(&format!("at once, of {each} tokens each")),
            "{said}"
        );
        // A software driver's takes no more than this, but always one sequence's.
        let mut capped = node(larger.total());
        for (most, tokens) in [(0, least), (model.cost.whole_cache_bytes(whole / 4), whole / 4)] {
            capped[0].max_cache_bytes = Some(most);
            let report = plan("glass-en", &model, &config, &capped).unwrap();
            assert_eq!(report.pipelines[0].cache_tokens, tokens, "{most}");
        }
        larger.least_cache_tokens = whole;
        let said = plan_table(&plan("glass-en", &model, &config, &node(larger.total())).unwrap());
        assert!(said.contains("all that are wanted") && !said.contains("tokens each"), "{said}");
        // Where not even one sequence has room, it says what the cache takes.
        let too_small = node(model.cost.total() - 1);
        let error = plan("glass-en", &model, &config, &too_small).unwrap_err().to_string();
        assert!(
            error.contains("for the KV cache of one sequence (model.max_model_len)"),
            "{error}"
        );
    }

    #[test]
    fn what_does_not_fit_is_said_with_the_number_of_nodes_that_would_do() {
        let total = model().cost.total();
        let nodes = specs(&format!("[[node]]\nname = 'tiny'\nmemory = {}", total * 2 / 3));
        let error = plan("glass-en", &model(), &Config::default(), &nodes).unwrap_err().to_string();
        assert!(error.contains("doesn't fit") && error.contains("nodes"), "{error}");
    }
}
