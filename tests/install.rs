//! What `make demo` and `make test` install: on a system that has nothing, in which the package
//! manager is a script of ours that notes what it was asked for and brings it.

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A system of a few programs, and of packages that each bring some.
struct System {
    folder: tempfile::TempDir,
}

/// What any Debian system has.
const ESSENTIAL: [&str; 9] = ["bash", "sh", "mkdir", "id", "env", "tail", "sed", "rm", "uname"];

impl System {
    fn empty() -> Self {
        let system = Self { folder: tempfile::tempdir().unwrap() };
        std::fs::create_dir(system.bin()).unwrap();
        let path = std::env::var_os("PATH").unwrap();
        for program in ESSENTIAL {
            let found = std::env::split_paths(&path).map(|folder| folder.join(program));
            let found = found.into_iter().find(|file| file.is_file()).unwrap();
            symlink(found, system.bin().join(program)).unwrap();
        }
        let packages = "gcc:cc make:make g++:c++ chromium:chromium prometheus:promtool";
        system.program(
            "apt-get",
            &format!(
                "echo \"$*\" >>{log}\n\
                 for package in \"$@\"; do for pair in {packages}; do\n\
                 [ \"${{pair%:*}}\" != \"$package\" ] ||\n\
                 {{ echo '#!/bin/sh' >{bin}/${{pair#*:}}; /bin/chmod 755 {bin}/${{pair#*:}}; }}\n\
                 done; done",
                log = system.folder.path().join("asked").display(),
                bin = system.bin().display(),
            ),
        );
        for program in ["sudo", "cargo"] {
            let text = if program == "sudo" { "shift; [ $# = 0 ] || exec \"$@\"" } else { "" };
            system.program(program, text);
        }
        system
    }

    fn bin(&self) -> PathBuf {
        self.folder.path().join("bin")
    }

    fn program(&self, name: &str, text: &str) {
        let file = self.bin().join(name);
        std::fs::write(&file, format!("#!/bin/bash\n{text}\n")).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Runs a script that has sourced demo/setup.sh; what it says, and what was installed.
    fn run(&self, script: &str) -> (String, String) {
        let setup = Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo/setup.sh");
        let output = Command::new(self.bin().join("bash"))
            .args(["-c", &format!("set -euo pipefail\nsource {}\n{script}", setup.display())])
            .env_clear()
            .env("PATH", self.bin())
            .current_dir(self.folder.path())
            .output()
            .unwrap();
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(output.status.success(), "{script}: {said}");
        let asked = std::fs::read_to_string(self.folder.path().join("asked")).unwrap_or_default();
        (said, asked)
    }
}

#[test]
fn a_program_that_is_missing_is_installed_whatever_functions_are_called() {
    for (script, package, program) in [
        ("need_chromium; echo $chromium", " chromium\n", "chromium"),
        ("promtool() { :; }; need_program promtool prometheus", " prometheus\n", "promtool"),
        ("make() { :; }; need_program make make", " make\n", "make"),
        ("cc() { :; }; unset -f cc; need_build_tools", " gcc libc6-dev\n", "cc"),
    ] {
        let system = System::empty();
        let (said, asked) = system.run(script);
        assert!(asked.ends_with(package), "{script}: {asked:?} {said}");
        assert!(system.bin().join(program).is_file(), "{script}");
        // The second time nothing is missing.
        let (said, again) = system.run(script);
        assert_eq!(asked, again, "{script}: {said}");
    }
}

#[test]
fn a_browser_of_another_name_is_a_browser() {
    let system = System::empty();
    system.program("google-chrome", "");
    let (said, asked) = system.run("need_chromium; echo $chromium");
    assert_eq!(said.trim(), system.bin().join("google-chrome").display().to_string());
    assert_eq!(asked, "");
}

#[test]
fn a_compiler_that_links_nothing_is_no_compiler() {
    let system = System::empty();
    system.program("cc", "exit 1");
    let (_, asked) = system.run("need_build_tools");
    assert!(asked.ends_with(" gcc libc6-dev\n"), "{asked:?}");
}

#[test]
fn what_cant_be_installed_is_said_and_not_taken_for_there() {
    let system = System::empty();
    // It succeeds, and brings another program than is needed.
    let (said, _) = system.run("need_program shellcheck make || echo missing");
    assert!(said.ends_with("missing\n"), "{said}");
}

/// `command -v` finds functions as well; once that hid a browser that wasn't there.
#[test]
fn scripts_ask_path_for_programs() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let listed = [".ci", "demo", "bench", "bench/peers"].map(|folder| root.join(folder));
    for file in listed.iter().flat_map(|folder| std::fs::read_dir(folder).unwrap()) {
        let path = file.unwrap().path();
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        if !text.starts_with("#!") && path.extension().is_none_or(|kind| kind != "sh") {
            continue;
        }
        for line in text.lines().filter(|line| !line.trim_start().starts_with('#')) {
            assert!(!line.contains("command -v"), "{}: {line}", path.display());
        }
    }
}
