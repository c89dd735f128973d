//! A real cluster under streams, to whose nodes things happen at random moments: every answer must
//! be the one that it would have been, and go on soon. `cargo run -p tests --bin chaos`.

mod course;
mod faults;
mod nodes;
mod report;
mod streams;

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::cluster::{Cluster, Options as ClusterOptions};
use crate::namespaces::Network;
use crate::simulation::random::Random;

use self::course::Course;
pub use self::faults::Fault;
use self::nodes::Nodes;
pub use self::report::Report;
use self::streams::Streams;

/// How long a cluster may take to serve again before the run is given up.
const LONGEST: Duration = Duration::from_secs(120);

/// What happens to whom.
#[derive(Clone, Debug)]
pub struct Options {
    pub seed: u64,
    pub num_faults: usize,
    pub num_streams: usize,
    /// One of these each time.
    pub faults: Vec<Fault>,
    pub model: PathBuf,
    pub stages: u32,
    pub spares: u32,
    /// Whether a fault may come before whoever came back is ready to step in.
    pub is_hasty: bool,
    /// Tokens of the longest answers.
    pub max_tokens: u32,
    /// No fault comes after this.
    pub duration: Duration,
}

/// Nodes die on purpose here, more often than any that should stay.
const CONFIG: &str =
    "[scheduler]\nmax_pipeline_wait_ms = 600_000\n[coordinator]\nmax_node_failures = 0\n";

pub async fn run(options: &Options) -> Report {
    let mut random = Random::new(options.seed);
    let cluster_options =
        ClusterOptions::new(&options.model).nodes(0, options.stages).config(CONFIG);
    let num_nodes = options.stages + options.spares;
    let mut network = None;
    if options.faults.contains(&Fault::Partition) {
        network = Network::new(num_nodes as u8);
        assert!(network.is_some(), "no partition without machines on a network");
    }
    let addr = network.as_ref().map_or(Ipv4Addr::LOCALHOST, Network::door);
    let cluster = Arc::new(Cluster::launch_at(&format!("{addr}:0"), &cluster_options));
    let mut nodes = Nodes::start(&cluster, num_nodes as usize, network);
    nodes.all_here(&cluster, LONGEST).await;

    let streams = Streams::new(&cluster, options, &mut random.fork()).await;
    let mut report = Report::new(options);
    let start = Instant::now();
    let running = streams.start();
    for number in 0..options.num_faults {
        if start.elapsed() > options.duration {
            break;
        }
        nodes.all_here(&cluster, LONGEST).await;
        if !options.is_hasty {
            nodes.spares_ready(&cluster, LONGEST).await;
        }
        tokio::time::sleep(Duration::from_millis(random.between(200, 2000))).await;
        let fault = random.pick(&options.faults);
        let course = Course::new(&cluster);
        running.begin_fault();
        let what = faults::inflict(fault, &mut nodes, &cluster, &mut random).await;
        let gaps = running.recovered(|| course.is_over(), LONGEST).await;
        report.fault((number, fault, what), &course, gaps);
        nodes.restore(&cluster);
    }
    nodes.all_here(&cluster, LONGEST).await;
    report.end(running.end(LONGEST).await, start.elapsed());
    drop(nodes);
    Arc::into_inner(cluster).expect("the streams have ended").stop();
    report
}
