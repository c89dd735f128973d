//! The coordinator and the nodes of a run: what their shells do with a transport, and nothing else.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use protocol::config::Transport;
use protocol::{
    Body, Epoch, Frame, ModelId, NodeId, PipelineId, SessionId, StageId, StageIndex, Step, StepId,
    WIRE_VERSION,
};
use ractor_cluster::{BoxRead, BoxWrite, ClusterBidiStream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep};

use super::journal::{Bond, Event, Journal};
use super::scenario::{Host, NUM_NODES, config};
use crate::tests::join;
use crate::{
    Authority, Connection, ControlStream, Endpoint, Identity, Incoming, PeerName, Purpose, Token,
    TransportError, Verdict, accept_frames, open_frames, renew,
};

const PORT: u16 = 7000;

/// Between two tries of a node.
const RETRY: Duration = Duration::from_millis(300);

/// Between two certificates of a node.
const RENEWAL: Duration = Duration::from_millis(1700);

/// Between two words on a control stream: longer than silence may last, so that only QUIC's own
/// signs of life keep it.
const BEAT: Duration = Duration::from_millis(2500);

/// What every process of a run shares with the others, which in the real cluster travels: clones
/// are of one run.
#[derive(Clone)]
pub(super) struct World {
    pub(super) journal: Journal,
    pub(super) seed: u64,
    pub(super) authority: Arc<Authority>,
    pub(super) token: Token,
    // Where nodes are: neighbours hear it from the coordinator.
    addrs: Arc<Mutex<BTreeMap<usize, SocketAddr>>>,
}

impl World {
    pub(super) fn new(seed: u64, authority: Arc<Authority>, token: Token) -> Self {
        Self { journal: Journal::default(), seed, authority, token, addrs: Arc::default() }
    }

    /// Waits with a name, and notes for how long.
    async fn wait<T, E>(
        &self,
        host: Host,
        what: &'static str,
        waiting: impl Future<Output = Result<T, E>>,
    ) -> Option<T> {
        let begin = Instant::now();
        let came = waiting.await;
        let event = Event::Waited { what, took: begin.elapsed(), well: came.is_ok() };
        self.journal.note(host, event);
        came.ok()
    }

