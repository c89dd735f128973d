//! Nodes to plan for: those that a file describes, or those that have joined a server.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use protocol::size::parse_size;
use protocol::{AdapterReport, Digest, LinkSpeed, Narrow, NodeId, NodeReport, SessionId, Speed};
use serde::{Deserialize, Deserializer};

/// A longer file is none of ours.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// More nodes than a cluster has.
const MAX_NODES: usize = 1024;

/// A node that need not be there, or as many of its kind.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeSpec {
    /// For people.
    pub name: String,
    /// So many of them.
    #[serde(default = "one")]
    pub count: usize,
    /// Bytes that stages may take, as a number or as in `24GiB`.
    #[serde(deserialize_with = "size")]
    pub memory: u64,
    /// Where it belongs.
    #[serde(default)]
    pub pool: String,
    /// What its operator says of it.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// As in [`Speed`].
    pub weight_bytes_per_s: Option<f64>,
    /// As in [`Narrow`].
    pub int8_ps: Option<f64>,
    /// As in [`Narrow`].
    pub int4_ps: Option<f64>,
    /// As in [`Speed`].
    pub multiply_adds_per_s: Option<f64>,
    /// As in [`Speed`].
    pub kernel_us: Option<f64>,
    /// As in [`Speed`].
    pub step_us: Option<f64>,
    /// Microseconds that its host takes of a step beside the adapter.
    pub host_us: Option<f64>,
    /// Of the way between it and the coordinator, as in [`LinkSpeed`].
    pub rtt_us: Option<f64>,
    /// Of that way, too.
    pub bytes_per_s: Option<f64>,
    /// What each further sequence of a step takes, as a share of one alone, where a server has
    /// measured that.
    #[serde(skip)]
    pub row_share: Option<f64>,
    /// The most that a KV cache takes there, where a server says so.
    #[serde(skip)]
    pub max_cache_bytes: Option<u64>,
    /// Its id, where it has joined a server.
    #[serde(skip)]
    pub id: String,
    /// The ways to other nodes of that server, by their ids.
    #[serde(skip)]
    pub links: Vec<(String, LinkSpeed)>,
}

fn one() -> usize {
    1
}

fn size<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Said {
        Bytes(u64),
        Text(String),
    }
    match Said::deserialize(from)? {
        Said::Bytes(bytes) => Ok(bytes),
        Said::Text(text) => parse_size(&text).map_err(serde::de::Error::custom),
    }
}

impl NodeSpec {
    /// One of which only the memory is known.
    fn assumed(name: String, memory: u64) -> Self {
        Self {
            name,
            count: 1,
            memory,
            pool: String::new(),
            labels: BTreeMap::new(),
            row_share: None,
            max_cache_bytes: None,
            weight_bytes_per_s: Some(ASSUMED.weight_bytes_per_s),
            int8_ps: None,
            int4_ps: None,
            multiply_adds_per_s: Some(ASSUMED.multiply_adds_per_s),
            kernel_us: Some(ASSUMED.kernel_us),
            step_us: Some(ASSUMED.step_us),
            host_us: None,
            rtt_us: None,
            bytes_per_s: None,
            id: String::new(),
            links: Vec::new(),
        }
    }

    /// What it would say of itself when it joined.
    pub(super) fn report(&self, number: usize) -> NodeReport {
        let default = Speed::default();
        let speed = Speed {
            weight_bytes_per_s: self.weight_bytes_per_s.unwrap_or(default.weight_bytes_per_s),
            narrow: Narrow {
                int8_ps: self.int8_ps.unwrap_or(0.0),
                int4_ps: self.int4_ps.unwrap_or(0.0),
            },
            multiply_adds_per_s: self.multiply_adds_per_s.unwrap_or(default.multiply_adds_per_s),
            kernel_us: self.kernel_us.unwrap_or(default.kernel_us),
            step_us: self.step_us.unwrap_or(default.step_us),
        };
        let id = number as u64 + 1;
        NodeReport {
            node: NodeId(id),
            session: SessionId(id),
            hostname: self.name.clone(),
            pid: 0,
            data_addr: SocketAddr::from(([127, 0, 0, 1], 0)),
            pool: self.pool.clone(),
            labels: self.labels.clone().into_iter().collect(),
            adapters: vec![AdapterReport {
                name: self.name.clone(),
                driver: String::new(),
                memory_bytes: self.memory,
                max_cache_bytes: self.max_cache_bytes,
                fingerprint: Digest::default(),
                speed: speed.checked(),
            }],
            held: Vec::new(),
        }
    }

    /// The way to it, where something is said of it.
    pub(super) fn link(&self) -> Option<LinkSpeed> {
        let default = LinkSpeed::default();
        (self.rtt_us.is_some() || self.bytes_per_s.is_some()).then(|| LinkSpeed {
            rtt_us: self.rtt_us.unwrap_or(default.rtt_us),
            bytes_per_s: self.bytes_per_s.unwrap_or(default.bytes_per_s),
        })
    }
}

