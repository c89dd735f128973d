//! Two endpoints on loopback: who may connect, and when silence is a death. Other files' tests
//! begin with a [`Pair`].

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::time::{Duration, Instant};

use protocol::config::Transport;
use protocol::{Body, Frame, NodeId, Step, WIRE_VERSION};
use quinn::crypto::rustls::QuicClientConfig;
use tokio::net::UdpSocket;

use crate::spoken::{CONTROL, DATA, JOIN};
use crate::{
    Applicant, Authority, Connection, Endpoint, Incoming, JoinError, Joined, Joining, NodeKey,
    PeerName, Purpose, Token, TransportError, Verdict, accept_frames, open_frames, tls,
};

pub(crate) const NODE: NodeId = NodeId(0xabc);

pub(crate) fn loopback() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

pub(crate) fn coordinator(config: &Transport) -> (Endpoint, Authority, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::load_or_create(dir.path()).unwrap();
    let identity = authority.coordinator_identity(1).unwrap();
    (Endpoint::bind(loopback(), Some(identity), config).unwrap(), authority, dir)
}

pub(crate) fn token(authority: &Authority, dir: &tempfile::TempDir) -> Token {
    Token::load_or_create(&dir.path().join("join.token"), authority).unwrap()
}

/// Joins by a token, with a key of its own.
pub(crate) async fn join(
    coordinator: SocketAddr,
    node: NodeId,
    token: &Token,
    config: &Transport,
) -> Result<Joined, JoinError> {
    let key = &NodeKey::new().unwrap();
    let newest = WIRE_VERSION;
    Joining { coordinator, node, key, pool: "", config, newest }.by_token(token).await
}

/// Hears whoever asks next, and does with it what `decide` says.
pub(crate) async fn let_in(
    coordinator: &Endpoint,
    authority: &Authority,
    config: &Transport,
    decide: impl FnOnce(&Applicant) -> Verdict,
) -> Result<NodeId, JoinError> {
    let Some(Incoming::Join(request)) = coordinator.accept().await else { panic!() };
    let asking = request.hear(config).await?;
    let (node, verdict) = (asking.applicant.node, decide(&asking.applicant));
    asking.answer(authority, config, false, &verdict).await?;
    Ok(node)
}

/// A coordinator, and a node that has joined it.
pub(crate) struct Pair {
    pub(crate) coordinator: Endpoint,
    pub(crate) node: Endpoint,
    pub(crate) cookie: String,
    pub(crate) authority: Authority,
    _dir: tempfile::TempDir,
}

impl Pair {
    pub(crate) async fn new(config: &Transport) -> Self {
        let (coordinator, authority, dir) = coordinator(config);
        let token = token(&authority, &dir);
        let admit = async {
            let decide = |applicant: &Applicant| {
                assert!(applicant.knows(&token.key()) && applicant.member.is_none());
                assert_eq!(applicant.token(), Some("local"));
                Verdict::Admitted { pool: "gpu-a".into() }
            };
            assert_eq!(let_in(&coordinator, &authority, config, decide).await.unwrap(), NODE);
        };
        let default = Transport::default();
        let joining = join(coordinator.local_addr(), NODE, &token, &default);
        let (joined, ()) = tokio::join!(joining, admit);
        let joined = joined.unwrap();
        assert_eq!(joined.transport, *config);
        let node = Endpoint::bind(loopback(), Some(joined.identity), &joined.transport).unwrap();
        Self { coordinator, node, cookie: joined.cookie, authority, _dir: dir }
    }

    pub(crate) async fn connect(&self, purpose: Purpose) -> (Connection, Connection) {
        self.connect_through(self.coordinator.local_addr(), purpose).await
    }

    async fn connect_through(
        &self,
        addr: SocketAddr,
        purpose: Purpose,
    ) -> (Connection, Connection) {
        let dial = self.node.dial(addr, purpose, PeerName::Coordinator);
        let (dialled, accepted) = tokio::join!(dial, self.coordinator.accept());
        let accepted = match accepted {
            Some(Incoming::Control(accepted)) if purpose == Purpose::Control => accepted,
            Some(Incoming::Data(accepted)) if purpose == Purpose::Data => accepted,
            other => panic!("{other:?}"),
        };
        assert_eq!(accepted.peer(), PeerName::Node(NODE));
        (dialled.unwrap(), accepted)
    }
}

