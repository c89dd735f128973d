//! Frames on a stream: one long-lived unidirectional stream for each link and direction. QUIC's
//! flow control is the back-pressure.

use std::time::{Duration, Instant};

use bincode::{Decode, Encode};
use bytes::Bytes;
use protocol::frame::HEADER_BYTES;
use protocol::{Frame, FrameError, StageId, codec};

use crate::connection::Connection;
use crate::error::TransportError;
use crate::probe;

/// Longest greeting: a certificate request or a link's hello.
const MAX_GREETING_BYTES: usize = 64 << 10;

/// Memory that the promise of a frame is worth. The rest is taken as its bytes arrive.
const MAX_TRUSTED_BYTES: usize = 1 << 20;

/// Opens a link to the peer, and says what for: the stage that the frames go to, or, on a link to
/// the coordinator, the one they come from.
///
/// # Errors
/// When the connection is gone, or the peer refused it.
pub async fn open_frames(
    connection: &Connection,
    stage: StageId,
) -> Result<FrameSender, TransportError> {
    let mut stream = connection.connection.open_uni().await?;
    write_message(&mut stream, &stage).await?;
    let max_bytes = connection.limits.max_frame_bytes;
    Ok(FrameSender {
        connection: connection.clone(),
        stream,
        max_bytes,
        unsent: Default::default(),
    })
}

/// The next link that the peer opens, and what for. Not cancel-safe: the link whose greeting was
/// being read is lost.
///
/// # Errors
/// When the connection is gone, or the peer breaks the protocol.
pub async fn accept_frames(
    connection: &Connection,
) -> Result<(StageId, FrameReceiver), TransportError> {
    let (stage, stream) = loop {
        let mut stream = connection.connection.accept_uni().await?;
        let stage = connection.limits.greeting(read_message(&mut stream)).await?;
        if !probe::is_probe(stage) {
            break (stage, stream);
        }
        tokio::spawn(probe::drain(stream));
    };
    let max_bytes = connection.limits.max_frame_bytes;
    Ok((stage, FrameReceiver { stream, max_bytes, buffer: Vec::new() }))
}

/// The sending end of a link. The link ends when it is dropped.
#[derive(Debug)]
pub struct FrameSender {
    connection: Connection,
    stream: quinn::SendStream,
    max_bytes: usize,
    // Of a frame whose sending was cancelled.
    unsent: [Bytes; 2],
}

/// What sending a frame took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Making bytes of it.
    pub encode: Duration,
    /// Until QUIC had taken them: longer than an instant when the receiver is behind.
    pub write: Duration,
    /// The connection's round trip, as QUIC smooths it.
    pub rtt: Duration,
}

impl FrameSender {
    /// Sends a frame; waits while the receiver is behind. Cancelled, it has sent the frame or
    /// part of it, and the next call begins with the rest: frames are never torn.
    ///
    /// # Errors
    /// When the link is gone, or the frame is longer than any receiver would take.
    pub async fn send(&mut self, frame: &Frame) -> Result<Sent, TransportError> {
        let start = Instant::now();
        let pieces = frame.encode();
        let encode = start.elapsed();
        let num_bytes = pieces.iter().map(Bytes::len).sum::<usize>() - HEADER_BYTES;
        if num_bytes > self.max_bytes {
            let max = self.max_bytes;
            return Err(FrameError::TooLong { bytes: num_bytes, max }.into());
        }
        // Before, too: a long one may wait for whoever is no more there.
        self.connection.sent();
        self.flush().await?;
        self.unsent = pieces;
        self.flush().await?;
        self.connection.sent();
        Ok(Sent { encode, write: start.elapsed() - encode, rtt: self.connection.rtt() })
    }

    /// Why the link can carry no more, once it can't: its connection has ended, or the receiver
    /// has let it go. Outlives the sender.
    pub fn ended(&self) -> impl Future<Output = TransportError> + Send + 'static {
        let stopped = self.stream.stopped();
        async move {
            match stopped.await {
                Err(quinn::StoppedError::ConnectionLost(cause)) => cause.into(),
                _ => TransportError::Closed("the other side reads this no more".into()),
            }
        }
    }

    async fn flush(&mut self) -> Result<(), TransportError> {
        while self.unsent.iter().any(|piece| !piece.is_empty()) {
            self.stream.write_chunks(&mut self.unsent).await?;
        }
        Ok(())
    }
}

/// The receiving end of a link.
#[derive(Debug)]
pub struct FrameReceiver {
    stream: quinn::RecvStream,
    max_bytes: usize,
    // What has arrived of the next frame.
    buffer: Vec<u8>,
}

/// A frame that has arrived.
#[derive(Clone, Debug)]
pub struct Received {
    /// Parsed, of whatever epoch: the receiver drops old ones.
    pub frame: Frame,
    /// Its size on the wire.
    pub num_bytes: usize,
    /// When its last byte was here.
    pub at: Instant,
    /// Making a frame of its bytes.
    pub decode: Duration,
}

