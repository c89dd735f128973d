//! What a hop costs, by the command that measures it, over clusters of real processes.

use std::process::Command;

use serde_json::Value;

use tests::cluster::binary;

#[test]
fn the_time_of_a_hop_is_told_part_by_part() {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("hops.json");
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/glm4/bf16");
    let output = Command::new(binary("autoglm-bench"))
        .args(["hops", model, "--stages", "1,2", "--rounds", "3", "--tokens", "8", "--json"])
        .arg(&json)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("t(S) = t1 + h (S - 1)") && text.contains("a hop adds"), "{text}");

    let result: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    let median = |part: &str, at: usize| {
        let parts = result["parts"].as_array().unwrap();
        let row = parts.iter().find(|row| row["part"] == part).unwrap();
        row["median_ms"][at].as_f64().unwrap()
    };
    // What is done on a device or between threads takes time wherever it is done.
    for part in ["compute", "upload", "hand-off", "QUIC", "a token"] {
        assert!(median(part, 0) > 0.0 && median(part, 1) > 0.0, "{part}: {result}");
    }
    // The parts are the whole: what isn't in them is HTTP's and the client's.
    for at in [0, 1] {
        let parts = ["compute", "upload", "readback", "hand-off", "QUIC", "HTTP, client"];
        let sum: f64 = parts.iter().map(|part| median(part, at)).sum();
        let whole = median("a token", at);
        assert!((sum - whole).abs() < 0.5 * whole, "{result}");
    }
}
