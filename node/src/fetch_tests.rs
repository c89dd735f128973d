//! Pieces over the real transport: a coordinator, nodes that give, and one that fetches.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use bytes::Bytes;
use protocol::config::Transport;
use protocol::{Digest, FileManifest, Manifest, NodeId, WIRE_VERSION};
use transport::{
    Authority, Endpoint, Incoming, Joining, NodeKey, PeerName, PieceSource, Purpose, Token,
    Verdict, serve_pieces,
};

use super::*;
use crate::cache::Cache;

const PIECE_BYTES: usize = 4096;
const NUM_PIECES: u32 = 40;

/// What a source does with what it is asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Manner {
    Honest,
    /// From the ninth piece on it sends other bytes.
    Lies,
    /// Its process is gone at the ninth piece.
    Dies,
    /// It answers nothing any more from the ninth piece on.
    Hangs,
    /// It has nothing of this model.
    Empty,
    /// The way to it is so narrow that of several pieces at once none comes in time.
    Narrow,
}

/// Gives pieces of one file.
struct Giver {
    bytes: Vec<u8>,
    manner: Manner,
    num_given: AtomicUsize,
    endpoint: Endpoint,
    // Held once by each piece that is on its way.
    way: Arc<()>,
}

impl PieceSource for Giver {
    async fn give(&self, ask: Ask) -> Result<Bytes, String> {
        let all = (0..NUM_PIECES).map(|index| PieceId { file: 0, index });
        let (piece, digest) = match ask {
            Ask::Held(_) if self.manner == Manner::Empty => return Err("nothing is here".into()),
            Ask::Held(_) => return Ok(codec::encode(&all.collect::<PieceSet>()).into()),
            Ask::Piece(_, piece, digest) => (piece, digest),
            Ask::Manifest(_) => return Err("not here".into()),
        };
        let number = self.num_given.fetch_add(1, SeqCst);
        match self.manner {
            Manner::Lies if number >= 8 => return Ok(vec![0; PIECE_BYTES].into()),
            Manner::Dies if number >= 8 => self.endpoint.close("killed").await,
            Manner::Hangs if number >= 8 => std::future::pending().await,
            Manner::Narrow => {
                let _on_its_way = Arc::clone(&self.way);
                while Arc::strong_count(&self.way) > 2 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
            _ => tokio::time::sleep(Duration::from_millis(1)).await,
        }
        let (index, manifest) = (piece.index as usize, manifest(&self.bytes));
        assert_eq!(manifest.digest(piece), Some(digest));
        Ok(self.bytes[index * PIECE_BYTES..][..PIECE_BYTES].to_vec().into())
    }
}

/// Nobody is waited for for long.
fn quick() -> Transport {
    Transport { connect_timeout_ms: 2000, ..Transport::default() }
}

fn manifest(bytes: &[u8]) -> Manifest {
    let digest = |piece: &[u8]| Digest(*blake3::hash(piece).as_bytes());
    Manifest {
        entry: String::new(),
        piece_bytes: PIECE_BYTES as u32,
        files: vec![FileManifest {
            name: "model.safetensors".into(),
            num_bytes: bytes.len() as u64,
            header_bytes: 8,
            pieces: bytes.chunks(PIECE_BYTES).map(digest).collect(),
        }],
        parts: Vec::new(),
    }
}

/// A coordinator at whose door every node gets its certificate.
struct World {
    coordinator: SocketAddr,
    giver: Arc<Giver>,
    token: Token,
    config: Transport,
    dir: tempfile::TempDir,
}

impl World {
    fn new(manner: Manner) -> Self {
        Self::with(manner, quick())
    }

    fn with(manner: Manner, config: Transport) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::load_or_create(dir.path()).unwrap();
        let token = Token::load_or_create(&dir.path().join("join.token"), &authority).unwrap();
        let identity = authority.coordinator_identity(1).unwrap();
        let (local, all) = (([127, 0, 0, 1], 0).into(), config.clone());
        let endpoint = Endpoint::bind(local, Some(identity), &config).unwrap();
        let coordinator = endpoint.local_addr();
        let giver = Arc::new(giver(manner, endpoint.clone()));
        let gives = Arc::clone(&giver);
        tokio::spawn(async move {
            while let Some(incoming) = endpoint.accept().await {
                match incoming {
                    Incoming::Join(request) => {
                        let asking = request.hear(&config).await.unwrap();
                        let verdict = Verdict::Admitted { pool: "a".into() };
                        asking.answer(&authority, &config, false, &verdict).await.unwrap();
                    }
                    Incoming::Data(connection) => {
                        tokio::spawn(serve_pieces(connection, Arc::clone(&gives)));
                    }
                    Incoming::Control(_) => {}
                }
            }
        });
        Self { coordinator, giver, token, config: all, dir }
    }

    async fn join(&self, node: u64) -> Endpoint {
        let (key, config) = (NodeKey::new().unwrap(), &self.config);
        let joining = Joining {
            coordinator: self.coordinator,
            node: NodeId(node),
            key: &key,
            pool: "",
            config,
            newest: WIRE_VERSION,
        };
        let joined = joining.by_token(&self.token).await.unwrap();
        Endpoint::bind(([127, 0, 0, 1], 0).into(), Some(joined.identity), config).unwrap()
    }

    /// Another node that gives pieces.
    async fn giver(&self, node: u64, manner: Manner) -> (Peer, Arc<Giver>) {
        let endpoint = self.join(node).await;
        let peer = Peer { node: NodeId(node), addr: endpoint.local_addr() };
        let given = Arc::new(giver(manner, endpoint.clone()));
        let gives = Arc::clone(&given);
        tokio::spawn(async move {
            while let Some(Incoming::Data(connection)) = endpoint.accept().await {
                tokio::spawn(serve_pieces(connection, Arc::clone(&gives)));
            }
        });
        (peer, given)
    }

