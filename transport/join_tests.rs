use protocol::{OLDEST_WIRE_VERSION, WIRE_VERSION, codec};

use super::*;
use crate::endpoint::Incoming;
use crate::tests::{NODE, Pair, coordinator, join, let_in, loopback, token};

/// Lets in whoever comes next, if it knows `token`.
async fn admit(
    coordinator: &Endpoint,
    authority: &Authority,
    token: &Token,
) -> Result<NodeId, JoinError> {
    let key = token.key();
    let decide = |applicant: &Applicant| match applicant.knows(&key) {
        true => Verdict::Admitted { pool: "a".into() },
        false => Verdict::Refused("no token".into()),
    };
    let_in(coordinator, authority, &Transport::default(), decide).await
}

/// What a node says that proves nothing.
fn hello(node: NodeId) -> Hello {
    let certificate_request = NodeKey::new().unwrap().request().unwrap();
    Hello { node, pool: String::new(), certificate_request, proof: None, is_trial: false }
}

/// Says what it likes once it is connected.
async fn knock(
    coordinator: &Endpoint,
    wire_version: u16,
    hello: impl FnOnce(&quinn::Connection) -> Hello,
) -> Answer {
    let stranger = Endpoint::bind(loopback(), None, &Transport::default()).unwrap();
    let crypto = tls::attacker(None, JOIN.map(|(_, name)| name));
    let addr = coordinator.local_addr();
    let connecting = stranger.connect(addr, crypto, Purpose::Control, "coordinator.autoglm");
    let connection = connecting.await.unwrap();
    let (mut send, mut receive) = connection.open_bi().await.unwrap();
    send.write_all(&wire_version.to_le_bytes()).await.unwrap();
    write_message(&mut send, &hello(&connection)).await.unwrap();
    let answer = read_message(&mut receive).await.unwrap();
    stranger.close("joined").await;
    answer
}

#[tokio::test]
async fn a_node_of_another_wire_version_is_refused_by_name() {
    let (coordinator, authority, dir) = coordinator(&Transport::default());
    let token = token(&authority, &dir);
    // One that is older, one that is newer, and one that says another than was agreed on.
    for theirs in [3, 9, OLDEST_WIRE_VERSION] {
        let hello = |_: &_| hello(NodeId(1));
        let knocking = knock(&coordinator, theirs, hello);
        let (answer, admitted) = tokio::join!(knocking, admit(&coordinator, &authority, &token));
        assert!(admitted.unwrap_err().is_final());
        let Answer::Refused(reason) = answer else { panic!("{answer:?}") };
        let expected = format!("the node speaks wire version {theirs}, this coordinator 4 to 5");
        assert!(reason.starts_with(&expected) && reason.contains("the release"), "{reason}");
    }
}

#[tokio::test]
async fn a_request_without_a_certificate_request_is_refused() {
    let (coordinator, authority, dir) = coordinator(&Transport::default());
    let token = token(&authority, &dir);
    let hello = |connection: &_| {
        let mut hello = Hello { certificate_request: vec![0x30; 1000], ..hello(NodeId(1)) };
        hello.proof = Some(token.prove(&statement(connection, &hello).unwrap()));
        hello
    };
    let asking = knock(&coordinator, WIRE_VERSION, hello);
    let (answer, admitted) = tokio::join!(asking, admit(&coordinator, &authority, &token));
    assert!(admitted.is_err());
    assert!(matches!(answer, Answer::Refused(_)), "{answer:?}");
}

