//! The commands that measure whole clusters, in short forms: that they come to their figures, and
//! that these are of the right size. What they are on a quiet machine is for longer runs.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use tests::cluster::binary;
use tests::golden;

/// What a command prints and writes.
fn measure(arguments: &[&str], json: &Path) -> (String, Value) {
    let output = Command::new(binary("autoglm-bench"))
        .args(arguments)
        .arg("--json")
        .arg(json)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    (text, serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap())
}

/// A crowd of batch requests, some of them waiting, holds an interactive one up for a few steps,
/// not until it is through.
#[test]
fn an_interactive_request_goes_before_a_crowd() {
    let folder = tempfile::tempdir().unwrap();
    let (text, result) = measure(
        &["interference", "--model", "glm-30m", "--rounds", "1", "--requests", "7", "--think"]
            .into_iter()
            .chain(["0.3s", "--running", "16", "--waiting", "16", "--alone", "4s"])
            .collect::<Vec<_>>(),
        &folder.path().join("result.json"),
    );
    assert!(text.contains("tokens of offline work"), "{text}");
    let ours = &result["figures"];
    // First come, first served, it would wait for 16 answers of 96 tokens, some thirty times as
    // long as for its own 128.
    let ratio = ours["ttft_ratio"][0].as_f64().unwrap();
    assert!(ratio < 8.0, "{text}");
    let (all, offline) = (&ours["all_share"], &ours["offline_share"]);
    assert!(all.as_f64().unwrap() > 0.5 && offline.as_f64().unwrap() > 0.3, "{text}");
}

/// However much is asked, what is answered stays what it was, and the rest is told that the server
/// is full, or late.
#[test]
fn a_cluster_that_is_asked_too_much_refuses_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let model = golden::model("glass-en");
    let overload = || {
        let (text, result) = measure(
            &["overload", "--model", model.to_str().unwrap(), "--duration", "3s", "--beyond", "4s"]
                .into_iter()
                .chain(["--sweep", "0.5,1", "--answer", "24", "--running", "8", "--queued", "8"])
                .collect::<Vec<_>>(),
            &folder.path().join("result.json"),
        );
        let beyond = result["beyond"].as_array().unwrap();
        for beyond in beyond {
            let failures = beyond["failures"].as_object().unwrap();
            assert!(failures.contains_key("status 503"), "{text}");
            let is_expected = |kind: &String| matches!(&**kind, "status 503" | "status 504");
            assert!(failures.keys().all(is_expected), "{text}");
        }
        let goodput = |outcome: &Value| outcome["goodput"].as_f64().unwrap();
        let within = result["within"].as_array().unwrap().iter();
        let peak = within.map(goodput).fold(0.0, f64::max);
        (beyond.iter().all(|beyond| goodput(beyond) > 0.1 * peak), text)
    };
    // Whoever takes the processor in the middle of it makes every answer late.
    let goes_on = (0..3).map(|_| overload()).find(|(goes_on, text)| {
        if !goes_on {
            eprintln!("{text}");
        }
        *goes_on
    });
    assert!(goes_on.is_some(), "three times nearly nothing was answered in time");
}

/// A second stage, and a prompt in chunks, are measured; that they pay is for a machine that has
/// cores for them and nothing else to do.
#[test]
fn two_stages_are_set_beside_one() {
    let folder = tempfile::tempdir().unwrap();
    let model = golden::model("glass-en");
    let (text, result) = measure(
        &["scaling", "--model", model.to_str().unwrap(), "--concurrency", "2,4", "--rounds", "1"]
            .into_iter()
            .chain(["--window", "2s", "--answer", "16", "--chunk", "4"])
            .collect::<Vec<_>>(),
        &folder.path().join("result.json"),
    );
    for comparison in result.as_array().unwrap() {
        let ratio = comparison["ratio"].as_f64().unwrap();
        assert!(ratio > 0.05 && ratio < 20.0, "{text}");
    }
    assert!(text.contains("64 tokens of prompt"), "{text}");
}
