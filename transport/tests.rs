//! Two endpoints on loopback: who may connect, what arrives, and when silence is a death.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use protocol::config::Transport;
use protocol::message::{NODE_GROUP, NodeMsg, Wire};
use protocol::{
    Body, Epoch, Frame, FrameError, ModelId, NodeId, NodeReport, PipelineId, StageIndex, Step,
    StepId,
};
use ractor::{Actor, ActorProcessingErr, ActorRef, call_t, pg};

use crate::{
    Authority, Connection, Endpoint, Identity, Incoming, LinkHello, PeerName, Purpose,
    TransportError, accept_frames, join, open_frames, start_node_server,
};

const NODE: NodeId = NodeId(0xabc);

fn loopback() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

/// A coordinator, and a node that has joined it.
struct Pair {
    coordinator: Endpoint,
    node: Endpoint,
    cookie: String,
    _dir: tempfile::TempDir,
}

impl Pair {
    async fn new(config: &Transport) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::load_or_create(dir.path()).unwrap();
        let identity = authority.coordinator_identity(1).unwrap();
        let coordinator = Endpoint::bind(loopback(), Some(identity), config).unwrap();
        let admit = async {
            let Some(Incoming::Join(request)) = coordinator.accept().await else { panic!() };
            assert_eq!(request.admit(&authority, config).await.unwrap(), NODE);
        };
        let default = Transport::default();
        let (joined, ()) = tokio::join!(join(coordinator.local_addr(), NODE, &default), admit);
        let joined = joined.unwrap();
        assert_eq!(joined.transport, *config);
        let node = Endpoint::bind(loopback(), Some(joined.identity), &joined.transport).unwrap();
        Self { coordinator, node, cookie: joined.cookie, _dir: dir }
    }

    async fn connect(&self, purpose: Purpose) -> (Connection, Connection) {
        let addr = self.coordinator.local_addr();
        let dial = self.node.dial(addr, purpose, PeerName::Coordinator);
        let (dialled, accepted) = tokio::join!(dial, self.coordinator.accept());
        match accepted {
            Some(Incoming::Control(accepted)) if purpose == Purpose::Control => {
                (dialled.unwrap(), accepted)
            }
            Some(Incoming::Data(accepted)) if purpose == Purpose::Data => {
                (dialled.unwrap(), accepted)
            }
            other => panic!("{other:?}"),
        }
    }
}

fn hello() -> LinkHello {
    LinkHello {
        pipeline: PipelineId(0),
        epoch: Epoch { start: 1, counter: 2 },
        stage: StageIndex(1),
    }
}

fn frame(step: u64, num_values: usize) -> Frame {
    let hidden = (0..num_values).map(|i| i as f32).collect();
    Frame {
        model: ModelId([1; 16]),
        pipeline: PipelineId(0),
        stage: StageIndex(1),
        epoch: Epoch { start: 1, counter: 2 },
        step: StepId(step),
        body: Body::Step(Step { hidden, ..Step::default() }),
    }
}

#[tokio::test]
async fn a_node_joins_and_both_sides_know_each_other() {
    let pair = Pair::new(&Transport::default()).await;
    for purpose in [Purpose::Control, Purpose::Data] {
        let (dialled, accepted) = pair.connect(purpose).await;
        assert_eq!(dialled.peer(), PeerName::Coordinator);
        assert_eq!(accepted.peer(), PeerName::Node(NODE));
        assert!(dialled.is_open());
    }
}