/// Why an attacker's connection ends, in the attacker's eyes.
async fn refused(attacker: &Endpoint, addr: SocketAddr, crypto: QuicClientConfig) -> String {
    match attacker.connect(addr, crypto, Purpose::Data, "coordinator.autoglm").await {
        Ok(connection) => connection.closed().await.to_string(),
        Err(cause) => cause.to_string(),
    }
}

#[tokio::test]
async fn a_node_joins_and_both_sides_know_each_other() {
    let pair = Pair::new(&Transport::default()).await;
    for purpose in [Purpose::Control, Purpose::Data] {
        let (dialled, accepted) = pair.connect(purpose).await;
        assert_eq!(dialled.peer(), PeerName::Coordinator);
        assert_eq!((dialled.pool(), accepted.pool()), (None, Some("gpu-a")));
        assert_eq!(accepted.remote_addr(), pair.node.local_addr());
        assert!(dialled.is_open() && dialled.is(&dialled.clone()) && !dialled.is(&accepted));
        assert!(dialled.rtt() < Duration::from_secs(1));
    }
}

/// On control and data: no certificate, and one of another authority. And a protocol that isn't
/// ours, with a good certificate.
#[tokio::test]
async fn whoever_is_not_a_member_is_refused() {
    let pair = Pair::new(&Transport::default()).await;
    let addr = pair.coordinator.local_addr();
    let dir = tempfile::tempdir().unwrap();
    let other = Authority::load_or_create(dir.path()).unwrap().coordinator_identity(1).unwrap();
    let attacker = Endpoint::bind(loopback(), None, &Transport::default()).unwrap();
    for protocol in [CONTROL, DATA] {
        let names = || protocol.map(|(_, name)| name);
        let cause = refused(&attacker, addr, tls::attacker(None, names())).await;
        assert!(cause.contains("certificate of the cluster"), "{cause}");
        let cause = refused(&attacker, addr, tls::attacker(Some(&other), names())).await;
        assert!(cause.contains("handshake"), "{cause}");
    }
    let member = pair.node.identity().unwrap();
    for names in [&[] as &[&[u8]], &[b"autoglm-ctl/2"], &[b"autoglm-ctl/2", b"h3"]] {
        let names = names.iter().copied();
        let cause = refused(&attacker, addr, tls::attacker(Some(&member), names)).await;
        assert!(cause.contains("no wire version"), "{cause}");
    }
    // None of them was handed out: the next to come in is the node.
    pair.connect(Purpose::Data).await;

    // The other way round: a member takes no other cluster's coordinator for its own.
    let other = Endpoint::bind(loopback(), Some(other), &Transport::default()).unwrap();
    let dialled = pair.node.dial(other.local_addr(), Purpose::Data, PeerName::Coordinator).await;
    assert!(matches!(dialled, Err(TransportError::Stranger { .. })), "{dialled:?}");
}

/// Somebody else's node does not pass for the one that was dialled.
#[tokio::test]
async fn a_member_is_not_another_member() {
    let pair = Pair::new(&Transport::default()).await;
    for (addr, wrong) in [
        (pair.coordinator.local_addr(), PeerName::Node(NodeId(7))),
        (pair.node.local_addr(), PeerName::Node(NodeId(7))),
        (pair.node.local_addr(), PeerName::Coordinator),
    ] {
        let dialled = pair.coordinator.dial(addr, Purpose::Data, wrong).await;
        assert!(matches!(dialled, Err(TransportError::Stranger { .. })), "{dialled:?}");
    }
    let addr = pair.node.local_addr();
    let dialled = pair.coordinator.dial(addr, Purpose::Data, PeerName::Node(NODE)).await.unwrap();
    assert_eq!(dialled.peer(), PeerName::Node(NODE));
}

