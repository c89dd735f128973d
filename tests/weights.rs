//! Nodes without model files get their layers from the coordinator, and compute the same.

use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use checkpoint::{Checkpoint, Part};
use coordinator::weights::WeightSource;
use node::cache::Cache;
use protocol::{Ask, Digest, LayerRange, Manifest, ModelId, StageId, StageIndex, StagePlan, codec};
use serde_json::{Value, json};
use tests::cluster::{Cluster, Options, binary, logprob_rows, token_ids};
use tests::golden;
use transport::PieceSource;

const FETCHED: &str = "weights are fetched";

/// Pieces are small, so that a small model has many.
fn options(stages: u32, more: &str) -> Options {
    let config = format!("[transport]\npiece_bytes = 4096\n{more}");
    Options::new(golden::model("glass-en")).nodes(0, stages).config(&config)
}

async fn answer(cluster: &Cluster) -> Value {
    let request = cluster.request(&[5, 6, 7], json!({"max_tokens": 16, "logprobs": 5})).await;
    cluster.complete(&request).await["choices"][0].clone()
}

/// What a node's cache has recorded, and takes on disk.
fn cached(data_dir: &Path) -> Option<(usize, u64)> {
    let mut models = data_dir.join("cache").read_dir().ok()?.flatten();
    let model = models.find(|it| it.file_type().is_ok_and(|kind| kind.is_dir()))?.path();
    let record = std::fs::metadata(model.join(".pieces")).ok()?.len() as usize / 8;
    let blocks = std::fs::metadata(model.join("model.safetensors")).ok()?.blocks();
    Some((record, blocks * 512))
}

/// Goal: where a node's weights come from changes nothing, and it gets no layers but its own.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_without_model_files_answer_as_those_with_them() {
    let model = golden::model("glass-en");
    let cluster = Cluster::start(Options::new(&model).nodes(2, 2)).await;
    let expected = answer(&cluster).await;
    cluster.stop();

    let cluster = Cluster::launch(&options(2, ""));
    let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let mut nodes = dirs.each_ref().map(|dir| cluster.join(dir.path(), &["--no-local-files"]));
    cluster.ready(Duration::from_secs(180)).await;
    let found = answer(&cluster).await;
    assert_eq!(token_ids(&found), token_ids(&expected));
    assert_eq!(logprob_rows(&found), logprob_rows(&expected));
    let all = std::fs::metadata(Path::new(&model).join("model.safetensors")).unwrap().len();
    for (node, dir) in nodes.iter_mut().zip(&dirs) {
        node.wait_for(FETCHED, Duration::from_secs(60));
        let (_, bytes) = cached(dir.path()).unwrap();
        assert!(bytes > 0 && bytes < all * 9 / 10, "{bytes} of {all} bytes are on one node's disk");
    }
    cluster.stop();
}

/// Goal: what had come before a node was killed doesn't come again.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_killed_while_it_fetches_goes_on_where_it_was() {
    let cluster = Cluster::launch(&options(1, "max_pieces = 1"));
    let dir = tempfile::tempdir().unwrap();
    let node = cluster.join(dir.path(), &["--no-local-files"]);
    let started = Instant::now();
    while cached(dir.path()).is_none_or(|(recorded, _)| recorded == 0) {
        assert!(started.elapsed() < Duration::from_secs(120), "{}", node.log());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    node.signal("KILL");
    drop(node);
    let (recorded, _) = cached(dir.path()).unwrap();
    let mut node = cluster.join(dir.path(), &["--no-local-files"]);
    cluster.ready(Duration::from_secs(180)).await;
    let line = node.wait_for(FETCHED, Duration::from_secs(60));
    let (whole, _) = cached(dir.path()).unwrap();
    let fetched = format!("num_pieces={} ", whole - recorded);
    assert!(recorded < whole && line.contains(&fetched), "{recorded} of {whole} before: {line}");
    let expected = answer(&cluster).await;

    // The disk damages a piece meanwhile.
    node.signal("KILL");
    drop(node);
    let models = dir.path().join("cache").read_dir().unwrap().flatten();
    let path = models.map(|it| it.path().join("model.safetensors")).find(|it| it.exists());
    let file = std::fs::OpenOptions::new().write(true).open(path.unwrap()).unwrap();
    file.write_all_at(b"damaged", 3 * 4096 + 5).unwrap();
    let mut node = cluster.join(dir.path(), &["--no-local-files"]);
    let line = node.wait_for(FETCHED, Duration::from_secs(60));
    assert!(line.contains("num_pieces=1 "), "{line}");
    cluster.serving(1, Duration::from_secs(180)).await;
    let found = answer(&cluster).await;
    assert_eq!(logprob_rows(&found), logprob_rows(&expected));
    cluster.stop();
}