    fn addrs<T>(&self, f: impl FnOnce(&mut BTreeMap<usize, SocketAddr>) -> T) -> T {
        f(&mut self.addrs.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn node_id(number: usize) -> NodeId {
    NodeId(number as u64 + 1)
}

fn anywhere(port: u16) -> SocketAddr {
    (Ipv4Addr::UNSPECIFIED, port).into()
}

/// What the coordinator has of sessions that aren't whole yet.
#[derive(Default)]
struct Halves {
    data: BTreeMap<SessionId, Connection>,
    control: BTreeMap<SessionId, (Connection, ControlStream)>,
}

pub(super) async fn coordinator(world: World) -> turmoil::Result {
    let identity = world.authority.coordinator_identity(1)?;
    let endpoint = Endpoint::bind(anywhere(PORT), Some(identity), &config())?;
    let halves = Arc::new(Mutex::new(Halves::default()));
    while let Some(incoming) = endpoint.accept().await {
        let (world, halves) = (world.clone(), Arc::clone(&halves));
        tokio::spawn(async move {
            let half = |f: &dyn Fn(&mut Halves)| f(&mut halves.lock().unwrap());
            match incoming {
                Incoming::Join(request) => {
                    let config = config();
                    let asked = async {
                        let asking = request.hear(&config).await?;
                        let applicant = &asking.applicant;
                        assert!(applicant.member.is_some() || applicant.knows(&world.token.key()));
                        let verdict = Verdict::Admitted { pool: "a".into() };
                        asking.answer(&world.authority, &config, true, &verdict).await
                    };
                    world.wait(Host::Coordinator, "a question", asked).await;
                }
                Incoming::Data(connection) => {
                    let Ok(session) = connection.session() else { return };
                    half(&|it| drop(it.data.insert(session, connection.clone())));
                    whole(&world, session, &halves).await;
                }
                Incoming::Control(connection) => {
                    let greeting = ControlStream::accept(&connection);
                    let greeted = world.wait(Host::Coordinator, "a greeting", greeting).await;
                    let Some((session, stream)) = greeted else { return };
                    let control = (connection, stream);
                    halves.lock().unwrap().control.insert(session, control);
                    whole(&world, session, &halves).await;
                }
            }
        });
    }
    Ok(())
}

/// Serves a session if both its connections are here.
async fn whole(world: &World, session: SessionId, halves: &Mutex<Halves>) {
    let both = {
        let mut halves = halves.lock().unwrap();
        if !halves.data.contains_key(&session) || !halves.control.contains_key(&session) {
            return;
        }
        halves.data.remove(&session).zip(halves.control.remove(&session))
    };
    let Some((data, (control, stream))) = both else { return };
    let PeerName::Node(node) = data.peer() else { panic!("nodes dial") };
    let hosts = [Host::Node(node.0 as usize - 1), Host::Coordinator];
    let bond = world.journal.bond(session, hosts);
    let talk = Talk { world, me: Host::Coordinator, bond, data: &data };
    talk.session(&control, stream).await;
}

pub(super) async fn node(world: World, number: usize) -> turmoil::Result {
    let me = Host::Node(number);
    let coordinator = SocketAddr::new(turmoil::lookup(Host::Coordinator.name()), PORT);
    loop {
        let (id, config) = (node_id(number), config());
        let joining = join(coordinator, id, &world.token, &config);
        if let Some(joined) = world.wait(me, "joining", joining).await {
            assert_eq!(joined.transport, config);
            let endpoint = Endpoint::bind(anywhere(0), Some(joined.identity), &joined.transport)?;
            let port = endpoint.local_addr().port();
            let here = SocketAddr::new(turmoil::lookup(me.name()), port);
            world.addrs(|addrs| addrs.insert(number, here));
            stay(&world, number, &endpoint, coordinator).await;
            endpoint.close("the node stopped").await;
        }
        sleep(RETRY).await;
    }
}

/// One stay of a node with the coordinator.
async fn stay(world: &World, number: usize, endpoint: &Endpoint, coordinator: SocketAddr) {
    let me = Host::Node(number);
    let dial = |purpose| endpoint.dial(coordinator, purpose, PeerName::Coordinator);
    let opening = async {
        let data = dial(Purpose::Data).await?;
        let session = data.session()?;
        let control = dial(Purpose::Control).await?;
        let stream = ControlStream::open(&control, session).await?;
        Ok::<_, TransportError>((data, session, control, stream))
    };
    let opened = world.wait(me, "a session", opening).await;
    let Some((data, session, control, stream)) = opened else { return };
    let bond = world.journal.bond(session, [me, Host::Coordinator]);
    let talk = Talk { world, me, bond, data: &data };
    tokio::select! {
        biased;
        () = talk.session(&control, stream) => {}
        () = hear_neighbours(world, me, endpoint) => {}
        () = seek_neighbour(world, number, endpoint) => {}
        () = keep_certificate(world, number, endpoint, coordinator) => {}
    }
}

/// Gets another certificate again and again, with which the node goes on.
async fn keep_certificate(
    world: &World,
    number: usize,
    endpoint: &Endpoint,
    coordinator: SocketAddr,
) {
    let me = Host::Node(number);
    loop {
        sleep(RENEWAL).await;
        let (identity, config): (Identity, Transport) = (endpoint.identity().unwrap(), config());
        let renewing = renew(coordinator, node_id(number), &identity, (&config, WIRE_VERSION));
        if let Some(renewed) = world.wait(me, "another certificate", renewing).await {
            endpoint.replace_identity(renewed.identity).unwrap();
        }
    }
}

async fn hear_neighbours(world: &World, me: Host, endpoint: &Endpoint) {
    while let Some(incoming) = endpoint.accept().await {
        let Incoming::Data(data) = incoming else { panic!("{incoming:?}") };
        let PeerName::Node(node) = data.peer() else { panic!("{data:?}") };
        let world = world.clone();
        tokio::spawn(async move {
            let Ok(session) = data.session() else { return };
            let bond = world.journal.bond(session, [Host::Node(node.0 as usize - 1), me]);
            Talk { world: &world, me, bond, data: &data }.link(Side::Receiving).await;
        });
    }
}

/// Each node but the first sends to the one before it, as stages do.
async fn seek_neighbour(world: &World, number: usize, endpoint: &Endpoint) {
    let me = Host::Node(number);
    let Some(neighbour) = (number + 1 < NUM_NODES).then_some(number + 1) else {
        return std::future::pending().await;
    };
    loop {
        if let Some(addr) = world.addrs(|addrs| addrs.get(&neighbour).copied()) {
            let dialling = endpoint.dial(addr, Purpose::Data, PeerName::Node(node_id(neighbour)));
            let dialled = world.wait(me, "a neighbour", dialling).await;
            if let Some((data, Ok(session))) = dialled.map(|data| (data.clone(), data.session())) {
                let bond = world.journal.bond(session, [me, Host::Node(neighbour)]);
                Talk { world, me, bond, data: &data }.link(Side::Sending).await;
            }
        }
        sleep(RETRY).await;
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Sending,
    Receiving,
}

/// That a side of a bond stands; notes its end, whatever that is: the process may be killed.
struct Stay {
    journal: Journal,
    me: Host,
    bond: Bond,
    cause: String,
}

impl Stay {
    fn begin(talk: &Talk<'_>) -> Self {
        talk.note(Event::Began(talk.bond));
        let journal = talk.world.journal.clone();
        Self { journal, me: talk.me, bond: talk.bond, cause: "its process let it go".into() }
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        self.journal.note(self.me, Event::Ended(self.bond, std::mem::take(&mut self.cause)));
    }
}

/// One side of a bond, at work.
struct Talk<'a> {
    world: &'a World,
    me: Host,
    bond: Bond,
    data: &'a Connection,
}

impl Talk<'_> {
    /// A session: frames both ways and signs of life, until one of its connections has ended, and
    /// with it the other.
    async fn session(&self, control: &Connection, stream: ControlStream) {
        let mut stay = Stay::begin(self);
        let (read, write) = Box::new(stream).split();
        let cause = tokio::select! {
            biased;
            cause = self.data.closed() => cause,
            cause = control.closed() => cause,
            cause = self.send() => cause.to_string(),
            cause = self.receive() => cause.to_string(),
            cause = beat(write) => cause.to_string(),
            cause = self.hear(read) => cause.to_string(),
        };
        stay.cause = cause;
        self.data.close("the session has ended");
        control.close("the session has ended");
    }

    /// A link between neighbours, one way.
    async fn link(&self, side: Side) {
        let mut stay = Stay::begin(self);
        let cause = tokio::select! {
            biased;
            cause = self.data.closed() => cause,
            cause = self.send(), if side == Side::Sending => cause.to_string(),
            cause = self.receive(), if side == Side::Receiving => cause.to_string(),
        };
        stay.cause = cause;
        self.data.close("the link has ended");
    }

    fn note(&self, event: Event) {
        self.world.journal.note(self.me, event);
    }

    /// Sends frames without end; returns why it can't.
    async fn send(&self) -> TransportError {
        let is_dialler = self.bond.hosts[0] == self.me;
        let sent = async {
            let mut link = open_frames(self.data, stage(is_dialler)).await?;
            for step in 0.. {
                link.send(&self.frame(is_dialler, step)).await?;
                // Now and then several at once.
                let pause = mix(self.place(is_dialler, step)) % 400;
                if pause < 300 {
                    sleep(Duration::from_millis(pause)).await;
                }
            }
            Ok::<_, TransportError>(())
        };
        sent.await.expect_err("it goes on without end")
    }

    /// Compares frames with those that were sent; returns why no more come.
    async fn receive(&self) -> TransportError {
        let by_dialler = self.bond.hosts[0] != self.me;
        let received = async {
            let (opened, mut link) = accept_frames(self.data).await?;
            if opened != stage(by_dialler) {
                self.note(Event::Wrong(format!("a link begins with {opened:?}")));
            }
            for step in 0.. {
                let Some(received) = link.recv().await? else {
                    return Err(TransportError::Closed("the link ended between frames".into()));
                };
                if received.frame != self.frame(by_dialler, step) {
                    self.note(Event::Wrong(format!("not frame {step} of {:?}", self.bond)));
                }
                self.note(Event::Frame(self.bond, step));
            }
            Ok::<_, TransportError>(())
        };
        received.await.expect_err("it goes on without end")
    }

    /// Hears signs of life, each its own.
    async fn hear(&self, mut read: BoxRead) -> std::io::Error {
        for expected in 0.. {
            match read.read_u64().await {
                Ok(heard) if heard == expected => {}
                Ok(heard) => {
                    self.note(Event::Wrong(format!("sign of life {heard} for {expected}")));
                }
                Err(cause) => return cause,
            }
        }
        unreachable!("it goes on without end")
    }

    /// From what all chance of a step in this direction comes.
    fn place(&self, by_dialler: bool, step: u64) -> [u64; 5] {
        let [from, to] = self.bond.hosts.map(|host| match host {
            Host::Coordinator => NUM_NODES as u64,
            Host::Node(number) => number as u64,
        });
        let number = u64::from(self.bond.number) << 1 | u64::from(by_dialler);
        [self.world.seed, from, to, number, step]
    }

    /// What is sent in this direction as this step: its size and content follow from its place.
    fn frame(&self, by_dialler: bool, step: u64) -> Frame {
        let place = self.place(by_dialler, step);
        let size = match mix(place) % 16 {
            0 => 0,
            1 => 16_000,
            n => 64 * n,
        };
        let hidden = (0..size).map(|i| (mix(place) as u32).wrapping_add(i as u32) as f32);
        Frame {
            model: ModelId([1; 16]),
            stage: stage(by_dialler),
            step: StepId(step),
            body: Body::Step(Step { hidden: hidden.collect(), ..Step::default() }),
        }
    }
}

/// Gives signs of life without end; returns why it can't.
async fn beat(mut write: BoxWrite) -> std::io::Error {
    for count in 0.. {
        if let Err(cause) = write.write_u64(count).await {
            return cause;
        }
        sleep(BEAT).await;
    }
    unreachable!("it goes on without end")
}

fn stage(by_dialler: bool) -> StageId {
    let stage = StageIndex(u32::from(by_dialler));
    StageId { pipeline: PipelineId(3), epoch: Epoch { start: 1, counter: 2 }, stage }
}

/// A number that looks like chance, and follows from others.
fn mix<const N: usize>(numbers: [u64; N]) -> u64 {
    numbers.into_iter().fold(0x9e37_79b9_7f4a_7c15, |mixed: u64, number| {
        let mixed = (mixed ^ number).wrapping_mul(0xff51_afd7_ed55_8ccd);
        mixed ^ mixed >> 32
    })
}
