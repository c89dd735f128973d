//! Whoever has no certificate and means harm: crowds, dawdlers and liars at the door. None gets in,
//! none keeps anything, and in between a good token is good.

use std::sync::Arc;
use std::time::Duration;

use protocol::WIRE_VERSION;
use protocol::config::Transport;

use crate::spoken::JOIN;
use crate::tests::{NODE, coordinator, join, loopback, token};
use crate::{
    Applicant, Authority, Endpoint, Incoming, PeerName, Purpose, Token, Verdict, accept_frames, tls,
};

/// Everything here is waited for as long: other things run beside it.
const PATIENCE: Duration = Duration::from_secs(60);

fn config() -> Transport {
    Transport {
        connect_timeout_ms: 2000,
        max_connections: 8,
        max_unvalidated_handshakes: 2,
        ..Transport::default()
    }
}

/// Meets whoever asks, as a coordinator does; what was wrong with those who may not join.
fn keep_door(
    coordinator: &Endpoint,
    authority: Authority,
    token: &Token,
) -> tokio::sync::mpsc::UnboundedReceiver<String> {
    let (tell, told) = tokio::sync::mpsc::unbounded_channel();
    let (coordinator, authority, key) = (coordinator.clone(), Arc::new(authority), token.key());
    tokio::spawn(async move {
        while let Some(incoming) = coordinator.accept().await {
            let Incoming::Join(request) = incoming else { panic!("{incoming:?}") };
            let (authority, key, tell) = (Arc::clone(&authority), key.clone(), tell.clone());
            tokio::spawn(async move {
                let asking = match request.hear(&config()).await {
                    Ok(asking) => asking,
                    Err(cause) => return drop(tell.send(cause.to_string())),
                };
                let may = |applicant: &Applicant| applicant.knows(&key);
                let verdict = match may(&asking.applicant) {
                    true => Verdict::Admitted { pool: "a".into() },
                    false => Verdict::Refused("no token".into()),
                };
                let _ = asking.answer(&authority, &config(), false, &verdict).await;
            });
        }
    });
    told
}

/// Joins with a good token, as soon as there is a place.
async fn is_let_in(coordinator: &Endpoint, token: &Token) {
    let joined = async {
        while let Err(cause) = join(coordinator.local_addr(), NODE, token, &config()).await {
            assert!(!cause.is_final(), "{cause}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, joined).await.expect("a good token is good");
}

/// A connection that may ask to join, of somebody who trusts anybody.
async fn stranger(coordinator: &Endpoint) -> Option<(Endpoint, quinn::Connection)> {
    let stranger = Endpoint::bind(loopback(), None, &config()).unwrap();
    let crypto = tls::attacker(None, JOIN.map(|(_, name)| name));
    let addr = coordinator.local_addr();
    let connecting = stranger.connect(addr, crypto, Purpose::Control, "any.autoglm").await;
    Some((stranger, connecting.ok()?))
}

#[tokio::test]
async fn what_is_too_long_or_too_slow_is_cut_off_and_named() {
    let (coordinator, authority, dir) = coordinator(&config());
    let token = token(&authority, &dir);
    let mut told = keep_door(&coordinator, authority, &token);
    let version = WIRE_VERSION.to_le_bytes();
    let huge = [&version[..], &u32::MAX.to_le_bytes()].concat();
    let rubbish = [&version[..], &8_u32.to_le_bytes(), &[0xff; 8]].concat();
    for (said, expected) in [
        (&huge[..], "is too long"),
        (&rubbish[..], "malformed"),
        // It says that more will come.
        (&huge[..3], "too long to ask"),
        (&[][..], "too long to ask"),
    ] {
        let (_stranger, connection) = stranger(&coordinator).await.unwrap();
        let (mut send, _receive) = connection.open_bi().await.unwrap();
        for byte in said {
            send.write_all(&[*byte]).await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // It would keep the connection, told why or not.
        let cause = tokio::time::timeout(PATIENCE, told.recv()).await.unwrap().unwrap();
        assert!(cause.contains(expected), "{said:?}: {cause}");
        tokio::time::timeout(PATIENCE, connection.closed()).await.expect("it is cut off");
        is_let_in(&coordinator, &token).await;
    }
}

/// Goal: a crowd that connects and says nothing holds no more places than there are, and keeps
/// nobody out for longer than it may dawdle.
#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_takes_no_more_places_than_there_are_and_keeps_nobody_out() {
    let (coordinator, authority, dir) = coordinator(&config());
    let token = token(&authority, &dir);
    let mut told = keep_door(&coordinator, authority, &token);
    let crowd = futures::future::join_all((0..100).map(|_| stranger(&coordinator)));
    let crowd: Vec<_> = crowd.await.into_iter().flatten().collect();
    is_let_in(&coordinator, &token).await;
    for (_, connection) in &crowd {
        tokio::time::timeout(PATIENCE, connection.closed()).await.expect("it is cut off");
    }
    let mut num_heard = 0;
    while let Ok(cause) = told.try_recv() {
        assert!(cause.contains("too long to ask") || cause.contains("closed"), "{cause}");
        num_heard += 1;
    }
    assert!(num_heard <= crowd.len(), "{num_heard}");
    is_let_in(&coordinator, &token).await;
}

/// Where the coordinator that is flooded keeps its data.
const FLOODED: &str = "AUTOGLM_FLOODED";

/// More than it may take whatever comes, far less than what is promised to it.
const MAX_GROWN_BYTES: usize = 128 << 20;

fn flooded() -> Transport {
    Transport { max_connections: 64, data_window_bytes: 1 << 20, ..config() }
}

/// A coordinator in a process of its own, so that its memory is nobody else's: reads whatever
/// members send, until its standard input ends. Does nothing unless
/// `memory_stays_bounded_whatever_comes` runs it.
#[test]
fn a_coordinator_that_is_flooded() {
    let Some(dir) = std::env::var_os(FLOODED) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let authority = Authority::load_or_create(dir.as_ref()).unwrap();
        let path = std::path::Path::new(&dir).join("join.token");
        let key = Token::load_or_create(&path, &authority).unwrap().key();
        let identity = authority.coordinator_identity(1).unwrap();
        let endpoint = Endpoint::bind(loopback(), Some(identity), &flooded()).unwrap();
        println!("listening {}", endpoint.local_addr());
        let authority = Arc::new(authority);
        let serving = async {
            while let Some(incoming) = endpoint.accept().await {
                let (authority, key) = (Arc::clone(&authority), key.clone());
                tokio::spawn(async move {
                    match incoming {
                        Incoming::Join(request) => {
                            let Ok(asking) = request.hear(&flooded()).await else { return };
                            let verdict = match asking.applicant.knows(&key) {
                                true => Verdict::Admitted { pool: "a".into() },
                                false => Verdict::Refused("no token".into()),
                            };
                            let _ = asking.answer(&authority, &flooded(), false, &verdict).await;
                        }
                        Incoming::Data(connection) => {
                            while let Ok((_, mut frames)) = accept_frames(&connection).await {
                                tokio::spawn(async move { while frames.recv().await.is_ok() {} });
                            }
                        }
                        Incoming::Control(_) => {}
                    }
                });
            }
        };
        let ended = tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new()));
        tokio::select! { () = serving => {}, _ = ended => {} }
    });
}

