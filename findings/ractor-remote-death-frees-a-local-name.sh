#!/usr/bin/env bash
# ractor_cluster 0.16.5: when an actor of another node ends, the local actor of the same name is no
# longer found by its name, although it lives.
#
# For each actor that another node tells of, ractor_cluster makes a stand-in with that actor's name.
# Stand-ins are not entered in the registry of names, but when one ends, the entry of its name is
# taken out, whoever's it is. Programs that start the same actors on every node, each under its
# name, therefore lose their own by the name as soon as any other node goes away: `where_is` says
# nothing, and the name can be given to a second actor. References that are held, process groups and
# the actor itself are as before. Names that are unique in the whole cluster avoid it.
#
# Fails when the behaviour has changed. Needs cargo and two minutes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir "$folder/src"
cat >"$folder/Cargo.toml" <<'END'
[package]
name = "names"
version = "0.1.0"
edition = "2024"
[dependencies]
ractor = { version = "=0.16.5", features = ["cluster"] }
ractor_cluster = "=0.16.5"
tokio = { version = "1", features = ["rt-multi-thread", "macros", "time"] }
[profile.dev]
debug = false
END
cat >"$folder/src/main.rs" <<'END'
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort, pg, registry};
use ractor_cluster::{NodeServer, NodeServerMessage, RactorClusterMessage, client_connect};

#[derive(RactorClusterMessage)]
enum Ask {
    #[rpc]
    Alive(RpcReplyPort<bool>),
}

struct Worker;

impl Actor for Worker {
    type Msg = Ask;
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<Ask>, _: ()) -> Result<(), ActorProcessingErr> {
        Ok(())
    }

    async fn handle(
        &self,
        _: ActorRef<Ask>,
        Ask::Alive(reply): Ask,
        _: &mut (),
    ) -> Result<(), ActorProcessingErr> {
        Ok(reply.send(true)?)
    }
}

/// A node, and its actor "worker" in the group "workers".
async fn node(name: &str, port: u16) -> (ActorRef<NodeServerMessage>, ActorRef<Ask>) {
    let server =
        NodeServer::new(port, "cookie".into(), name.into(), "localhost".into(), None, None);
    let (server, _) = Actor::spawn(None, server, ()).await.unwrap();
    let (worker, _) = Actor::spawn(Some("worker".into()), Worker, ()).await.unwrap();
    pg::join("workers".into(), vec![worker.get_cell()]);
    (server, worker)
}

async fn until_there_are(num: usize) {
    let began = Instant::now();
    while pg::get_members(&"workers".into()).len() != num {
        assert!(began.elapsed() < Duration::from_secs(30), "never {num} workers");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("[::]:0").unwrap().local_addr().unwrap().port()
}

#[tokio::main]
async fn main() {
    if let Some(port) = std::env::args().nth(1) {
        let (server, _) = node("other", free_port()).await;
        client_connect(&server, format!("localhost:{port}")).await.unwrap();
        std::future::pending::<()>().await;
    }
    let port = free_port();
    let (_, worker) = node("this", port).await;
    let found = || registry::where_is("worker").is_some();
    println!("alone: found {}", found());
    let program = std::env::current_exe().unwrap();
    let mut other =
        Command::new(program).arg(port.to_string()).stdin(Stdio::null()).spawn().unwrap();
    until_there_are(2).await;
    println!("beside another node's: found {}", found());
    other.kill().unwrap();
    other.wait().unwrap();
    until_there_are(1).await;
    let is_alive = ractor::call_t!(worker, Ask::Alive, 1000).unwrap();
    println!("when that is gone: found {}, alive {is_alive}", found());
}
END
cd "$folder"
export CARGO_TARGET_DIR=$folder/target
cargo build --quiet
target/debug/names | tee said
diff said - <<'END'
alone: found true
beside another node's: found true
when that is gone: found false, alive true
END
