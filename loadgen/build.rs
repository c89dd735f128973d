//! Tells the binary of which commit it is: `AUTOGLM_COMMIT`, unset outside a git checkout.
//! `-dirty` at its end says that sources differed from that commit.

use std::path::Path;
use std::process::Command;

/// What the binary is made of: cargo compiles us again when any of it changes, and so this runs
/// no oftener than it must.
const SOURCES: [&str; 10] = [
    "../Cargo.toml",
    "../Cargo.lock",
    "../bench",
    "../checkpoint",
    "../coordinator",
    "../node",
    "../protocol",
    "../shaders",
    "../transport",
    ".",
];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let Some(commit) = git(&["rev-parse", "HEAD"]) else { return };
    // The log of HEAD grows with every commit and checkout.
    for file in ["HEAD", "logs/HEAD"] {
        if let Some(path) = git(&["rev-parse", "--git-path", file]) {
            watch(&path);
        }
    }
    SOURCES.into_iter().for_each(watch);
    let status = ["status", "--porcelain", "--"];
    let changes = git(&[status.as_slice(), SOURCES.as_slice()].concat());
    let dirty = if changes.is_none_or(|changes| !changes.is_empty()) { "-dirty" } else { "" };
    println!("cargo::rustc-env=AUTOGLM_COMMIT={commit}{dirty}");
}

/// A file that isn't there would count as changed every time.
fn watch(path: &str) {
    if Path::new(path).exists() {
        println!("cargo::rerun-if-changed={path}");
    }
}

/// What git prints; none when it isn't there or fails.
fn git(arguments: &[&str]) -> Option<String> {
    let ended = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(ended.stdout).ok()?;
    ended.status.success().then(|| text.trim().to_owned())
}
