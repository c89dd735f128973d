//! `autoglm batch run` against a real cluster.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use tests::cluster::{Cluster, Options, binary};
use tests::golden;

const ROWS: usize = 60;

fn run(cluster: &Cluster, folder: &Path, input: &str, output: &str) -> Command {
    let mut command = Command::new(binary("autoglm"));
    command
        .current_dir(folder)
        .args(["batch", "run", "--input", input, "--output", output, "--map", "prompt=text"])
        .args(["--max-tokens", "24", "--concurrency", "4", "--server", &cluster.http])
        .args(["--id", "id", "--temperature", "1"])
        .stdin(Stdio::null());
    command
}

/// Goal: a run that is killed and goes on writes what one writes that was never disturbed. Method:
/// kill -9 at several moments, the last of which are late; sampled answers, so that a row that is
/// asked again must draw the same tokens.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_is_killed_goes_on_and_ends_as_if_it_had_not_been() {
    let cluster = Cluster::start(Options::new(golden::model("glass-en"))).await;
    let dir = tempfile::tempdir().unwrap();
    let mut text = String::from("id,text\n");
    for row in 0..ROWS {
        text += &format!("{row},\"Alice said, {row} times:\"\n");
    }
    std::fs::write(dir.path().join("in.csv"), text).unwrap();
    let whole = run(&cluster, dir.path(), "in.csv", "whole.csv").output().unwrap();
    let said = String::from_utf8_lossy(&whole.stderr);
    assert!(whole.status.success(), "{said}");
    assert!(said.contains(&format!("{ROWS} rows are in whole.csv")), "{said}");

    let mut num_killed = 0;
    for millis in [150, 400, 700, 1000] {
        let mut child =
            run(&cluster, dir.path(), "in.csv", "pieces.csv").arg("--resume").spawn().unwrap();
        tokio::time::sleep(Duration::from_millis(millis)).await;
        // Of a run that has ended there is nothing to kill.
        num_killed += usize::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(num_killed > 0, "no run was long enough to be killed");
    let rest = run(&cluster, dir.path(), "in.csv", "pieces.csv").arg("--resume").output().unwrap();
    assert!(rest.status.success(), "{}", String::from_utf8_lossy(&rest.stderr));
    let read = |name| std::fs::read_to_string(dir.path().join(name)).unwrap();
    assert_eq!(read("pieces.csv"), read("whole.csv"));
    assert_eq!(read("whole.csv").lines().next(), Some("id,text,answer"));

    // Standard input is said again from its start; what was read of it is passed over.
    let piped = || {
        let mut command = run(&cluster, dir.path(), "-", "piped.csv");
        let input = std::fs::File::open(dir.path().join("in.csv")).unwrap();
        command.args(["--input-format", "csv", "--resume"]).stdin(input);
        command
    };
    let mut child = piped().spawn().unwrap();
    tokio::time::sleep(Duration::from_millis(700)).await;
    child.kill().unwrap();
    child.wait().unwrap();
    let rest = piped().output().unwrap();
    assert!(rest.status.success(), "{}", String::from_utf8_lossy(&rest.stderr));
    assert_eq!(read("piped.csv"), read("whole.csv"));
    let mut names: Vec<_> =
        std::fs::read_dir(dir.path()).unwrap().map(|it| it.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["in.csv", "pieces.csv", "piped.csv", "whole.csv"]);
    cluster.stop();
}
