//! Nodes without model files get their layers from the coordinator, and compute the same.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::cluster::{Cluster, Options, logprob_rows, token_ids};
use tests::golden;

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
    answer(&cluster).await;
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
    assert!(!line.contains("from_nodes=0 ") && line.contains("num_sources=2"), "{line}");
    drop(first);
    cluster.serving(1, Duration::from_secs(60)).await;
    let found = answer(&cluster).await;
    assert_eq!(token_ids(&found), token_ids(&expected));
    assert_eq!(logprob_rows(&found), logprob_rows(&expected));
    cluster.stop();
}
