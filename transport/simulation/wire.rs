//! quinn's socket over the simulated network, which loses, repeats and cuts packets as a seed says.

use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use futures::FutureExt;
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use turmoil::net::UdpSocket;

use super::scenario::Weather;

thread_local! {
    /// What becomes of packets in the simulation that runs on this thread.
    static SKY: RefCell<Option<(Weather, StdRng)>> = const { RefCell::new(None) };
}

/// From now on packets of this thread's simulation fare so.
pub(super) fn set_weather(weather: Weather, seed: u64) {
    SKY.set(Some((weather, StdRng::seed_from_u64(seed))));
}

/// What an endpoint draws from, in a simulation: which packet numbers it skips, and so on.
pub(crate) fn chance() -> Option<[u8; 32]> {
    let drawn = || SKY.with_borrow_mut(|sky| sky.as_mut().map(|(_, rng)| rng.random()));
    turmoil::in_simulation().then(drawn).flatten()
}

/// A socket of the host that is running, which has one address.
pub(crate) fn bind(addr: SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>> {
    let bound = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, addr.port()))
        .now_or_never()
        .expect("the simulated network is at hand");
    Ok(Arc::new(Socket { socket: Arc::new(bound?), next: Mutex::default() }))
}

type Packet = (Vec<u8>, SocketAddr);
type Next = Pin<Box<dyn Future<Output = io::Result<Packet>> + Send>>;

struct Socket {
    socket: Arc<UdpSocket>,
    // Kept between two polls: it holds the place in the queue of who is woken.
    next: Mutex<Option<Next>>,
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.socket.fmt(f)
    }
}

async fn next(socket: Arc<UdpSocket>) -> io::Result<Packet> {
    let mut bytes = vec![0; 1 << 16];
    let (num_bytes, from) = socket.recv_from(&mut bytes).await?;
    bytes.truncate(num_bytes);
    Ok((bytes, from))
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let num_copies = SKY.with_borrow_mut(|sky| {
            let Some((weather, rng)) = sky else { return 1 };
            match () {
                () if transmit.contents.len() > weather.max_packet_bytes => 0,
                () if rng.random_bool(weather.loss) => 0,
                () if rng.random_bool(weather.repeats) => 2,
                () => 1,
            }
        });
        for _ in 0..num_copies {
            // There is nobody at an address of no host: to the sender that looks like a loss.
            let _ = self.socket.try_send_to(transmit.contents, transmit.destination);
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut kept = self.next.lock().expect("nobody panics with it");
        let waiting = kept.get_or_insert_with(|| Box::pin(next(Arc::clone(&self.socket))));
        let received = ready!(waiting.as_mut().poll(context));
        *kept = None;
        let (bytes, addr) = received?;
        let len = bytes.len().min(buffers[0].len());
        buffers[0][..len].copy_from_slice(&bytes[..len]);
        meta[0] = RecvMeta { addr, len, stride: len, ecn: None, dst_ip: None };
        Poll::Ready(Ok(1))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// As production's: packets grow to what the path takes.
    fn may_fragment(&self) -> bool {
        false
    }
}

#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
