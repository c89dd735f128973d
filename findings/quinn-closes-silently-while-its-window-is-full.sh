#!/usr/bin/env bash
# quinn 0.11.12 (quinn-proto 0.11.19): who closes a connection while the congestion window is full
# sends nothing any more; the other side hears neither code nor reason, and waits for its idle
# timeout.
#
# CONNECTION_CLOSE is no frame that congestion control holds back (RFC 9002, 2 and 7), and what
# would open the window again, an acknowledgement, is no longer looked at on a closed connection.
# It isn't rare: the first window is ten packets of the size that packets begin with, so where MTU
# discovery may go to 6,500 bytes one probe and a stream or two fill it, and a server that turns a
# peer away right after its first request is silent in a quarter of all tries. A larger first window
# helps there; who closes in the middle of a transfer can only wait until it is through. Mended
# upstream in August 2026, in no release yet.
#
# Here packets to the peer are lost for a moment, so that the window of one connection is full when
# the way is good again; that of the other is larger than all that it sends. Seen: "timed out" after
# 1.5 s, "closed by peer" after 1 ms.
#
# Fails when the behaviour has changed. Needs cargo and a minute.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir "$folder/src"
cat >"$folder/Cargo.toml" <<'END'
[package]
name = "silent"
version = "0.1.0"
edition = "2024"
[dependencies]
quinn = { version = "=0.11.12", default-features = false, features = ["runtime-tokio", "rustls-ring"] }
quinn-proto = { version = "=0.11.19", default-features = false }
rustls = { version = "0.23", default-features = false, features = ["ring", "std"] }
rcgen = { version = "0.14", default-features = false, features = ["ring"] }
tokio = { version = "1", features = ["rt-multi-thread", "macros", "net", "time"] }
[profile.dev]
debug = false
END
cat >"$folder/src/main.rs" <<'END'
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use quinn::congestion::CubicConfig;
use quinn::{ClientConfig, Endpoint, ServerConfig, TransportConfig};
use tokio::net::UdpSocket;

/// Passes packets on, those that come back only while the way is not cut.
async fn relay(to: SocketAddr, is_cut: Arc<AtomicBool>) -> SocketAddr {
    let near = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let far = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let addr = near.local_addr().unwrap();
    let dialler = Arc::new(std::sync::Mutex::new(None));
    for is_going in [true, false] {
        let (near, far) = (near.clone(), far.clone());
        let (dialler, is_cut) = (dialler.clone(), is_cut.clone());
        tokio::spawn(async move {
            let mut bytes = vec![0; 65_536];
            loop {
                let (from, onto) = if is_going { (&near, &far) } else { (&far, &near) };
                let (length, addr) = from.recv_from(&mut bytes).await.unwrap();
                if is_going {
                    *dialler.lock().unwrap() = Some(addr);
                } else if is_cut.load(Ordering::Relaxed) {
                    continue;
                }
                let to = if is_going { to } else { dialler.lock().unwrap().unwrap() };
                onto.send_to(&bytes[..length], to).await.unwrap();
            }
        });
    }
    addr
}

async fn try_with(first_window: u64) -> (String, Duration) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let certificate = made.cert.der().clone();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let transport = || {
        let mut congestion = CubicConfig::default();
        congestion.initial_window(first_window);
        let mut transport = TransportConfig::default();
        transport.max_idle_timeout(Some(Duration::from_secs(2).try_into().unwrap()));
        transport.congestion_controller_factory(Arc::new(congestion));
        Arc::new(transport)
    };
    let mut server = ServerConfig::with_single_cert(vec![certificate.clone()], key.into()).unwrap();
    server.transport_config(transport());
    let server = Endpoint::server(server, "127.0.0.1:0".parse().unwrap()).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate).unwrap();
    let mut client = ClientConfig::with_root_certificates(Arc::new(roots)).unwrap();
    client.transport_config(transport());
    let endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let is_cut = Arc::new(AtomicBool::new(false));
    let way = relay(server.local_addr().unwrap(), is_cut.clone()).await;
    let dial = endpoint.connect_with(client, way, "localhost").unwrap();
    let accept = async { server.accept().await.unwrap().await.unwrap() };
    let (dialled, accepted) = tokio::join!(dial, accept);
    let dialled = dialled.unwrap();
    // Until nothing of the beginning is under way any more.
    tokio::time::sleep(Duration::from_millis(500)).await;
    is_cut.store(true, Ordering::Relaxed);
    let mut stream = accepted.open_uni().await.unwrap();
    let writing = tokio::spawn(async move { stream.write_all(&[0; 1 << 18]).await });
    tokio::time::sleep(Duration::from_millis(20)).await;
    is_cut.store(false, Ordering::Relaxed);
    let closed = Instant::now();
    accepted.close(7_u32.into(), b"go away");
    let cause = dialled.closed().await;
    drop(writing);
    (cause.to_string(), closed.elapsed())
}

#[tokio::main]
async fn main() {
    for first_window in [12_000, 4 << 20] {
        let (cause, took) = try_with(first_window).await;
        println!("{first_window} {} {cause}", took.as_millis());
    }
}
END
cd "$folder"
export CARGO_TARGET_DIR=$folder/target
cargo build --quiet
target/debug/silent >said
cat said
grep -q '^12000 .* timed out$' said
grep -q '^4194304 .* closed by peer: .*go away' said
