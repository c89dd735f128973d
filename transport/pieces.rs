//! Bulk on data connections: whoever needs a piece of a model opens a stream and asks, the answer
//! comes on the same stream, behind everything else that the connection carries.

use std::sync::Arc;
use std::time::Duration;

use bincode::{Decode, Encode};
use bytes::Bytes;
use protocol::Ask;

use crate::connection::Connection;
use crate::error::TransportError;
use crate::frames::{read_message, write_message};

/// Frames have priority 0: they leave first.
const PRIORITY: i32 = -1;

/// Memory that the promise of an answer is worth. The rest is taken as its bytes arrive.
const MAX_TRUSTED_BYTES: usize = 1 << 20;

/// Longest reason why there is no answer.
const MAX_CAUSE_CHARS: usize = 1000;

/// Comes before the bytes that were asked for.
#[derive(Debug, Encode, Decode)]
enum Answer {
    Bytes(u64),
    None(String),
}

/// What a process gives others of a model.
pub trait PieceSource: Send + Sync + 'static {
    /// The bytes, or why there are none.
    fn give(&self, ask: Ask) -> impl Future<Output = Result<Bytes, String>> + Send;
}

/// Asks the other side, which may send up to `max_bytes`.
///
/// # Errors
/// When it has no answer, takes too long, or breaks the protocol.
pub async fn ask(
    connection: &Connection,
    ask: &Ask,
    max_bytes: usize,
) -> Result<Vec<u8>, TransportError> {
    let spoken = connection.wire_version();
    if ask.since() > spoken {
        return Err(TransportError::NotGiven(format!("it speaks wire version {spoken}")));
    }
    let asked = async {
        let (mut sender, mut receiver) = connection.connection.open_bi().await?;
        sender.set_priority(PRIORITY).ok();
        write_message(&mut sender, ask).await?;
        let length = match read_message(&mut receiver).await? {
            Answer::None(cause) => return Err(TransportError::NotGiven(cause)),
            Answer::Bytes(length) if length > max_bytes as u64 => {
                return Err(TransportError::TooLong(length as usize));
            }
            Answer::Bytes(length) => length as usize,
        };
        let mut bytes = Vec::with_capacity(length.min(MAX_TRUSTED_BYTES));
        while bytes.len() < length {
            match receiver.read_chunk(length - bytes.len(), true).await? {
                Some(chunk) => bytes.extend_from_slice(&chunk.bytes),
                None => return Err(TransportError::Closed("the answer is cut off".into())),
            }
        }
        Ok(bytes)
    };
    within(connection, ask, asked).await
}

/// Answers what the other side asks until the connection closes. How many answers are under way
/// at once is bounded by the streams that the connection allows.
pub async fn serve_pieces(connection: Connection, source: Arc<impl PieceSource>) {
    while let Ok((sender, receiver)) = connection.connection.accept_bi().await {
        let (connection, source) = (connection.clone(), Arc::clone(&source));
        tokio::spawn(async move {
            if let Err(cause) = answer(&connection, sender, receiver, &*source).await {
                tracing::debug!(peer = %connection.peer(), %cause, "a piece is not sent");
            }
        });
    }
}

async fn answer(
    connection: &Connection,
    mut sender: quinn::SendStream,
    mut receiver: quinn::RecvStream,
    source: &impl PieceSource,
) -> Result<(), TransportError> {
    let asked = connection.limits.greeting(read_message(&mut receiver)).await?;
    sender.set_priority(PRIORITY).ok();
    let answered = async {
        let given = tokio::select! {
            given = source.give(asked) => given,
            // Whoever asked doesn't wait for it any more.
            _ = sender.stopped() => return Ok(()),
        };
        match given {
            Ok(bytes) => {
                write_message(&mut sender, &Answer::Bytes(bytes.len() as u64)).await?;
                sender.write_chunk(bytes).await?;
            }
            Err(cause) => {
                let cause = cause.chars().take(MAX_CAUSE_CHARS).collect();
                write_message(&mut sender, &Answer::None(cause)).await?;
            }
        }
        let _ = sender.finish();
        // What it holds counts until it is there.
        let _ = sender.stopped().await;
        Ok(())
    };
    within(connection, &asked, answered).await
}