/// Bytes of memory that a process holds.
fn resident(pid: u32) -> usize {
    let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
    text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// Goal: nobody makes a coordinator take memory that it can't afford. Method: packets that are
/// none, crowds that promise long words and say half of them, and a member whose links promise
/// frames of 64 MiB each, of which it sends the beginning; in between a good token is good.
#[tokio::test(flavor = "multi_thread")]
async fn memory_stays_bounded_whatever_comes() {
    use std::io::BufRead;
    use std::process::{Command, Stdio};
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::load_or_create(dir.path()).unwrap();
    let token = token(&authority, &dir);
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "adversaries::a_coordinator_that_is_flooded", "--nocapture"])
        .env(FLOODED, dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
    let addr: std::net::SocketAddr = loop {
        let line = lines.next().expect("it listens").unwrap();
        if let Some((_, addr)) = line.split_once("listening ") {
            break addr.parse().unwrap();
        }
    };
    let let_in = async || {
        let joined = async {
            while let Err(cause) = join(addr, NODE, &token, &flooded()).await {
                assert!(!cause.is_final(), "{cause}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, joined).await.expect("a good token is good");
    };
    let_in().await;
    let before = resident(child.id());
    let look = |what: &str| {
        let grown = resident(child.id()).saturating_sub(before);
        println!("{what}: {} KiB more", grown >> 10);
        assert!(grown < MAX_GROWN_BYTES, "{what}: {grown} bytes more");
    };

    let socket = tokio::net::UdpSocket::bind(loopback()).await.unwrap();
    let mut packet = [0; 1200];
    for number in 0..20_000_u32 {
        // Half of them begin as a handshake of QUIC does.
        packet[..5].copy_from_slice(&[if number % 2 == 0 { 0xc0 } else { 0x40 }, 0, 0, 0, 1]);
        packet[5..13]
            .copy_from_slice(&u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
        let _ = socket.send_to(&packet, addr).await;
    }
    look("packets that are none");
    let_in().await;

    let long =
        [&WIRE_VERSION.to_le_bytes()[..], &(64_u32 << 10).to_le_bytes(), &[7; 60_000]].concat();
    let crowd = (0..200).map(async |_| {
        let endpoint = Endpoint::bind(loopback(), None, &flooded()).unwrap();
        let crypto = tls::attacker(None, JOIN.map(|(_, name)| name));
        let connecting = endpoint.connect(addr, crypto, Purpose::Control, "any.autoglm").await;
        let Ok(connection) = connecting else { return None };
        let (mut send, receive) = connection.open_bi().await.ok()?;
        let sent = tokio::time::timeout(Duration::from_millis(500), send.write_all(&long)).await;
        Some((endpoint, connection, send, receive, sent))
    });
    let crowd = futures::future::join_all(crowd).await;
    assert!(crowd.iter().flatten().count() > 0);
    look("a crowd of half-said words");
    drop(crowd);
    let_in().await;

    let identity = authority.node_identity(protocol::NodeId(9), "a").unwrap();
    let member = Endpoint::bind(loopback(), Some(identity), &flooded()).unwrap();
    let mut held = Vec::new();
    for _ in 0..4 {
        let connection = member.dial(addr, Purpose::Data, PeerName::Coordinator).await.unwrap();
        for _ in 0..16 {
            let mut stream = connection.connection.open_uni().await.unwrap();
            let stage = protocol::codec::encode(&protocol::StageId::default());
            let mut said = (stage.len() as u32).to_le_bytes().to_vec();
            said.extend(stage);
            said.extend(*b"AGLM\x03\x00\x01\x00");
            said.extend([0; 52]);
            said.extend((64_u32 << 20).to_le_bytes());
            said.extend([1; 100_000]);
            let writing = stream.write_all(&said);
            let _ = tokio::time::timeout(Duration::from_millis(500), writing).await;
            held.push(stream);
        }
        look("links that promise 1 GiB");
    }
    let_in().await;
    drop(child.stdin.take());
    child.wait().unwrap();
}
