//! Frames on a stream: one long-lived unidirectional stream for each link and direction. QUIC's
//! flow control is the back-pressure.

use bincode::{Decode, Encode};
use bytes::Bytes;
use protocol::frame::HEADER_BYTES;
use protocol::{Epoch, Frame, PipelineId, StageIndex, codec};

use crate::endpoint::Connection;
use crate::error::TransportError;

/// Longest greeting: a certificate request or a link's hello.
const MAX_GREETING_BYTES: usize = 64 << 10;

/// What a link is for, said once when it opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct LinkHello {
    /// Which pipeline.
    pub pipeline: PipelineId,
    /// Which generation of its plan.
    pub epoch: Epoch,
    /// The stage that the frames go to; on a link to the coordinator, the one they come from.
    pub stage: StageIndex,
}

/// Opens a link to the peer.
///
/// # Errors
/// When the connection is gone.
pub async fn open_frames(
    connection: &Connection,
    hello: &LinkHello,
) -> Result<FrameSender, TransportError> {
    let mut stream = connection.connection.open_uni().await.map_err(closed)?;
    write_message(&mut stream, hello).await?;
    Ok(FrameSender { stream })
}

/// The next link that the peer opens.
///
/// # Errors
/// When the connection is gone, or the peer breaks the protocol.
pub async fn accept_frames(
    connection: &Connection,
) -> Result<(LinkHello, FrameReceiver), TransportError> {
    let mut stream = connection.connection.accept_uni().await.map_err(closed)?;
    let hello = read_message(&mut stream).await?;
    let max_bytes = connection.max_frame_bytes;
    Ok((hello, FrameReceiver { stream, max_bytes, buffer: Vec::new() }))
}

/// The sending end of a link.
#[derive(Debug)]
pub struct FrameSender {
    stream: quinn::SendStream,
}

impl FrameSender {
    /// Sends a frame; waits while the receiver is behind. Not cancel-safe: a frame that was begun
    /// must be finished.
    ///
    /// # Errors
    /// When the link is gone.
    pub async fn send(&mut self, frame: &Frame) -> Result<(), TransportError> {
        self.stream.write_chunk(Bytes::from(frame.encode())).await.map_err(closed)
    }
}

/// The receiving end of a link.
#[derive(Debug)]
pub struct FrameReceiver {
    stream: quinn::RecvStream,
    max_bytes: usize,
    // Kept from frame to frame.
    buffer: Vec<u8>,
}

impl FrameReceiver {
    /// The next frame and its size in bytes; none when the link ended between two frames. Not
    /// cancel-safe.
    ///
    /// # Errors
    /// When the link is gone, or the peer breaks the protocol.
    pub async fn recv(&mut self) -> Result<Option<(Frame, usize)>, TransportError> {
        let mut header = [0; HEADER_BYTES];
        match self.stream.read_exact(&mut header).await {
            Ok(()) => {}
            Err(quinn::ReadExactError::FinishedEarly(0)) => return Ok(None),
            Err(cause) => return Err(closed(cause)),
        }
        // Checked before memory is taken.
        let payload = Frame::payload_bytes(&header, self.max_bytes)?;
        self.buffer.resize(HEADER_BYTES + payload, 0);
        self.buffer[..HEADER_BYTES].copy_from_slice(&header);
        self.stream.read_exact(&mut self.buffer[HEADER_BYTES..]).await.map_err(closed)?;
        let frame = Frame::decode(&self.buffer)?;
        Ok(Some((frame, self.buffer.len())))
    }
}

/// Writes a message after its length.
pub(crate) async fn write_message<T: Encode>(
    stream: &mut quinn::SendStream,
    message: &T,
) -> Result<(), TransportError> {
    let bytes = codec::encode(message);
    let length = u32::try_from(bytes.len()).map_err(|_| TransportError::TooLong(bytes.len()))?;
    stream.write_all(&length.to_le_bytes()).await.map_err(closed)?;
    stream.write_all(&bytes).await.map_err(closed)
}

/// Reads a message after its length.
pub(crate) async fn read_message<T: Decode<()>>(
    stream: &mut quinn::RecvStream,
) -> Result<T, TransportError> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).await.map_err(closed)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > MAX_GREETING_BYTES {
        return Err(TransportError::TooLong(length));
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await.map_err(closed)?;
    Ok(codec::decode(&bytes)?)
}

fn closed(cause: impl ToString) -> TransportError {
    TransportError::Closed(cause.to_string())
}