#[tokio::test]
async fn a_certificate_is_renewed_when_most_of_its_life_is_over() {
    let (endpoint, authority, _dir) = coordinator(&Transport::default());
    let num_tries = AtomicU32::new(0);
    let renew = async |_| match num_tries.fetch_add(1, Relaxed) {
        0 => Err("the authority is away"),
        _ => Ok(authority.coordinator_identity(1).unwrap()),
    };
    let keep = || {
        let kept = endpoint.clone().keep_renewed(&renew);
        tokio::time::timeout(Duration::from_millis(500), kept)
    };
    keep().await.unwrap_err();
    assert_eq!(num_tries.load(Relaxed), 0, "it has hours left");

    endpoint.replace_identity(authority.old_coordinator_identity()).unwrap();
    keep().await.unwrap_err();
    assert_eq!(num_tries.load(Relaxed), 2, "a failure is tried again, a success is not");
    assert!(!endpoint.identity().unwrap().renew_in().is_zero());
}

/// Goal: a coordinator that slept past its certificate's end lets nodes in soon after. Method: time
/// passes between two looks at the clock, and the certificate is an old one meanwhile.
#[tokio::test(start_paused = true)]
async fn a_machine_that_slept_past_the_end_of_its_certificate_has_another_soon() {
    let (endpoint, authority, _dir) = coordinator(&Transport::default());
    let old = authority.old_coordinator_identity();
    let slept = async {
        tokio::time::sleep(Duration::from_millis(1)).await;
        endpoint.replace_identity(old).unwrap();
        tokio::time::sleep(Duration::from_secs(10)).await;
    };
    let renew = async |_| authority.coordinator_identity(1).map_err(|cause| cause.to_string());
    tokio::select! {
        () = endpoint.clone().keep_renewed(&renew) => panic!("it never ends"),
        () = slept => {}
    }
    assert!(endpoint.identity().unwrap().is_valid());
}

#[tokio::test]
async fn an_address_that_is_taken_is_named() {
    let (taken, _authority, _dir) = coordinator(&Transport::default());
    let addr = taken.local_addr();
    let error = Endpoint::bind(addr, None, &Transport::default()).unwrap_err().to_string();
    assert!(error.contains(&addr.to_string()) && error.contains("--cluster"), "{error}");
}

#[tokio::test]
async fn a_certificate_is_replaced_while_connections_stand() {
    let pair = Pair::new(&Transport::default()).await;
    let (before, _accepted) = pair.connect(Purpose::Control).await;
    let renewed = pair.authority.coordinator_identity(1).unwrap();
    pair.coordinator.replace_identity(renewed).unwrap();
    pair.connect(Purpose::Control).await;
    assert!(before.is_open());

    // An endpoint that had none becomes a member.
    let late = Endpoint::bind(loopback(), None, &Transport::default()).unwrap();
    let addr = pair.coordinator.local_addr();
    let dialled = late.dial(addr, Purpose::Data, PeerName::Coordinator).await;
    assert!(dialled.unwrap_err().to_string().contains("no certificate"));
    late.replace_identity(pair.node.identity().unwrap()).unwrap();
    late.dial(addr, Purpose::Data, PeerName::Coordinator).await.unwrap();
    let dial = pair.coordinator.dial(late.local_addr(), Purpose::Data, PeerName::Node(NODE));
    let (dialled, accepted) = tokio::join!(dial, late.accept());
    dialled.unwrap();
    assert!(matches!(accepted, Some(Incoming::Data(it)) if it.peer() == PeerName::Coordinator));
}

#[tokio::test]
async fn connections_beyond_the_limit_are_refused_until_one_ends() {
    let config = Transport { max_connections: 2, ..Transport::default() };
    let pair = Pair::new(&config).await;
    let first = pair.connect(Purpose::Control).await;
    let _second = pair.connect(Purpose::Data).await;
    let addr = pair.coordinator.local_addr();
    let third = pair.node.dial(addr, Purpose::Data, PeerName::Coordinator).await.unwrap();
    assert_eq!(third.closed().await, "transport.max_connections are open already");
    let (dialled, accepted) = first;
    drop(accepted);
    assert_eq!(dialled.closed().await, "the other side dropped it");
    pair.connect(Purpose::Data).await;
}