    /// A node fetches all pieces, from the coordinator and from these: what came of it, and what
    /// is in its cache.
    async fn fetch(&self, nodes: Vec<Peer>) -> (Result<Fetched, StageError>, Vec<u8>) {
        let (endpoint, config) = (self.join(1).await, &self.config);
        let name = PeerName::Coordinator;
        let coordinator = endpoint.dial(self.coordinator, Purpose::Data, name).await.unwrap();
        let links = Arc::new(Links::new(NodeId(1), endpoint, coordinator.clone(), config));
        let manifest = manifest(&self.giver.bytes);
        let needed: BTreeSet<_> = (0..NUM_PIECES).map(|index| PieceId { file: 0, index }).collect();
        let cache = Cache::open(&self.dir.path().join("cache"), u64::MAX).unwrap();
        let model = cache.model(&manifest, &needed, None).unwrap();
        let sources = OpenSources { coordinator, nodes, links, max_pieces: 4 };
        let mut last = Given::default();
        let mut progress = |given: Given, _: &[PieceId]| last = given;
        let fetched = fetch(ModelId::default(), &model, needed, sources, &mut progress);
        let fetched = tokio::time::timeout(Duration::from_secs(60), fetched).await.unwrap();
        if fetched.is_ok() {
            assert_eq!((last.num_bytes, last.of_bytes), (160 << 10, 160 << 10));
        }
        let held = std::fs::read(model.path().join("model.safetensors")).unwrap();
        (fetched, held)
    }
}

fn giver(manner: Manner, endpoint: Endpoint) -> Giver {
    let bytes = (0..NUM_PIECES as usize * PIECE_BYTES).map(|at| (at / 7 + at / 5000) as u8);
    let (num_given, way) = (AtomicUsize::new(0), Arc::default());
    Giver { bytes: bytes.collect(), manner, num_given, endpoint, way }
}

/// Goal: bytes really come from other nodes. Method: what each source gave is counted by itself.
#[tokio::test(flavor = "multi_thread")]
async fn pieces_come_from_the_coordinator_and_from_nodes_at_once() {
    let world = World::new(Manner::Honest);
    let (one, first) = world.giver(2, Manner::Honest).await;
    let (two, second) = world.giver(3, Manner::Honest).await;
    let (three, none) = world.giver(4, Manner::Empty).await;
    let (fetched, held) = world.fetch(vec![one, two, three]).await;
    let fetched = fetched.unwrap();
    assert!(held == world.giver.bytes && fetched.num_pieces == NUM_PIECES as usize);
    let given = [&world.giver, &first, &second].map(|it| it.num_given.load(SeqCst));
    assert!(given.iter().all(|num| *num > 0), "{given:?}");
    assert_eq!(none.num_given.load(SeqCst), 0);
    let of_nodes = fetched.from_nodes as usize / PIECE_BYTES;
    assert!(of_nodes > 0 && of_nodes <= given[1] + given[2], "{fetched:?} {given:?}");
    assert_eq!(fetched.left, BTreeSet::new(), "who has nothing is no bad source");
}

/// Goal: a node that fails in the middle is left and named, and what it was asked for comes from
/// elsewhere; a file is never other than it should be.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_lies_or_dies_or_hangs_is_left_and_named() {
    let cases =
        [(Manner::Lies, "other bytes"), (Manner::Dies, "killed"), (Manner::Hangs, "others gave")];
    for (manner, said) in cases {
        let world = World::new(Manner::Honest);
        let (bad, given) = world.giver(0xbad, manner).await;
        let (fetched, held) = world.fetch(vec![bad]).await;
        let Fetched { left, from_nodes, .. } = fetched.unwrap();
        assert!(held == world.giver.bytes, "{manner:?}");
        assert!(given.num_given.load(SeqCst) >= 8 && from_nodes > 0, "{manner:?}");
        let left: Vec<_> = left.into_iter().collect();
        let is_named = |it: &String| it.contains("0bad at 127.0.0.1") && it.contains(said);
        assert!(left.len() == 1 && is_named(&left[0]), "{manner:?}: {left:?}");
    }
}

/// Goal: any source will do, and where none does the sentence names them all.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_give_what_the_coordinator_fails_to() {
    let world = World::new(Manner::Lies);
    let (node, _) = world.giver(2, Manner::Honest).await;
    let (fetched, held) = world.fetch(vec![node]).await;
    let left = fetched.unwrap().left;
    assert!(held == world.giver.bytes);
    assert!(left.len() == 1 && left.first().unwrap().starts_with("coordinator"), "{left:?}");

    let world = World::new(Manner::Lies);
    let gone = Peer { node: NodeId(0xd0a), addr: ([127, 0, 0, 1], 9).into() };
    let (fetched, _) = world.fetch(vec![gone]).await;
    let said = fetched.unwrap_err().to_string();
    for expected in ["pieces are missing", "other bytes", "0d0a"] {
        assert!(said.contains(expected), "{said}");
    }
}

/// Goal: a model comes to a node behind a narrow way, too. Method: a coordinator of whose pieces
/// none comes in time while another is on its way.
#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_come_in_time_at_once_comes_one_by_one() {
    let config = Transport { piece_timeout_ms: 1000, ..quick() };
    let world = World::with(Manner::Narrow, config);
    let (fetched, held) = world.fetch(Vec::new()).await;
    assert_eq!(fetched.unwrap().left, BTreeSet::new());
    assert!(held == world.giver.bytes);
}