/// What nodes are taken for that are named by their memory alone: nobody has measured them.
pub(super) const ASSUMED: Speed = Speed {
    weight_bytes_per_s: 500e9,
    narrow: Narrow { int8_ps: 0.0, int4_ps: 0.0 },
    multiply_adds_per_s: 10e12,
    kernel_us: 5.0,
    step_us: 50.0,
};

/// That, in words.
pub(super) fn assumption() -> String {
    let Speed { weight_bytes_per_s, multiply_adds_per_s, kernel_us, step_us, .. } = ASSUMED;
    let LinkSpeed { rtt_us, bytes_per_s } = LinkSpeed::default();
    format!(
        "each node reads {:.0} GB/s of weights, does {:.0} T multiply-adds a second, takes \
         {kernel_us:.0} us a kernel and {step_us:.0} us a step; ways between them take {rtt_us:.0} \
         us there and back, and {:.0} GB/s",
        weight_bytes_per_s / 1e9,
        multiply_adds_per_s / 1e12,
        bytes_per_s / 1e9,
    )
}

/// What `--nodes` says: a file, or how many of which memory. `true`: nothing is known of their
/// speed.
pub(super) fn said(text: &str) -> Result<(Vec<NodeSpec>, bool)> {
    let path = Path::new(text);
    match short(text) {
        _ if path.exists() => Ok((read(path)?, false)),
        Some(nodes) => Ok((nodes?, true)),
        None => bail!(
            "--nodes {text} is neither a file nor nodes and their memory, as in 4x24GB or \
             2x24GiB,1x80GiB"
        ),
    }
}

/// Nodes in the form of `4x24GB,1x80GiB`; `None` if it is none.
fn short(text: &str) -> Option<Result<Vec<NodeSpec>>> {
    let mut kinds = Vec::new();
    for kind in text.split(',') {
        let (count, memory) = kind.trim().split_once(['x', 'X', '×'])?;
        kinds.push((count.parse::<usize>().ok()?, parse_size(memory).ok()?, memory));
    }
    let mut nodes = Vec::new();
    for (count, bytes, memory) in kinds {
        if count > MAX_NODES - nodes.len() {
            return Some(Err(anyhow!("there are more than {MAX_NODES} nodes: plan for fewer")));
        }
        for _ in 0..count {
            nodes.push(NodeSpec::assumed(format!("{}-{memory}", nodes.len() + 1), bytes));
        }
    }
    Some(Ok(nodes))
}

fn read(path: &Path) -> Result<Vec<NodeSpec>> {
    let what = || format!("--nodes {}", path.display());
    let num_bytes = std::fs::metadata(path).with_context(what)?.len();
    ensure!(num_bytes <= MAX_FILE_BYTES, "{}: too long", what());
    parse(&std::fs::read_to_string(path).with_context(what)?).with_context(what)
}

/// The nodes of a file's text, each with a name of its own.
pub(super) fn parse(text: &str) -> Result<Vec<NodeSpec>> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct File {
        node: Vec<NodeSpec>,
    }
    let mut nodes = Vec::new();
    for kind in toml::from_str::<File>(text)?.node {
        ensure!(
            kind.count <= MAX_NODES - nodes.len(),
            "there are more than {MAX_NODES} nodes: plan for fewer"
        );
        for number in 1..=kind.count {
            let name = match kind.count {
                1 => kind.name.clone(),
                _ => format!("{}-{number}", kind.name),
            };
            nodes.push(NodeSpec { name, count: 1, ..kind.clone() });
        }
    }
    Ok(nodes)
}

