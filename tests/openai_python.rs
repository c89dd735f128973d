//! The unmodified `openai` Python package against a real cluster.

use std::process::Command;

use tests::cluster::{Cluster, Options};
use tests::golden;

#[tokio::test(flavor = "multi_thread")]
async fn the_openai_package_works_unmodified() {
    let Some(python) = std::env::var_os("AUTOGLM_OPENAI_PYTHON") else {
        eprintln!("skipped: openai package (AUTOGLM_OPENAI_PYTHON names no Python that has it)");
        return;
    };
    let cluster = Cluster::start(Options::new(golden::model("glass-en")).nodes(2, 2)).await;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/openai_client.py");
    let output = Command::new(python).arg(script).arg(&cluster.http).output().unwrap();
    assert!(
        output.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    cluster.stop();
}