/// Goal: a proof lets in its maker only. Method: none at all, one by another secret, and good
/// ones for another node, another pool, another key and of another TLS session.
#[tokio::test]
async fn only_who_knows_the_token_joins() {
    let (coordinator, authority, dir) = coordinator(&Transport::default());
    let (token, other) = (token(&authority, &dir), Token::new(&authority).unwrap());
    let told = hello(NODE);
    let prove = |token: &Token, connection: &_, hello: &Hello| {
        Some(token.prove(&statement(connection, hello).unwrap()))
    };
    let elsewhere = [
        Hello { node: NodeId(2), ..told.clone() },
        Hello { pool: "gpu-a".into(), ..told.clone() },
        Hello { certificate_request: hello(NODE).certificate_request, ..told.clone() },
    ];
    let mut earlier = None;
    for number in 0..7 {
        let may = number == 5;
        let hello = |connection: &_| {
            let proof = match number {
                0 => None,
                1 => prove(&other, connection, &told),
                2..5 => prove(&token, connection, &elsewhere[number - 2]),
                5 => prove(&token, connection, &told),
                // What the last one said, heard and said again.
                _ => earlier.clone(),
            };
            earlier.clone_from(&proof);
            Hello { proof, ..told.clone() }
        };
        let asking = knock(&coordinator, WIRE_VERSION, hello);
        let (answer, admitted) = tokio::join!(asking, admit(&coordinator, &authority, &token));
        match answer {
            Answer::Welcome(_) => assert!(may && admitted.unwrap() == NODE, "{number}"),
            Answer::Refused(said) => assert!(!may && said == "no token", "{number}: {said}"),
            other => panic!("{other:?}"),
        }
    }
}

/// The secret of a token isn't proven to whoever listens on the coordinator's port.
#[tokio::test]
async fn a_node_tells_another_coordinator_nothing() {
    let (coordinator, _authority, _dir) = coordinator(&Transport::default());
    let elsewhere = tempfile::tempdir().unwrap();
    let other = Authority::load_or_create(elsewhere.path()).unwrap();
    let token = token(&other, &elsewhere);
    let config = Transport::default();
    let error = join(coordinator.local_addr(), NODE, &token, &config).await.unwrap_err();
    assert!(!error.is_final(), "the right one may come");
    assert!(error.to_string().contains("of another coordinator"), "{error}");
    let nobody = tokio::time::timeout(Duration::from_millis(100), coordinator.accept()).await;
    assert!(nobody.is_err(), "{nobody:?}");
}

#[tokio::test]
async fn a_member_renews_its_own_certificate_and_no_other() {
    let pair = Pair::new(&Transport::default()).await;
    let (identity, config) = (pair.node.identity().unwrap(), Transport::default());
    for (node, may) in [(NODE, true), (NodeId(7), false)] {
        let renewing =
            renew(pair.coordinator.local_addr(), node, &identity, (&config, WIRE_VERSION));
        let decide = |applicant: &Applicant| {
            let pool = applicant.member.clone();
            // It stays where it was.
            assert_eq!(pool.as_deref(), Some("gpu-a"));
            Verdict::Admitted { pool: pool.unwrap() }
        };
        let answering = let_in(&pair.coordinator, &pair.authority, &config, decide);
        let (renewed, admitted) = tokio::join!(renewing, answering);
        assert_eq!((renewed.is_ok(), admitted.is_ok()), (may, may), "{renewed:?}");
        if let Err(error) = renewed {
            assert!(error.to_string().contains("may not have the certificate of"), "{error}");
        }
    }
}

/// Goal: clocks that differ are told from another cluster, by either end. Method: a member whose
/// certificate is over in the coordinator's eyes, and a coordinator whose is in a node's.
#[tokio::test]
async fn a_certificate_that_is_over_by_one_of_two_clocks_is_said_to_be() {
    let (coordinator, authority, dir) = coordinator(&Transport::default());
    let (token, config) = (token(&authority, &dir), Transport::default());
    let mut old = authority.old_coordinator_identity();
    let by_member = renew(coordinator.local_addr(), NODE, &old, (&config, WIRE_VERSION)).await;
    old.chain.push(authority.certificate().into());
    let slept = Endpoint::bind(loopback(), Some(old), &config).unwrap();
    let by_stranger = join(slept.local_addr(), NODE, &token, &config).await;
    for error in [by_member.unwrap_err(), by_stranger.unwrap_err()] {
        let is_told = matches!(error, JoinError::Transport(TransportError::OtherTime { .. }));
        assert!(is_told && !error.is_final(), "{error}");
        assert!(error.to_string().contains("certificate expired"), "{error}");
    }
}

