//! `deploy/`: units, container file and manifests, checked by what their readers bring, and by what
//! our programs know: every flag, key, path and metric that they name is there.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use protocol::config::Config;
use tests::cluster::binary;

/// A Python that has kubernetes-validate, with hadolint beside it.
const PYTHON: &str = "AUTOGLM_DEPLOY_PYTHON";

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("deploy")
}

fn read(file: &str) -> String {
    std::fs::read_to_string(deploy().join(file)).unwrap_or_else(|cause| panic!("{file}: {cause}"))
}

/// Every file below `folder`, and what it says.
pub(crate) fn files(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            let text = std::fs::read_to_string(&path).unwrap();
            found.push((path, text));
        }
    }
    found.sort();
    found
}

/// What a command said that must succeed.
fn succeeds(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let said = String::from_utf8([stdout, stderr].concat()).unwrap();
    assert!(status.success(), "{command:?}: {said}");
    said
}

#[test]
fn kubernetes_takes_the_manifests_and_they_fit_together() {
    let Some(python) = std::env::var_os(PYTHON) else {
        eprintln!("skipped: Kubernetes manifests ({PYTHON} names no Python with a validator)");
        return;
    };
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/kubernetes.py");
    let said = succeeds(Command::new(&python).arg(script).arg(deploy().join("kubernetes")));
    let probes: BTreeSet<_> = said.lines().filter_map(|line| line.strip_prefix("probe ")).collect();
    // That they are served is what every whole-cluster test waits for.
    assert_eq!(probes, BTreeSet::from(["/health/live", "/health/ready"]));
    // A fault is found.
    let broken = tempfile::tempdir().unwrap();
    for (path, text) in files(&deploy().join("kubernetes")) {
        let path = broken.path().join(path.strip_prefix(deploy().join("kubernetes")).unwrap());
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text.replace("replicas: 2", "replicas: two")).unwrap();
    }
    let output = Command::new(&python).arg(script).arg(broken.path()).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains("spec.replicas"), "{said}");
}

#[test]
fn the_container_file_is_as_its_linter_wants_it() {
    let hadolint =
        std::env::var_os(PYTHON).map(|python| Path::new(&python).with_file_name("hadolint"));
    let Some(hadolint) = hadolint.filter(|it| it.is_file()) else {
        eprintln!("skipped: the container file ({PYTHON} has no hadolint beside it)");
        return;
    };
    succeeds(Command::new(hadolint).arg(deploy().join("container/Containerfile")));
    eprintln!("skipped: an image of the container file (it needs a container runtime)");
}

#[test]
fn systemd_takes_the_units_and_finds_them_hardened() {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        eprintln!("skipped: systemd units (no systemd-analyze, which Debian's systemd brings)");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for (unit, program) in
        [("autoglm.service", "autoglm"), ("autoglm-node.service", "autoglm-node")]
    {
        // It looks for what a unit starts.
        let installed = format!("/usr/local/bin/{program} ");
        let text = read(&format!("systemd/{unit}"));
        assert!(text.contains(&installed), "{text}");
        let built = format!("{} ", binary(program).display());
        let file = folder.path().join(unit);
        std::fs::write(&file, text.replace(&installed, &built)).unwrap();
        let said = succeeds(Command::new("systemd-analyze").arg("verify").arg(&file));
        assert!(!said.contains(unit), "{said}");
        // 0 is shut off from everything, 100 from nothing.
        let mut security = Command::new("systemd-analyze");
        succeeds(security.args(["security", "--offline=true", "--threshold=25"]).arg(&file));
    }
}

