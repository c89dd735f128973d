//! Batches with real processes: clients that know nothing of us, kills, disks that take nothing.

use std::process::Command;
use std::time::Duration;

use serde_json::json;
use tests::batch_load;
use tests::batch_runs::{Batches, Runs, compared, lines, run_with_kills};
use tests::cluster::{Cluster, Options, binary};
use tests::golden;

fn one_node() -> Options {
    Options::new(golden::model("glass-en"))
}

/// Runs a client's program against a cluster that needs a key.
async fn run_client(program: &str, folder: Option<&std::path::Path>, script: &std::path::Path) {
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys.toml");
    let mut create = Command::new(binary("autoglm"));
    create.args(["key", "create", "--name", "client", "--api-keys"]).arg(&keys);
    let key = String::from_utf8(create.output().unwrap().stdout).unwrap();
    let config = format!("[http]\napi_keys = {:?}\n", keys.to_str().unwrap());
    let cluster = Cluster::start(one_node().config(&config)).await;
    let mut client = Command::new(program);
    if let Some(folder) = folder {
        client.current_dir(folder);
    }
    let output = client.arg(script).arg(&cluster.http).arg(key.trim()).output().unwrap();
    assert!(
        output.status.success(),
        "{}\n{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
        cluster.process.log()
    );
    cluster.stop();
}

fn script(name: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_openai_package_makes_batches_unmodified() {
    let Some(python) = std::env::var_os("AUTOGLM_OPENAI_PYTHON") else {
        eprintln!("skipped: openai package (AUTOGLM_OPENAI_PYTHON names no Python that has it)");
        return;
    };
    run_client(python.to_str().unwrap(), None, &script("openai_batches.py")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_openai_package_for_node_makes_batches_unmodified() {
    let Some(folder) = std::env::var_os("AUTOGLM_OPENAI_NODE") else {
        eprintln!("skipped: openai package for Node (AUTOGLM_OPENAI_NODE names no folder with it)");
        return;
    };
    // A module finds packages beside itself.
    let folder = std::path::PathBuf::from(folder);
    let copied = folder.join("openai_batches.mjs");
    std::fs::copy(script("openai_batches.mjs"), &copied).unwrap();
    run_client("node", Some(&folder), &copied).await;
}

/// Goal: a kill at any moment costs nothing that was acknowledged, and changes no answer. Method:
/// three runs of a batch, in each the coordinator is killed at a random moment (the program `kills`
/// does as many as are wanted, with nodes).
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_whose_coordinator_is_killed_answers_every_line_once_and_alike() {
    let runs = Runs { num: 3, kills_each: 1, num_lines: 120, seed: 7 };
    let report = run_with_kills(one_node(), runs).await;
    assert_eq!(report.num_kills, 3);
}

/// Goal: jobs leave who waits for an answer alone, and tenants share what is left. Method: ten jobs
/// of two tenants beside one who asks again and again; a first token may take some steps of theirs
/// longer, not as long as they do. `batch-load` says what it is on a quiet machine.
#[tokio::test(flavor = "multi_thread")]
async fn ten_jobs_of_two_tenants_leave_interactive_requests_alone() {
    let options = one_node().nodes(2, 2);
    let measured = batch_load::interference(options, 10, 20).await;
    let ([p50, _], [alone, beside]) = (measured.ratios(), measured.offline);
    // First come, first served, it would wait for answers of up to 64 tokens.
    assert!(p50 < 8.0, "{measured:?}");
    assert!(beside > 0.3 * alone, "{measured:?}");
    let [one, other] = measured.of_tenants;
    assert!(one > 0.5 * other && other > 0.5 * one, "{measured:?}");
}

/// Goal: the operator's commands say what the API does.
#[tokio::test(flavor = "multi_thread")]
async fn operators_list_show_cancel_and_read_batches() {
    let cluster = Cluster::start(one_node()).await;
    let batches = Batches::of(&cluster);
    let input = lines(&cluster.model().await, 6, 4..8);
    let file = batches.upload(&input).await.unwrap();
    let id = batches.create(&file, "1h").await.unwrap();
    let job = batches.ended(&id, Duration::from_secs(120)).await;
    let run = |arguments: &[&str]| {
        let mut command = Command::new(binary("autoglm"));
        let output = command.arg("batch").args(arguments).args(["--url", &cluster.http]);
        let output = output.output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(said).unwrap())
    };
    let (_, listed) = run(&["list"]);
    assert!(listed.lines().nth(1).unwrap().starts_with(&id) && listed.contains("6/6"), "{listed}");
    let (_, shown) = run(&["show", &id]);
    assert!(shown.starts_with(&format!("{id}: completed\nlines 6/6 (0 failed)")), "{shown}");
    let (_, shown) = run(&["show", &id, "--json"]);
    assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), job);
    let (_, output) = run(&["output", &id]);
    let output: Vec<_> = output.lines().map(|it| serde_json::from_str(it).unwrap()).collect();
    assert_eq!(compared(&output), compared(&batches.lines(&job["output_file_id"]).await));
    let (is_done, said) = run(&["cancel", &id]);
    assert!(!is_done && said.contains("can't be cancelled any more"), "{said}");
    let (is_done, said) = run(&["output", &id, "--errors"]);
    assert!(!is_done && said.contains("no line without an answer"), "{said}");
    cluster.stop();
}

