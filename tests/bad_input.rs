//! Bad input: one clear sentence, the right status or exit code, and the rest keeps running.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use tests::cluster::{Cluster, Options, Process, binary};
use tests::golden;

/// Runs `autoglm serve` with these arguments; its exit code and what it wrote to stderr.
fn serve(arguments: &[&str]) -> (Option<i32>, String) {
    let data = tempfile::tempdir().unwrap();
    let output = Command::new(binary("autoglm"))
        .arg("serve")
        .args(["--http", "127.0.0.1:0", "--cluster", "127.0.0.1:0"])
        .arg("--data-dir")
        .arg(data.path())
        .args(arguments)
        .output()
        .unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn refused(model: &Path, expected: &str) {
    let (code, said) = serve(&["--model", model.to_str().unwrap()]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains(expected), "{said:?} doesn't say {expected:?}");
    assert!(!said.contains("panicked"), "{said}");
}

#[test]
fn a_model_that_cannot_be_served_is_refused_with_a_reason() {
    let dir = tempfile::tempdir().unwrap();
    refused(&dir.path().join("nothing"), "nothing");
    refused(dir.path(), "config.json");

    let copy = |name: &str| {
        let target = dir.path().join(name);
        std::fs::create_dir(&target).unwrap();
        for entry in std::fs::read_dir(golden::model("glass-en")).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), target.join(entry.file_name())).unwrap();
        }
        target
    };
    let edit = |folder: &Path, from: &str, to: &str| {
        let path = folder.join("config.json");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(from));
        std::fs::write(path, text.replace(from, to)).unwrap();
    };

    let folder = copy("unknown");
    edit(&folder, "GlmForCausalLM", "MambaForCausalLM");
    refused(&folder, "MambaForCausalLM");
    refused(&folder, "Glm4ForCausalLM");

    let folder = copy("truncated");
    let weights = folder.join("model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &bytes[..bytes.len() / 2]).unwrap();
    refused(&folder, "model.safetensors");

    let folder = copy("shapes");
    edit(&folder, "\"intermediate_size\": 384", "\"intermediate_size\": 400");
    refused(&folder, "the configuration asks for [800, 128]");

    let folder = copy("absent");
    std::fs::remove_file(folder.join("tokenizer.json")).unwrap();
    refused(&folder, "tokenizer.json");
}

