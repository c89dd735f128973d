//! What a node says of itself.

use bincode::de::Decoder;
use bincode::enc::Encoder;
use bincode::error::{DecodeError, EncodeError};
use bincode::{Decode, Encode};
use std::net::SocketAddr;

use crate::config::Quantize;
use crate::{Digest, LayerRange, ModelId, Narrow, NodeId, SessionId, Speed, codec};

/// What a node reports when it joins.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeReport {
    /// Kept in its data directory: the same after a restart.
    pub node: NodeId,
    /// A report of any but the node's newest is dropped.
    pub session: SessionId,
    /// The machine's name, for people.
    pub hostname: String,
    /// The process on that machine.
    pub pid: u32,
    /// Where the node's neighbours reach it. An unspecified address stands for the one at which the
    /// coordinator sees it.
    pub data_addr: SocketAddr,
    /// Where it belongs, as its certificate says; whatever the node says is replaced.
    pub pool: String,
    /// What its operator says of it: keys and values.
    pub labels: Vec<(String, String)>,
    /// The adapters that it may use; at least one.
    pub adapters: Vec<AdapterReport>,
    /// What is on them already. Since wire version 5: to an older coordinator none is told.
    pub held: Vec<HeldParts>,
}

/// Parts of a model that an adapter holds: whoever is to compute with them needn't load them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct HeldParts {
    /// A place in [`NodeReport::adapters`].
    pub adapter: u32,
    /// A hash: parts of other files of the same name are not used.
    pub model: ModelId,
    /// What its matrices are rounded to.
    pub quantize: Quantize,
    /// Whether the embedding is there.
    pub embedding: bool,
    /// The layers, in ascending order.
    pub layers: Vec<LayerRange>,
    /// Whether the head is.
    pub head: bool,
}

/// A GPU, or what stands in for one.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterReport {
    /// As the driver calls it.
    pub name: String,
    /// Driver and its version.
    pub driver: String,
    /// Bytes that stages may take together.
    pub memory_bytes: u64,
    /// The most that a stage's KV cache takes of them, unless one sequence needs more; none:
    /// whatever fits. Since wire version 5: to an older coordinator none is told.
    pub max_cache_bytes: Option<u64>,
    /// The device class (design I1): adapter, driver, kernels, and the bits of a self-test. Of
    /// small layers, before any model is known; a stage's echo has that of its model's.
    pub fingerprint: Digest,
    /// How fast its kernels are.
    pub speed: Speed,
}

/// In the order in which fields were added; what is held, the caches' limits and what narrow
/// weights take come last, and only as far as there are any: without them the message is what wire
/// version 4 says.
impl Encode for NodeReport {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        let Self { node, session, hostname, pid, data_addr, pool, labels, adapters, held } = self;
        let devices: Vec<_> = adapters
            .iter()
            .map(|it| (&it.name, &it.driver, it.memory_bytes, it.fingerprint))
            .collect();
        let speeds: Vec<_> = adapters.iter().map(|it| it.speed).collect();
        (node, session, hostname, pid, data_addr, devices).encode(encoder)?;
        (pool, labels, speeds).encode(encoder)?;
        let max_cache: Vec<_> = adapters.iter().map(|it| it.max_cache_bytes).collect();
        let narrow: Vec<_> = adapters.iter().map(|it| it.speed.narrow).collect();
        let has_times = narrow.iter().any(|it| *it != Narrow::default());
        let has_limits = has_times || max_cache.iter().any(Option::is_some);
        if has_limits || !held.is_empty() {
            held.encode(encoder)?;
        }
        if has_limits {
            max_cache.encode(encoder)?;
        }
        if has_times { narrow.encode(encoder) } else { Ok(()) }
    }
}

impl Decode<()> for NodeReport {
    fn decode<D: Decoder<Context = ()>>(decoder: &mut D) -> Result<Self, DecodeError> {
        let (node, session, hostname, pid, data_addr) = Decode::decode(decoder)?;
        let devices: Vec<(String, String, u64, Digest)> = Decode::decode(decoder)?;
        let (pool, labels, speeds): (_, _, Vec<Speed>) = Decode::decode(decoder)?;
        let held = codec::added(decoder)?;
        let max_cache: Vec<Option<u64>> = codec::added(decoder)?;
        let narrow: Vec<Narrow> = codec::added(decoder)?;
        let (mut speeds, mut max_cache) = (speeds.into_iter(), max_cache.into_iter());
        let mut narrow = narrow.into_iter();
        let adapter = |(name, driver, memory_bytes, fingerprint)| {
            let narrow = narrow.next().unwrap_or_default();
            let speed = Speed { narrow, ..speeds.next().unwrap_or_default() };
            let max_cache_bytes = max_cache.next().flatten();
            AdapterReport { name, driver, memory_bytes, max_cache_bytes, fingerprint, speed }
        };
        let adapters = devices.into_iter().map(adapter).collect();
        Ok(Self { node, session, hostname, pid, data_addr, pool, labels, adapters, held })
    }
}
