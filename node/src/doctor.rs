//! `autoglm-node doctor`: proves before anything is loaded that this machine can be a node, and
//! says what is in the way and the next thing to do.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use protocol::config::Transport;
use protocol::size::parse_size;
use protocol::{Address, Digest, Finding, Findings, NodeId, Severity};
use shaders::adapters::{AdapterDetails, Adapters};
use shaders::matmul::Products;
use shaders::products::Wanted;
use transport::Token;
use transport::doctor::reach::Reach;
use transport::doctor::{machine, reach};

use crate::devices;
use crate::joining::{check_reachable, find_token};
use crate::proven::{Prove, Proven};
use crate::run;

/// How long one adapter may take to compile and prove its kernels.
const SELF_TEST_TIMEOUT: Duration = Duration::from_secs(300);

/// Connections to the coordinator and to neighbours, files of weights, and what a driver opens.
const OPEN_FILES: u64 = 1024;

/// What an identity, logs and some layers take.
const FREE_BYTES: u64 = 1 << 30;

/// Below this no layer of a model worth serving has room.
const LITTLE_MEMORY: u64 = 512 << 20;

/// Every driver that keeps to the standard can bind so much.
const LEAST_BINDING: u64 = 128 << 20;

/// Looks for whatever would keep this machine from being a node.
#[derive(Parser)]
#[command(name = "autoglm-node doctor", version)]
pub struct Arguments {
    /// The coordinator to go to, as in coordinator:7000 [default: none, only this machine is
    /// looked at].
    #[arg(long, value_name = "HOST:PORT,..", value_delimiter = ',')]
    join: Vec<Address>,
    /// What proves that this node may join: AGJ1. and so on; none of its uses is taken [default:
    /// what the token file says].
    #[arg(long, value_name = "TOKEN", env = "AUTOGLM_JOIN_TOKEN", hide_env_values = true)]
    token: Option<Token>,
    /// A file that holds it [default: where a coordinator of yours on this machine keeps it].
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Where the node's identity is kept [default: under your home directory].
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// The adapter to use: part of its name, or its number [default: every GPU].
    #[arg(long, value_name = "NAME|INDEX")]
    adapter: Option<String>,
    /// Memory that layers and KV cache may take on each adapter, as in 6GiB [default: what the
    /// driver says; on a software driver half of what is available].
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    max_memory: Option<u64>,
    /// How products are computed.
    #[arg(
        long,
        value_name = "auto|plain|cooperative-matrix|packed-dot",
        default_value = "auto",
        env = "AUTOGLM_PRODUCTS"
    )]
    products: Wanted,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

