//! What is said at the coordinator's door, in each wire version: who asks for what, and the answer.

use bincode::{Decode, Encode};
use protocol::NodeId;
use protocol::config::Transport;

use crate::error::{JoinError, TransportError};
use crate::token::Proof;

/// Who asks for what. Members prove what they are by their certificates, others by a proof.
#[derive(Clone, Debug, Encode, Decode)]
pub(crate) struct Hello {
    pub(crate) node: NodeId,
    // Where the node means to belong; empty: wherever the token puts it.
    pub(crate) pool: String,
    pub(crate) certificate_request: Vec<u8>,
    // None: the certificate that TLS has seen says enough.
    pub(crate) proof: Option<Proof>,
    // It only wants to know what would be answered.
    pub(crate) is_trial: bool,
}

#[derive(Debug, Encode, Decode)]
pub(crate) enum Answer {
    // First, and never moved: a node of any version can be told why it may not join.
    Refused(String),
    // In wire version 4.
    WelcomeThen(Welcome<SettingsThen>),
    // Later, perhaps.
    NotNow(String),
    // It would be welcome; the coordinator's clock, in milliseconds of Unix time.
    Passed(i64),
    // With the settings as a file has them, so that they can become more.
    Welcome(Welcome<String>),
}

/// What a member gets, its settings in whichever form.
#[derive(Debug, Encode, Decode)]
pub(crate) struct Welcome<S> {
    pub(crate) certificate: Vec<u8>,
    pub(crate) authority: Vec<u8>,
    pub(crate) transport: S,
    pub(crate) cookie: String,
    pub(crate) is_open: bool,
}

impl<S> Welcome<S> {
    /// With the settings in another form.
    pub(crate) fn map<T>(self, form: impl FnOnce(S) -> T) -> Welcome<T> {
        let Self { certificate, authority, transport, cookie, is_open } = self;
        Welcome { certificate, authority, transport: form(transport), cookie, is_open }
    }
}

/// How members talk, as wire version 4 says it: these settings, in this order.
#[derive(Debug, Encode, Decode)]
pub(crate) struct SettingsThen {
    keep_alive_ms: u64,
    idle_timeout_ms: u64,
    connect_timeout_ms: u64,
    max_frame_bytes: u32,
    max_buffered_frames: u32,
    control_window_bytes: u32,
    data_window_bytes: u32,
    max_connections: u32,
    max_unvalidated_handshakes: u32,
    certificate_days: u32,
    piece_bytes: u32,
    max_pieces: u32,
    piece_timeout_ms: u64,
}

impl From<&Transport> for SettingsThen {
    fn from(it: &Transport) -> Self {
        Self {
            keep_alive_ms: it.keep_alive_ms,
            idle_timeout_ms: it.idle_timeout_ms,
            connect_timeout_ms: it.connect_timeout_ms,
            max_frame_bytes: it.max_frame_bytes,
            max_buffered_frames: it.max_buffered_frames,
            control_window_bytes: it.control_window_bytes,
            data_window_bytes: it.data_window_bytes,
            max_connections: it.max_connections,
            max_unvalidated_handshakes: it.max_unvalidated_handshakes,
            certificate_days: it.certificate_days,
            piece_bytes: it.piece_bytes,
            max_pieces: it.max_pieces,
            piece_timeout_ms: it.piece_timeout_ms,
        }
    }
}

impl From<SettingsThen> for Transport {
    fn from(it: SettingsThen) -> Self {
        Self {
            keep_alive_ms: it.keep_alive_ms,
            idle_timeout_ms: it.idle_timeout_ms,
            connect_timeout_ms: it.connect_timeout_ms,
            max_frame_bytes: it.max_frame_bytes,
            max_buffered_frames: it.max_buffered_frames,
            control_window_bytes: it.control_window_bytes,
            data_window_bytes: it.data_window_bytes,
            max_connections: it.max_connections,
            max_unvalidated_handshakes: it.max_unvalidated_handshakes,
            certificate_days: it.certificate_days,
            piece_bytes: it.piece_bytes,
            max_pieces: it.max_pieces,
            piece_timeout_ms: it.piece_timeout_ms,
            // What came later is as nodes of that version have it.
        }
    }
}

/// Whatever is no yes.
impl From<Answer> for JoinError {
    fn from(answer: Answer) -> Self {
        match answer {
            Answer::Refused(reason) => Self::Refused(reason),
            Answer::NotNow(reason) => Self::NotNow(reason),
            Answer::Welcome(_) | Answer::WelcomeThen(_) | Answer::Passed(_) => {
                TransportError::Closed("it answers what nobody has asked".into()).into()
            }
        }
    }
}
