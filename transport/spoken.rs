//! Which wire version is spoken on a connection. TLS agrees on it before anything is said: whoever
//! dials offers a name for each version that it speaks, whoever is dialled takes the newest of
//! them that it speaks, too. So each connection has a version of its own, and the same rule holds
//! between a node and its coordinator as between two nodes.

use std::ops::RangeInclusive;

use protocol::{OLDEST_WIRE_VERSION, WIRE_VERSION};
use quinn::crypto::rustls::HandshakeData;

/// What a connection is for, by its name in each wire version, newest first.
pub(crate) type Protocol = [(u16, &'static [u8]); 2];

/// Control: ractor_cluster, heartbeats.
pub(crate) const CONTROL: Protocol = [(5, b"autoglm-ctl/5"), (4, b"autoglm-ctl/1")];

/// Data: frames, and pieces of models.
pub(crate) const DATA: Protocol = [(5, b"autoglm-data/5"), (4, b"autoglm-data/1")];

/// Joining: get a certificate. Whoever speaks another version offers the last of these names, too,
/// so that it can be told why it may not join.
pub(crate) const JOIN: Protocol = [(5, b"autoglm-join/5"), (4, b"autoglm-join/1")];

/// The names of what is spoken by a process whose newest version is this one.
pub(crate) fn names(protocol: &Protocol, newest: u16) -> impl Iterator<Item = &'static [u8]> {
    protocol.iter().filter(move |(version, _)| *version <= newest).map(|(_, name)| *name)
}

/// None where no version that is spoken here has this name.
pub(crate) fn version(protocol: &Protocol, name: &[u8]) -> Option<u16> {
    protocol.iter().find(|(_, known)| *known == name).map(|(version, _)| *version)
}

/// The name that both sides of a connection agreed on.
pub(crate) fn agreed(connection: &quinn::Connection) -> Vec<u8> {
    let handshake = connection.handshake_data().and_then(|data| data.downcast().ok());
    handshake.and_then(|data: Box<HandshakeData>| data.protocol).unwrap_or_default()
}

/// The versions that a process speaks whose newest is this one, in words.
pub(crate) fn range(newest: u16) -> String {
    let versions: RangeInclusive<u16> = OLDEST_WIRE_VERSION..=newest.min(WIRE_VERSION);
    match (versions.start(), versions.end()) {
        (oldest, newest) if oldest == newest => newest.to_string(),
        (oldest, newest) => format!("{oldest} to {newest}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_version_that_is_spoken_has_one_name_for_each_purpose() {
        let mut all = Vec::new();
        for protocol in [CONTROL, DATA, JOIN] {
            let versions: Vec<_> = protocol.iter().map(|(version, _)| *version).collect();
            let spoken: Vec<_> = (OLDEST_WIRE_VERSION..=WIRE_VERSION).rev().collect();
            assert_eq!(versions, spoken, "newest first: that is what is agreed on");
            for (known, name) in protocol {
                assert_eq!(version(&protocol, name), Some(known));
            }
            assert_eq!(names(&protocol, OLDEST_WIRE_VERSION).count(), 1);
            all.extend(names(&protocol, WIRE_VERSION));
        }
        let num_names = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), num_names);
        assert_eq!((range(WIRE_VERSION), range(4)), ("4 to 5".to_owned(), "4".to_owned()));
    }
}
