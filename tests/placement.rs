//! A model too large for any one node, over nodes of which no two are alike.

use std::process::Command;
use std::time::{Duration, Instant};

use checkpoint::Checkpoint;
use coordinator::model;
use protocol::config::Config;
use protocol::{BLOCK_TOKENS, LayerRange, ModelId, StageId, StageIndex, StageLimits, StagePlan};
use serde_json::{Value, json};
use shaders::gpu::{Gpu, GpuOptions};
use tests::cluster::{Cluster, Options, Process, binary};
use tests::golden;

/// A context that leaves the weights most of the memory.
const CONFIG: &str = "[model]\nmax_model_len = 64\n[scheduler]\nmax_batched_tokens = 16\n\
                      max_num_seqs = 2\n";

async fn answer(cluster: &Cluster) -> Value {
    let more = json!({"max_tokens": 24, "ignore_eos": true, "logprobs": 3, "temperature": 0.0});
    let prompt: Vec<u32> = (5..17).collect();
    let request = cluster.request(&prompt, more).await;
    let (status, body) = cluster.post("/v1/completions", &request).await;
    assert_eq!(status, 200, "{body}");
    body["choices"].clone()
}

/// Bytes of a stage with a cache of so many blocks.
fn taken(
    gpu: &Gpu,
    files: &Checkpoint,
    limits: &StageLimits,
    layers: std::ops::Range<usize>,
    num_blocks: usize,
) -> u64 {
    let num_layers = files.config().num_layers();
    let is_first = layers.start == 0;
    // The first of two, the second of three, or one alone.
    let (stage, num_stages) = match (is_first, layers.end == num_layers) {
        (true, true) => (0, 1),
        (true, false) => (0, 2),
        (false, false) => (1, 3),
        (false, true) => (1, 2),
    };
    let plan = StagePlan {
        id: StageId { stage: StageIndex(stage), ..StageId::default() },
        num_stages,
        layers: LayerRange { first: layers.start as u32, end: layers.end as u32 },
        adapter: 0,
        model: ModelId::default(),
        model_path: String::new(),
        digests: Vec::new(),
        quantize: Default::default(),
        kv_cache_dtype: Default::default(),
        next: None,
        limits: *limits,
        memory_bytes: 0,
    };
    node::memory::stage_bytes(gpu, files, &plan).unwrap()
        + node::memory::cache_bytes(gpu, files.config(), &plan, num_blocks as u32)
}

/// Goal: a model that no node holds is served by three unequal ones as it is by one, and `plan`
/// said beforehand who gets what. Method: memory is capped by a flag, and one node's driver has
/// one thread.
#[tokio::test(flavor = "multi_thread")]
async fn a_model_too_large_for_one_node_is_served_by_three_unequal_ones() {
    let path = golden::model("glass-en");
    let whole = {
        let cluster = Cluster::start(Options::new(&path).config(CONFIG)).await;
        answer(&cluster).await
    };

    let config = Config::parse(CONFIG).unwrap();
    let files = Checkpoint::open(&path).unwrap();
    let gpu = Gpu::open_with(None, GpuOptions::kept()).unwrap();
    let described = model::describe(&files, &path, &config).unwrap();
    let limits = StageLimits {
        max_batched_tokens: config.scheduler.max_batched_tokens,
        max_num_seqs: config.scheduler.max_num_seqs,
        max_model_len: described.max_model_len,
        max_blocks: 1 << 20,
        max_logprobs: config.http.max_logprobs,
    };
    let blocks = described.max_model_len.div_ceil(BLOCK_TOKENS as u32) as usize;
    let taken = |layers| taken(&gpu, &files, &limits, layers, blocks);
    // Of four layers nobody of three needs more than two.
    let two = taken(0..2).max(taken(2..4)).max(taken(1..3));
    let memory = [two * 11 / 10, two, two * 21 / 20];
    assert!(memory.iter().all(|bytes| *bytes < taken(0..4)), "{memory:?}, {}", taken(0..4));
    drop(gpu);

    let options = Options::new(&path).nodes(0, 3).config(CONFIG);
    let cluster = Cluster::launch(&options);
    let dirs: Vec<_> = memory.iter().map(|_| tempfile::tempdir().unwrap()).collect();
    let nodes = memory.iter().zip(&dirs).enumerate().map(|(number, (memory, dir))| {
        let mut command = Command::new(binary("autoglm-node"));
        command.args(["--join", &cluster.cluster]).arg("--data-dir").arg(dir.path());
        command.arg("--token-file").arg(cluster.data.path().join("join.token"));
        command.args(["--max-memory", &memory.to_string()]);
        if number == 0 {
            command.env("LP_NUM_THREADS", "1");
        }
        Process::start(&mut command)
    });
    let _nodes: Vec<_> = nodes.collect();
    cluster.ready(Duration::from_secs(240)).await;
    let (_, stages) = cluster.get("/health/stages").await;
    let placed = stages["pipelines"][0]["stages"].as_array().unwrap().clone();
    assert_eq!(placed.len(), 3, "{stages}");
    assert!(
        stages["nodes"].as_array().unwrap().iter().all(|node| {
            let speed = node["speeds"][0]["weight_bytes_per_s"].as_f64().unwrap();
            speed > 1e6 && node["link"]["rtt_us"].as_f64().is_some_and(|rtt_us| rtt_us > 0.0)
        }),
        "{stages}"
    );
    assert_eq!(answer(&cluster).await, whole);
    assert_eq!(answer(&cluster).await, whole);

    // What a plan for these nodes says is what was done.
    let out = Command::new(binary("autoglm"))
        .args(["plan", "--json", "--stages", "3", "--url", &cluster.http, "--model"])
        .arg(&path)
        .arg("--config")
        .arg(cluster.data.path().join("cluster.toml"))
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let plan: Value = serde_json::from_slice(&out.stdout).unwrap();
    let planned = plan["pipelines"][0]["stages"].as_array().unwrap();
    assert_eq!(planned.len(), 3, "{plan}");
    for stage in planned {
        assert!(stage["memory_bytes"].as_u64() <= stage["of_bytes"].as_u64(), "{plan}");
    }
    // After 46 steps of a sequence alone, what was measured stands beside what was predicted.
    let began = Instant::now();
    loop {
        let (_, stages) = cluster.get("/health/stages").await;
        let pipeline = &stages["pipelines"][0];
        assert!(pipeline["predicted_token_ms"].as_f64().unwrap() > 0.0);
        if pipeline["measured_token_ms"].as_f64().is_some_and(|millis| millis > 0.0) {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "{pipeline}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    // On one that holds half it doesn't fit, and it is said how many would do.
    let file = dirs[0].path().join("nodes.toml");
    let memory = described.cost.memory(0..2);
    std::fs::write(&file, format!("[[node]]\nname = 'a'\nmemory = {memory}")).unwrap();
    let out = Command::new(binary("autoglm"))
        .args(["plan", "--model"])
        .arg(&path)
        .arg("--config")
        .arg(cluster.data.path().join("cluster.toml"))
        .arg("--nodes")
        .arg(&file)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!out.status.success() && said.contains("per node it would fit on"), "{said}");
    cluster.stop();
}
