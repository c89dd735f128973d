//! Connections that end while their nodes live.

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;
use tests::cluster::{Cluster, Options, Process, binary};
use tests::golden;
use tests::wire::Wire;

/// Goal: a node that lost only its data connection comes back, and what was asked is answered.
/// Method: two stages of one pipeline, one node behind a wire, which cuts that connection in the
/// middle of an answer; its control connection stands.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_loses_its_data_connection_begins_anew_and_no_answer_is_lost() {
    let options = Options::new(golden::model("glass-en")).nodes(0, 2);
    let mut cluster = Cluster::launch(&options);
    let dirs: Vec<_> = (0..2).map(|_| tempfile::tempdir().unwrap()).collect();
    let _direct: Process = cluster.join(dirs[0].path(), &[]);
    let wire = Wire::start(cluster.cluster.parse().unwrap()).await;
    let direct = std::mem::replace(&mut cluster.cluster, wire.addr.to_string());
    let mut node = cluster.join(dirs[1].path(), &[]);
    cluster.cluster = direct;
    cluster.ready(Duration::from_secs(180)).await;

    let more = json!({"max_tokens": 100, "ignore_eos": true});
    let request = cluster.request(&[5, 6, 7], more).await;
    let (_, undisturbed) = cluster.post("/v1/completions", &request).await;
    let asked = cluster.post("/v1/completions", &request);
    let cut = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(wire.cut_first_of_two() > 0);
    };
    let answered =
        tokio::time::timeout(Duration::from_secs(180), async { tokio::join!(asked, cut).0 });
    let (status, answer) = answered.await.expect("the answer goes on in another session");
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["choices"][0]["text"], undisturbed["choices"][0]["text"]);

    let patience = Duration::from_secs(60);
    tokio::task::block_in_place(|| node.wait_for("its data connection", patience));
    cluster.ready(Duration::from_secs(180)).await;
    // And it stays so.
    for _ in 0..4 {
        cluster.complete(&request).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(cluster.get("/health/ready").await.0, 200, "{}", cluster.process.log());
    }
    cluster.stop();
}

/// Goal: a node that is revoked while it serves is out at once and for good, and its neighbours
/// know it. Method: two stages of one pipeline on nodes that joined; `autoglm node revoke` beside
/// the coordinator; a third takes over.
#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_node_is_shown_out_and_its_neighbours_are_told() {
    let patience = Duration::from_secs(180);
    let options = Options::new(golden::model("glass-en")).nodes(0, 2);
    let options = options.config("[coordinator]\nsettle_ms = 200\n");
    let cluster = Cluster::launch(&options);
    let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let mut revoked = cluster.join(dirs[0].path(), &[]);
    let joined = tokio::task::block_in_place(|| revoked.wait_for(" joined", patience));
    let id = joined.split_once("node=").unwrap().1.split_whitespace().next().unwrap().to_owned();
    let mut neighbour = cluster.join(dirs[1].path(), &[]);
    cluster.ready(patience).await;

    let mut command = Command::new(binary("autoglm"));
    command.args(["node", "revoke", &id, "--data-dir"]).arg(cluster.data.path());
    assert!(command.status().unwrap().success());
    tokio::task::block_in_place(|| {
        neighbour.wait_for("nodes that are revoked num_nodes=1", patience);
        revoked.wait_for("this node is revoked", patience);
    });
    let mut third = cluster.join(dirs[2].path(), &[]);
    tokio::task::block_in_place(|| third.wait_for(" joined", patience));
    // It is known no more, and the third in its place.
    let start = Instant::now();
    loop {
        let (_, health) = cluster.get("/health/stages").await;
        let nodes = health["nodes"].as_array().unwrap();
        if nodes.len() == 2 && nodes.iter().all(|node| node["node"] != id.as_str()) {
            break;
        }
        assert!(start.elapsed() < patience, "{nodes:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    cluster.serving(1, patience).await;
    let request = cluster.request(&[5, 6, 7], json!({"max_tokens": 4})).await;
    cluster.complete(&request).await;
    cluster.stop();
}
