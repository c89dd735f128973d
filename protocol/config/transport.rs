//! What `cluster.toml` says of connections between processes, and how a coordinator tells its
//! nodes.

use serde::{Deserialize, Serialize};

use super::ConfigError;

/// Connections between processes.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Transport {
    /// Milliseconds between two signs of life on an idle control connection. Others give one in two
    /// thirds of `idle_timeout_ms`.
    pub keep_alive_ms: u64,
    /// Milliseconds of silence after which the other side counts as dead; to whoever gives signs of
    /// life it is silent from the first that it doesn't answer.
    pub idle_timeout_ms: u64,
    /// Milliseconds that dialling and joining may take.
    pub connect_timeout_ms: u64,
    /// Bytes of one frame between stages.
    pub max_frame_bytes: u32,
    /// Frames that may wait between a connection and a stage.
    pub max_buffered_frames: u32,
    /// Bytes in flight on a control connection: small, so that nothing delays a heartbeat.
    pub control_window_bytes: u32,
    /// Bytes in flight on a data connection.
    pub data_window_bytes: u32,
    /// Connections that one process accepts at once.
    pub max_connections: u32,
    /// Handshakes under way from which on whoever dials must show first that it receives what is
    /// sent to its address.
    pub max_unvalidated_handshakes: u32,
    /// Days that a node's certificate is valid.
    pub certificate_days: u32,
    /// Bytes of a piece of a model's files, as nodes fetch them.
    pub piece_bytes: u32,
    /// Pieces that one process sends another at once, and that a node fetches at once.
    pub max_pieces: u32,
    /// Milliseconds that a piece may take; whoever takes longer is asked no more.
    pub piece_timeout_ms: u64,
}

impl Default for Transport {
    fn default() -> Self {
        Self {
            keep_alive_ms: 500,
            idle_timeout_ms: 1400,
            connect_timeout_ms: 5000,
            max_frame_bytes: 256 << 20,
            max_buffered_frames: 16,
            control_window_bytes: 256 << 10,
            data_window_bytes: 32 << 20,
            max_connections: 256,
            max_unvalidated_handshakes: 64,
            certificate_days: 1,
            piece_bytes: 4 << 20,
            max_pieces: 8,
            piece_timeout_ms: 30_000,
        }
    }
}

impl Transport {
    /// These settings as a node is told of them.
    pub fn told(&self) -> String {
        toml::to_string(self).expect("numbers can be written")
    }

    /// What a coordinator tells, as far as this release knows it: of settings that only one of the
    /// two knows, what is said is left out, and what isn't is at its default.
    ///
    /// # Errors
    /// When the text isn't TOML, or a value has the wrong type.
    pub fn hear(text: &str) -> Result<Self, ConfigError> {
        let parse = |cause: toml::de::Error| ConfigError::Parse(cause.to_string());
        let known = toml::Table::try_from(Self::default()).expect("numbers can be written");
        let mut told: toml::Table = text.parse().map_err(parse)?;
        told.retain(|key, _| known.contains_key(key));
        told.try_into().map_err(parse)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_one_side_does_not_know_are_no_hindrance() {
        let ours = Transport { keep_alive_ms: 77, piece_timeout_ms: 5, ..Transport::default() };
        assert_eq!(Transport::hear(&ours.told()).unwrap(), ours);
        let newer = ours.told() + "another_setting = \"x\"\n";
        assert_eq!(Transport::hear(&newer).unwrap(), ours);
        let older = Transport::hear("keep_alive_ms = 77").unwrap();
        assert_eq!(older, Transport { keep_alive_ms: 77, ..Transport::default() });
        for wrong in ["keep_alive_ms = \"soon\"", "keep_alive_ms"] {
            assert!(Transport::hear(wrong).is_err());
        }
    }
}