impl Arguments {
    /// Looks, and prints what was found. Whether the machine can be a node.
    ///
    /// # Errors
    /// When it can't be looked at, or nobody reads.
    pub fn run(self, out: &mut impl std::io::Write) -> Result<bool> {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).enable_all().build()?;
        let is_json = self.json;
        let findings = runtime.block_on(self.look())?;
        // A driver that hangs must not keep the answer.
        runtime.shutdown_background();
        match is_json {
            true => writeln!(out, "{}", serde_json::to_string_pretty(&findings)?)?,
            false => write!(out, "{findings}")?,
        }
        Ok(findings.is_well())
    }

    async fn look(self) -> Result<Findings> {
        let mut findings = self.adapters().await?;
        let data_dir = match &self.data_dir {
            Some(data_dir) => data_dir.clone(),
            None => run::default_data_dir()?,
        };
        findings.push(machine::judge_folder(&machine::look_at_folder(&data_dir), FREE_BYTES));
        findings.push(machine::judge_open_files(machine::look_at_open_files(), OPEN_FILES));
        findings.push(machine::judge_buffers(&machine::look_at_buffers()));
        let mut ways = Vec::new();
        for coordinator in &self.join {
            ways.push(self.way(coordinator).await);
        }
        findings.extend(judge_ways(ways));
        Ok(Findings { findings })
    }

    /// What the drivers offer, what of it is used, and whether that computes what it should.
    async fn adapters(&self) -> Result<Vec<Finding>> {
        let details = tokio::task::spawn_blocking(Adapters::details).await?;
        let adapters = devices::choose(details, self.adapter.as_deref());
        let mut findings = judge_adapters(&adapters);
        for (adapter, _) in adapters.iter().filter(|(_, unused)| unused.is_none()) {
            let (index, name) = (adapter.info.index.to_string(), adapter.info.name.clone());
            let (products, max_memory) = (self.products, self.max_memory);
            let test = tokio::task::spawn_blocking(move || prove(&index, products, max_memory));
            findings.extend(match tokio::time::timeout(SELF_TEST_TIMEOUT, test).await {
                Ok(proven) => judge_proof(&name, proven.context("the driver panicked")?),
                Err(_) => vec![Finding::fail(
                    "kernels",
                    format!("{name}: not proven within {} s", SELF_TEST_TIMEOUT.as_secs()),
                    "update the driver, or choose another adapter with --adapter",
                )],
            });
        }
        Ok(findings)
    }

    async fn way(&self, coordinator: &Address) -> Vec<Finding> {
        let token = |addr: SocketAddr| {
            let found = find_token(self.token.as_ref(), self.token_file.as_deref(), addr.port());
            found.map_err(|cause| format!("{cause:#}"))
        };
        // Nobody's: a node of this machine may be there already.
        let mut id = [0; 8];
        if getrandom::fill(&mut id).is_err() {
            return vec![Finding::fail("reach", "the system has no random numbers", "mend it")];
        }
        let node = NodeId(u64::from_le_bytes(id));
        let seen = reach::look(coordinator, node, token, &Transport::default()).await;
        let mut findings = reach::judge(coordinator, &seen);
        findings.extend(judge_address(&seen));
        findings
    }
}

/// By some addresses a node could talk to its coordinator, and not to its neighbours.
fn judge_address(seen: &Reach) -> Option<Finding> {
    let Reach::Passed(addr, _) = seen else { return None };
    let cause = check_reachable(addr.ip(), None).err()?;
    let remedy = "join by another address of the coordinator, or with --advertise";
    Some(Finding::warn("reach", cause.to_string(), remedy))
}

/// A node takes the first of several ways that leads in: the others are only to improve.
fn judge_ways(mut ways: Vec<Vec<Finding>>) -> Vec<Finding> {
    let fails = |it: &Finding| it.severity == Severity::Fail;
    if ways.iter().any(|way| !way.iter().any(fails)) {
        for finding in ways.iter_mut().flatten().filter(|it| fails(it)) {
            finding.severity = Severity::Warn;
        }
    }
    ways.concat()
}

/// What an adapter has shown.
struct Proof {
    class: Digest,
    products: Products,
    memory: Result<u64>,
    took: Duration,
}

/// Opens an adapter and runs its self-test, as a node does before it serves.
fn prove(selector: &str, products: Wanted, max_memory: Option<u64>) -> Result<Proof> {
    let begin = Instant::now();
    let Proven { gpu, class, .. } = Proven::open(Some(selector), products, Prove::All)?;
    let memory = devices::memory(&gpu, max_memory);
    Ok(Proof { class, products: gpu.caps().products, memory, took: begin.elapsed() })
}