/// Goal: whatever form a model's files have, a stage's part of them travels, and is the same. The
/// way over the network is tested elsewhere.
#[tokio::test(flavor = "multi_thread")]
async fn a_stages_part_of_files_of_every_form_travels_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let gguf = folder.path().join("model.gguf");
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpora/gguf/llama");
    std::fs::copy(corpus, &gguf).unwrap();
    let forms = [golden::model("glass-en"), golden::fixture("glm4").join("f32"), gguf];
    for (form, path) in forms.iter().enumerate() {
        let files = Checkpoint::open(path).unwrap();
        let id = ModelId::of(Digest(files.model_digest().unwrap()));
        let folder = folder.path().join(form.to_string());
        std::fs::create_dir(&folder).unwrap();
        let source = WeightSource::start(id, &files, 4096, &folder).unwrap();
        let manifest = source.give(Ask::Manifest(id)).await.unwrap();
        let manifest: Manifest = codec::decode(&manifest).unwrap();
        let shards = manifest.files.iter().filter(|it| it.name.ends_with(".safetensors"));
        assert_eq!(shards.count(), [1, 2, 0][form]);
        let num_layers = files.config().num_layers();
        for (stage, layers) in [(0, 0..1), (1, 1..num_layers)] {
            let plan = StagePlan {
                id: StageId { stage: StageIndex(stage), ..StageId::default() },
                num_stages: 2,
                layers: LayerRange { first: layers.start as u32, end: layers.end as u32 },
                ..StagePlan::default()
            };
            let cache = Cache::open(&folder.join(stage.to_string()), u64::MAX).unwrap();
            let needed = manifest.needed(&plan).unwrap();
            let model = cache.model(&manifest, &needed, None).unwrap();
            for piece in needed {
                let ask = Ask::Piece(id, piece, manifest.digest(piece).unwrap());
                assert!(model.keep(piece, &source.give(ask).await.unwrap()).unwrap());
            }
            let there = Checkpoint::open(&model.path()).unwrap();
            let end = if stage == 0 { Part::Embedding } else { Part::Head };
            for part in layers.map(Part::Layer).chain([end]) {
                assert_eq!(there.digest(part).unwrap(), files.digest(part).unwrap());
                assert!(bytes(&there, part) == bytes(&files, part), "{path:?} {part:?}");
            }
        }
    }
}

fn bytes(files: &Checkpoint, part: Part) -> Vec<u8> {
    let paths = files.files().unwrap();
    let mut all = Vec::new();
    for (file, range) in files.ranges(part).unwrap() {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        let file = std::fs::File::open(&paths[file].path).unwrap();
        file.read_exact_at(&mut bytes, range.start).unwrap();
        all.extend(bytes);
    }
    all
}

/// Goal: a node whose disk is full says so and lives on; another takes its place.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_told_and_costs_nobody_more_than_a_moment() {
    let (dir, small) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mount = format!("mount -t tmpfs -o size=256k none {}", small.path().display());
    // In a mount namespace of its own: it ends with the node.
    let within = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", script, "sh"]);
        command
    };
    if !within(&mount).output().is_ok_and(|it| it.status.success()) {
        eprintln!("skipped: a full disk (only root can mount one)");
        return;
    }
    let cluster = Cluster::launch(&options(1, "[coordinator]\nsettle_ms = 200\n"));
    let script = format!("{mount} && exec \"$@\"");
    let mut command = within(&script);
    command.arg(binary("autoglm-node"));
    let place = small.path().display().to_string();
    let cramped = ["--no-local-files", "--cache-dir", &place];
    let mut cramped = cluster.join_from(command, dir.path(), &cramped);
    let said = format!("{place} is full: free room there, or give --cache-dir another place");
    let start = Instant::now();
    while !cluster.get("/health/stages").await.1["waiting_for"].as_str().unwrap().contains(&said) {
        assert!(start.elapsed() < Duration::from_secs(120), "{}", cluster.process.log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(cramped.child.try_wait().unwrap().is_none(), "{}", cramped.log());
    let dir = tempfile::tempdir().unwrap();
    let _roomy = cluster.join(dir.path(), &["--no-local-files"]);
    cluster.serving(1, Duration::from_secs(180)).await;
    answer(&cluster).await;
    assert!(cramped.child.try_wait().unwrap().is_none(), "{}", cramped.log());
    cluster.stop();
}

/// Goal: a node gets layers from another node. Method: one pipeline stands when the node for the
/// second comes; both compute the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_gets_layers_from_a_node_that_has_them() {
    let options = options(1, "[coordinator]\nsettle_ms = 200\npipelines = 2\n");
    let cluster = Cluster::launch(&options);
    let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let mut first = cluster.join(dirs[0].path(), &["--no-local-files"]);
    cluster.serving(1, Duration::from_secs(180)).await;
    assert!(first.wait_for(FETCHED, Duration::from_secs(60)).contains("from_nodes=0 "));
    let expected = answer(&cluster).await;
    let mut second = cluster.join(dirs[1].path(), &["--no-local-files"]);
    cluster.serving(2, Duration::from_secs(180)).await;
    let line = second.wait_for(FETCHED, Duration::from_secs(60));
    // Who was late often enough is asked no more, and isn't counted then.
    assert!(!line.contains("from_nodes=0 "), "{line}");
    // The way between them is measured, and each shows it.
    let start = Instant::now();
    loop {
        let (_, stages) = cluster.get("/health/stages").await;
        let nodes = stages["nodes"].as_array().unwrap();
        let is_measured = |one: &Value, other: &Value| {
            let way = &one["links"][0];
            way["to"] == other["node"] && way["bytes_per_s"].as_f64().is_some_and(|it| it > 1e5)
        };
        if is_measured(&nodes[0], &nodes[1]) && is_measured(&nodes[1], &nodes[0]) {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "{stages}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    drop(first);
    cluster.serving(1, Duration::from_secs(60)).await;
    let found = answer(&cluster).await;
    assert_eq!(token_ids(&found), token_ids(&expected));
    assert_eq!(logprob_rows(&found), logprob_rows(&expected));
    cluster.stop();
}
