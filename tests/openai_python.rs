//! Unmodified packages of clients against a real cluster.

use std::process::Command;

use tests::cluster::{Cluster, Options, binary};
use tests::golden;

#[tokio::test(flavor = "multi_thread")]
async fn the_openai_package_works_unmodified() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/openai_client.py");
    run("openai package", "AUTOGLM_OPENAI_PYTHON", script).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_packages_that_agents_use_work_unmodified() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/agents_client.py");
    run("anthropic, litellm and llm packages", "AUTOGLM_AGENTS_PYTHON", script).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_openai_package_for_node_does_what_agents_do() {
    let Some(folder) = std::env::var_os("AUTOGLM_OPENAI_NODE") else {
        eprintln!("skipped: openai package for Node (AUTOGLM_OPENAI_NODE names no folder with it)");
        return;
    };
    // It takes a model that knows tools.
    let Some(model) = golden::smollm2() else { return };
    let cluster = Cluster::start(Options::new(model).nodes(2, 2)).await;
    // A module finds packages beside itself.
    let script = std::path::PathBuf::from(folder).join("agents_client.mjs");
    let ours = concat!(env!("CARGO_MANIFEST_DIR"), "/agents_client.mjs");
    std::fs::copy(ours, &script).unwrap();
    let output = Command::new("node").arg(script).args([&cluster.http, "none"]).output().unwrap();
    assert!(
        output.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    cluster.stop();
}

/// Runs a script against a cluster with API keys, where the variable names a Python for it.
async fn run(packages: &str, variable: &str, script: &str) {
    let Some(python) = std::env::var_os(variable) else {
        eprintln!("skipped: {packages} ({variable} names no Python that has them)");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys.toml");
    let mut create = Command::new(binary("autoglm"));
    create.args(["key", "create", "--name", "python", "--api-keys"]).arg(&keys);
    let key = String::from_utf8(create.output().unwrap().stdout).unwrap();
    let options = Options::new(golden::model("glass-en")).nodes(2, 2);
    let config = format!("[http]\napi_keys = {:?}\n", keys.to_str().unwrap());
    let cluster = Cluster::start(options.config(&config)).await;
    let output =
        Command::new(python).arg(script).arg(&cluster.http).arg(key.trim()).output().unwrap();
    assert!(
        output.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    cluster.stop();
}
