//! A socket that is looked at from outside of the protocol that runs on it: a client that has
//! closed its half may still read, and one that has gone looks the same until something is sent.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

/// How often a client that has closed its half is looked after.
const LOOK: Duration = Duration::from_millis(200);

/// An answer that says that the answer is to come; clients pass over it.
const PROCESSING: &[u8] = b"HTTP/1.1 102 Processing\r\n\r\n";

/// Clones are the same socket.
#[derive(Clone)]
pub(super) struct Socket(Arc<TcpStream>);

/// Its two directions, for the protocol. A client that reads nothing for too long while something
/// is to be sent counts as gone.
pub(super) struct Directions {
    socket: Socket,
    send_timeout: Duration,
    // Since it doesn't take what is sent.
    unread: Option<Pin<Box<Sleep>>>,
}

impl Socket {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self(Arc::new(stream))
    }

    pub(super) fn directions(&self, send_timeout: Duration) -> Directions {
        Directions { socket: self.clone(), send_timeout, unread: None }
    }

    /// Resolves when the client is gone altogether, while an answer to it has not begun: in its
    /// place something may be said that makes a client that is gone refuse it. Whoever only closed
    /// its half passes over it.
    pub(super) async fn gone(&self) {
        self.ended().await;
        // Most answers come sooner.
        tokio::time::sleep(LOOK).await;
        // Small enough for any buffer; where it fails, the client is gone.
        if self.0.try_write(PROCESSING).is_ok() {
            self.refused().await;
        }
    }

    /// Says that nothing more is sent, and passes over what still comes: at most so many bytes.
    pub(super) async fn drain(&self, max_bytes: usize) {
        let _ = socket2::SockRef::from(&*self.0).shutdown(std::net::Shutdown::Write);
        let (mut buffer, mut num_bytes) = ([0; 16 << 10], 0);
        while num_bytes <= max_bytes && self.0.readable().await.is_ok() {
            match self.0.try_read(&mut buffer) {
                Ok(0) => return,
                Ok(read) => num_bytes += read,
                Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    }

    /// [`ended`](Self::ended), to be kept.
    pub(super) fn watch_end(&self) -> BoxFuture<'static, ()> {
        let socket = self.clone();
        async move { socket.ended().await }.boxed()
    }

    /// [`refused`](Self::refused), to be kept.
    pub(super) fn watch_refusal(&self) -> BoxFuture<'static, ()> {
        let socket = self.clone();
        async move { socket.refused().await }.boxed()
    }

    /// Resolves when the client sends nothing more: it has closed its half, or is gone.
    pub(super) async fn ended(&self) {
        // What it still sends is left for whoever reads it.
        while !matches!(self.0.peek(&mut [0]).await, Ok(0) | Err(_)) {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Resolves when the client has refused what was sent: it is gone.
    pub(super) async fn refused(&self) {
        while matches!(self.0.take_error(), Ok(None)) {
            tokio::time::sleep(LOOK).await;
        }
    }
}

impl AsyncRead for Directions {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.socket.0.poll_read_ready(context))?;
            // Not initialized first: readers have large buffers for small requests.
            match self.socket.0.try_read_buf(buffer) {
                Ok(_) => return Poll::Ready(Ok(())),
                Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => {}
                Err(cause) => return Poll::Ready(Err(cause)),
            }
        }
    }
}

impl AsyncWrite for Directions {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            if self.socket.0.poll_write_ready(context)?.is_pending() {
                let send_timeout = self.send_timeout;
                let unread = || Box::pin(tokio::time::sleep(send_timeout));
                ready!(self.unread.get_or_insert_with(unread).as_mut().poll(context));
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            match self.socket.0.try_write_vectored(slices) {
                Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => {}
                written => {
                    self.unread = None;
                    return Poll::Ready(written);
                }
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = socket2::SockRef::from(&*self.socket.0).shutdown(std::net::Shutdown::Write);
        Poll::Ready(match shut {
            // The client was faster.
            Err(cause) if cause.kind() == io::ErrorKind::NotConnected => Ok(()),
            shut => shut,
        })
    }
}
