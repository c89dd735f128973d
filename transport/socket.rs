//! What QUIC's driver stands on: tokio, with a socket and timers that wake it for less.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use quinn::udp::{RecvMeta, Transmit, UdpSocketState};
use quinn::{AsyncTimer, AsyncUdpSocket, Runtime, UdpPoller};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tracing::debug;

use crate::ticks::Timer;

/// Where connections and their timers live.
#[derive(Debug)]
pub(crate) struct Tokio;

impl Runtime for Tokio {
    fn new_timer(&self, deadline: Instant) -> Pin<Box<dyn AsyncTimer>> {
        Box::pin(Timer::new(deadline.into()))
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        tokio::spawn(future);
    }

    fn wrap_udp_socket(&self, socket: UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        Ok(Arc::new(Socket::new(socket)?))
    }

    fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }
}

/// A socket that wakes its process for what comes. That there is room again for what goes is
/// true after every packet, and of interest only to who found none.
#[derive(Debug)]
pub(crate) struct Socket {
    state: UdpSocketState,
    socket: AsyncFd<UdpSocket>,
    // Whether there was no room for what was sent last.
    is_full: AtomicBool,
}

impl Socket {
    /// # Errors
    /// When the system doesn't allow it.
    pub(crate) fn new(socket: UdpSocket) -> io::Result<Self> {
        let state = UdpSocketState::new((&socket).into())?;
        let socket = listening(socket, Interest::READABLE)?;
        Ok(Self { state, socket, is_full: AtomicBool::new(false) })
    }
}

#[expect(
    deprecated,
    reason = "what takes its place is unsafe, for sake of handles that close what they don't own"
)]
fn listening(socket: UdpSocket, interest: Interest) -> io::Result<AsyncFd<UdpSocket>> {
    AsyncFd::with_interest(socket, interest)
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Room { socket: self, awaited: None })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let sent = self.state.send(self.socket.get_ref().into(), transmit);
        if let Err(cause) = &sent
            && cause.kind() == io::ErrorKind::WouldBlock
        {
            self.is_full.store(true, Relaxed);
        }
        sent
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let max = buffers.len().min(quinn::udp::BATCH_SIZE);
        loop {
            let mut ready = ready!(self.socket.poll_read_ready(context))?;
            match self.state.recv(self.socket.get_ref().into(), buffers, meta) {
                Ok(num) => {
                    // Fewer than there is room for are all: the next one is told anew, and there
                    // is no need to ask and be told that there is none.
                    if num < max {
                        ready.clear_ready();
                    }
                    return Poll::Ready(Ok(num));
                }
                Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                // Reading it has cleared it; handed on, it would end every connection.
                Err(cause) => {
                    debug!(%cause, "a socket can't be read now");
                    context.waker().wake_by_ref();
                    return Poll::Pending;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.get_ref().local_addr()
    }

    fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }

    fn max_transmit_segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.state.gro_segments()
    }
}

/// Somebody who sends, and waits while there is no room in the socket.
struct Room {
    socket: Arc<Socket>,
    // A handle of its own meanwhile, since the socket's listens to what comes only.
    awaited: Option<AsyncFd<UdpSocket>>,
}

impl fmt::Debug for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Room").finish_non_exhaustive()
    }
}

impl UdpPoller for Room {
    fn poll_writable(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.awaited.is_none() {
            if !self.socket.is_full.load(Relaxed) {
                return Poll::Ready(Ok(()));
            }
            let handle = self.socket.socket.get_ref().try_clone();
            match handle.and_then(|handle| listening(handle, Interest::WRITABLE)) {
                Ok(awaited) => self.awaited = Some(awaited),
                // A process that has as many files open as it may: an error here would leave the
                // connection without anybody who moves it, so this is tried until there is room.
                Err(_) => {
                    context.waker().wake_by_ref();
                    return Poll::Pending;
                }
            }
        }
        let awaited = self.awaited.as_ref().expect("just made");
        ready!(awaited.poll_write_ready(context))?.retain_ready();
        self.awaited = None;
        self.socket.is_full.store(false, Relaxed);
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::loopback;

    fn pair() -> (Arc<Socket>, Arc<Socket>) {
        let bound = || {
            let socket = UdpSocket::bind(loopback()).unwrap();
            socket.set_nonblocking(true).unwrap();
            Arc::new(Socket::new(socket).unwrap())
        };
        (bound(), bound())
    }

    fn packet(to: SocketAddr, contents: &[u8]) -> Transmit<'_> {
        Transmit { destination: to, ecn: None, contents, segment_size: None, src_ip: None }
    }

    async fn receive(socket: &Socket) -> Vec<u8> {
        let (mut bytes, mut meta) = ([0; 100], [RecvMeta::default()]);
        let num = std::future::poll_fn(|context| {
            socket.poll_recv(context, &mut [IoSliceMut::new(&mut bytes)], &mut meta)
        });
        assert_eq!(num.await.unwrap(), 1);
        bytes[..meta[0].len].to_vec()
    }

    /// Goal: no packet is left lying, whether it comes before or after somebody waits, alone or
    /// with others, though nobody asks twice.
    #[tokio::test]
    async fn whatever_comes_is_received() {
        let (here, there) = pair();
        let to = there.local_addr().unwrap();
        for round in 0..200u8 {
            for copy in 0..=(round % 3) {
                here.try_send(&packet(to, &[round, copy])).unwrap();
            }
            for copy in 0..=(round % 3) {
                assert_eq!(receive(&there).await, [round, copy]);
            }
            let waits = receive(&there);
            let later = async {
                tokio::task::yield_now().await;
                here.try_send(&packet(to, &[round])).unwrap();
            };
            let (received, ()) = tokio::join!(waits, later);
            assert_eq!(received, [round]);
        }
    }

    #[tokio::test]
    async fn whoever_waits_for_room_hears_of_it_again_and_again() {
        let (here, _there) = pair();
        let mut room = Arc::clone(&here).create_io_poller();
        for _ in 0..3 {
            here.is_full.store(true, Relaxed);
            std::future::poll_fn(|context| room.as_mut().poll_writable(context)).await.unwrap();
            assert!(!here.is_full.load(Relaxed));
        }
    }
}