/// One finding for each adapter, and one where there is none.
fn judge_adapters(adapters: &[(AdapterDetails, Option<String>)]) -> Vec<Finding> {
    const DRIVER: &str = "install the Vulkan driver of this machine's GPU (NVIDIA: its own driver; \
        AMD, Intel: mesa-vulkan-drivers) and libvulkan1";
    if adapters.is_empty() {
        let found = "no driver offers an adapter through Vulkan, Metal or DirectX 12";
        return vec![Finding::fail("adapter", found, DRIVER)];
    }
    let mut findings: Vec<_> = adapters
        .iter()
        .map(|(adapter, unused)| {
            let AdapterDetails { info, products, lacks, .. } = adapter;
            let binding = info.max_binding_bytes >> 20;
            let memory = match info.memory_bytes {
                Some(bytes) => format!(", {} MiB", bytes >> 20),
                None => String::new(),
            };
            let products: Vec<_> = products.iter().map(ToString::to_string).collect();
            let found = format!(
                "{info}, {}{memory}, tensors up to {binding} MiB, products {}",
                info.driver,
                products.join(", ")
            );
            match unused {
                Some(cause) if lacks.is_some() => Finding::warn(
                    "adapter",
                    format!("{found}: not used, {cause}"),
                    "update its driver",
                ),
                Some(cause) => Finding::ok("adapter", format!("{found}: not used, {cause}")),
                None if info.is_cpu() => Finding::warn(
                    "adapter",
                    format!("{found}: a software driver, right and slow"),
                    format!("if this machine has a GPU, {DRIVER}"),
                ),
                None if info.max_binding_bytes < LEAST_BINDING => {
                    let found = format!("{found}: large tensors are cut into many parts");
                    Finding::warn("adapter", found, "update its driver")
                }
                None => Finding::ok("adapter", found),
            }
        })
        .collect();
    if adapters.iter().all(|(_, unused)| unused.is_some()) {
        let found = "none of the adapters can be used";
        findings.push(Finding::fail(
            "adapter",
            found,
            "name one of them with --adapter, or mend it",
        ));
    }
    findings
}

/// Whether an adapter computes what it should, and has room.
fn judge_proof(name: &str, proven: Result<Proof>) -> Vec<Finding> {
    let proof = match proven {
        Ok(proof) => proof,
        Err(cause) => {
            let remedy = "update its driver, or choose another adapter with --adapter";
            return vec![Finding::fail("kernels", format!("{name}: {cause:#}"), remedy)];
        }
    };
    let Proof { class, products, memory, took } = proof;
    let seconds = took.as_secs_f64();
    vec![
        Finding::ok(
            "kernels",
            format!(
                "{name}: self-test passed in {seconds:.1} s, {products} products, class {class}"
            ),
        ),
        match memory {
            Ok(bytes) if bytes < LITTLE_MEMORY => Finding::warn(
                "memory",
                format!("{name}: {} MiB for layers and KV cache", bytes >> 20),
                "end what else uses it, or allow more with --max-memory",
            ),
            Ok(bytes) => Finding::ok(
                "memory",
                format!("{name}: {} MiB for layers and KV cache", bytes >> 20),
            ),
            Err(cause) => {
                Finding::fail("memory", format!("{name}: {cause:#}"), "give --max-memory SIZE")
            }
        },
    ]
}

#[cfg(test)]
mod tests {
    use shaders::adapters::{AdapterInfo, AdapterKind};

    use super::*;

    fn adapter(index: usize, kind: AdapterKind, backend: &str) -> AdapterDetails {
        AdapterDetails {
            info: AdapterInfo {
                index,
                name: format!("card {index}"),
                driver: "driver 1".into(),
                backend: backend.into(),
                kind,
                memory_bytes: Some(8 << 30),
                max_binding_bytes: 1 << 30,
            },
            lacks: None,
            subgroup_sizes: [32; 2],
            cooperative_matrices: Vec::new(),
            products: vec![Products::Plain],
            features: Vec::new(),
            limits: Vec::new(),
        }
    }

    fn said(adapters: Vec<AdapterDetails>, selector: Option<&str>) -> Vec<(Severity, String)> {
        let findings = judge_adapters(&devices::choose(adapters, selector));
        findings.into_iter().map(|it| (it.severity, it.to_string())).collect()
    }