/// The nodes that have joined a server, each adapter on its own, as fast as it turned out to be.
pub(super) fn of_server(text: &str) -> Result<Vec<NodeSpec>> {
    #[derive(Deserialize)]
    struct Stages {
        nodes: Vec<Node>,
    }
    #[derive(Deserialize)]
    struct Node {
        hostname: String,
        node: String,
        #[serde(default)]
        pool: String,
        #[serde(default)]
        labels: BTreeMap<String, String>,
        memory_bytes: Vec<u64>,
        speeds: Vec<Speed>,
        slowness: Vec<f64>,
        // A server of the release before doesn't say it.
        #[serde(default)]
        extra_us: Vec<f64>,
        #[serde(default)]
        row_shares: Vec<Option<f64>>,
        #[serde(default)]
        max_cache_bytes: Vec<Option<u64>>,
        host_us: f64,
        link: Option<LinkSpeed>,
        #[serde(default)]
        links: Vec<Way>,
    }
    #[derive(Deserialize)]
    struct Way {
        to: String,
        // None: it isn't reached.
        rtt_us: Option<f64>,
        bytes_per_s: Option<f64>,
    }
    impl Way {
        fn speed(&self) -> LinkSpeed {
            let known = self.rtt_us.zip(self.bytes_per_s);
            known.map_or(LinkSpeed::NONE, |(rtt_us, bytes_per_s)| LinkSpeed { rtt_us, bytes_per_s })
        }
    }
    let said: Stages = serde_json::from_str(text)?;
    let mut nodes = Vec::new();
    for node in said.nodes {
        let of_adapters = node.memory_bytes.iter().zip(&node.speeds).zip(&node.slowness);
        for (adapter, ((&memory, speed), &slowness)) in of_adapters.enumerate() {
            let speed = speed.slowed(slowness);
            let extra_us = node.extra_us.get(adapter).copied().unwrap_or(0.0);
            nodes.push(NodeSpec {
                name: format!("{} {}", node.hostname, node.node),
                count: 1,
                memory,
                pool: node.pool.clone(),
                labels: node.labels.clone(),
                weight_bytes_per_s: Some(speed.weight_bytes_per_s),
                int8_ps: Some(speed.narrow.int8_ps),
                int4_ps: Some(speed.narrow.int4_ps),
                multiply_adds_per_s: Some(speed.multiply_adds_per_s),
                kernel_us: Some(speed.kernel_us),
                step_us: Some((speed.step_us + extra_us).max(0.0)),
                row_share: node.row_shares.get(adapter).copied().flatten(),
                max_cache_bytes: node.max_cache_bytes.get(adapter).copied().flatten(),
                host_us: Some(node.host_us),
                rtt_us: node.link.map(|link| link.rtt_us),
                bytes_per_s: node.link.map(|link| link.bytes_per_s),
                id: node.node.clone(),
                links: node.links.iter().map(|way| (way.to.clone(), way.speed())).collect(),
            });
        }
    }
    Ok(nodes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_names_kinds_of_nodes_and_how_many_there_are() {
        let text = "[[node]]\nname = 'a'\ncount = 2\nmemory = '1GiB'\nrtt_us = 50\n\
                    [[node]]\nname = 'b'\nmemory = 5";
        let nodes = parse(text).unwrap();
        let names: Vec<_> = nodes.iter().map(|node| (node.name.as_str(), node.memory)).collect();
        assert_eq!(names, [("a-1", 1 << 30), ("a-2", 1 << 30), ("b", 5)]);
        assert_eq!(nodes[0].link().unwrap().rtt_us, 50.0);
        assert_eq!(nodes[2].link(), None);
        for (wrong, said) in [
            ("[[node]]\nname = 'a'\nmemory = '6 parsecs'", "unknown unit"),
            ("[[node]]\nname = 'a'", "memory"),
            ("[[node]]\nname = 'a'\nmemory = 1\nflops = 2", "flops"),
            ("[[node]]\nname = 'a'\nmemory = 1\ncount = 5000", "plan for fewer"),
        ] {
            let error = format!("{:#}", parse(wrong).unwrap_err());
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn nodes_are_named_by_their_memory_alone_where_nothing_else_is_known() {
        let (nodes, assumed) = said("2x24GB, 1x80GiB").unwrap();
        assert!(assumed);
        let names: Vec<_> = nodes.iter().map(|node| (node.name.as_str(), node.memory)).collect();
        let gb = 24_000_000_000;
        assert_eq!(names, [("1-24GB", gb), ("2-24GB", gb), ("3-80GiB", 80 << 30)]);
        assert_eq!(nodes[2].report(0).adapters[0].speed, ASSUMED);
        for (wrong, why) in [
            ("no-such-file.toml", "as in 4x24GB"),
            ("4x24 parsecs", "as in 4x24GB"),
            ("fourx24GB", "as in 4x24GB"),
            ("5000x1GB", "plan for fewer"),
        ] {
            let error = said(wrong).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn nodes_of_a_server_are_as_fast_as_they_turned_out_to_be() {
        let text = r#"{"nodes": [{"hostname": "h", "node": "01", "memory_bytes": [7],
            "speeds": [{"weight_bytes_per_s": 4e9, "multiply_adds_per_s": 1e9, "kernel_us": 1.0,
            "step_us": 2.0}], "slowness": [2.0], "extra_us": [5.0], "host_us": 3.0,
            "row_shares": [0.5], "max_cache_bytes": [6],
            "link": {"rtt_us": 9.0, "bytes_per_s": 1e6}, "links": [
            {"to": "02", "reached": true, "rtt_us": 5.0, "bytes_per_s": 2e6},
            {"to": "03", "reached": false, "rtt_us": null}]}]}"#;
        let nodes = of_server(text).unwrap();
        let way = LinkSpeed { rtt_us: 5.0, bytes_per_s: 2e6 };
        let ways = [("02".to_owned(), way), ("03".to_owned(), LinkSpeed::NONE)];
        assert_eq!((nodes[0].id.as_str(), &nodes[0].links[..]), ("01", &ways[..]));
        assert_eq!(nodes[0].weight_bytes_per_s, Some(2e9));
        assert_eq!((nodes[0].step_us, nodes[0].rtt_us), (Some(9.0), Some(9.0)));
        assert_eq!((nodes[0].row_share, nodes[0].max_cache_bytes), (Some(0.5), Some(6)));
        // Slowness is the adapter's.
        assert_eq!(nodes[0].host_us, Some(3.0));
    }
}