#[tokio::test]
async fn a_node_that_is_refused_for_now_may_ask_again() {
    let (coordinator, authority, dir) = coordinator(&Transport::default());
    let (token, config) = (token(&authority, &dir), Transport::default());
    let later = |_: &Applicant| Verdict::NotNow("connected already".into());
    let answering = let_in(&coordinator, &authority, &config, later);
    let joining = join(coordinator.local_addr(), NODE, &token, &config);
    let (joined, answered) = tokio::join!(joining, answering);
    answered.unwrap();
    let error = joined.unwrap_err();
    assert!(!error.is_final() && error.to_string().contains("connected already"), "{error}");
}

#[tokio::test]
async fn a_coordinator_that_does_not_answer_is_named() {
    let (_coordinator, authority, dir) = coordinator(&Transport::default());
    let token = token(&authority, &dir);
    let config = Transport { connect_timeout_ms: 300, ..Transport::default() };
    let silent = std::net::UdpSocket::bind(loopback()).unwrap();
    let addr = silent.local_addr().unwrap();
    let error = join(addr, NodeId(1), &token, &config).await.unwrap_err();
    assert!(!error.is_final());
    assert_eq!(error.to_string(), format!("can't reach {addr}: no answer within 300 ms"));
}

#[tokio::test]
async fn a_port_that_nobody_listens_on_is_not_waited_for() {
    let (_coordinator, authority, dir) = coordinator(&Transport::default());
    let token = token(&authority, &dir);
    let config = Transport { connect_timeout_ms: 60_000, ..Transport::default() };
    let addr = std::net::UdpSocket::bind(loopback()).unwrap().local_addr().unwrap();
    let error = join(addr, NodeId(1), &token, &config).await.unwrap_err();
    assert!(!error.is_final() && error.to_string().contains("connection refused"), "{error}");
}

/// Whoever connects to join and is not heard gets no connection to keep.
#[tokio::test]
async fn a_join_that_is_not_taken_up_is_closed() {
    let config = Transport { connect_timeout_ms: 300, ..Transport::default() };
    let (coordinator, _authority, _dir) = coordinator(&config);
    let stranger = Endpoint::bind(loopback(), None, &config).unwrap();
    let addr = coordinator.local_addr();
    for is_asked in [false, true] {
        let crypto = tls::attacker(None, JOIN.map(|(_, name)| name));
        let connection =
            stranger.connect(addr, crypto, Purpose::Control, "any.autoglm").await.unwrap();
        let Some(Incoming::Join(request)) = coordinator.accept().await else { panic!() };
        if is_asked {
            let error = request.hear(&config).await.unwrap_err();
            assert!(error.to_string().contains("too long to ask"), "{error}");
        } else {
            drop(request);
        }
        let ended = connection.closed().await;
        assert!(matches!(ended, quinn::ConnectionError::ApplicationClosed(_)), "{ended}");
    }
}

/// Those of the files, whatever the defaults are now.
fn settings_said() -> Transport {
    Transport { keep_alive_ms: 77, idle_timeout_ms: 1500, ..Transport::default() }
}

/// What is said at the door where both sides speak this version.
fn said(version: u16) -> Vec<(&'static str, Vec<u8>)> {
    let hello = Hello {
        node: NodeId(0xabc),
        pool: "gpu-a".into(),
        certificate_request: vec![1, 2, 3],
        proof: Some(Proof::of("local", vec![4, 5, 6])),
        is_trial: true,
    };
    let config = settings_said();
    let welcome = Welcome {
        certificate: vec![7],
        authority: vec![8, 9],
        transport: &config,
        cookie: "cookie".into(),
        is_open: true,
    };
    let welcome = match version {
        ..5 => Answer::WelcomeThen(welcome.map(SettingsThen::from)),
        // The settings that there are may become more.
        _ => Answer::Welcome(welcome.map(|_| "keep_alive_ms = 77\n".into())),
    };
    let bytes = |answer| codec::encode(&answer);
    vec![
        ("Answer::NotNow", bytes(Answer::NotNow("later".into()))),
        ("Answer::Passed", bytes(Answer::Passed(-5))),
        ("Answer::Refused", bytes(Answer::Refused("no".into()))),
        ("Answer::Welcome", bytes(welcome)),
        ("Hello", codec::encode(&hello)),
    ]
}

