//! What a node says of itself.

use bincode::de::Decoder;
use bincode::enc::Encoder;
use bincode::error::{DecodeError, EncodeError};
use bincode::{Decode, Encode};
use std::net::SocketAddr;

use crate::config::Quantize;
use crate::{Digest, LayerRange, ModelId, Narrow, NodeId, SessionId, Speed, codec};

/// More than any adapter has: whoever says more is taken at so much, so that it can be added up.
pub(crate) const MAX_MEMORY_BYTES: u64 = 1 << 50;

/// Most adapters of a node: a placement compares all that there are.
const MAX_ADAPTERS: usize = 64;

const MAX_LABELS: usize = 64;

/// Longest key or value of a label.
const MAX_LABEL_BYTES: usize = 1024;

/// What is shown of a name. Drivers make up theirs.
const MAX_NAME_CHARS: usize = 256;

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

impl NodeReport {
    /// Puts up with no more of it than there is room for, since it came over a network: names for
    /// people are cut, and no adapter has more memory than any has.
    ///
    /// # Errors
    /// When it names more than a node may have: what, and how much would be right.
    pub fn bound(&mut self) -> Result<(), String> {
        let (node, num_adapters, num_labels) = (self.node, self.adapters.len(), self.labels.len());
        for name in [&mut self.hostname, &mut self.pool] {
            cut(name);
        }
        if num_adapters > MAX_ADAPTERS {
            return Err(format!(
                "node {node} has {num_adapters} adapters, more than the {MAX_ADAPTERS} that a node \
                 may have: start several with some of them each"
            ));
        }
        let labels = self.labels.iter().flat_map(|(key, value)| [key, value]);
        let longest = labels.map(String::len).max().unwrap_or(0);
        if num_labels > MAX_LABELS || longest > MAX_LABEL_BYTES {
            return Err(format!(
                "node {node} has {num_labels} labels of up to {longest} bytes: {MAX_LABELS} of \
                 {MAX_LABEL_BYTES} are the most that it may have"
            ));
        }
        for adapter in &mut self.adapters {
            cut(&mut adapter.name);
            cut(&mut adapter.driver);
            adapter.memory_bytes = adapter.memory_bytes.min(MAX_MEMORY_BYTES);
        }
        self.held.retain(|held| (held.adapter as usize) < num_adapters);
        Ok(())
    }
}

fn cut(name: &mut String) {
    if let Some((end, _)) = name.char_indices().nth(MAX_NAME_CHARS) {
        name.truncate(end);
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_taken_of_a_report_than_there_is_room_for() {
        let adapter = AdapterReport {
            name: "\u{fc}".repeat(1000),
            driver: "driver".into(),
            memory_bytes: u64::MAX,
            max_cache_bytes: None,
            fingerprint: Digest::default(),
            speed: Speed::default(),
        };
        let held = |adapter| HeldParts { adapter, ..HeldParts::default() };
        let report = NodeReport {
            node: NodeId(7),
            session: SessionId(1),
            hostname: "h".repeat(1000),
            pid: 1,
            data_addr: ([127, 0, 0, 1], 1).into(),
            pool: String::new(),
            labels: vec![("zone".into(), "a".into()); MAX_LABELS],
            adapters: vec![adapter.clone(); MAX_ADAPTERS],
            held: vec![held(63), held(64)],
        };
        let mut bound = report.clone();
        bound.bound().unwrap();
        assert_eq!((bound.hostname.len(), bound.held.len()), (MAX_NAME_CHARS, 1));
        assert_eq!(bound.adapters[0].name.len(), 2 * MAX_NAME_CHARS, "no character is cut in two");
        let memory = bound.adapters.iter().map(|it| it.memory_bytes);
        assert_eq!(memory.sum::<u64>(), MAX_ADAPTERS as u64 * MAX_MEMORY_BYTES);

        let long = ("zone".into(), "a".repeat(MAX_LABEL_BYTES + 1));
        for (mut wrong, expected) in [
            (NodeReport { adapters: vec![adapter; 65], ..report.clone() }, "has 65 adapters"),
            (NodeReport { labels: vec![long.clone(); 65], ..report.clone() }, "has 65 labels"),
            (NodeReport { labels: vec![long], ..report }, "1 labels of up to 1025 bytes"),
        ] {
            let said = wrong.bound().unwrap_err();
            assert!(said.contains(expected) && said.contains("node 0000000000000007"), "{said}");
        }
    }
}