#[test]
fn a_wrong_command_line_or_file_is_exit_code_2() {
    let model = golden::model("glass-en");
    let model = model.to_str().unwrap();
    let (code, said) = serve(&[]);
    assert_eq!((code, said.contains("--model")), (Some(2), true), "{said}");

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let data = tempfile::tempdir().unwrap();
    let run = |http: &str, cluster: &str, config: &str| {
        let path = data.path().join("cluster.toml");
        std::fs::write(&path, config).unwrap();
        let output = Command::new(binary("autoglm"))
            .args(["serve", "--model", model, "--http", http, "--cluster", cluster])
            .arg("--data-dir")
            .arg(data.path())
            .arg("--config")
            .arg(path)
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, said) = run(&taken.local_addr().unwrap().to_string(), "127.0.0.1:0", "");
    assert_eq!((code, said.contains("--http")), (Some(2), true), "{said}");
    let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let (code, said) = run("127.0.0.1:0", &taken.local_addr().unwrap().to_string(), "");
    assert_eq!((code, said.contains("--cluster")), (Some(2), true), "{said}");
    let (code, said) = run("0.0.0.0:0", "127.0.0.1:0", "");
    assert_eq!((code, said.contains("--api-keys FILE")), (Some(2), true), "{said}");
    let (code, said) = run("127.0.0.1:0", "127.0.0.1:0", "[http]\napi_keys = \"absent.toml\"");
    assert_eq!((code, said.contains("autoglm key create")), (Some(2), true), "{said}");
    let (code, said) = run("127.0.0.1:0", "127.0.0.1:0", "[scheduler]\nmax_seqs = 3\n");
    assert_eq!((code, said.contains("max_seqs")), (Some(2), true), "{said}");
    for (lines, expected) in [
        ("[scheduler]\nmax_queued_requests = 9223372036854775807", "must be from 1 to"),
        ("[scheduler]\nmax_num_seqs = 4294967295", "must be from 1 to"),
        ("[transport]\nmax_connections = 1", "must be from 2 to"),
        ("[transport]\nmax_buffered_frames = 3\n[coordinator]\nstages = 4", "max_buffered_frames"),
        ("[transport]\nmax_frame_bytes = 100000", "must be at least"),
    ] {
        let (code, said) = run("127.0.0.1:0", "127.0.0.1:0", lines);
        assert_eq!((code, said.contains(expected)), (Some(2), true), "{lines}: {said}");
    }
    let (code, said) = serve(&["--model", model, "--stages", "300000"]);
    assert_eq!((code, said.contains("must be from 0 to")), (Some(2), true), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_request_is_an_openai_error_and_the_rest_keeps_running() {
    let cluster = Cluster::start(Options::new(golden::model("glass-en")).nodes(1, 1)).await;
    let with = |more: Value| {
        let mut request = json!({"model": "glass-en", "prompt": "Alice", "max_tokens": 2});
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        request
    };
    let cases = [
        (with(json!({"model": "gpt-9"})), 404, "glass-en"),
        (with(json!({"prompt": []})), 400, "prompt"),
        (with(json!({"prompt": ""})), 400, "token"),
        (with(json!({"prompt": [5000]})), 400, "5000"),
        (with(json!({"max_tokens": 500})), 400, "128"),
        (with(json!({"temperature": "hot"})), 400, "temperature"),
        (with(json!({"temperature": -1})), 400, "temperature"),
        (with(json!({"top_p": 3})), 400, "top_p"),
        (with(json!({"logprobs": 21})), 400, "20"),
        (with(json!({"suffix": "x"})), 400, "suffix"),
        (with(json!({"wibble": 1})), 400, "wibble"),
        (with(json!({"n": 1000})), 400, "n"),
    ];
    for (request, expected, word) in cases {
        let (status, body) = cluster.post("/v1/completions", &request).await;
        assert_eq!(status, expected, "{request} → {body}");
        let message = body["error"]["message"].as_str().unwrap_or_default();
        assert!(message.contains(word), "{request} → {message}");
        assert!(body["error"]["type"].is_string(), "{body}");
    }
    let client = reqwest::Client::new();
    let url = format!("{}/v1/completions", cluster.http);
    let post = |body: Vec<u8>| {
        client.post(&url).header("content-type", "application/json").body(body).send()
    };
    assert_eq!(post(b"{\"model\": ".to_vec()).await.unwrap().status(), 400);
    assert_eq!(post(vec![b' '; 9 << 20]).await.unwrap().status(), 413);
    assert_eq!(cluster.get("/v1/nothing").await.0, 404);
    assert_eq!(cluster.get("/v1/completions").await.0, 405);
    cluster.complete(&with(json!({}))).await;
    cluster.stop();
}

/// What is wrong with a node or with memory is said where the operator looks.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_cannot_serve_say_why() {
    let wait = Duration::from_secs(20);
    let mut cluster = Cluster::launch(&Options::new(golden::model("glass-en")).nodes(0, 0));
    let dir = tempfile::tempdir().unwrap();
    let mut absent = cluster.join(dir.path(), &["--adapter", "no such card"]);
    let code = absent.wait(wait).code();
    assert_eq!((code, absent.log().contains("no such card")), (Some(1), true), "{}", absent.log());

    let _small = cluster.join(dir.path(), &["--max-memory", "1MiB"]);
    let said = cluster.process.wait_for("doesn't fit", wait);
    assert!(said.contains("missing") && said.contains("nodes"), "{said}");
    let (status, ready) = cluster.get("/health/ready").await;
    assert_eq!(status, 503);
    assert!(ready.to_string().contains("doesn't fit"), "{ready}");

    let mut same = cluster.join(dir.path(), &[]);
    assert_eq!(same.wait(wait).code(), Some(1));
    assert!(same.log().contains("--data-dir"), "{}", same.log());

    let mut lost = Process::start(
        Command::new(binary("autoglm-node"))
            .args(["--join", "127.0.0.1:1", "--data-dir"])
            .arg(dir.path().join("lost")),
    );
    lost.wait_for("waiting for 127.0.0.1:1: ", wait);
    lost.signal("TERM");
    assert_eq!(lost.wait(wait).code(), Some(0));
    cluster.stop();
}

/// A damaged checkpoint isn't served, and the log names what is damaged.
#[tokio::test(flavor = "multi_thread")]
async fn a_weight_that_is_no_number_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    for entry in golden::model("glass-en").read_dir().unwrap() {
        let from = entry.unwrap().path();
        std::fs::copy(&from, dir.path().join(from.file_name().unwrap())).unwrap();
    }
    let file = dir.path().join("model.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let name = "model.layers.2.self_attn.v_proj.weight";
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let data = tensors.tensor(name).unwrap().data();
    let at = data.as_ptr() as usize - bytes.as_ptr() as usize + 2 * (17 * 128 + 4);
    bytes[at..at + 2].copy_from_slice(&half::f16::NAN.to_le_bytes());
    std::fs::write(&file, bytes).unwrap();
    let mut cluster = Cluster::launch(&Options::new(dir.path().to_owned()).nodes(1, 1));
    let said = cluster.process.wait_for("stage not loaded", Duration::from_secs(30));
    assert!(said.contains(&format!("{name} holds NaN at [17, 4]")), "{said}");
    assert_eq!(cluster.get("/health/ready").await.0, 503);
    cluster.stop();
}