/// Goal: a process of another version is understood, and understands. Method: the bytes that each
/// version was found to say, which stay as they are once it is released.
#[test]
fn what_each_version_says_at_the_door_stays_as_it_is() {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    for (version, file) in [
        (4, include_str!("../tests/corpora/join-4.txt")),
        (5, include_str!("../tests/corpora/join-5.txt")),
    ] {
        let now = said(version);
        let text: String = now.iter().map(|(name, it)| format!("{name} {}\n", hex(it))).collect();
        assert_eq!(text, file, "version {version} says something else now");
        for (name, bytes) in now {
            if name == "Hello" {
                codec::decode::<Hello>(&bytes).unwrap();
                continue;
            }
            match codec::decode::<Answer>(&bytes).unwrap() {
                Answer::WelcomeThen(welcome) => {
                    assert_eq!(Transport::from(welcome.transport), settings_said());
                }
                // What isn't said is as it is by default.
                Answer::Welcome(welcome) => {
                    let told = Transport::hear(&welcome.transport).unwrap();
                    assert_eq!(told, Transport { keep_alive_ms: 77, ..Transport::default() });
                }
                _ => {}
            }
        }
    }
    assert_eq!(OLDEST_WIRE_VERSION, 4, "a file of a version that is spoken no more serves nobody");
}

/// Goal: nothing that is said at the door does harm to whoever reads it. Method: what each version
/// says, with its end missing or a byte of it changed.
#[test]
fn whatever_is_said_at_the_door_is_read_or_refused() {
    let read = |bytes: &[u8]| {
        if let Ok(hello) = codec::decode::<Hello>(bytes) {
            let _ = certs::requested_key(&hello.certificate_request);
        }
        if let Ok(Answer::Welcome(welcome)) = codec::decode(bytes) {
            let _ = Transport::hear(&welcome.transport);
        }
    };
    for (_, mut said) in [4, 5].into_iter().flat_map(said) {
        for at in 0..said.len() {
            read(&said[..at]);
            let was = said[at];
            for byte in 0..=u8::MAX {
                said[at] = byte;
                read(&said);
            }
            said[at] = was;
        }
    }
}

/// Goal: nodes and coordinators of both versions meet. Method: each of them in each version joins,
/// and both connections agree on the older of the two; two nodes agree on theirs in the same way.
#[tokio::test]
async fn whoever_meets_an_older_version_speaks_that() {
    for (theirs, ours) in [(4, 5), (5, 4), (4, 4), (5, 5)] {
        let (config, agreed) = (Transport::default(), theirs.min(ours));
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::load_or_create(dir.path()).unwrap();
        let identity = authority.coordinator_identity(1).unwrap();
        let bind = |newest, identity| {
            Endpoint::speaking(newest, loopback(), Some(identity), &config).unwrap()
        };
        let coordinator = bind(theirs, identity);
        let token = token(&authority, &dir);
        let key = NodeKey::new().unwrap();
        let (addr, node) = (coordinator.local_addr(), NODE);
        let joining =
            Joining { coordinator: addr, node, key: &key, pool: "", config: &config, newest: ours };
        let admitted = admit(&coordinator, &authority, &token);
        let (joined, admitted) = tokio::join!(joining.by_token(&token), admitted);
        assert_eq!(admitted.unwrap(), NODE);
        let joined = joined.unwrap();
        assert_eq!(joined.transport, config);
        let node = bind(ours, joined.identity);
        for (from, to, peer) in [
            (&node, &coordinator, PeerName::Coordinator),
            (&coordinator, &node, PeerName::Node(NODE)),
        ] {
            for purpose in [Purpose::Control, Purpose::Data] {
                let dial = from.dial(to.local_addr(), purpose, peer);
                let (dialled, accepted) = tokio::join!(dial, to.accept());
                let (Incoming::Control(accepted) | Incoming::Data(accepted)) = accepted.unwrap()
                else {
                    panic!()
                };
                let agreed = (agreed, agreed);
                assert_eq!((dialled.unwrap().wire_version(), accepted.wire_version()), agreed);
            }
        }
    }
}