impl FrameReceiver {
    /// The next frame; none when the link ended between two frames.
    /// Cancel-safe: what has arrived is kept for the next call.
    ///
    /// # Errors
    /// When the link is gone, or the peer breaks the protocol: no later frame can be read.
    pub async fn recv(&mut self) -> Result<Option<Received>, TransportError> {
        if !self.fill(HEADER_BYTES).await? {
            return Ok(None);
        }
        let header = self.buffer.first_chunk().expect("filled up to the header's length");
        // Checked before memory is taken.
        let num_bytes = HEADER_BYTES + Frame::payload_bytes(header, self.max_bytes)?;
        self.fill(num_bytes).await?;
        let at = Instant::now();
        // The frame takes the buffer over.
        let frame = Frame::decode(&std::mem::take(&mut self.buffer).into())?;
        let decode = at.elapsed();
        Ok(Some(Received { frame, num_bytes, at, decode }))
    }

    /// Reads until the buffer holds `num_bytes`; false when the link ended before the first.
    async fn fill(&mut self, num_bytes: usize) -> Result<bool, TransportError> {
        while self.buffer.len() < num_bytes {
            let missing = num_bytes - self.buffer.len();
            if self.buffer.len() == self.buffer.capacity() {
                // No more than the frame has: it keeps all of it.
                let trusted = MAX_TRUSTED_BYTES.max(self.buffer.len());
                self.buffer.reserve_exact(missing.min(trusted));
            }
            let missing = missing.min(self.buffer.capacity() - self.buffer.len());
            match self.stream.read_chunk(missing, true).await? {
                Some(chunk) => self.buffer.extend_from_slice(&chunk.bytes),
                None if self.buffer.is_empty() => return Ok(false),
                None => {
                    let held = self.buffer.len();
                    return Err(FrameError::Truncated { held, promised: num_bytes }.into());
                }
            }
        }
        Ok(true)
    }
}

/// Writes a message after its length.
pub(crate) async fn write_message<T: Encode>(
    stream: &mut quinn::SendStream,
    message: &T,
) -> Result<(), TransportError> {
    let message = codec::encode(message);
    let length =
        u32::try_from(message.len()).map_err(|_| TransportError::TooLong(message.len()))?;
    let mut bytes = length.to_le_bytes().to_vec();
    bytes.extend(message);
    Ok(stream.write_chunk(bytes.into()).await?)
}

