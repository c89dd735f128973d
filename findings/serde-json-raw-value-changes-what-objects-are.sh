#!/usr/bin/env bash
# serde_json 1.0.154: its feature raw_value, which any crate of a build may turn on for all, changes
# what a Value is read from. An object whose first key is the name that the library uses for raw
# values is then no object: the Value is whatever the JSON in that key's string says. Read as a map,
# the same text is an object with that key, so two readers of one text disagree about its fields.
# Found where cells of clients' rows were read both ways and looked up by name.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
mkdir src
cat >Cargo.toml <<'END'
[package]
name = "raw-value"
version = "0.1.0"
edition = "2024"
[dependencies]
serde_json = "=1.0.154"
[features]
raw = ["serde_json/raw_value"]
[workspace]
END
cat >src/main.rs <<'END'
use std::collections::HashMap;

use serde_json::Value;

fn main() {
    let text = r#"{"$serde_json::private::RawValue": "[7]"}"#;
    let value: Value = serde_json::from_str(text).unwrap();
    let map: HashMap<String, Value> = serde_json::from_str(text).unwrap();
    println!("an object: {}, a map of {}", value.is_object(), map.len());
}
END
found="without: $(cargo run --quiet)
with raw_value: $(cargo run --quiet --features raw)"
expected='without: an object: true, a map of 1
with raw_value: an object: false, a map of 1'
echo "$found"
[ "$found" = "$expected" ] || { echo "it changed: expected $expected" >&2; exit 1; }
echo "as stated: a feature decides whether this text is an object"
