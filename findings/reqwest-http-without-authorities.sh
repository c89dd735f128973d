#!/usr/bin/env bash
# reqwest 0.13.5: once any crate of a workspace turns its feature `rustls` on, no client can be made
# on a system without certificate authorities, not even one that only ever asks http://.
#
# Cargo builds reqwest once for all members, with the features of all. `plain` below asks for no TLS
# and, built by itself, makes a client; built beside a neighbour that turns TLS on, the same source
# is told that the client can't be built ("No CA certificates were loaded from the system"), and
# `Client::new()` would panic. Debian's slim images have no authorities, so a program that worked in
# one ends when a crate next to it learns https. Seen with reqwest 0.13.5, rustls-platform-verifier
# 0.7.1, rustls-native-certs 0.8.
#
# Fails when the behaviour has changed. Needs cargo, a C compiler, and some minutes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir -p "$folder"/{plain,neighbour}/src "$folder/none"
cat >"$folder/Cargo.toml" <<'END'
[workspace]
resolver = "3"
members = ["plain", "neighbour"]
[profile.dev]
debug = false
END
cat >"$folder/plain/Cargo.toml" <<'END'
[package]
name = "plain"
version = "0.1.0"
edition = "2024"
[dependencies]
reqwest = { version = "=0.13.5", default-features = false, features = ["blocking"] }
END
cat >"$folder/plain/src/main.rs" <<'END'
fn main() {
    match reqwest::blocking::Client::builder().build() {
        Ok(_) => println!("a client"),
        Err(error) => println!("no client: {error:?}"),
    }
}
END
cat >"$folder/neighbour/Cargo.toml" <<'END'
[package]
name = "neighbour"
version = "0.1.0"
edition = "2024"
[dependencies]
reqwest = { version = "=0.13.5", default-features = false, features = ["rustls"] }
rustls-platform-verifier = "=0.7.1"
END
echo 'fn main() {}' >"$folder/neighbour/src/main.rs"

cd "$folder"
export CARGO_TARGET_DIR=$folder/target
# asked: what `plain` says where a folder without a certificate is all that the system names.
asked() { env -u SSL_CERT_FILE SSL_CERT_DIR="$folder/none" "$folder/target/debug/plain"; }
cargo build --quiet -p plain
alone=$(asked)
cargo build --quiet --workspace
beside=$(asked)
with=$("$folder/target/debug/plain")
printf 'built alone:              %s\n' "$alone"
printf 'beside a neighbour:       %s\n' "$beside"
printf 'the same, authorities:    %s\n' "$with"
[ "$alone" = "a client" ]
[[ $beside == "no client: "*"No CA certificates were loaded from the system"* ]]
