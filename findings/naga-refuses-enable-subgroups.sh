#!/usr/bin/env bash
# naga 30.0.1 (wgpu's shader compiler): `enable subgroups;` is refused, "not yet supported", while
# subgroupAdd and the others compile without it.
#
# The WGSL standard has it the other way round: the subgroup builtins exist only in a module that
# begins with that directive, and browsers' compilers insist on it. So no WGSL text that uses
# subgroups is good for both: whoever keeps one source for wgpu and for a browser has to strip or
# add the line. f16 is as the standard says: refused without `enable f16;`, accepted with it.
#
# Fails when the behaviour has changed. Needs cargo and half a minute.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir "$folder/src"
cat >"$folder/Cargo.toml" <<'END'
[package]
name = "subgroups"
version = "0.1.0"
edition = "2024"
[dependencies]
naga = { version = "=30.0.1", default-features = false, features = ["wgsl-in"] }
[profile.dev]
debug = false
END
cat >"$folder/src/main.rs" <<'END'
use naga::front::wgsl::parse_str;
use naga::valid::{Capabilities, ValidationFlags, Validator};

fn compile(source: &str) -> Result<(), String> {
    let module = parse_str(source).map_err(|error| error.message().to_string())?;
    Validator::new(ValidationFlags::all(), Capabilities::all())
        .validate(&module)
        .map(|_| ())
        .map_err(|error| error.to_string())
}

fn main() {
    let kernel = |value: &str| {
        format!(
            "@group(0) @binding(0) var<storage, read_write> x: array<f32>;
            @compute @workgroup_size(32)
            fn main(@builtin(local_invocation_index) lane: u32) {{ x[lane] = {value}; }}"
        )
    };
    let sum = kernel("subgroupAdd(x[lane])");
    compile(&sum).expect("without the directive");
    let refused = compile(&format!("enable subgroups;\n{sum}"))
        .expect_err("`enable subgroups;` is accepted now");
    println!("{refused}");
    let half = kernel("f32(f16(x[lane]))");
    compile(&half).expect_err("f16 needs no directive now");
    compile(&format!("enable f16;\n{half}")).expect("f16 with its directive");
    println!("as described");
}
END
cargo run --quiet --manifest-path "$folder/Cargo.toml" --target-dir "$folder/target"
