//! Experiments and reports through the binary.

use std::path::Path;
use std::process::Output;
use std::time::Duration;

use loadgen::report::result::{self, FORMAT, RunResult};

async fn bench(arguments: &[&str]) -> Output {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_autoglm-bench"));
    command.args(arguments).output().await.unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// Writes a file and returns its path.
fn file(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_string()
}

/// A mock server whose first token takes `ttft`. It leaves its process id in `NAME.pid`.
fn configuration(name: &str, ttft: &str) -> String {
    let mock = env!("CARGO_BIN_EXE_autoglm-bench");
    format!(
        "[server]\n\
         command = [\"sh\", \"-c\", \"echo $$ > {{here}}/{name}.pid; \
         exec {mock} mock --port {{port}} --ttft {ttft} --itl 1ms --tokens 2\"]\n\
         [load]\nconcurrency = 4\nrequests = 24\nmax_tokens = 2\n"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_experiment_measures_both_in_turn_and_ends_what_it_started() {
    let folder = tempfile::tempdir().unwrap();
    let slow = file(folder.path(), "slow.toml", &configuration("slow", "120ms"));
    let fast = file(folder.path(), "fast.toml", &configuration("fast", "20ms"));
    let json = folder.path().join("out.json");
    let page = folder.path().join("out.html");
    let out = ["--json", json.to_str().unwrap(), "--html", page.to_str().unwrap()];
    let ended = bench(&[&["experiment", &slow, &fast, "--rounds", "3"], &out[..]].concat()).await;
    let said = text(&ended.stdout);
    assert!(ended.status.success(), "{said}{}", text(&ended.stderr));
    assert!(said.contains("Mean latency, fast against slow: -"), "{said}");
    assert!(said.contains("over 3 paired rounds: the difference is real"), "{said}");
    assert!(said.contains("Little's law, slow: 4.0 in flight"), "{said}");

    let series = result::read(&json).unwrap();
    let labels: Vec<&str> = series.runs.iter().map(|run| run.label.as_str()).collect();
    assert_eq!(labels, ["slow", "fast", "fast", "slow", "slow", "fast"]);
    assert!(std::fs::read_to_string(&page).unwrap().contains("Do they differ?"));
    for name in ["slow", "fast"] {
        let pid = std::fs::read_to_string(folder.path().join(format!("{name}.pid"))).unwrap();
        let process = Path::new("/proc").join(pid.trim());
        assert!(!process.exists(), "{name} still runs as {}", pid.trim());
    }
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_experiment_that_is_terminated_leaves_no_server() {
    let folder = tempfile::tempdir().unwrap();
    let slow = file(folder.path(), "slow.toml", &configuration("slow", "10s"));
    let fast = file(folder.path(), "fast.toml", &configuration("fast", "10s"));
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_autoglm-bench"));
    let mut process =
        command.args(["experiment", &slow, &fast]).kill_on_drop(true).spawn().unwrap();
    let written = folder.path().join("slow.pid");
    let server = loop {
        match std::fs::read_to_string(&written) {
            Ok(pid) if pid.ends_with('\n') => break Path::new("/proc").join(pid.trim()),
            _ => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    assert!(server.exists());
    let pid = nix::unistd::Pid::from_raw(process.id().unwrap() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::SIGTERM).unwrap();
    assert_eq!(process.wait().await.unwrap().code(), Some(130));
    // It may be gone but for whoever inherits it to take note.
    let runs = || {
        let stat = std::fs::read_to_string(server.join("stat"));
        stat.is_ok_and(|stat| !stat.contains(") Z "))
    };
    let limit = std::time::Instant::now() + Duration::from_secs(10);
    while runs() && std::time::Instant::now() < limit {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!runs(), "{} still runs", server.display());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_an_experiment_is_one_clear_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let good = file(here, "good.toml", &configuration("good", "1ms"));
    let typo =
        file(here, "typo.toml", "[server]\nurl = \"http://127.0.0.1:1\"\n[load]\nratee = 4\n");
    let dead = "[server]\ncommand = [\"sh\", \"-c\", \"echo no model {port}; exit 3\"]\n\
                [load]\nrate = 1\nrequests = 1\n";
    let dead = file(here, "dead.toml", dead);
    let url = "[server]\nurl = \"http://127.0.0.1:1\"\n[load]\nrate = 1\nrequests = 1\n";
    let nobody = file(here, "nobody.toml", url);
    for (first, second, said) in [
        (&good, &good, "both configurations are called \"good\""),
        (&good, &typo, "typo.toml: unexpected argument '--ratee' found"),
        (&nobody, &dead, "no model"),
        (&nobody, &dead, "it ended before it was ready (exit status: 3)"),
        (&nobody, &typo, "[load] of"),
        (&nobody, &good, "nothing answers at http://127.0.0.1:1"),
    ] {
        let ended = bench(&["experiment", first, second, "--rounds", "2"]).await;
        assert_eq!(ended.status.code(), Some(1));
        let error = text(&ended.stderr);
        assert!(error.contains(said), "{said}: {error}");
    }
    let pid = std::fs::read_to_string(here.join("good.pid")).unwrap();
    assert!(!Path::new("/proc").join(pid.trim()).exists(), "ended with the failed experiment");
}

#[tokio::test]
async fn a_result_of_another_version_is_named_and_the_others_are_reported() {
    let folder = tempfile::tempdir().unwrap();
    let run = |date: &str, tokens| RunResult {
        format: FORMAT,
        date: date.into(),
        output_throughput: tokens,
        completed: 1,
        ..RunResult::default()
    };
    let write = |name: &str, run: &RunResult| {
        file(folder.path(), name, &serde_json::to_string(run).unwrap())
    };
    let first = write("first.json", &run("2026-11-24T10:00:00Z", 100.0));
    let second = write("second.json", &run("2026-11-25T10:00:00Z", 150.0));
    let other = file(folder.path(), "other.json", "{\"format\": 9}");
    let page = folder.path().join("page.html");
    let ended = bench(&["report", &other, &second, &first, "--html", page.to_str().unwrap()]).await;
    assert_eq!(ended.status.code(), Some(1));
    let error = text(&ended.stderr);
    assert!(error.contains("other.json is a result of format 9"), "{error}");
    let table = text(&ended.stdout);
    let place = |name: &str| table.find(name).unwrap_or_else(|| panic!("{name}: {table}"));
    assert!(place("first.json") < place("second.json"), "{table}");
    assert!(table.contains("+50 %") && table.contains("not verified"), "{table}");
    assert!(std::fs::read_to_string(&page).unwrap().contains("What changed"));

    let ended = bench(&["report", &other]).await;
    assert!(text(&ended.stderr).contains("there is nothing to report"));
}