/// Reads a message after its length.
pub(crate) async fn read_message<T: Decode<()>>(
    stream: &mut quinn::RecvStream,
) -> Result<T, TransportError> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).await?;
    let length = u32::from_le_bytes(length) as usize;
    if length > MAX_GREETING_BYTES {
        return Err(TransportError::TooLong(length));
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await?;
    Ok(codec::decode(&bytes)?)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use protocol::config::Transport;
    use protocol::{Body, Epoch, ModelId, PipelineId, StageIndex, Step, StepId};

    use super::*;
    use crate::endpoint::Purpose;
    use crate::tests::Pair;

    const STAGE: StageId = StageId {
        pipeline: PipelineId(3),
        epoch: Epoch { start: 1, counter: 2 },
        stage: StageIndex(1),
    };

    fn frame(step: u64, num_values: usize) -> Frame {
        let hidden = (0..num_values).map(|i| i as f32).collect();
        Frame {
            model: ModelId([1; 16]),
            stage: STAGE,
            step: StepId(step),
            body: Body::Step(Step { hidden, ..Step::default() }),
        }
    }

    #[tokio::test]
    async fn frames_arrive_whole_and_in_order() {
        let pair = Pair::new(&Transport::default()).await;
        // Either side of a connection may open links.
        let (dialled, accepted) = pair.connect(Purpose::Data).await;
        for (from, to) in [(&dialled, &accepted), (&accepted, &dialled)] {
            let sizes = [0, 1, 1000, 100_000, 2 << 20, 7];
            let send = async {
                let mut link = open_frames(from, STAGE).await.unwrap();
                for (step, num_values) in sizes.into_iter().enumerate() {
                    link.send(&frame(step as u64, num_values)).await.unwrap();
                }
            };
            let receive = async {
                let (said, mut link) = accept_frames(to).await.unwrap();
                assert_eq!(said, STAGE);
                for (step, num_values) in sizes.into_iter().enumerate() {
                    let received = link.recv().await.unwrap().unwrap();
                    assert_eq!(received.frame, frame(step as u64, num_values));
                    assert_eq!(received.num_bytes, received.frame.encode().concat().len());
                    assert_eq!(link.buffer.capacity(), 0, "a link keeps nothing");
                }
                assert!(link.recv().await.unwrap().is_none(), "the link ended between two frames");
            };
            tokio::join!(send, receive);
        }
    }

    /// Goal: a slow receiver holds up the sender, and cancelling either side tears no frame.
    /// Method: small windows, and both sides give up again and again.
    #[tokio::test]
    async fn back_pressure_and_cancelled_calls_tear_nothing() {
        const NUM_FRAMES: u64 = 20;
        let config = Transport { data_window_bytes: 16 << 10, ..Transport::default() };
        let pair = Pair::new(&config).await;
        let (dialled, accepted) = pair.connect(Purpose::Data).await;
        let mut sending = open_frames(&dialled, STAGE).await.unwrap();
        let (_, mut receiving) = accept_frames(&accepted).await.unwrap();
        let mut num_sent = 0;
        let patience = Duration::from_millis(50);
        // A frame is begun by the call that times out, and finished by the next.
        let mut is_held_up = false;
        while num_sent < NUM_FRAMES && !is_held_up {
            let sent = frame(num_sent, 10_000);
            is_held_up = tokio::time::timeout(patience, sending.send(&sent)).await.is_err();
            num_sent += 1;
        }
        assert!(num_sent < 5, "{num_sent} frames of 40 kB fit into windows of 16 kB");
        let send = async {
            for step in num_sent..NUM_FRAMES {
                sending.send(&frame(step, 10_000)).await.unwrap();
            }
            sending.flush().await.unwrap();
            sending
        };
        let receive = async {
            for step in 0..NUM_FRAMES {
                let received = loop {
                    let patience = Duration::from_micros(100);
                    if let Ok(received) = tokio::time::timeout(patience, receiving.recv()).await {
                        break received.unwrap().unwrap().frame;
                    }
                };
                assert_eq!(received, frame(step, 10_000));
            }
        };
        tokio::join!(send, receive);
    }

    #[tokio::test]
    async fn a_frame_beyond_the_limit_is_refused_by_name() {
        let config = Transport { max_frame_bytes: 1000, ..Transport::default() };
        let pair = Pair::new(&config).await;
        let (dialled, accepted) = pair.connect(Purpose::Data).await;
        let mut sending = open_frames(&dialled, STAGE).await.unwrap();
        let (_, mut receiving) = accept_frames(&accepted).await.unwrap();
        let error = sending.send(&frame(0, 4000)).await.unwrap_err();
        assert!(matches!(error, TransportError::Frame(FrameError::TooLong { max: 1000, .. })));
        // Nothing of it has left: the link is as good as before.
        sending.send(&frame(1, 10)).await.unwrap();
        assert_eq!(receiving.recv().await.unwrap().unwrap().frame, frame(1, 10));
        sending.unsent = frame(2, 4000).encode();
        sending.flush().await.unwrap();
        let error = receiving.recv().await.unwrap_err();
        assert!(matches!(error, TransportError::Frame(FrameError::TooLong { max: 1000, .. })));
        assert!(receiving.buffer.capacity() < 1000, "no memory was taken");
    }

    #[tokio::test]
    async fn garbage_on_a_link_is_refused() {
        let config = Transport { connect_timeout_ms: 500, ..Transport::default() };
        let pair = Pair::new(&config).await;
        let (dialled, accepted) = pair.connect(Purpose::Data).await;
        let mut stream = dialled.connection.open_uni().await.unwrap();
        stream.write_all(&u32::MAX.to_le_bytes()).await.unwrap();
        assert!(matches!(accept_frames(&accepted).await, Err(TransportError::TooLong(_))));

        let mut silent = dialled.connection.open_uni().await.unwrap();
        silent.write_all(&[0]).await.unwrap();
        assert!(matches!(accept_frames(&accepted).await, Err(TransportError::Silent(500))));

        let mut stream = dialled.connection.open_uni().await.unwrap();
        write_message(&mut stream, &STAGE).await.unwrap();
        stream.write_all(&[b'x'; 64]).await.unwrap();
        let (_, mut link) = accept_frames(&accepted).await.unwrap();
        assert!(matches!(link.recv().await, Err(TransportError::Frame(FrameError::BadMagic))));

        // Half a frame, and the end.
        let mut sending = open_frames(&dialled, STAGE).await.unwrap();
        let (_, mut link) = accept_frames(&accepted).await.unwrap();
        let mut pieces = frame(0, 100).encode();
        pieces[1].truncate(399);
        sending.unsent = pieces;
        sending.flush().await.unwrap();
        drop(sending);
        let error = link.recv().await.unwrap_err();
        assert!(matches!(error, TransportError::Frame(FrameError::Truncated { .. })), "{error}");
    }

    #[tokio::test]
    async fn a_link_says_why_it_ended() {
        let pair = Pair::new(&Transport::default()).await;
        let (dialled, accepted) = pair.connect(Purpose::Data).await;
        let mut sending = open_frames(&dialled, STAGE).await.unwrap();
        let (_, mut receiving) = accept_frames(&accepted).await.unwrap();
        accepted.close("the plan has\nchanged");
        assert_eq!(dialled.closed().await, "the plan has changed");
        let error = sending.send(&frame(0, 1)).await.unwrap_err();
        assert_eq!(error.to_string(), "the connection is closed: the plan has changed");
        let error = receiving.recv().await.unwrap_err();
        assert_eq!(error.to_string(), "the connection is closed: closed by this side");
    }
}