/// Goal: rows of a CSV file come back with answers, by three calls that any client can make.
#[tokio::test(flavor = "multi_thread")]
async fn a_csv_file_goes_in_and_comes_out_with_its_answers() {
    let cluster = Cluster::start(one_node()).await;
    let batches = Batches::of(&cluster);
    let rows: String = (0..40).map(|n| format!("{n},\"Alice, {n}\"\n")).collect();
    let file = batches.hand_in("rows", "in.csv", &format!("id,text\n{rows}")).await.unwrap();
    let template = json!({"prompt": "{{ text }} said", "max_tokens": 8, "ignore_eos": true});
    let asked = json!({
        "input_file_id": file, "endpoint": "/v1/completions", "completion_window": "1h",
        "rows": {"template": template, "answer_column": "said"},
    });
    let mut outputs = Vec::new();
    for _ in 0..2 {
        let id = batches.ask(&asked).await.unwrap();
        let job = batches.ended(&id, Duration::from_secs(120)).await;
        assert_eq!(
            (&job["status"], &job["request_counts"]["completed"]),
            (&json!("completed"), &json!(40))
        );
        outputs.push(batches.text(&job["output_file_id"]).await);
    }
    // A row without a seed is answered alike whenever it is asked.
    assert_eq!(outputs[0], outputs[1]);
    assert!(outputs[0].starts_with("id,text,said\n0,\"Alice, 0\","), "{}", outputs[0]);
    let mut records = rows::csv::Records::open(outputs[0].as_bytes(), 1 << 16).unwrap();
    for number in 0..40 {
        let cells = records.next_row().unwrap().unwrap().cells.unwrap();
        assert_eq!((&cells["id"], cells.len()), (&json!(number.to_string()), 3));
        assert!(!cells["said"].as_str().unwrap().is_empty());
    }
    cluster.stop();
}