/// So much is sent to a side that reads nothing, of each kind of connection its own.
#[tokio::test]
async fn no_more_is_in_flight_than_the_window_of_each_connection() {
    let config = Transport {
        control_window_bytes: 32 << 10,
        data_window_bytes: 256 << 10,
        ..Transport::default()
    };
    let pair = Pair::new(&config).await;
    for (purpose, window) in [(Purpose::Control, 32 << 10), (Purpose::Data, 256 << 10)] {
        let (dialled, _accepted) = pair.connect(purpose).await;
        let (mut send, _receive) = dialled.connection.open_bi().await.unwrap();
        let mut num_bytes = 0;
        let part = [0; 1 << 10];
        while let Ok(sent) = tokio::time::timeout(Duration::from_secs(1), send.write(&part)).await {
            num_bytes += sent.unwrap();
        }
        // What the other side would take, and twice as much that waits here.
        assert!((window..=3 * window).contains(&num_bytes), "{num_bytes} for {window}");
    }
}

#[tokio::test]
async fn a_closed_endpoint_says_so_and_accepts_nobody() {
    let pair = Pair::new(&Transport::default()).await;
    let (dialled, _accepted) = pair.connect(Purpose::Control).await;
    pair.coordinator.close("the coordinator stopped").await;
    assert_eq!(dialled.closed().await, "the coordinator stopped");
    assert!(pair.coordinator.accept().await.is_none());
}