    #[test]
    fn an_adapter_that_is_not_used_is_told_with_the_reason() {
        use AdapterKind::{Cpu, Discrete, Integrated};
        let mut old = adapter(1, Discrete, "vulkan");
        old.lacks = Some("immediates (push constants)".into());
        let all = vec![
            adapter(0, Discrete, "vulkan"),
            old,
            adapter(2, Discrete, "dx12"),
            adapter(3, Integrated, "vulkan"),
            adapter(4, Cpu, "vulkan"),
        ];
        let lines = said(all.clone(), None);
        let expected = [
            (Severity::Ok, "8192 MiB, tensors up to 1024 MiB, products plain"),
            (Severity::Warn, "it lacks immediates"),
            (Severity::Ok, "be reached through vulkan"),
            (Severity::Ok, "a discrete one is there"),
            (Severity::Ok, "a discrete one is there"),
        ];
        for ((severity, line), (expected, word)) in lines.iter().zip(expected) {
            assert!(*severity == expected && line.contains(word), "{line} without {word}");
        }
        let lines = said(all, Some("card 3"));
        assert!(!lines[3].1.contains("not used") && lines[0].1.contains("--adapter"), "{lines:?}");
    }

    #[test]
    fn a_machine_without_an_adapter_is_told_what_to_install() {
        let lines = said(Vec::new(), None);
        assert!(lines[0].0 == Severity::Fail && lines[0].1.contains("libvulkan1"), "{lines:?}");
        let lines = said(vec![adapter(0, AdapterKind::Cpu, "vulkan")], None);
        assert!(lines[0].0 == Severity::Warn && lines[0].1.contains("software"), "{lines:?}");
        let mut old = adapter(0, AdapterKind::Discrete, "vulkan");
        old.lacks = Some("immediates".into());
        let lines = said(vec![old.clone()], None);
        assert!(lines[1].0 == Severity::Fail && lines[1].1.contains("none of"), "{lines:?}");
        let lines = said(vec![old], Some("no such thing"));
        assert!(lines[1].0 == Severity::Fail, "{lines:?}");
    }

    #[test]
    fn a_way_that_no_neighbour_could_go_is_told() {
        let rtt = Duration::from_millis(1);
        let trial = transport::Trial { clock_ahead_ms: 0, rtt, upload: 1e9, download: 1e9 };
        let judged = |addr: &str| judge_address(&Reach::Passed(addr.parse().unwrap(), trial));
        assert_eq!(judged("[fd00::1]:7000"), None);
        let told = judged("[fe80::1%2]:7000").unwrap();
        assert!(told.severity == Severity::Warn && told.found.contains("one link only"), "{told}");
    }

    #[test]
    fn one_way_that_leads_in_is_enough() {
        let (open, shut) = (Finding::ok("reach", "a"), Finding::fail("reach", "b", "c"));
        let judged = judge_ways(vec![vec![shut.clone()], vec![open]]);
        assert_eq!([judged[0].severity, judged[1].severity], [Severity::Warn, Severity::Ok]);
        assert_eq!(judge_ways(vec![vec![shut.clone()]]), [shut]);
    }

    #[test]
    fn what_an_adapter_can_not_prove_is_a_failure() {
        let proof = |memory| Proof {
            class: Digest([7; 32]),
            products: Products::Plain,
            memory,
            took: Duration::from_secs(2),
        };
        let judged = judge_proof("card", Ok(proof(Ok(8 << 30))));
        assert!(judged.iter().all(|it| it.severity == Severity::Ok), "{judged:?}");
        let judged = judge_proof("card", Ok(proof(Ok(1 << 20))));
        assert_eq!(judged[1].severity, Severity::Warn);
        let judged = judge_proof("card", Ok(proof(Err(anyhow::anyhow!("it doesn't say")))));
        assert!(judged[1].severity == Severity::Fail && judged[1].remedy.contains("--max-memory"));
        let judged = judge_proof("card", Err(anyhow::anyhow!("it computes rubbish")));
        assert!(judged[0].severity == Severity::Fail && judged[0].found.contains("rubbish"));
    }
}