/// Somebody who speaks nothing that this process does is told which versions it speaks.
#[tokio::test]
async fn members_without_a_version_in_common_say_so() {
    let pair = Pair::new(&Transport::default()).await;
    let identity = pair.node.identity().unwrap();
    let crypto = tls::attacker(Some(&identity), [&b"autoglm-data/9"[..]]);
    let addr = pair.coordinator.local_addr();
    let name = "coordinator.autoglm";
    let error = pair.node.connect(addr, crypto, Purpose::Data, name).await.unwrap_err();
    assert!(
        error.to_string().contains("no wire version that this process does (4 to 5)"),
        "{error}"
    );
}

/// Goal: whoever stands between a node and its coordinator learns nothing of the token and gets
/// nobody in. Method: a relay that ends TLS itself, with an authority of its own, with the right
/// authority's certificate shown beside a leaf that isn't of it, and as a member of the cluster
/// that it isn't the coordinator of. Then a node that would trust anybody: what the relay hears of
/// it and says to the coordinator proves nothing there.
#[tokio::test]
async fn a_man_in_the_middle_learns_nothing_and_gets_nobody_in() {
    let (coordinator, authority, dir) = coordinator(&Transport::default());
    let (token, config) = (token(&authority, &dir), Transport::default());
    let elsewhere = tempfile::tempdir().unwrap();
    let own = Authority::load_or_create(elsewhere.path()).unwrap();
    let mut pretends = own.coordinator_identity(1).unwrap();
    pretends.chain = vec![pretends.chain[0].clone(), authority.certificate().into()];
    let mut member = authority.node_identity(NodeId(66), "a").unwrap();
    member.chain.push(authority.certificate().into());
    for identity in [own.coordinator_identity(1).unwrap(), pretends, member] {
        let relay = Endpoint::bind(loopback(), Some(identity), &config).unwrap();
        let error = join(relay.local_addr(), NODE, &token, &config).await.unwrap_err();
        assert!(!error.is_final(), "the right one may be there again");
        assert!(matches!(error, JoinError::Transport(_)), "{error}");
        let heard = tokio::time::timeout(Duration::from_millis(100), relay.accept()).await;
        assert!(heard.is_err(), "{heard:?}");
    }

    let relay = own.coordinator_identity(1).unwrap();
    let relay = Endpoint::bind(loopback(), Some(relay), &config).unwrap();
    let told = hello(NODE);
    let naive = |connection: &_| {
        let proof = token.prove(&statement(connection, &told).unwrap());
        Hello { proof: Some(proof), ..told.clone() }
    };
    let relaying = async {
        let Some(Incoming::Join(request)) = relay.accept().await else { panic!() };
        let (mut send, mut receive) = request.connection.accept_bi().await.unwrap();
        receive.read_exact(&mut [0; 2]).await.unwrap();
        let heard: Hello = read_message(&mut receive).await.unwrap();
        let asking = knock(&coordinator, WIRE_VERSION, |_: &_| heard);
        let (answer, admitted) = tokio::join!(asking, admit(&coordinator, &authority, &token));
        assert!(matches!(&answer, Answer::Refused(said) if said == "no token"), "{answer:?}");
        admitted.unwrap();
        write_message(&mut send, &answer).await.unwrap();
        request.connection.closed().await;
    };
    let (answer, ()) = tokio::join!(knock(&relay, WIRE_VERSION, naive), relaying);
    assert!(matches!(answer, Answer::Refused(_)));
    // In between the token is as good as ever.
    let joining = join(coordinator.local_addr(), NODE, &token, &config);
    let (joined, admitted) = tokio::join!(joining, admit(&coordinator, &authority, &token));
    assert!(joined.is_ok() && admitted.is_ok());
}