/// A manifest may take longer: at first the model's files are to be hashed, however large they are.
/// Who loads a model has a limit for all of it.
async fn within<T>(
    connection: &Connection,
    ask: &Ask,
    what: impl Future<Output = Result<T, TransportError>>,
) -> Result<T, TransportError> {
    if let Ask::Manifest(_) = ask {
        return what.await;
    }
    let timeout_ms = connection.limits.piece_timeout_ms;
    tokio::time::timeout(Duration::from_millis(timeout_ms), what)
        .await
        .unwrap_or(Err(TransportError::Slow(timeout_ms)))
}

#[cfg(test)]
mod tests {
    use protocol::config::Transport;
    use protocol::{Digest, ModelId, PieceId};

    use super::*;
    use crate::endpoint::Purpose;
    use crate::tests::Pair;

    struct Source;

    impl PieceSource for Source {
        async fn give(&self, ask: Ask) -> Result<Bytes, String> {
            match ask {
                Ask::Piece(_, PieceId { index, .. }, _) => Ok(vec![7; index as usize].into()),
                Ask::Manifest(_) | Ask::Held(_) => Err("not here".repeat(1000)),
            }
        }
    }

    fn piece(index: u32) -> Ask {
        Ask::Piece(ModelId::default(), PieceId { file: 0, index }, Digest::default())
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn either_side_asks_and_gets_no_more_than_it_allows() {
        let pair = Pair::new(&Transport { max_pieces: 2, ..Transport::default() }).await;
        let (dialled, accepted) = pair.connect(Purpose::Data).await;
        for (asking, answering) in [(&dialled, &accepted), (&accepted, &dialled)] {
            let serving = tokio::spawn(serve_pieces(answering.clone(), Arc::new(Source)));
            // More than there are streams: the rest waits.
            let sizes = [0_u32, 1, 3_000_000, 100, 5_000_000];
            let asked = sizes.map(piece);
            let asked = asked.iter().map(|it| ask(asking, it, 5_000_000));
            for (got, size) in futures::future::join_all(asked).await.iter().zip(sizes) {
                assert_eq!(got.as_ref().unwrap().len(), size as usize);
            }
            let long = ask(asking, &piece(11), 10).await.unwrap_err();
            assert!(matches!(long, TransportError::TooLong(11)), "{long}");
            let none = ask(asking, &Ask::Manifest(ModelId::default()), 10).await.unwrap_err();
            assert!(none.to_string().contains("not here"), "{none}");
            serving.abort();
        }
    }

    /// Hashes the model for longer than a piece may take, or for ever.
    struct Hashing;

    impl PieceSource for Hashing {
        async fn give(&self, ask: Ask) -> Result<Bytes, String> {
            if ask == Ask::Manifest(ModelId([1; 16])) {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
            Ok(Bytes::from_static(b"hashed"))
        }
    }

    /// Goal: the first load of a large model goes on when the model is hashed, and one that was
    /// given up before holds nothing up. Method: a place for one answer at a time.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_manifest_is_waited_for_as_long_as_somebody_wants_it() {
        let config = Transport { piece_timeout_ms: 100, max_pieces: 1, ..Transport::default() };
        let pair = Pair::new(&config).await;
        let (dialled, accepted) = pair.connect(Purpose::Data).await;
        tokio::spawn(serve_pieces(accepted, Arc::new(Hashing)));
        // Either end's patience may be the first at its end.
        ask(&dialled, &piece(1), 10).await.unwrap_err();
        let within = async |milliseconds, model| {
            let limit = Duration::from_millis(milliseconds);
            tokio::time::timeout(limit, ask(&dialled, &Ask::Manifest(model), 10)).await.ok()
        };
        assert!(within(200, ModelId([1; 16])).await.is_none());
        let hashed = within(60_000, ModelId::default()).await.expect("it is waited for");
        assert_eq!(hashed.unwrap(), b"hashed");
    }

    #[tokio::test]
    async fn who_does_not_answer_is_not_waited_for() {
        let config = Transport { piece_timeout_ms: 100, ..Transport::default() };
        let pair = Pair::new(&config).await;
        let (dialled, _accepted) = pair.connect(Purpose::Data).await;
        // Either end's patience may be the first at its end.
        ask(&dialled, &piece(1), 10).await.unwrap_err();
    }
}
