#!/usr/bin/env bash
# serde_json 1.0.145 reads the number -0 as a float: as_i64 of it is None and is_i64 is false, while
# Python's json and JSON Schema take it for an integer. A model that is bound to a schema may well
# write it (SmolLM2 did for "integer"), so whoever checks integers with as_i64 refuses a valid answer.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
mkdir src
cat >Cargo.toml <<'END'
[package]
name = "minus-zero"
version = "0.1.0"
edition = "2024"
[dependencies]
serde_json = "=1.0.145"
[workspace]
END
cat >src/main.rs <<'END'
fn main() {
    for text in ["0", "-1", "-0"] {
        let value: serde_json::Value = serde_json::from_str(text).unwrap();
        println!("{text}: as_i64 {:?}, as_f64 {:?}", value.as_i64(), value.as_f64());
    }
}
END
found=$(cargo run --quiet)
expected='0: as_i64 Some(0), as_f64 Some(0.0)
-1: as_i64 Some(-1), as_f64 Some(-1.0)
-0: as_i64 None, as_f64 Some(-0.0)'
echo "$found"
[ "$found" = "$expected" ] || { echo "it changed: expected $expected" >&2; exit 1; }
python3 -c 'import json; assert isinstance(json.loads("-0"), int)'
echo "as stated: -0 is an integer to Python, and none to serde_json"