/// Goal: handshakes that stall hold up nobody. Method: dialling through a wire that loses every
/// answer leaves the acceptor waiting; members still come in while half of the places are taken,
/// when they have to prove their address first.
#[tokio::test]
async fn handshakes_that_stall_hold_up_nobody() {
    let config = Transport { max_connections: 4, ..Transport::default() };
    let pair = Pair::new(&config).await;
    let attacker = Endpoint::bind(loopback(), None, &config).unwrap();
    let mut stalled = Vec::new();
    for _ in 0..2 {
        let wire = Wire::new(pair.coordinator.local_addr()).await;
        wire.answers.store(false, Relaxed);
        let (attacker, addr) = (attacker.clone(), wire.addr);
        let crypto = tls::attacker(None, JOIN.map(|(_, name)| name));
        let dial = async move {
            attacker.connect(addr, crypto, Purpose::Data, "any.autoglm").await.map(drop)
        };
        stalled.push((tokio::spawn(dial), wire));
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let begin = Instant::now();
    pair.connect(Purpose::Control).await;
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    assert!(stalled.iter().all(|(dial, _)| !dial.is_finished()));
}

/// A peer that is killed: its process is gone without a word.
#[test]
fn silence_is_a_death() {
    let runtime = || tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let (ours, theirs) = (runtime(), runtime());
    let config = Transport::default();
    // The coordinator lives on a runtime of its own, which is then stopped.
    let pair = theirs.block_on(Pair::new(&config));
    let addr = pair.coordinator.local_addr();
    let connection = ours.block_on(async {
        let node = Endpoint::bind(loopback(), pair.node.identity(), &config).unwrap();
        node.dial(addr, Purpose::Control, PeerName::Coordinator).await.unwrap()
    });
    let silent = Instant::now();
    theirs.shutdown_background();
    ours.block_on(connection.closed());
    is_about_the_idle_timeout(silent.elapsed(), &config);
}

/// A network that fails: both sides notice, on an idle connection that had been kept alive.
#[tokio::test(flavor = "multi_thread")]
async fn a_cut_wire_is_a_death_on_both_sides() {
    let config = Transport { connect_timeout_ms: 10_000, ..Transport::default() };
    let pair = Pair::new(&config).await;
    let wire = Wire::new(pair.coordinator.local_addr()).await;
    let (dialled, accepted) = pair.connect_through(wire.addr, Purpose::Control).await;
    // Nobody sends anything, and still nobody dies.
    tokio::time::sleep(Duration::from_millis(config.idle_timeout_ms + 500)).await;
    assert!(dialled.is_open() && accepted.is_open());
    wire.passes.store(false, Relaxed);
    let cut = Instant::now();
    for connection in [dialled, accepted] {
        assert_eq!(connection.closed().await, "nothing was heard of it for too long");
    }
    is_about_the_idle_timeout(cut.elapsed(), &config);
}

/// Nobody has to wait for silence where the machine of a process that was killed says that its
/// port is closed: who hears signs of life misses them.
#[tokio::test(flavor = "multi_thread")]
async fn a_closed_port_is_a_death_at_once() {
    let config =
        Transport { connect_timeout_ms: 60_000, idle_timeout_ms: 60_000, ..Transport::default() };
    let pair = Pair::new(&config).await;
    let wire = Wire::new(pair.coordinator.local_addr()).await;
    let (dialled, accepted) = pair.connect_through(wire.addr, Purpose::Control).await;
    // A knock harms nobody who is there.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(dialled.is_open() && accepted.is_open());
    drop(wire);
    let cut = Instant::now();
    let cause = accepted.closed().await;
    assert_eq!(cause, "its process has ended: nobody listens there any more");
    assert!(cut.elapsed() < Duration::from_secs(10), "{:?}", cut.elapsed());
}

/// The same of a data connection, which gives hardly any signs of life: whoever sends something
/// misses who doesn't take it.
#[tokio::test(flavor = "multi_thread")]
async fn a_closed_port_is_missed_by_who_sends() {
    let config =
        Transport { connect_timeout_ms: 60_000, idle_timeout_ms: 60_000, ..Transport::default() };
    let pair = Pair::new(&config).await;
    let wire = Wire::new(pair.coordinator.local_addr()).await;
    let (dialled, accepted) = pair.connect_through(wire.addr, Purpose::Data).await;
    let (model, stage, step) = Default::default();
    let frame = Frame { model, stage, step, body: Body::Step(Step::default()) };
    let mut link = open_frames(&dialled, stage).await.unwrap();
    let (_, mut frames) = accept_frames(&accepted).await.unwrap();
    // Until it is known that a knock would tell something.
    tokio::time::sleep(Duration::from_millis(1000)).await;
    link.send(&frame).await.unwrap();
    assert_eq!(frames.recv().await.unwrap().unwrap().frame, frame);
    tokio::time::sleep(Duration::from_millis(1000)).await;
    assert!(dialled.is_open() && accepted.is_open());
    drop(wire);
    link.send(&frame).await.unwrap();
    let cut = Instant::now();
    assert_eq!(dialled.closed().await, "its process has ended: nobody listens there any more");
    assert!(cut.elapsed() < Duration::from_secs(10), "{:?}", cut.elapsed());
}

/// Counted from the last packet that was heard, up to a keep-alive before the death; the side that
/// gives signs of life counts from the first that it gave since, up to a keep-alive after it.
fn is_about_the_idle_timeout(waited: Duration, config: &Transport) {
    let idle = Duration::from_millis(config.idle_timeout_ms);
    let keep_alive = Duration::from_millis(config.keep_alive_ms);
    let slack = Duration::from_millis(100);
    assert!(waited + keep_alive + slack > idle, "{waited:?}");
    // Room for a machine that does other things.
    assert!(waited < idle + keep_alive + Duration::from_secs(1), "{waited:?}");
}

/// A wire between one dialling endpoint and `to`; when dropped its ports are closed.
struct Wire {
    addr: SocketAddr,
    /// Whether what comes back is passed on.
    answers: Arc<AtomicBool>,
    /// Whether anything is.
    passes: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<()>,
}

impl Wire {
    async fn new(to: SocketAddr) -> Self {
        let near = UdpSocket::bind(loopback()).await.unwrap();
        let far = UdpSocket::bind(loopback()).await.unwrap();
        let addr = near.local_addr().unwrap();
        let answers = Arc::new(AtomicBool::new(true));
        let comes_back = Arc::clone(&answers);
        let passes = Arc::new(AtomicBool::new(true));
        let goes = Arc::clone(&passes);
        let task = tokio::spawn(async move {
            let (mut there, mut back) = ([0; 65_536], [0; 65_536]);
            let mut dialler = None;
            loop {
                tokio::select! {
                    Ok((n, from)) = near.recv_from(&mut there) => {
                        dialler = Some(from);
                        if goes.load(Relaxed) {
                            let _ = far.send_to(&there[..n], to).await;
                        }
                    }
                    Ok((n, _)) = far.recv_from(&mut back) => {
                        let is_open = goes.load(Relaxed) && comes_back.load(Relaxed);
                        if let Some(dialler) = dialler.filter(|_| is_open) {
                            let _ = near.send_to(&back[..n], dialler).await;
                        }
                    }
                }
            }
        });
        Self { addr, answers, passes, task }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.task.abort();
    }
}
