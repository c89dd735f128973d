//! What `make bench-gpu` makes of our figures and a peer's.

use std::path::Path;
use std::process::Command;

use serde_json::json;

#[test]
fn a_test_that_both_took_has_a_ratio() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, value: serde_json::Value| {
        let path = folder.path().join(name);
        std::fs::write(&path, value.to_string()).unwrap();
        path.display().to_string()
    };
    let of_peer = |kind, seqs, tokens, rate| {
        json!({
            "kind": kind, "seqs": seqs,
            "tokens": tokens, "median_tok_s": rate,
        })
    };
    let peer = write(
        "peer.json",
        json!({"tests": [
            of_peer("prompt", 1, 512, 1000.0),
            of_peer("batched", 1, 32, 100.0),
            of_peer("batched", 8, 256, 400.0),
        ]}),
    );
    let of_ours = |n_prompt, n_parallel, n_depth, rate| {
        let n_gen = if n_prompt > 0 { 0 } else { 32 };
        json!({
            "n_prompt": n_prompt, "n_gen": n_gen, "n_depth": n_depth,
            "n_parallel": n_parallel, "median_ts": rate,
        })
    };
    let ours = write(
        "ours.json",
        json!({"tests": [
            of_ours(512, 1, 0, 1500.0),
            of_ours(0, 1, 0, 90.0),
            of_ours(0, 1, 4096, 60.0),
            of_ours(0, 32, 0, 700.0),
        ]}),
    );
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/ratios.py");
    let ran = Command::new("python3").arg(script).arg(peer).arg(format!("plain={ours}")).output();
    let said = match ran {
        Ok(said) => said,
        Err(error) => return println!("skipped: no python3 ({error})"),
    };
    let text = String::from_utf8(said.stdout).unwrap();
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    let line = |of: &str| text.lines().find(|line| line.starts_with(of)).unwrap_or_default();
    assert!(line("prompt of 512").ends_with("1500.0 (1.50 of it)"), "{text}");
    assert!(line("1 at once").ends_with("90.0 (0.90 of it)"), "{text}");
    // Of what one of them didn't take there is none.
    assert!(line("8 at once").is_empty() && line("32 at once").is_empty(), "{text}");
    assert!(text.contains("a token at 4096 takes 1.50 of one at 0"), "{text}");
}
