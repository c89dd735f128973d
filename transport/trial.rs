//! A trial: a node that isn't to join yet goes to the coordinator, proves its token, and hears
//! whether it would be let in. None of the token's uses is taken. Then the node measures the link:
//! it sends bytes and asks for bytes, twice as many each time, until they take a while.

use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use protocol::config::Transport;
use protocol::{NodeId, WIRE_VERSION};

use crate::certs::NodeKey;
use crate::error::{JoinError, TransportError};
use crate::join::Joining;
use crate::token::Token;

/// Bytes of the first round, and of the last.
const FIRST_ROUND: u32 = 64 << 10;
const LAST_ROUND: u32 = 8 << 20;

/// A round that took so long beyond the round trip says enough of the link.
const LONG_ROUND: Duration = Duration::from_millis(150);

/// As many rounds as there are from the first to the last, each way, and one to spare.
const MAX_ROUNDS: usize = 17;

const ZEROS: &[u8] = &[0; 16 << 10];

/// What a node heard that passed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Trial {
    /// By how much this machine's clock is ahead of the coordinator's, in milliseconds.
    pub clock_ahead_ms: i64,
    /// The round trip, as QUIC measures it.
    pub rtt: Duration,
    /// Bytes a second to the coordinator.
    pub upload: f64,
    /// Bytes a second from there.
    pub download: f64,
}

/// Goes to the coordinator of `token` as `node`.
///
/// # Errors
/// When it can't be reached, or would refuse.
pub(crate) async fn undergo(
    addr: SocketAddr,
    node: NodeId,
    token: &Token,
    config: &Transport,
) -> Result<Trial, JoinError> {
    let key = NodeKey::new()?;
    let newest = WIRE_VERSION;
    let joining = Joining { coordinator: addr, node, key: &key, pool: "", config, newest };
    let mut passed = joining.on_trial(token).await?;
    // It said so half a round trip ago.
    let since = i64::try_from(passed.connection.rtt().as_millis() / 2).unwrap_or(0);
    let clock_ahead_ms = unix_ms() - since - passed.unix_ms;
    let measured = async {
        let upload = passed.measure(|num_bytes| [num_bytes, 1]).await?;
        let download = passed.measure(|num_bytes| [1, num_bytes]).await?;
        Ok::<_, TransportError>([upload, download])
    };
    let limit = Duration::from_millis(config.connect_timeout_ms);
    let measured = tokio::time::timeout(limit, measured).await;
    let [upload, download] = measured.map_err(|_| TransportError::Dial {
        addr,
        cause: format!("it took more than {} ms to measure the link", limit.as_millis()),
    })??;
    let rtt = passed.connection.rtt();
    passed.endpoint.close("measured").await;
    Ok(Trial { clock_ahead_ms, rtt, upload, download })
}

/// A connection to a coordinator that would let this node in.
pub(crate) struct Passed {
    pub(crate) endpoint: crate::Endpoint,
    pub(crate) connection: quinn::Connection,
    pub(crate) send: quinn::SendStream,
    pub(crate) receive: quinn::RecvStream,
    /// The coordinator's clock.
    pub(crate) unix_ms: i64,
}

impl Passed {
    /// Bytes a second, in rounds of so many bytes there and back.
    async fn measure(&mut self, sizes: impl Fn(u32) -> [u32; 2]) -> Result<f64, TransportError> {
        let mut num_bytes = FIRST_ROUND;
        loop {
            let begin = Instant::now();
            let [there, back] = sizes(num_bytes);
            self.send.write_all(&there.to_le_bytes()).await?;
            self.send.write_all(&back.to_le_bytes()).await?;
            pour(&mut self.send, there).await?;
            swallow(&mut self.receive, back).await?;
            let took = begin.elapsed().saturating_sub(self.connection.rtt());
            if took > LONG_ROUND || num_bytes >= LAST_ROUND {
                return Ok(f64::from(num_bytes) / took.as_secs_f64().max(1e-6));
            }
            num_bytes *= 2;
        }
    }
}

/// The coordinator's side: takes and gives what is asked for until that ends. Whoever asks has
/// proven a token; it gets no more rounds than it needs, and whoever calls has a limit.
pub(crate) async fn serve(
    send: &mut quinn::SendStream,
    receive: &mut quinn::RecvStream,
) -> Result<(), TransportError> {
    for _ in 0..MAX_ROUNDS {
        let mut sizes = [0; 8];
        if receive.read_exact(&mut sizes).await.is_err() {
            // It has measured enough.
            return Ok(());
        }
        let [there, back] = [&sizes[..4], &sizes[4..]]
            .map(|size| u32::from_le_bytes(*size.first_chunk().expect("four bytes")));
        if there.max(back) > LAST_ROUND {
            return Err(TransportError::TooLong(there.max(back) as usize));
        }
        swallow(receive, there).await?;
        pour(send, back).await?;
    }
    Ok(())
}

async fn pour(send: &mut quinn::SendStream, num_bytes: u32) -> Result<(), TransportError> {
    let mut left = num_bytes as usize;
    while left > 0 {
        left -= send.write(&ZEROS[..left.min(ZEROS.len())]).await?;
    }
    Ok(())
}

async fn swallow(receive: &mut quinn::RecvStream, num_bytes: u32) -> Result<(), TransportError> {
    let mut left = num_bytes as usize;
    while left > 0 {
        match receive.read_chunk(left, true).await? {
            Some(chunk) => left -= chunk.bytes.len(),
            None => return Err(TransportError::Closed("the stream ended early".into())),
        }
    }
    Ok(())
}

/// What this machine's clock says.
pub(crate) fn unix_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
