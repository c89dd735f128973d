//! What a way is like: its round trip, as QUIC measures it, and its bandwidth, by some bytes that
//! the other side reads and throws away.

use std::time::{Duration, Instant};

use protocol::{Epoch, LinkSpeed, PipelineId, StageId, StageIndex};

use crate::connection::Connection;
use crate::error::TransportError;
use crate::frames::write_message;

/// Whoever opens a stream for this stage, of which there is none, measures.
const PROBE: StageId = StageId {
    pipeline: PipelineId(u32::MAX),
    epoch: Epoch { start: u64::MAX, counter: u64::MAX },
    stage: StageIndex(u32::MAX),
};

/// Frames have priority 0, pieces of models -1.
const PRIORITY: i32 = -2;

/// Bytes of one write.
static CHUNK: [u8; 64 << 10] = [0; 64 << 10];

/// More than anybody sends to measure.
const MAX_BYTES: usize = 1 << 30;

/// The share of the bytes that goes before the clock runs: a connection begins slowly.
const WARM_UP: usize = 4;

/// Whether a stream that begins so brings nothing but bytes to be counted.
pub(crate) fn is_probe(stage: StageId) -> bool {
    stage == PROBE
}

/// Reads what comes, and lets it go.
pub(crate) async fn drain(mut stream: quinn::RecvStream) {
    let mut left = MAX_BYTES;
    while left > 0
        && let Ok(Some(chunk)) = stream.read_chunk(left, false).await
    {
        left -= chunk.bytes.len();
    }
}

impl Connection {
    /// Measures the way to the other side with so many bytes, for no longer than `timeout`.
    ///
    /// # Errors
    /// When the connection ends, or takes longer.
    pub async fn measure(
        &self,
        num_bytes: usize,
        timeout: Duration,
    ) -> Result<LinkSpeed, TransportError> {
        // These bytes make a queue where the way is narrow: what its round trip is later isn't the
        // way's own.
        let rtt = self.rtt();
        let measured = async {
            self.carry(num_bytes / WARM_UP).await?;
            let took = self.carry(num_bytes).await?;
            let rtt = rtt.min(self.rtt());
            // Its last byte's word that it is there comes half a round trip late.
            let seconds = took.saturating_sub(rtt / 2).max(took / 2).as_secs_f64();
            Ok(LinkSpeed {
                rtt_us: rtt.as_secs_f64() * 1e6,
                bytes_per_s: num_bytes as f64 / seconds.max(1e-9),
            })
        };
        let millis = timeout.as_millis() as u64;
        let measured = tokio::time::timeout(timeout, measured).await;
        measured.unwrap_or(Err(TransportError::Silent(millis)))
    }

    /// As [`measure`](Self::measure); where the time doesn't do, the way is no faster than that.
    ///
    /// # Errors
    /// When the connection ends.
    pub async fn probe(
        &self,
        num_bytes: usize,
        timeout: Duration,
    ) -> Result<LinkSpeed, TransportError> {
        match self.measure(num_bytes, timeout).await {
            Err(TransportError::Silent(_)) => Ok(LinkSpeed {
                rtt_us: self.rtt().as_secs_f64() * 1e6,
                bytes_per_s: num_bytes as f64 / timeout.as_secs_f64(),
            }),
            measured => measured,
        }
    }

    /// How long so many bytes take until the other side has all of them.
    async fn carry(&self, num_bytes: usize) -> Result<Duration, TransportError> {
        let mut stream = self.connection.open_uni().await?;
        // Whatever has work to do goes first.
        stream.set_priority(PRIORITY).ok();
        write_message(&mut stream, &PROBE).await?;
        let began = Instant::now();
        let mut left = num_bytes;
        while left > 0 {
            let chunk = left.min(CHUNK.len());
            stream.write_chunk(bytes::Bytes::from_static(&CHUNK).slice(..chunk)).await?;
            left -= chunk;
        }
        let _ = stream.finish();
        match stream.stopped().await {
            Ok(None) => Ok(began.elapsed()),
            Ok(Some(_)) => Err(TransportError::Closed("the other side doesn't measure".into())),
            Err(cause) => Err(TransportError::Closed(cause.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use protocol::config::Transport;

    use super::*;
    use crate::endpoint::Purpose;
    use crate::tests::Pair;
    use crate::{accept_frames, open_frames};

    /// Goal: a way is measured while links are opened on it. Method: both ways of one connection,
    /// with a link behind the bytes, and more bytes than the window holds.
    #[tokio::test]
    async fn a_way_is_measured_and_links_are_accepted_meanwhile() {
        let config = Transport { data_window_bytes: 64 << 10, ..Transport::default() };
        let pair = Pair::new(&config).await;
        let (dialled, accepted) = pair.connect(Purpose::Data).await;
        for (from, to) in [(&dialled, &accepted), (&accepted, &dialled)] {
            let stage = StageId::default();
            let measure = async {
                let speed = from.measure(1 << 20, Duration::from_secs(60)).await.unwrap();
                assert!(speed.rtt_us > 0.0 && speed.bytes_per_s > 1e4, "{speed:?}");
                open_frames(from, stage).await.unwrap()
            };
            let (_link, accepted) = tokio::join!(measure, accept_frames(to));
            assert_eq!(accepted.unwrap().0, stage);
        }
        // Nobody reads: it takes no longer than it may.
        let cut = dialled.measure(1 << 20, Duration::from_millis(50)).await;
        assert!(matches!(cut, Err(TransportError::Silent(50))), "{cut:?}");
        let slow = dialled.probe(1 << 20, Duration::from_millis(50)).await.unwrap();
        assert_eq!(slow.bytes_per_s, f64::from(1 << 20) / 0.05);
    }
}