/// Goal: a disk that is full holds batches up and nothing else, and they go on when there is space.
/// Method: the data directory is on a file system of a few megabytes, which a file fills.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_pauses_batches_and_leaves_everything_else_alone() {
    let disk = tempfile::tempdir().unwrap();
    let mount = |arguments: &[&str]| {
        let done = Command::new("mount").args(arguments).arg(disk.path()).output();
        done.is_ok_and(|done| done.status.success())
    };
    if !mount(&["-t", "tmpfs", "-o", "size=64m", "tmpfs"]) {
        eprintln!("skipped: a full disk (nothing can be mounted here)");
        return;
    }
    let options = one_node();
    let data = tempfile::tempdir_in(disk.path()).unwrap();
    let cluster = Cluster::launch_on(data, &options);
    cluster.ready(Duration::from_secs(120)).await;
    let batches = Batches::of(&cluster);
    let model = cluster.model().await;
    let input = lines(&model, 800, 16..65);
    let file = batches.upload(&input).await.unwrap();
    let id = batches.create(&file, "24h").await.unwrap();
    let done = |job: &serde_json::Value| job["request_counts"]["completed"].as_i64().unwrap();
    loop {
        if done(&batches.get(&id).await.unwrap()) > 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let filler = disk.path().join("filler");
    let mut fill = Command::new("dd");
    fill.args(["if=/dev/zero", "bs=4k"]).arg(format!("of={}", filler.display()));
    let _ = fill.output().unwrap();
    let paused = async {
        loop {
            // A connection that breaks off at this moment is no answer.
            let job = batches.get(&id).await;
            if let Some(cause) = job.as_ref().and_then(|job| job["paused"].as_str()) {
                break cause.to_owned();
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let cause = tokio::time::timeout(Duration::from_secs(60), paused).await.expect("it pauses");
    assert!(cause.contains("full"), "{cause}");
    // Who waits for an answer gets it; who wants something kept is told that it can't be.
    let answer = cluster.complete(&cluster.request(&[5, 6], json!({"max_tokens": 4})).await).await;
    assert_eq!(answer["usage"]["completion_tokens"], 4);
    let refused = batches.upload(&input).await.unwrap_err();
    assert!(refused.starts_with("507") && refused.contains("insufficient_storage"), "{refused}");
    let held_up = done(&batches.get(&id).await.unwrap());
    std::fs::remove_file(&filler).unwrap();
    let again = async {
        while batches.get(&id).await.is_none_or(|job| done(&job) <= held_up) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), again).await.expect("it goes on");
    let job = batches.ended(&id, Duration::from_secs(300)).await;
    assert_eq!((&job["status"], done(&job)), (&json!("completed"), 800));
    let output = batches.lines(&job["output_file_id"]).await;
    let ids: Vec<_> = output.iter().map(|line| line["custom_id"].as_str().unwrap()).collect();
    let expected: Vec<_> = (0..800).map(|number| format!("id-{number}")).collect();
    assert_eq!(ids, expected);
    cluster.stop();
    let _ = Command::new("umount").arg("-l").arg(disk.path()).output();
}

/// Goal: a disk that fails to keep what it was given isn't asked again: nothing more is taken, and
/// whoever waits for an answer gets it. Method: no file may grow beyond what the store needs to
/// begin, which is no full disk to it.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fails_takes_nothing_more_until_the_next_start() {
    if Command::new("prlimit").arg("--version").output().is_err() {
        eprintln!("skipped: a disk that fails (util-linux's prlimit isn't there)");
        return;
    }
    let options = one_node();
    let cluster = Cluster::start(options.clone()).await;
    let batches = Batches::of(&cluster);
    let model = cluster.model().await;
    let file = batches.upload(&lines(&model, 400, 30..31)).await.unwrap();
    let id = batches.create(&file, "24h").await.unwrap();
    // A write beyond it fails, and says so with a signal that nobody ignores by himself.
    let wal = cluster.data.path().join("state.sqlite-wal");
    let limit = std::fs::metadata(wal).unwrap().len() + 20_000;
    let pid = cluster.process.child.id().to_string();
    let done = Command::new("prlimit")
        .args(["--pid", &pid, &format!("--fsize={limit}")])
        .status()
        .unwrap();
    assert!(done.success());
    let refused = async {
        loop {
            match batches.upload("{}").await {
                Err(cause) if cause.starts_with("503") => break cause,
                _ => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    };
    let refused = tokio::time::timeout(Duration::from_secs(120), refused).await.expect("it stops");
    assert!(refused.contains("storage_failed"), "{refused}");
    let answer = cluster.complete(&cluster.request(&[5, 6], json!({"max_tokens": 4})).await).await;
    assert_eq!(answer["usage"]["completion_tokens"], 4);
    // The next process finds what was acknowledged, and goes on.
    let cluster = cluster.replace(&options).await;
    let batches = Batches::of(&cluster);
    let job = batches.ended(&id, Duration::from_secs(300)).await;
    assert_eq!(job["request_counts"]["completed"], 400, "{job}");
    cluster.stop();
}
