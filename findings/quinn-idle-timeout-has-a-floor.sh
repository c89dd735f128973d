#!/usr/bin/env bash
# quinn 0.11.12: a connection whose `max_idle_timeout` is 300 ms is kept for 1.9 seconds of silence
# where the way there and back takes 600 ms.
#
# The timeout that is configured is no upper bound: QUIC waits for at least three probe timeouts,
# each of them the smoothed round trip, four times its variation and the peer's delay of
# acknowledgements (RFC 9000, 10.1), and quinn's documentation of the setting names only the
# smaller of both sides' values. The first guess of the round trip is a third of a second, so a
# connection that has just begun is slow to end on any way. Whoever takes the idle timeout for the
# time after which a dead peer is noticed is wrong by a factor that the network chooses; a detector
# with a bound needs a clock of its own. Seen: 0.37 s over loopback, 1.93 s over 600 ms.
#
# Fails when the behaviour has changed. Needs cargo and a minute.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir "$folder/src"
cat >"$folder/Cargo.toml" <<'END'
[package]
name = "idle"
version = "0.1.0"
edition = "2024"
[dependencies]
quinn = { version = "=0.11.12", default-features = false, features = ["runtime-tokio", "rustls-ring"] }
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

use tokio::net::UdpSocket;

/// Passes packets on, so much later, until it is cut.
async fn relay(to: SocketAddr, delay: Duration, is_cut: Arc<AtomicBool>) -> SocketAddr {
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
                let from = if is_going { &near } else { &far };
                let (length, addr) = from.recv_from(&mut bytes).await.unwrap();
                if is_going {
                    *dialler.lock().unwrap() = Some(addr);
                }
                let (packet, onto) = (bytes[..length].to_vec(), if is_going { &far } else { &near });
                let (onto, is_cut) = (onto.clone(), is_cut.clone());
                let to = if is_going { to } else { dialler.lock().unwrap().unwrap() };
                tokio::spawn(async move {
                    tokio::time::sleep(delay).await;
                    if !is_cut.load(Ordering::Relaxed) {
                        let _ = onto.send_to(&packet, to).await;
                    }
                });
            }
        });
    }
    addr
}

#[tokio::main]
async fn main() {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let mut transport = quinn::TransportConfig::default();
    transport.max_idle_timeout(Some(Duration::from_millis(300).try_into().unwrap()));
    transport.keep_alive_interval(Some(Duration::from_millis(100)));
    let transport = Arc::new(transport);
    let certificate = made.cert.der().clone();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let server = quinn::ServerConfig::with_single_cert(vec![certificate.clone()], key.into());
    let mut server = server.unwrap();
    server.transport_config(transport.clone());
    let server = quinn::Endpoint::server(server, "127.0.0.1:0".parse().unwrap()).unwrap();
    let addr = server.local_addr().unwrap();
    tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Some(incoming) = server.accept().await {
            kept.push(tokio::spawn(async move { incoming.await.unwrap().closed().await }));
        }
    });
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate).unwrap();
    let mut client = quinn::ClientConfig::with_root_certificates(Arc::new(roots)).unwrap();
    client.transport_config(transport);
    let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    for one_way_ms in [0, 300] {
        let is_cut = Arc::new(AtomicBool::new(false));
        let way = relay(addr, Duration::from_millis(one_way_ms), is_cut.clone()).await;
        let connecting = endpoint.connect_with(client.clone(), way, "localhost").unwrap();
        let connection = connecting.await.unwrap();
        // Until its guess of the round trip is a measured one.
        tokio::time::sleep(Duration::from_secs(8)).await;
        is_cut.store(true, Ordering::Relaxed);
        let cut = Instant::now();
        let cause = connection.closed().await;
        println!("{} {} {cause}", 2 * one_way_ms, cut.elapsed().as_millis());
    }
}
END
cd "$folder"
export CARGO_TARGET_DIR=$folder/target
cargo build --quiet
target/debug/idle >said
cat said
# Round trip, then milliseconds from the cut to the end.
awk '$1 == 0 { near = $2 } $1 == 600 { far = $2 } END { exit !(near < 1500 && far > 1800) }' said
