//! Our style, as a test.

use std::path::{Path, PathBuf};

fn sources(extension: &str) -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let crates = [
        "protocol",
        "transport",
        "telemetry",
        "checkpoint",
        "shaders",
        "node",
        "coordinator",
        "rows",
        "batch",
        "loadgen",
        "bench",
        "tests",
    ];
    let mut found = Vec::new();
    let mut folders: Vec<_> = crates.iter().map(|name| root.join(name)).collect();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            // The fuzzers' crate stands apart from the workspace, with what is built of it.
            if path.is_dir() && !path.ends_with("tests/fuzz/target") {
                folders.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                let text = std::fs::read_to_string(&path).unwrap();
                found.push((path.strip_prefix(root).unwrap().to_owned(), text));
            }
        }
    }
    assert!(!found.is_empty());
    found
}

/// A file that wants to pass 500 lines has two ideas in it, its tests apart.
#[test]
fn files_are_short() {
    for (path, text) in sources("rs").into_iter().chain(sources("wgsl")) {
        // Those that stand in a file of their own are no reason to look no further.
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        let num_lines = code.lines().count();
        assert!(num_lines <= 500, "{} has {num_lines} lines", path.display());
    }
}

#[test]
fn lines_are_short() {
    for (path, text) in sources("rs").into_iter().chain(sources("wgsl")) {
        for (number, line) in text.lines().enumerate() {
            let length = line.chars().count();
            assert!(length <= 100, "{}:{}: {length} columns", path.display(), number + 1);
        }
    }
}

/// Who may name a library: the rest of the system can do without it.
#[test]
fn libraries_are_named_only_where_they_belong() {
    let rules: [(&str, &[&str]); 8] = [
        // The peer is burn_wgpu, which gets the device from `shaders`.
        ("wgpu::", &["shaders/", "bench/engine/peer_burn.rs"]),
        ("quinn::", &["transport/"]),
        ("rustls::", &["transport/", "loadgen/client/", "bench/tests/", "batch/http.rs"]),
        ("axum::", &["coordinator/src/http", "loadgen/mock/", "bench/tests/"]),
        ("opentelemetry", &["telemetry/"]),
        ("bincode::encode_to_vec", &["protocol/codec.rs"]),
        ("llguidance::", &["coordinator/src/grammar/", "coordinator/src/guard.rs"]),
        ("ratatui::", &["coordinator/src/top"]),
    ];
    for (path, text) in sources("rs") {
        for (library, allowed) in rules {
            let path = path.to_string_lossy();
            let may =
                path.starts_with("tests/") || allowed.iter().any(|prefix| path.starts_with(prefix));
            assert!(may || !text.contains(library), "{path} names {library}");
        }
    }
}

/// Actors of other processes are reached through `transport::Remote` alone, which tells them and
/// asks them with a limit. A call without it may wait for ever, and to stop such a reference ends
/// the session with its process.
#[test]
fn remote_actors_are_told_and_asked_and_never_stopped() {
    let only_there: [(&str, &[&str]); 7] = [
        ("call_t!", &["transport/remote.rs"]),
        ("ractor::call", &["transport/remote.rs"]),
        ("rpc::", &["transport/remote.rs"]),
        ("multi_call", &["transport/remote.rs"]),
        ("call_and_forward", &["transport/remote.rs"]),
        // Each is local in one crate, and remote everywhere else.
        ("ActorRef<NodeMsg>", &["node/"]),
        ("ActorRef<CoordinatorMsg>", &["coordinator/"]),
    ];
    for (path, text) in sources("rs") {
        let path = path.to_string_lossy();
        for (word, allowed) in only_there {
            let may = path == "tests/tidy.rs" || allowed.iter().any(|it| path.starts_with(it));
            assert!(may || !text.contains(word), "{path} has {word}: use transport::Remote");
        }
        // Whoever finds actors in a group makes remote references of them.
        let finds = text.contains("pg::get_members") && !path.starts_with("tests/");
        assert!(!finds || text.contains("Remote::new("), "{path}: use transport::Remote");
    }
}

#[test]
fn every_kernel_has_its_launcher() {
    for (path, _) in sources("wgsl") {
        let name = path.file_stem().unwrap().to_string_lossy();
        // Parts of other kernels: how blocks of weights are decoded, how images are addressed, what
        // is read, how lanes add, what becomes of a product, how attention's partitions are laid
        // out and merged, what is done with experts, latent rows, chosen positions and a
        // vocabulary.
        let is_shared = ["image", "lanes"].contains(&&*name) || name.ends_with("_in");
        let is_part = name.starts_with("decode_") || is_shared;
        let families =
            ["matmul_", "experts_", "mla_", "index_", "attention_", "sample_", "row_scales"];
        if is_part || families.iter().any(|family| name.starts_with(family)) {
            continue;
        }
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let launcher = root.join(&path).with_extension("rs");
        assert!(launcher.is_file(), "{} has no {}", path.display(), launcher.display());
    }
}

#[test]
fn nothing_unfinished_is_left() {
    for (path, text) in sources("rs") {
        if path.ends_with("tests/tidy.rs") {
            continue;
        }
        for word in ["todo!(", "unimplemented!(", "dbg!(", "#[ignore"] {
            assert!(!text.contains(word), "{} has {word}", path.display());
        }
    }
}