/// The flags of a program, those of its subcommands included.
fn flags(program: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut commands = vec![Vec::<String>::new()];
    while let Some(command) = commands.pop() {
        let help = succeeds(Command::new(binary(program)).args(&command).arg("--help"));
        found.extend(words(&help).filter(|word| word.starts_with("--")).map(str::to_owned));
        let subcommands = help.split_once("\nCommands:\n").map_or("", |(_, list)| list);
        for line in subcommands.lines().take_while(|line| !line.is_empty()) {
            let name = line.split_whitespace().next().unwrap_or_default();
            if line.starts_with("  ") && !line.starts_with("   ") && name != "help" {
                commands.push([command.clone(), vec![name.to_owned()]].concat());
            }
        }
    }
    found
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !(c.is_alphanumeric() || "-_/.".contains(c))).filter(|it| !it.is_empty())
}

/// The flags that a text gives to `program`: those behind its name in a line, or in a list of YAML
/// that begins with it.
fn flags_given(text: &str, program: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut is_list = false;
    for line in text.lines() {
        let said: Vec<_> = words(line).collect();
        let is_flag = |word: &str| word.starts_with("--") && word != "--";
        let is_run = |at: &usize| {
            let word = said[*at].strip_prefix("/usr/local/bin/").unwrap_or(said[*at]);
            // Behind a flag it is that of another program.
            word == program && (*at == 0 || !is_flag(said[at - 1]))
        };
        let given = match (0..said.len()).rev().find(is_run) {
            Some(at) => {
                is_list = at + 1 == said.len();
                &said[at + 1..]
            }
            None => {
                is_list &= said.first() == Some(&"-");
                if is_list { &said[..] } else { &[] }
            }
        };
        found.extend(given.iter().filter(|it| is_flag(it)).map(|it| (*it).to_owned()));
    }
    found
}

#[test]
fn every_flag_in_deploy_is_there() {
    let files = files(&deploy());
    for (program, expected) in [
        ("autoglm", ["--config", "--data-dir", "--name"]),
        ("autoglm-node", ["--join", "--token-file", "--data-dir"]),
    ] {
        let known = flags(program);
        let mut given = BTreeSet::new();
        for (path, text) in &files {
            for flag in flags_given(text, program) {
                let path = path.display();
                assert!(known.contains(&flag), "{path}: {program} has no {flag}: {known:?}");
                given.insert(flag);
            }
        }
        for flag in expected {
            assert!(given.contains(flag), "{program} {flag} is not found in {given:?}");
        }
    }
}

#[test]
fn every_configuration_in_deploy_is_read() {
    for file in ["systemd/cluster.toml", "kubernetes/cluster.toml"] {
        let config = Config::parse(&read(file)).unwrap_or_else(|cause| panic!("{file}: {cause}"));
        assert!(!config.model.path.as_os_str().is_empty());
        assert_eq!(config.coordinator.data_dir, Path::new("/var/lib/autoglm"), "{file}");
    }
}

/// Who is told to end is killed only when it should have ended long ago.
#[test]
fn every_stop_takes_longer_than_what_it_waits_for() {
    let answers_s = Config::default().coordinator.drain_timeout_ms / 1000;
    let help = succeeds(Command::new(binary("autoglm-node")).arg("--help"));
    let drain = words(&help).skip_while(|word| *word != "--drain-timeout");
    let drain_s = drain.skip_while(|word| *word != "default").nth(1).unwrap();
    let drain_s: u64 = drain_s.parse().unwrap();
    for (file, key, awaited_s) in [
        ("kubernetes/coordinator.yaml", "terminationGracePeriodSeconds: ", answers_s),
        ("kubernetes/nodes.yaml", "terminationGracePeriodSeconds: ", drain_s),
        ("systemd/autoglm.service", "TimeoutStopSec=", answers_s),
        ("systemd/autoglm-node.service", "TimeoutStopSec=", drain_s),
    ] {
        let text = read(file);
        let limit = text.split_once(key).unwrap().1.lines().next().unwrap();
        let limit: u64 = limit.parse().unwrap();
        assert!(limit >= awaited_s + 20, "{file}: {limit} s, and it waits for {awaited_s} s");
    }
}