#[tokio::test]
async fn the_authority_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let first = Authority::load_or_create(dir.path()).unwrap();
    let second = Authority::load_or_create(dir.path()).unwrap();
    assert_eq!(first.certificate(), second.certificate());
    assert_ne!(first.cookie(), second.cookie());
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(dir.path().join("ca.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn frames_arrive_whole_and_in_order() {
    let pair = Pair::new(&Transport::default()).await;
    let (dialled, accepted) = pair.connect(Purpose::Data).await;
    let sizes = [0, 1, 1000, 100_000, 2 << 20, 7];
    let send = async {
        let mut link = open_frames(&dialled, &hello()).await.unwrap();
        for (step, num_values) in sizes.into_iter().enumerate() {
            link.send(&frame(step as u64, num_values)).await.unwrap();
        }
        link
    };
    let receive = async {
        let (said, mut link) = accept_frames(&accepted).await.unwrap();
        assert_eq!(said, hello());
        for (step, num_values) in sizes.into_iter().enumerate() {
            let (received, num_bytes) = link.recv().await.unwrap().unwrap();
            assert_eq!(received, frame(step as u64, num_values));
            assert!(num_bytes >= num_values * 4);
        }
        link
    };
    let (sending, mut receiving) = tokio::join!(send, receive);
    drop(sending);
    assert!(receiving.recv().await.unwrap().is_none(), "the link ended between two frames");
}

#[tokio::test]
async fn a_frame_beyond_the_limit_is_refused_by_name() {
    let config = Transport { max_frame_bytes: 1000, ..Transport::default() };
    let pair = Pair::new(&config).await;
    let (dialled, accepted) = pair.connect(Purpose::Data).await;
    let mut sending = open_frames(&dialled, &hello()).await.unwrap();
    sending.send(&frame(0, 4000)).await.unwrap();
    let (_, mut receiving) = accept_frames(&accepted).await.unwrap();
    let error = receiving.recv().await.unwrap_err();
    assert!(matches!(error, TransportError::Frame(FrameError::TooLong { max: 1000, .. })));
}

#[tokio::test]
async fn garbage_on_a_link_is_refused() {
    let pair = Pair::new(&Transport::default()).await;
    let (dialled, accepted) = pair.connect(Purpose::Data).await;
    let mut stream = dialled.connection.open_uni().await.unwrap();
    stream.write_all(&u32::MAX.to_le_bytes()).await.unwrap();
    assert!(matches!(accept_frames(&accepted).await, Err(TransportError::TooLong(_))));
    let mut stream = dialled.connection.open_uni().await.unwrap();
    crate::frames::write_message(&mut stream, &hello()).await.unwrap();
    stream.write_all(&[b'x'; 64]).await.unwrap();
    let (_, mut link) = accept_frames(&accepted).await.unwrap();
    assert!(matches!(link.recv().await, Err(TransportError::Frame(FrameError::BadMagic))));
}

/// A stranger's certificate, and none at all: refused on every connection but the joining one.
#[tokio::test]
async fn whoever_is_not_a_member_is_refused() {
    let config = Transport { connect_timeout_ms: 2000, ..Transport::default() };
    let pair = Pair::new(&config).await;
    let addr = pair.coordinator.local_addr();
    let dir = tempfile::tempdir().unwrap();
    let other = Authority::load_or_create(dir.path()).unwrap();
    let stranger: Identity = other.coordinator_identity(1).unwrap();
    let stranger = Endpoint::bind(loopback(), Some(stranger), &config).unwrap();
    let refused = stranger.dial(addr, Purpose::Data, PeerName::Coordinator).await;
    assert!(matches!(refused, Err(TransportError::Dial { .. })), "{refused:?}");

    let nobody = Endpoint::bind(loopback(), None, &config).unwrap();
    let refused = nobody.dial(addr, Purpose::Data, PeerName::Coordinator).await;
    assert!(refused.unwrap_err().to_string().contains("no certificate"));
    for alpn in [crate::tls::CONTROL, crate::tls::DATA, b"autoglm-other/1"] {
        let crypto = crate::tls::anonymous(alpn).unwrap();
        if let Ok(connection) = nobody.connect(addr, crypto, 1000, "coordinator.autoglm").await {
            let ended = connection.closed().await;
            assert!(ended.to_string().contains("certificate"), "{ended}");
        }
    }
    // The door is still open for members.
    pair.connect(Purpose::Data).await;
}

/// Somebody else's node does not pass for the one that was dialled.
#[tokio::test]
async fn a_member_is_not_another_member() {
    let pair = Pair::new(&Transport::default()).await;
    let addr = pair.coordinator.local_addr();
    let wrong = pair.node.dial(addr, Purpose::Data, PeerName::Node(NodeId(7))).await;
    assert!(matches!(wrong, Err(TransportError::Dial { .. })), "{wrong:?}");
}

#[tokio::test]
async fn a_handshake_that_stalls_holds_up_nobody() {
    let pair = Pair::new(&Transport::default()).await;
    let addr = pair.coordinator.local_addr();
    let socket = std::net::UdpSocket::bind(loopback()).unwrap();
    // A long header of QUIC version 1 and nothing that follows it.
    let mut packet = vec![0xc3, 0, 0, 0, 1, 8];
    packet.extend([7; 8]);
    packet.resize(1200, 0);
    socket.send_to(&packet, addr).unwrap();
    let start = Instant::now();
    pair.connect(Purpose::Control).await;
    assert!(start.elapsed() < Duration::from_secs(2));
}

/// A peer that vanishes without a word is dead once the idle timeout has passed, and not before
/// two keep-alives were missed.
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
    let waited = silent.elapsed();
    let idle = Duration::from_millis(config.idle_timeout_ms);
    assert!(waited > idle - Duration::from_millis(config.keep_alive_ms + 100), "{waited:?}");
    assert!(waited < idle + Duration::from_secs(1), "{waited:?}");
}

struct Reporter;

impl Actor for Reporter {
    type Msg = NodeMsg;
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, myself: ActorRef<NodeMsg>, (): ()) -> Result<(), ActorProcessingErr> {
        pg::join(NODE_GROUP.to_owned(), vec![myself.get_cell()]);
        Ok(())
    }

    async fn handle(
        &self,
        _myself: ActorRef<NodeMsg>,
        message: NodeMsg,
        _state: &mut (),
    ) -> Result<(), ActorProcessingErr> {
        if let NodeMsg::Report(_, reply) = message {
            let report = NodeReport {
                node: NODE,
                hostname: "here".into(),
                pid: 1,
                data_addr: loopback(),
                adapters: Vec::new(),
            };
            let _ = reply.send(report.into());
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn actors_talk_over_a_control_connection() {
    let pair = Pair::new(&Transport::default()).await;
    let (dialled, accepted) = pair.connect(Purpose::Control).await;
    Actor::spawn(None, Reporter, ()).await.unwrap();
    let coordinator = start_node_server("coordinator", &pair.cookie).await.unwrap();
    let node = start_node_server("node", &pair.cookie).await.unwrap();
    let (connected, carried) = tokio::join!(node.connect(&dialled), coordinator.accept(&accepted));
    connected.unwrap();
    carried.unwrap();
    // Both servers are in this process, so the group holds the actor and its remote shadows.
    let start = Instant::now();
    let remote = loop {
        let members = pg::get_members(&NODE_GROUP.to_owned());
        if let Some(remote) = members.into_iter().find(|actor| !actor.get_id().is_local()) {
            break remote;
        }
        assert!(start.elapsed() < Duration::from_secs(5), "no remote actor");
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    let remote: ActorRef<NodeMsg> = remote.into();
    let Wire(report) = call_t!(remote, NodeMsg::Report, 2000, Wire::from(())).unwrap();
    assert_eq!(report.unwrap().node, NODE);
    coordinator.stop().await;
    node.stop().await;
}
