//! A node and a coordinator that is only a door: what ends a session, and that another begins.

use std::future::Pending;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::Shared;
use protocol::config::Transport;
use protocol::{NodeId, SessionId};
use telemetry::Tracer;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use transport::{
    Authority, Connection, ControlStream, Endpoint, Incoming, PeerName, Token, Verdict,
};

use crate::device_thread::DeviceThread;
use crate::joining::Papers;
use crate::run::{Options, Pause, ServeEnd, serve};

const NODE: NodeId = NodeId(0xabc);

/// Everything here is waited for as long: other things run beside it.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a node opens: a session as its coordinator sees it.
struct Seen {
    id: SessionId,
    control: Connection,
    data: Connection,
    _stream: ControlStream,
}

/// Of a node that joins there, with nothing of its own.
pub(crate) fn options(coordinator: SocketAddr, token: Token) -> Options {
    Options {
        coordinators: vec![coordinator.into()],
        pool: String::new(),
        labels: Vec::new(),
        advertise: None,
        token: Some(token),
        token_file: None,
        data_dir: None,
        cache_dir: None,
        cache_size: u64::MAX,
        no_local_files: false,
        adapter: None,
        max_memory: None,
        products: shaders::matmul::Products::Plain.into(),
        wire_version: protocol::WIRE_VERSION,
        exit_with_coordinator: false,
        drain_timeout: Duration::ZERO,
        hurry: CancellationToken::new(),
        tracer: Tracer::default(),
    }
}

/// A coordinator's door.
struct Door {
    sessions: mpsc::Receiver<Seen>,
    options: Options,
    dir: tempfile::TempDir,
}

impl Door {
    /// Lets a node in with each of these settings in turn, the last of them again and again.
    fn open(settings: Vec<Transport>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::load_or_create(dir.path()).unwrap();
        let token = Token::load_or_create(&dir.path().join("join.token"), &authority).unwrap();
        let identity = authority.coordinator_identity(1).unwrap();
        let local = ([127, 0, 0, 1], 0).into();
        let endpoint = Endpoint::bind(local, Some(identity), &Transport::default()).unwrap();
        let options = options(endpoint.local_addr(), token);
        let (seen, sessions) = mpsc::channel(1);
        tokio::spawn(async move {
            let mut settings = settings.into_iter().peekable();
            // Either may be here first.
            let (mut data, mut controls) = (Vec::<Connection>::new(), Vec::new());
            while let Some(incoming) = endpoint.accept().await {
                match incoming {
                    Incoming::Join(request) => {
                        let config = settings.next().unwrap();
                        if settings.peek().is_none() {
                            settings = vec![config.clone()].into_iter().peekable();
                        }
                        let asking = request.hear(&config).await.unwrap();
                        let verdict = Verdict::Admitted { pool: "a".into() };
                        asking.answer(&authority, &config, false, &verdict).await.unwrap();
                    }
                    Incoming::Data(connection) => data.push(connection),
                    Incoming::Control(control) => {
                        assert_eq!(control.peer(), PeerName::Node(NODE));
                        let (id, stream) = ControlStream::accept(&control).await.unwrap();
                        controls.push((id, control, stream));
                    }
                }
                let whole = data.iter().enumerate().find_map(|(at, data)| {
                    let id = data.session().ok()?;
                    Some((at, controls.iter().position(|(of, ..)| *of == id)?))
                });
                if let Some((of_data, of_control)) = whole {
                    let (id, control, stream) = controls.remove(of_control);
                    let data = data.remove(of_data);
                    let session = Seen { id, control, data, _stream: stream };
                    if seen.send(session).await.is_err() {
                        return;
                    }
                }
            }
        });
        Self { sessions, options, dir }
    }

    async fn session(&mut self) -> Seen {
        tokio::time::timeout(PATIENCE, self.sessions.recv()).await.expect("a session").unwrap()
    }

    /// A node that dials this door, until it ends.
    fn node(
        &self,
        devices: Vec<DeviceThread>,
    ) -> tokio::task::JoinHandle<anyhow::Result<ServeEnd>> {
        let options = self.options.clone();
        let papers = Papers::open(self.dir.path()).unwrap();
        let cache_dir = tempfile::tempdir().unwrap();
        let cache = crate::cache::Cache::open(cache_dir.path(), 0).unwrap();
        let held = Arc::new(crate::weights::WeightStore::new(cache, true));
        tokio::spawn(async move {
            let never: Shared<Pending<()>> = std::future::pending().shared();
            serve(&options, (NODE, &papers), (&held, &devices), &mut Pause::default(), &never).await
        })
    }
}

async fn closed(connection: &Connection) {
    tokio::time::timeout(PATIENCE, connection.closed()).await.expect("it is closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_either_connection_is_the_end_of_the_other_and_the_node_begins_anew() {
    let mut door = Door::open(vec![Transport::default()]);
    let (device, _thread) = DeviceThread::fake();
    let node = door.node(vec![device]);
    let first = door.session().await;
    first.data.close("only this one");
    closed(&first.control).await;
    let second = door.session().await;
    assert_ne!(first.id, second.id);
    second.control.close("only this one");
    closed(&second.data).await;
    let third = door.session().await;
    assert!(third.control.is_open() && third.data.is_open());
    node.abort();
}

/// Settings that a node can't work with are met only after it was let in.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_fails_after_it_was_let_in_tries_again() {
    let bad = Transport { data_window_bytes: 0, ..Transport::default() };
    let mut door = Door::open(vec![bad, Transport::default()]);
    let (device, _thread) = DeviceThread::fake();
    let node = door.node(vec![device]);
    door.session().await;
    assert!(!node.is_finished());
    node.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_adapter_is_lost_leaves() {
    let mut door = Door::open(vec![Transport::default()]);
    let (device, thread) = DeviceThread::fake();
    let (other, _other) = DeviceThread::fake();
    let node = door.node(vec![other, device]);
    let session = door.session().await;
    drop(thread);
    closed(&session.control).await;
    let ended = tokio::time::timeout(PATIENCE, node).await.expect("it ends").unwrap().unwrap();
    let ServeEnd::Device(cause) = ended else { panic!("{ended:?}") };
    assert_eq!(cause, "its adapter card is lost: unplugged");
}
